"""Trained policies that are evaluated side by side, of one run or several."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import experiment, run_folder
from pdpo_jax.core import processes, structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import users as users_lib
from pdpo_jax.runs import answers
from pdpo_jax.runs import responses as responses_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import checkpoint, pdpo
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

# What a control run was made for; "" for a run that is none.
SHUFFLED, SWAPPED = "shuffled users", "swapped choices"
# Which samples and pairs there are hangs on these.
_LIMITS = (
  "max_prompt_tokens",
  "max_response_tokens",
  "long_response",
  "truncation",
)


class Contender:
  """One training of a run, at its newest checkpoint that can be read.

  Attributes:
    name: of what was trained, e.g. "vanilla DPO" or "P-DPO, 10 clusters".
    config: of that training; a vanilla one has no user model.
    folder: of the training, within its run's.
    workdir: of the run.
    control: `SHUFFLED`, `SWAPPED` or "".
    is_own: whether it is what its run is for, and not vanilla DPO beside it.

  Raises:
    ValueError: if there is no checkpoint, or it is of another base.
  """

  def __init__(self, workdir: pathlib.Path, training: str, base: base_lib.Base):
    whole = run_folder.read_config(workdir)
    self.config = experiment.trainings(whole).get(training, whole)
    self._trained = self.config  # also where another run's limits hold
    self.workdir = workdir
    self.is_own = training == run_folder.training_name(whole)
    self.folder = self._keeps = workdir / training
    self.name = _name(self.config)
    self._base = base
    self.control = ""
    if whole.data.shuffle_users:
      self.control = SHUFFLED
    elif whole.data.swap_choices:
      self.control = SWAPPED
    meta = _described(self.folder)
    if meta["base"] != base.fingerprint:
      raise ValueError(
        f"{self.folder} was trained on base {meta['base']}, and this is "
        f"{base.fingerprint}; only runs on the same base say anything about "
        "each other"
      )
    checkpoint.check_meta(meta, base.names, self.folder)

  @functools.cached_property
  def _loaded(self) -> pdpo.Loaded:
    return pdpo.load(self._trained, self._base, self.folder)

  @property
  def step(self) -> int:
    """Of the checkpoint."""
    return self._loaded.step

  @functools.cached_property
  def _digest(self) -> str:
    return self._loaded.policy.digest()

  @property
  def users(self) -> users_lib.UserIndex:
    return self._loaded.users

  @functools.cached_property
  def policy(self) -> policy_lib.Policy:
    return self._loaded.policy.merge()

  def row_of(self, user_id: str | None) -> int:
    """The user's row, or the generic one of whoever is unknown."""
    return self.users.row_of(user_id) if user_id in self.users else 0

  def read_for(self, run: config_lib.Config, workdir: pathlib.Path) -> None:
    """Has it evaluated on what a run holds out that started from it.

    Args:
      run: whose limits and sizes of batches hold.
      workdir: of that run; keeps what is found.
    """
    limits = {name: getattr(run.data, name) for name in _LIMITS}
    sizes = run.train.batch_size, run.train.accumulation_steps
    self.config = dataclasses.replace(
      self.config,
      cache=run.cache,
      data=dataclasses.replace(self.config.data, **limits),
      train=dataclasses.replace(
        self.config.train, batch_size=sizes[0], accumulation_steps=sizes[1]
      ),
    )
    self.name = f"before ({self.workdir.name})"
    self._keeps = workdir / run_folder.BEFORE

  def scores(
    self, dataset: dataset_lib.Dataset
  ) -> dict[str, scores_lib.Scores]:
    """Scores of held-out pairs by part: kept ones, or made now and kept."""
    files = {
      part: scores_lib.file_of(self._keeps, part, self.step, self._digest)
      for part in experiment.EVALUATED
      if getattr(dataset, part)
    }
    lines = processes.from_first(
      lambda: {part: scores_lib.read(file) for part, file in files.items()}
    )
    scores = {
      part: scores_lib.from_lines(known)
      for part, known in lines.items()
      if known is not None
    }
    missing = [part for part in files if part not in scores]
    if missing:
      data = experiment.tokenize_parts(
        self.config, self._base.tokenizer, dataset, self.users, missing
      )
      for part, made in data.parts.items():
        batches = experiment.make_batches(self.config, self._base, made)
        scores[part] = experiment.score(
          self.config, self._loaded.policy, batches, made, files[part]
        )
    return {part: scores[part] for part in files if part in scores}

  def responses(
    self,
    examples: Sequence[structs.PreferenceExample],
    config: config_lib.Config,
  ) -> dict[str, str]:
    """What it says to the prompts of samples, each as the sample's user.

    Kept in the training's folder as JSONL, and generated only once. Prompts
    are rendered by the template that it was trained with.

    Args:
      config: `answers`, the prompt limit and `seed` apply, the same for all
        contenders.

    Returns:
      Responses by sample key.
    """
    config = self._in_own_words(config)
    return responses_lib.make(
      examples,
      self.row_of,
      lambda: self.policy,
      self._base,
      config,
      self._responses_file(config),
    )

  def kept_responses(self, config: config_lib.Config) -> dict[str, str]:
    """Those that were generated before with the same settings."""
    lines = responses_lib.read(self._responses_file(self._in_own_words(config)))
    return {line["sample"]: line["response"] for line in lines}

  def _in_own_words(self, config: config_lib.Config) -> config_lib.Config:
    """With the template and BOS of its training."""
    own = self.config.data
    data = dataclasses.replace(
      config.data, template=own.template, add_bos=own.add_bos
    )
    return dataclasses.replace(config, data=data)

  def _responses_file(self, config: config_lib.Config) -> pathlib.Path:
    name = f"{self.step}_{self._digest}"
    return responses_lib.file_of(self._keeps, name, config)


