"""Who asks, and what speaks for them: a prefix, and what they said.

Rows of people who came after training are read from the database whenever one
asks, which takes a millisecond. So servers hold no state, what one learns the
others know, and nobody is answered for who was erased.
"""

import dataclasses
import functools
import pathlib
import threading
from typing import Literal

import numpy as np

from pdpo_jax.data import users as users_lib
from pdpo_jax.inference import asking, prefixes
from pdpo_jax.runs import learning, roster, run_folder
from pdpo_jax.runs import people as people_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import population as population_lib

# Prefixes that are kept, of people who ask again.
_KEPT = 1024
# Rows among which somebody different is looked for.
_SEARCHED = 2048

Known = Literal["trained", "learnt", "waiting", "unknown"]


@dataclasses.dataclass(frozen=True)
class Speaker:
  """Somebody whom an answer is for.

  Attributes:
    id: None where nobody in particular asks.
    known: "trained" with the run, "learnt" since then, "waiting" until their
      choices are learnt, or "unknown". The last two are answered as the generic
      user.
    row: of the user table, or as one of it.
    prefix: `[T, D]`.
    user_text: what they say of themselves.
  """

  id: str | None
  known: Known
  row: np.ndarray | None
  prefix: np.ndarray | None
  user_text: str = ""

  @property
  def is_known(self) -> bool:
    return self.known in ("trained", "learnt")


