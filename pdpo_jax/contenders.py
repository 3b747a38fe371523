"""Trained policies that are evaluated side by side, of one run or several."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence

from pdpo_jax import config as config_lib
from pdpo_jax import experiment, processes, run_folder, structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out
from pdpo_jax.data import users as users_lib
from pdpo_jax.evaluation import answers
from pdpo_jax.evaluation import responses as responses_lib
from pdpo_jax.evaluation import scores as scores_lib
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import checkpoint, pdpo
from pdpo_jax.weights import base as base_lib

# What a control run was made for; "" for a run that is none.
SHUFFLED, SWAPPED = "shuffled users", "swapped choices"
# Which samples and pairs there are hangs on these.
_LIMITS = ("max_prompt_tokens", "max_response_tokens", "long_response")


class Contender:
  """One training of a run, at its newest checkpoint.

  Attributes:
    name: of what was trained, e.g. "vanilla DPO" or "P-DPO, 10 clusters".
    config: of that training; a vanilla one has no user model.
    folder: of the training, within its run's.
    workdir: of the run.
    step: of the checkpoint.
    control: `SHUFFLED`, `SWAPPED` or "".
    is_own: whether it is what its run is for, and not vanilla DPO beside it.

  Raises:
    ValueError: if there is no checkpoint, or it is of another base.
  """

  def __init__(self, workdir: pathlib.Path, training: str, base: base_lib.Base):
    whole = run_folder.read_config(workdir)
    self.config = experiment.trainings(whole).get(training, whole)
    self.workdir = workdir
    self.is_own = training == run_folder.training_name(whole)
    self.folder = workdir / training
    self.name = _name(self.config)
    self._base = base
    self.control = ""
    if whole.data.shuffle_users:
      self.control = SHUFFLED
    elif whole.data.swap_choices:
      self.control = SWAPPED
    folder = self.folder / "checkpoints"
    newest = None
    if folder.is_dir():
      with checkpoint.Checkpoints(folder) as saved:
        newest = saved.described()
    if newest is None:
      raise ValueError(
        f"{self.folder} has no checkpoint to evaluate; train it to the end "
        "first, with the command it was started with"
      )
    self.step, meta = newest
    if meta["base"] != base.fingerprint:
      raise ValueError(
        f"{self.folder} was trained on base {meta['base']}, and this is "
        f"{base.fingerprint}; only runs on the same base say anything about "
        "each other"
      )
    self._data = meta["data"]

  def check_data(self, dataset: dataset_lib.Dataset) -> None:
    """Checks that its run's data set is what it was trained with.

    Raises:
      ValueError: if the files have changed since.
    """
    if self._data != experiment.digest(dataset):
      raise ValueError(
        f"the data of {self.workdir} has changed since it was trained, so that "
        "what is held out now may have been trained on; put the data back, or "
        "train anew in another --config.workdir"
      )

  @functools.cached_property
  def _loaded(self) -> tuple[pdpo.SplitPolicy, users_lib.UserIndex]:
    return pdpo.load(self.config, self._base, self.folder)

  @property
  def users(self) -> users_lib.UserIndex:
    return self._loaded[1]

  @functools.cached_property
  def policy(self) -> policy_lib.Policy:
    return self._loaded[0].merge()

  def row_of(self, user_id: str | None) -> int:
    """The user's row, or the generic one of whoever is unknown."""
    return self.users.row_of(user_id) if user_id in self.users else 0

  def scores(
    self, dataset: dataset_lib.Dataset, of_run: config_lib.Config
  ) -> dict[str, scores_lib.Scores]:
    """Scores of held-out pairs by part: kept ones, or made now and kept.

    Args:
      dataset: of a run.
      of_run: its config. If it started from this one's run, what it holds out
        is read here too, by its limits.

    Raises:
      ValueError: if it was trained on some of what is held out there.
    """
    parts = [each for each in experiment.EVALUATED if getattr(dataset, each)]
    foreign = []
    if is_start(self.workdir, of_run):
      foreign = [part for part in parts if self._is_foreign(dataset, part)]
    config, mark = self.config, ""
    if foreign:
      limits = {name: getattr(of_run.data, name) for name in _LIMITS}
      config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, **limits)
      )
      text = f"{experiment.digest(dataset)} {limits}"
      mark = "_" + hashlib.sha256(text.encode()).hexdigest()[:8]
    files = {
      part: scores_lib.file_of(
        self.folder, part, f"{self.step}{mark * (part in foreign)}"
      )
      for part in parts
    }
    missing = processes.from_first(
      lambda: [part for part, file in files.items() if not file.is_file()]
    )
    if missing:
      data = experiment.tokenize_parts(
        config, self._base, dataset, self.users, missing
      )
      for part, made in data.parts.items():
        batches = experiment.make_batches(config, self._base, made)
        experiment.score(config, self._loaded[0], batches, made, files[part])
    return processes.from_first(
      lambda: {
        part: scores_lib.read(file)
        for part, file in files.items()
        if file.is_file()
      }
    )

  def _is_foreign(self, dataset: dataset_lib.Dataset, part: str) -> bool:
    """Whether its own run holds out something else."""
    own, other = (
      experiment.part_digest(each, part)
      for each in (self._data, experiment.digest(dataset))
    )
    if own == other:
      return False
    known = run_folder.read_held_out(self.workdir).trained
    trained = sum(
      not known.isdisjoint(held_out.digests(each))
      for each in getattr(dataset, part)
    )
    if trained:
      raise ValueError(
        f"{self.workdir} was trained on {trained:,} of the comparisons that "
        "are held out here, so that it cannot be compared on them: it was "
        "trained again since the run here started from it; train that one anew "
        "as well, in another --config.workdir"
      )
    return True

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
    return responses_lib.read(self._responses_file(config))

  def _in_own_words(self, config: config_lib.Config) -> config_lib.Config:
    """With the template of its training."""
    own = self.config.data.template
    data = dataclasses.replace(config.data, template=own)
    return dataclasses.replace(config, data=data)

  def _responses_file(self, config: config_lib.Config) -> pathlib.Path:
    return responses_lib.file_of(self.folder, str(self.step), config)


def _name(config: config_lib.Config) -> str:
  if config.user.kind == "none":
    return "vanilla DPO"
  if config.user.kind == "cluster":
    return f"P-DPO, {config.user.num_clusters} clusters"
  return "P-DPO, individual"


def is_start(folder: pathlib.Path, config: config_lib.Config) -> bool:
  """Whether a config's training started from the run in `folder`."""
  return config.start is not None and folder.resolve() == config.start.resolve()


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
  if first.start and (first.start / "answers.jsonl").is_file():
    others = [each for each in against if not is_start(each, first)]
    against = (first.start, *others)
  for place in (workdir, *against):
    own = run_folder.training_name(run_folder.read_config(place))
    # Written once all is trained: half a control says nothing.
    answers.check_file(place / "answers.jsonl")
    found.append(Contender(place, own, base))
    if is_start(place, found[0].config):
      found[-1].name = f"before ({place.name})"
    if place == workdir and own != experiment.VANILLA:
      vanilla = place / experiment.VANILLA
      if (vanilla / "checkpoints").is_dir():
        found.append(Contender(place, experiment.VANILLA, base))
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