def _described(training: pathlib.Path) -> dict[str, Any]:
  """What a training's newest checkpoint says of itself.

  Raises:
    ValueError: if there is none that can be read.
  """
  folder, described = training / "checkpoints", None
  if folder.is_dir():
    with checkpoint.Checkpoints(folder) as saved:
      described = saved.described()
  if described is None:
    raise ValueError(
      f"{training} has no checkpoint to evaluate; train it to the end first, "
      "with the command it was started with"
    )
  return described[1]


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
    name = run_folder.training_name(run_folder.read_config(place))
    # Written once all is trained: half a control says nothing.
    answers.read(place / run_folder.ANSWERS)
    meta = _described(place / name)
    if place == workdir and meta["data"] != experiment.digest(dataset):
      raise ValueError(
        f"the data of {workdir} has changed since it was trained, so that "
        "what is held out now may have been trained on; put the data back, or "
        "train anew in another --config.workdir"
      )


def _name(config: config_lib.Config) -> str:
  if config.user.kind == "none":
    return "vanilla DPO"
  if config.user.kind == "cluster":
    return f"P-DPO, {config.user.num_clusters} clusters"
  return "P-DPO, individual"


def is_start(folder: pathlib.Path, config: config_lib.Config) -> bool:
  """Whether a config's training started from the run in `folder`."""
  return config.start is not None and folder.resolve() == config.start.resolve()


def _before(
  config: config_lib.Config, workdir: pathlib.Path, base: base_lib.Base
) -> list[Contender]:
  """What a run started from, if that is still there as it was."""
  try:
    answers.read(config.start / run_folder.ANSWERS)
    one = Contender(config.start, run_folder.training_name(config), base)
    there, here = map(run_folder.read_held_out, (config.start, workdir))
    if not there.trained <= here.trained:
      raise ValueError("it was trained again, on other data")
  except ValueError as error:
    logger.warning(
      "not compared with %s, which it started from: %s", config.start, error
    )
    return []
  one.read_for(config, workdir)
  return [one]


def open_contenders(
  workdir: pathlib.Path, against: Sequence[pathlib.Path], base: base_lib.Base
) -> list[Contender]:
  """A run's own training, its vanilla one, and the other runs' own.

  The run that the first one started from, if it is still there, is one.

  Raises:
    ValueError: if one is no run folder, was not trained, or on another base.
  """
  found = []
  first = run_folder.read_config(workdir)
  against = [each for each in against if not is_start(each, first)]
  for place in (workdir, *against):
    own = run_folder.training_name(run_folder.read_config(place))
    found.append(Contender(place, own, base))
    if place == workdir and own != experiment.VANILLA:
      vanilla = place / experiment.VANILLA
      if (vanilla / "checkpoints").is_dir():
        found.append(Contender(place, experiment.VANILLA, base))
  if first.start:
    found += _before(first, workdir, base)
  for each in found:
    if each.control:
      each.name += f", {each.control}"
  names = [each.name for each in found]
  for each in found:
    if names.count(each.name) > 1:
      each.name += f" ({each.workdir.name})"
  names = [each.name for each in found]
  twice = {name for name in names if names.count(name) > 1}
  if twice:
    raise ValueError(
      f"--workdir and --against name {', '.join(sorted(twice))} twice; give "
      "each run once, in a folder of its own name"
    )
  return found
