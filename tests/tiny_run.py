"""A whole run for tests, with its base, vanilla DPO, P-DPO, a judge's verdicts.

python -m tests.tiny_run FOLDER
"""

import pathlib
import sys

from pdpo_jax import main
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.report import report
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run as run_lib
from tests import tiny


def make_config(folder: pathlib.Path, seed: int = 0) -> config_lib.Config:
  config = tiny.tiny_config(folder / "run")
  config.seed = seed
  config.cache = str(folder / "cache")
  config.sft.num_layers = config.sft.num_heads = 1
  config.sft.width, config.sft.mlp_width, config.sft.rotary_dim = 16, 16, 8
  config.sft.vocab_size, config.sft.steps, config.sft.warmup_steps = 300, 2, 1
  config.train.epochs = 1
  config.train.checkpoint_every = 2
  config.answers.max_new_tokens = 2
  config.answers.batch_size = 8
  return config


def make(folder: pathlib.Path, seed: int = 0) -> config_lib.Config:
  """Trains and judges `folder / "run"`, with its cache beside it."""
  config = make_config(folder, seed)
  main.train_and_answer(config)
  base = run_lib.read_base(config, config.folder)
  dataset = run_lib.load_dataset(config, base.tokenizer, config.folder)
  judge = judge_config.JudgeConfig(
    kind="rule", against=("base", "chosen"), num_users=1, samples_per_user=1
  )
  report.make_report(config.folder, (), base, dataset, judge)
  return config


if __name__ == "__main__":
  make(pathlib.Path(sys.argv[1]))
