"""The run that another one starts from: more choices, or more people.

With `train.start_from`, a training begins with the LoRA weights and the users
that an earlier run ended with, and users who are new come after those in the
table. What the earlier run was trained on is never held out here.
"""

import dataclasses
import json
import pathlib

from pdpo_jax import config as config_lib
from pdpo_jax import experiment, processes, run_folder
from pdpo_jax.config import sections
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import splits
from pdpo_jax.data import users as users_lib
from pdpo_jax.evaluation import answers
from pdpo_jax.training import checkpoint

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
)


def resolve(config: config_lib.Config) -> config_lib.Config:
  """The config with the earlier run's base, where it names none itself.

  Raises:
    ValueError: if that run is not there, was not trained to its end, or differs
      in what must be the same.
  """
  if config.start is None:
    return config
  folder = config.start
  if folder.resolve() == config.folder.resolve():
    raise ValueError(
      f"train.start_from {str(folder)!r} is this run's own folder; choose "
      "another --config.workdir or --config.name"
    )
  before = processes.from_first(lambda: _read_config(folder))
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
      f"train.start_from {str(folder)!r} is another policy: "
      f"{'; '.join(differences)}. Use what it was trained with"
    )
  vanilla = folder / experiment.VANILLA / "checkpoints"
  if (
    experiment.VANILLA in experiment.trainings(config) and not vanilla.is_dir()
  ):
    raise ValueError(
      f"train.start_from {str(folder)!r} has no vanilla DPO to go on from; do "
      "without it (--config.vanilla=False)"
    )
  if config.base.path:
    return config
  path = run_folder.base_path(before, folder)
  return dataclasses.replace(
    config,
    base=dataclasses.replace(config.base, path=path),
    sft=dataclasses.replace(config.sft, path=""),
  )


def _read_config(folder: pathlib.Path) -> config_lib.Config:
  found = run_folder.read_config(folder)
  # Written once all is trained.
  answers.check_file(folder / "answers.jsonl")
  return found


def users(
  config: config_lib.Config, found: users_lib.UserIndex
) -> users_lib.UserIndex:
  """The rows of a run's user table: the earlier run's, then new ones.

  Args:
    found: the users of the data.
  """
  if config.start is None or config.user.kind == "none":
    return found
  folder = config.start / run_folder.training_name(config) / "checkpoints"
  with checkpoint.Checkpoints(folder) as saved:
    return saved.users().extended(found)


def user_texts(
  config: config_lib.Config, dataset: dataset_lib.Dataset
) -> dict[str, str]:
  """What users say of themselves, here or else in the earlier run's data."""
  before = run_folder.read_user_texts(config.start) if config.start else {}
  return before | experiment.user_texts(dataset)


def trained_on(
  config: config_lib.Config, dataset: dataset_lib.Dataset
) -> set[str]:
  """Digests of what this run and the earlier one are trained on."""
  before = run_folder.read_trained_on(config.start) if config.start else set()
  return before | set(map(splits.digest, dataset.train))