class Speakers:
  """The people of a run, as those who ask.

  Args:
    run: that was trained, with a user model.
  """

  def __init__(self, run: run_lib.Run):
    self._run = run
    self._split = run.own.split_policy
    self.policy = self._split.merge()
    self.digest = run.own.shared_digest
    self._shape = self._population.shape
    self._lock = threading.Lock()
    self._table = run.own.table
    self._roster_time: int | None = None
    self.generic = prefixes.of_row(self.policy, 0)
    self._prefix_of_row = functools.lru_cache(_KEPT)(
      functools.partial(prefixes.of_row, self.policy)
    )
    self._row_of = functools.lru_cache(_KEPT)(
      lambda number: population_lib.rows_of(self._split, [number])[0]
    )
    self._prefix_of_bytes = functools.lru_cache(_KEPT)(self._of_bytes)

  @functools.cached_property
  def _population(self) -> population_lib.Population:
    return self._run.own.learner.population

  @property
  def people(self) -> people_lib.People:
    return self._run.people

  @property
  def table(self) -> users_lib.UserIndex:
    """Whose rows were trained and who are still there."""
    file = self._run.workdir / run_folder.ROSTER
    changed = _time_of(file)
    with self._lock:
      if changed != self._roster_time:
        # Somebody was erased, by this server or by a command.
        left = roster.read(self._run.workdir)
        if left is not None:
          people_left = {*left["people"]}
          self._table = users_lib.UserIndex(
            row if row in people_left else None for row in self._table.rows
          )
        self._roster_time = changed
      return self._table

  def forget(self) -> None:
    """Drops what is kept in memory of anybody, since somebody was erased."""
    for kept in (self._prefix_of_row, self._row_of, self._prefix_of_bytes):
      kept.cache_clear()
    vars(self._run).pop("user_texts", None)  # Read again when it is asked for.

  def find(self, user_id: str | None) -> Speaker:
    """Whoever has this id; the generic user for somebody unknown."""
    if user_id is None:
      return Speaker(None, "unknown", None, self.generic)
    row = self.table.row_or_generic(user_id)
    if row:
      prefix = self._prefix_of_row(row)
      text = self._run.user_texts.get(user_id, "")
      return Speaker(user_id, "trained", self._row_of(row), prefix, text)
    person = self.people.get(user_id)
    known = self.known_as(user_id, person)
    if known != "learnt":
      return Speaker(user_id, known, None, self.generic)
    learnt = person.learnt.row
    prefix = self._prefix_of_bytes(learnt.tobytes())
    return Speaker(user_id, "learnt", learnt.reshape(self._shape), prefix)

  def trained_row(self, user_id: str) -> np.ndarray | None:
    """Of the user table; None for whoever has none there."""
    row = self.table.row_or_generic(user_id)
    return self._row_of(row) if row else None

  def is_there(self, user_id: str) -> bool:
    """Whether anything is known of somebody; they may just have left."""
    return self.known_as(user_id, self.people.get(user_id)) != "unknown"

  def known_as(self, user_id: str, person: people_lib.Person | None) -> Known:
    """How somebody is known, whom the database has as `person`."""
    if user_id in self.table:
      return "trained"
    if person is None:
      return "unknown"
    return "learnt" if person.is_answered(self.digest) else "waiting"

  def certainty(self, learnt: people_lib.Learnt) -> float:
    """How much of what may be known of somebody new is known of a person.

    0 to 1: the share of a newcomer's expected squared distance from where they
    are expected that is no more expected.
    """
    posterior = learnt.posterior
    before = self._nobody
    doubt = self._doubt(
      posterior["groups"], posterior["z"], posterior["covariance"]
    )
    first = self._doubt(before.groups, before.z, before.covariance)
    return round(float(np.clip(1 - doubt / max(first, 1e-30), 0, 1)), 4)

  def _doubt(self, groups, z, covariance) -> float:
    """The expected squared distance of a person's row from its mean."""
    directions = self._population.directions
    rows = self._population.means + z @ directions
    lengths = np.square(directions).sum(-1)
    within = np.diagonal(covariance, axis1=1, axis2=2) @ lengths
    between = np.square(rows - groups @ rows).sum(-1)
    return float(groups @ (within + between))

  def unlike(self, speaker: Speaker) -> Speaker:
    """Whoever of the run differs most from somebody, without their id."""
    own = self._population.generic.reshape(self._shape)
    own = own if speaker.row is None else speaker.row
    table = self.table
    numbers, rows = self._others
    far = [
      number
      for number in np.argsort(-np.square(rows - own.ravel()).sum(-1))
      if table.rows[numbers[number] - 1] is not None
    ]
    if not far:
      return Speaker(None, "unknown", None, self.generic)
    number = numbers[far[0]]
    row = rows[far[0]].reshape(self._shape)
    return Speaker(None, "trained", row, self._prefix_of_row(number))

  def pair(self, speaker: Speaker) -> tuple[Speaker, Speaker]:
    """Somebody as they are known, and who else they may most differently be.

    Whoever was trained with the run is known, and both are they.
    """
    if speaker.known == "trained":
      return speaker, speaker
    person = self._nobody
    if speaker.known == "learnt":
      person = learning.person_of(self._run, speaker.id)
    # Groups that are not likely any more are asked about as well.
    others = [
      *asking.voices(person, self._population, directions=1),
      *(self._population.row(*each) for each in enumerate(person.z)),
    ]
    other = max(others, key=lambda row: np.square(row - person.row).sum())
    return speaker, dataclasses.replace(
      speaker, row=other, prefix=self._prefix_of_bytes(other.tobytes())
    )

  @functools.cached_property
  def _nobody(self):
    return self._run.own.learner.nobody()

  @functools.cached_property
  def _others(self) -> tuple[list[int], np.ndarray]:
    """Numbers of rows, and the rows, among which others are looked for."""
    numbers = [*map(self._run.own.table.row_of, self._run.own.table.ids)]
    numbers = population_lib.spread(numbers, _SEARCHED)
    rows = population_lib.rows_of(self._split, numbers)
    return numbers, rows.reshape(len(rows), -1)

  def _of_bytes(self, content: bytes) -> np.ndarray:
    row = np.frombuffer(content, np.float32).reshape(self._shape)
    return prefixes.of_learnt(self.policy, row)


def _time_of(file: pathlib.Path) -> int | None:
  try:
    return file.stat().st_mtime_ns
  except FileNotFoundError:
    return None
