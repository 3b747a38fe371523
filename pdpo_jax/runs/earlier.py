"""The run that another one starts from: more choices, or more people.

With `train.start_from`, a training begins with the LoRA weights and the users
that an earlier run ended with, and users who are new come after those in the
table. What the earlier run was trained on is never held out here
(`data/held_out.py`).
"""

import dataclasses
import json
import logging
import os
import pathlib

from pdpo_jax.core import kept, sections
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out as held_out_lib
from pdpo_jax.data import users as users_lib
from pdpo_jax.runs import answers, run_folder
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import checkpoint, checkpoint_meta, policies
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

_FIELD = "train.start_from"
# What must be as it was, for weights and prompts to mean what they meant.
_SAME = (
  "user.kind",
  "user.num_tokens",
  "user.num_clusters",
  "user.weights",
  "user.prefix_position",
  "lora.targets",
  "lora.rank",
  "lora.alpha",
  "data.template",
  "data.add_bos",
)


def resolve(config: config_lib.Config) -> config_lib.Config:
  """The config with whole paths, and the earlier run's base if it names none.

  A run that is done needs the earlier one no more, but a base that it trained.

  Raises:
    ValueError: if that run is not there, was not trained to its end, or differs
      in what must be the same.
  """
  if config.start is None:
    return config
  start, folder = (
    pathlib.Path(os.path.abspath(path))
    for path in (config.start, config.folder)
  )
  if start == folder:
    raise ValueError(
      f"{_FIELD} {str(start)!r} is this run's own folder; choose another "
      "--config.workdir or --config.name"
    )
  done = run_folder.is_done(folder, config)
  if done:
    done = run_folder.read_config(folder).train.start_from == str(start)
  source = folder if done else start
  before = run_folder.read_config(source, _FIELD)
  if not done:
    _check(config, before, start)
  train = dataclasses.replace(config.train, start_from=str(start))
  config = dataclasses.replace(config, train=train)
  if config.base.path:
    return config
  path = run_folder.base_path(before, source)
  if pathlib.Path(path).exists():
    path = os.path.abspath(path)
  types = before.base.dtype, before.base.param_dtype
  base = dataclasses.replace(
    config.base, path=path, dtype=types[0], param_dtype=types[1]
  )
  return dataclasses.replace(config, base=base)


def _check(
  config: config_lib.Config, before: config_lib.Config, start: pathlib.Path
) -> None:
  """Checks that a training can start from another run's."""
  # Written once all is trained.
  answers.read(start / run_folder.ANSWERS)
  run_folder.read_held_out(start)
  there, here = (
    sections.flatten(json.loads(each.to_json())) for each in (before, config)
  )
  differences = [
    f"{name} is {there[name]!r} there and {here[name]!r} here"
    for name in _SAME
    if there[name] != here[name]
  ]
  if differences:
    raise ValueError(
      f"{_FIELD} {str(start)!r} is another policy: {'; '.join(differences)}. "
      "Use what it was trained with"
    )
  for name in config.trainings:
    if not (start / name / "checkpoints").is_dir():
      raise ValueError(
        f"{_FIELD} {str(start)!r} has no {name}/checkpoints for {name} to "
        "start from; put them back, or name another run"
        + ", or do without (--config.vanilla=False)"
        * (name == config_lib.VANILLA)
      )


def held_out(
  config: config_lib.Config, folder: pathlib.Path | None
) -> held_out_lib.Record | None:
  """What the earlier run was trained on, and held out, if there is one.

  Args:
    folder: of this run, if there is one yet. One that is done has it all.
  """
  if config.start is None:
    return None
  if folder is not None and run_folder.is_done(folder, config):
    try:
      return run_folder.read_held_out(folder)
    except kept.Damaged as problem:
      if not (config.start / run_folder.CONFIG).is_file():
        raise
      logger.warning("%s; until then what %s has", problem, config.start)
  return run_folder.read_held_out(config.start)


def users(
  config: config_lib.Config,
  folder: pathlib.Path,
  in_data: users_lib.UserIndex,
) -> users_lib.UserIndex:
  """The rows of a run's user table: the earlier run's, then new ones.

  Args:
    folder: of the run.
    in_data: the users of the data.
  """
  if config.start is None or config.user.kind == "none":
    return in_data
  name = config.training_name
  begun = policies.is_begun(folder / name)
  place = (folder if begun else config.start) / name / "checkpoints"
  with checkpoint.Checkpoints(place) as saved:
    return saved.users().extended(in_data)


def check_base(
  config: config_lib.Config, folder: pathlib.Path, base: base_lib.Base
) -> None:
  """Checks that a run that begins is on the base of the one it starts from.

  Args:
    folder: of the run.
    base: of the run.

  Raises:
    ValueError: if it is on another.
  """
  if config.start is None or config.user.kind == "none":
    return
  name = config.training_name
  if policies.is_begun(folder / name):
    return
  place = config.start / name / "checkpoints"
  with checkpoint.Checkpoints(place) as saved:
    described = saved.described()
  there = "gone" if described is None else described[1]["base"]
  if there != base.fingerprint:
    raise ValueError(
      f"{_FIELD}: the base of {place} is {there}, and this run's is "
      f"{base.fingerprint}; leave base.path empty for the same, or name what "
      "it was trained on by base.path and base.param_dtype"
    )
  checkpoint_meta.check(described[1], base.names, place)


def user_texts(
  config: config_lib.Config,
  folder: pathlib.Path,
  dataset: dataset_lib.Dataset,
) -> dict[str, str]:
  """What users say of themselves, here or else in the earlier run's data."""
  texts = {}
  if config.start:
    there = (config.start / run_folder.CONFIG).is_file()
    if there:
      texts |= run_folder.read_user_texts(config.start)
    try:
      texts |= run_folder.read_user_texts(folder)
    except kept.Damaged as problem:
      if not there:
        raise
      logger.warning("%s; it is made again from %s", problem, config.start)
  return texts | dataset.user_texts()
