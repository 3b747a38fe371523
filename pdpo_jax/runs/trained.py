"""A training of a run: its policy, scores and responses."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pdpo_jax.core import processes, structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import people as people_lib
from pdpo_jax.runs import responses as responses_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.training import (
  branch_batches,
  calibration,
  checkpoint,
  checkpoint_meta,
  people,
  policies,
  rows,
)
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

# What a control run was made for; "" for a run that is none.
SHUFFLED, SWAPPED = "shuffled users", "swapped choices"
# Which examples and pairs there are hangs on these.
_LIMITS = (
  "max_prompt_tokens",
  "max_response_tokens",
  "long_response",
  "truncation",
)


def not_learnt(workdir: pathlib.Path, user_id: str) -> ValueError:
  """The error of whoever came after training and has no row to be read."""
  return ValueError(
    f"user id {user_id!r}: their choices are not learnt with the weights that "
    f"{workdir} has now; `python -m pdpo_jax.users --workdir={workdir} learn` "
    "does"
  )


class Trained:
  """One training of a run, at its newest checkpoint that can be read.

  All is read when it is asked for first, and weights last.

  Attributes:
    name: of what was trained, e.g. "vanilla DPO" or "P-DPO, 10 clusters".
    config: of that training; a vanilla one has no user model.
    folder: of the training, within its run's.
    workdir: of the run.
    control: `SHUFFLED`, `SWAPPED` or "".
    is_own: whether it is what its run is for, and not vanilla DPO beside it.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    training: str,
    run_config: config_lib.Config,
    read_base: Callable[[], base_lib.Base],
  ):
    """
    Args:
      training: its folder's name.
      run_config: of the whole run.
      read_base: gives what it was trained on.
    """
    self.config = run_config.trainings.get(training, run_config)
    self._trained = self.config  # also where another run's limits hold
    self.workdir = workdir
    self.is_own = training == run_config.training_name
    self.folder = self._keeps = workdir / training
    self.name = self.config.user.title
    self._read_base = read_base
    self.control = ""
    if run_config.data.shuffle_users:
      self.control = SHUFFLED
    elif run_config.data.swap_choices:
      self.control = SWAPPED

  @property
  def is_there(self) -> bool:
    return (self.folder / "checkpoints").is_dir()

  @functools.cached_property
  def described(self) -> dict[str, Any]:
    """What its newest checkpoint says of itself.

    Raises:
      ValueError: if there is none that can be read.
    """
    described = None
    if self.is_there:
      with checkpoint.Checkpoints(self.folder / "checkpoints") as saved:
        described = saved.described()
    if described is None:
      raise ValueError(
        f"{self.folder} has no checkpoint to evaluate; train it to the end "
        "first, with the command it was started with"
      )
    return described[1]

  @functools.cached_property
  def _base(self) -> base_lib.Base:
    """What it was trained on, for sure.

    Raises:
      ValueError: if what is there now is another base.
    """
    base = self._read_base()
    if self.described["base"] != base.fingerprint:
      raise ValueError(
        f"{self.folder} was trained on base {self.described['base']}, and this "
        f"is {base.fingerprint}; only runs on the same base say anything about "
        "each other"
      )
    checkpoint_meta.check(self.described, base.names, self.folder)
    return base

  def check(self) -> None:
    """Checks that it is there, and of the base that is; see `described`."""
    _ = self._base

  @functools.cached_property
  def _loaded(self) -> policies.Loaded:
    return policies.load(self._trained.recipe, self._base, self.folder)

  @property
  def step(self) -> int:
    """Of the checkpoint."""
    return self._loaded.step

  @functools.cached_property
  def _digest(self) -> str:
    return self._loaded.policy.digest()

  @functools.cached_property
  def shared_digest(self) -> str:
    """Names what people's rows are learnt with; weights are not read.

    Raises:
      ValueError: as `described`.
    """
    _ = self.described
    return rows.shared_digest(self._trained.user, self.folder)

  @functools.cached_property
  def table(self) -> users_lib.UserIndex:
    """Whose the rows are that were trained."""
    return policies.read_users(self._trained.recipe, self.folder)

  @functools.cached_property
  def _came(self) -> dict[str, people_lib.Person]:
    """People who came after training, by id; those of the run's own policy."""
    if not self.is_own or not self.config.user.prefix_length:
      return {}
    return processes.from_first(
      lambda: people_lib.People.of_run(self.workdir).all()
    )

  @functools.cached_property
  def _answered(self) -> dict[str, people_lib.Learnt]:
    """Those who have a row that goes with this policy."""
    answered = {
      user_id: person.learnt
      for user_id, person in self._came.items()
      if user_id not in self.table and person.is_answered(self.shared_digest)
    }
    waiting = sum(
      user_id not in self.table and user_id not in answered
      for user_id in self._came
    )
    if waiting:
      logger.warning(
        "%d people of %s are not learnt, or with other weights than it has "
        "now; `python -m pdpo_jax.users --workdir=%s learn` does",
        waiting,
        self.workdir,
        self.workdir,
      )
    return answered

  @functools.cached_property
  def users(self) -> users_lib.UserIndex:
    """Who has a row; tables and weights are not read.

    Rows of people who came after training are behind those of the newest
    checkpoint.
    """
    return users_lib.UserIndex([*self.table.rows, *self._answered])

  def row_of(self, user_id: str | None) -> int:
    """As `UserIndex.row_of`, of `users`.

    Raises:
      ValueError: also if the user's choices are still to be learnt from.
    """
    if user_id in self._came and user_id not in self.users:
      raise not_learnt(self.workdir, user_id)
    return self.users.row_of(user_id)

  @property
  def split_policy(self) -> policies.SplitPolicy:
    """As it was trained, with the rows of `table`."""
    return self._loaded.policy

  @functools.cached_property
  def policy(self) -> policy_lib.Policy:
    """With the rows of `users`."""
    policy = self._loaded.policy
    shape = policies.row_shape(policy)
    rows = [learnt.row.reshape(shape) for learnt in self._answered.values()]
    return policies.with_rows(policy, rows).merge()

  @functools.cached_property
  def learner(self) -> people.Learner:
    """Learns who somebody is from a few choices.

    Raises:
      ValueError: if it has no user model, or no users.
    """
    return people.Learner(
      self._trained.recipe,
      self._base,
      self._loaded.policy,
      user_rows=[self.table.row_of(user_id) for user_id in self.table.ids],
      calibration=self._calibration,
    )

  @property
  def _calibration(self) -> calibration.Calibration:
    """Of what its users chose of held-out pairs, where these were scored."""
    file = scores_lib.file_of(self.folder, "heldout", self.step, self._digest)
    lines = processes.from_first(lambda: scores_lib.read(file)) or []
    ratios = [
      ratio
      for line in lines
      if line["user_id"] in self.table
      for ratio in line["ratios"]
    ]
    if not ratios:
      logger.warning(
        "%s was not evaluated at its newest checkpoint, so that margins are "
        "read as log odds when people are learnt; python -m pdpo_jax.evaluate "
        "--workdir=%s evaluates it",
        self.folder,
        self.workdir,
      )
    beta = self._trained.loss.beta
    return calibration.fit(beta * np.array(ratios, np.float64))

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
    """Scores of held-out pairs by split: kept ones, or made now and kept."""
    files = {
      split: scores_lib.file_of(self._keeps, split, self.step, self._digest)
      for split in tokenized.EVALUATED
      if getattr(dataset, split)
    }
    lines = processes.from_first(
      lambda: {split: scores_lib.read(file) for split, file in files.items()}
    )
    scores = {
      split: scores_lib.from_lines(_of_people(known, getattr(dataset, split)))
      for split, known in lines.items()
      if known is not None
    }
    missing = [name for name in files if name not in scores]
    if missing:
      data = tokenized.tokenize_dataset(
        dataset, self.config.data, self._base.tokenizer, self.table, missing
      )
      recipe = self.config.recipe
      for name, split in data.splits.items():
        batches = branch_batches.with_reference(
          recipe, self._base, split, self.config.cache_folder
        )
        scores[name] = scores_lib.compute(
          recipe, self._loaded.policy, batches, split.examples, files[name]
        )
    return {name: scores[name] for name in files if name in scores}

  def responses(
    self,
    examples: Sequence[structs.PreferenceExample],
    config: config_lib.Config,
  ) -> dict[str, str]:
    """What it says to the prompts of examples, each as the example's user.

    Kept in the training's folder as JSONL, and generated only once. Prompts
    are rendered by the template that it was trained with.

    Args:
      config: `answers`, the prompt limit and `seed` apply, the same for all
        contenders.

    Returns:
      Responses by example key.
    """
    return responses_lib.make(
      examples,
      lambda user_id: self.table.row_or_generic(user_id),
      lambda: self.policy,
      self._base,
      self.config.data,
      responses_lib.Settings.of(config),
      self._responses_file(config),
    )

  def kept_responses(self, config: config_lib.Config) -> dict[str, str]:
    """Those that were generated before with the same settings."""
    lines = responses_lib.read(self._responses_file(config))
    return {line["sample"]: line["response"] for line in lines}

  def _responses_file(self, config: config_lib.Config) -> pathlib.Path:
    name = f"{self.step}_{self._digest}"
    settings = responses_lib.Settings.of(config)
    return responses_lib.file_of(self._keeps, name, settings)


def _of_people(
  lines: Sequence[scores_lib.Line],
  examples: Sequence[structs.PreferenceExample],
) -> Sequence[scores_lib.Line]:
  """Scores of whoever is in the data, if anyone is.

  Somebody may have been erased from the run that is evaluated, and not from one
  that it is compared with.
  """
  ids = {example.user_id for example in examples}
  return [line for line in lines if line["user_id"] in ids] or lines
