"""Trained policies that are evaluated side by side, of one run or several."""

import logging
import pathlib
from collections.abc import Sequence

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.runs import answers, run, run_folder, trained
from pdpo_jax.runs import config as config_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)


def check(
  workdir: pathlib.Path,
  against: Sequence[pathlib.Path],
  dataset: dataset_lib.Dataset,
) -> None:
  """Checks what can be told of runs before their base is read.

  Args:
    dataset: of the run in `workdir`.

  Raises:
    ValueError: if a run is none, is not done, or is damaged; or if the data of
      the first have changed since it was trained.
  """
  run_folder.read_versions(workdir)
  for place in (workdir, *against):
    training = run.Run.open(place).own
    # Written once all is trained: half a control says nothing.
    answers.read(place / run_folder.ANSWERS)
    meta = training.described
    if place == workdir and meta["data"] != dataset.digest:
      raise ValueError(
        f"the data of {workdir} has changed since it was trained, so that "
        "what is held out now may have been trained on; put the data back, or "
        "train anew in another --config.workdir"
      )


def is_start(folder: pathlib.Path, config: config_lib.Config) -> bool:
  """Whether a config's training started from the run in `folder`."""
  return config.start is not None and folder.resolve() == config.start.resolve()


def _before(
  config: config_lib.Config, workdir: pathlib.Path, base: base_lib.Base
) -> list[trained.Trained]:
  """What a run started from, if that is still there as it was."""
  try:
    answers.read(config.start / run_folder.ANSWERS)
    start = run.Run.open(config.start, base=base).own
    start.check()
    there, here = map(run_folder.read_held_out, (config.start, workdir))
    if not there.trained <= here.trained:
      raise ValueError("it was trained again, on other data")
  except ValueError as error:
    logger.warning(
      "not compared with %s, which it started from: %s", config.start, error
    )
    return []
  start.read_for(config, workdir)
  return [start]


def open_contenders(
  workdir: pathlib.Path, against: Sequence[pathlib.Path], base: base_lib.Base
) -> list[trained.Trained]:
  """A run's own training, its vanilla one, and the other runs' own.

  The run that the first one started from, if it is still there, is one.

  Raises:
    ValueError: if one is no run folder, was not trained, or on another base.
  """
  policies = []
  first = run_folder.read_config(workdir)
  against = [each for each in against if not is_start(each, first)]
  for place in (workdir, *against):
    opened = run.Run.open(place, base=base)
    policies.append(opened.own)
    vanilla = opened.trainings.get(config_lib.VANILLA)
    if place == workdir and vanilla is not opened.own and vanilla is not None:
      policies.append(vanilla)
  for policy in policies:
    policy.check()
  if first.start:
    policies += _before(first, workdir, base)
  for policy in policies:
    if policy.control:
      policy.name += f", {policy.control}"
  names = [each.name for each in policies]
  for policy in policies:
    if names.count(policy.name) > 1:
      policy.name += f" ({policy.workdir.name})"
  names = [each.name for each in policies]
  twice = {name for name in names if names.count(name) > 1}
  if twice:
    raise ValueError(
      f"--workdir and --against name {', '.join(sorted(twice))} twice; give "
      "each run once, in a folder of its own name"
    )
  return policies
