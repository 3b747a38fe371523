"""The config of a run that is there, as `--config` of another one.

  python -m pdpo_jax.main --config=runs/quickstart/config.json \
    --config.workdir=runs/again
"""

import pathlib

from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run_folder


def get_config(folder: str) -> config_lib.Config:
  """What the run in `folder` was made with."""
  return run_folder.read_config(pathlib.Path(folder), "--config")
