"""People who come after training: their choices, and what these say of them.

One database, in the run folder by default. SQLAlchemy's addresses name others,
such as that of a PostgreSQL server. Each call is a transaction: interrupted,
all of it happened, or nothing.
"""

import collections
import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import sqlalchemy

from pdpo_jax.core import structs
from pdpo_jax.data import comparisons
from pdpo_jax.runs import people_database, run_folder

# Of a person who is erased again and again while their choices come.
_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What choices say of a person.

  Attributes:
    row: of the user table; flat where it was read.
    posterior: how sure that is: the other fields of `people.Person` of
      `training/`, covariance among them, as arrays by name.
    num_choices: that were kept when it was learnt.
    log_evidence: in nats.
    policy: `rows.shared_digest` of the policy that it was learnt with.
    learnt_at: a date and time; empty: now.
  """

  row: np.ndarray
  posterior: Mapping[str, np.ndarray]
  num_choices: int
  log_evidence: float
  policy: str
  learnt_at: str = ""


@dataclasses.dataclass(frozen=True)
class Person:
  """Somebody who came after training.

  Attributes:
    num_choices: that are kept.
    learnt: None for somebody whose choices were not learnt from yet.
    since: when the first choice was brought.
  """

  id: str
  num_choices: int
  learnt: Learnt | None
  since: str = ""

  def is_current(self, policy: str) -> bool:
    """Whether their row is of this policy, and of all their choices."""
    return self.is_answered(policy) and (
      self.learnt.num_choices == self.num_choices
    )

  def is_answered(self, policy: str) -> bool:
    """Whether they have a row that goes with this policy."""
    return self.learnt is not None and self.learnt.policy == policy


def now() -> str:
  """The date and time, for people to read as well."""
  return datetime.datetime.now().astimezone().isoformat(" ", "seconds")


class People:
  """The people of one database, which is made when the first one comes.

  Raises:
    ValueError: if it is of a kind that is not supported.
    kept.Damaged: if it cannot be read, by each call.
  """

  def __init__(self, url: str | sqlalchemy.URL):
    self._database = people_database.Database(url)

  @classmethod
  def of_run(cls, folder: pathlib.Path) -> "People":
    """Those of a run."""
    return cls(
      sqlalchemy.URL.create("sqlite", database=str(folder / run_folder.PEOPLE))
    )

  def make(self) -> None:
    """Makes the database, if there is none.

    Raises:
      ValueError: if it is of another version.
    """
    self._database.make()

  def ids(self) -> list[str]:
    """Everyone's id."""
    with self._database.reading() as connection:
      if connection is None:
        return []
      ids = connection.execute(sqlalchemy.select(people_database.people.c.id))
      return [*ids.scalars()]

  def all(self) -> dict[str, Person]:
    """Everyone, by id."""
    with self._database.reading() as connection:
      if connection is None:
        return {}
      counts = connection.execute(_counts()).all()
      rows = connection.execute(
        sqlalchemy.select(people_database.people).order_by(
          people_database.people.c.id
        )
      ).all()
    by_id = {row.person: row for row in counts}
    return {row.id: _person(row, by_id.get(row.id)) for row in rows}

  def get(self, user_id: str) -> Person | None:
    """One person; None for somebody who is not there."""
    with self._database.reading() as connection:
      if connection is None:
        return None
      row = connection.execute(
        sqlalchemy.select(people_database.people).where(
          people_database.people.c.id == user_id
        )
      ).first()
      if row is None:
        return None
      count = connection.execute(
        _counts().where(people_database.choices.c.person == user_id)
      ).first()
    return _person(row, count)

  def waiting(self, policy: str) -> list[str]:
    """Ids of those who have no row of this policy and of all their choices."""
    counts = _counts().subquery()
    with self._database.reading() as connection:
      if connection is None:
        return []
      people = people_database.people.c
      ids = connection.execute(
        sqlalchemy.select(people.id)
        .outerjoin(counts, counts.c.person == people.id)
        .where(
          sqlalchemy.or_(
            people.policy.is_(None),
            people.policy != policy,
            people.num_choices
            != sqlalchemy.func.coalesce(counts.c.num_choices, 0),
          )
        )
        .order_by(people.id)
      )
      return [*ids.scalars()]

  def choices(self, user_id: str) -> list[structs.Feedback]:
    """A person's choices, in the order in which they were brought."""
    with self._database.reading() as connection:
      if connection is None:
        return []
      kept_ones = _comparisons(connection, user_id)
    return [comparisons.from_json(text, user_id) for text in kept_ones]

  def add(
    self,
    examples: Iterable[structs.Feedback],
    learnt: Learnt | None = None,
  ) -> int:
    """Keeps choices of people who may be new; those that are there stay once.

    Args:
      learnt: what they say of the person whose they all are.

    Returns:
      How many were new.
    """
    added, at = 0, now()
    with self._database.writing() as connection:
      by_person = _by_person(examples)
      # In one order everywhere, so that no two wait for each other.
      for user_id in sorted(by_person):
        self._hold(connection, user_id)
      for user_id, of_person in by_person.items():
        there = {*_comparisons(connection, user_id)}
        for comparison in dict.fromkeys(of_person):
          if comparison in there:
            continue
          connection.execute(
            people_database.choices.insert().values(
              person=user_id, comparison=comparison, made_at=at
            )
          )
          added += 1
        if learnt is not None:
          self._set_learnt(connection, user_id, learnt)
    return added

  def _hold(self, connection: sqlalchemy.Connection, user_id: str) -> None:
    """Makes somebody, if need be, whom nobody else changes meanwhile."""
    for _ in range(_TRIES):
      connection.execute(
        self._database.insert(people_database.people)
        .values(id=user_id)
        .on_conflict_do_nothing(index_elements=[people_database.people.c.id])
      )
      held = connection.execute(
        sqlalchemy.select(people_database.people.c.id)
        .where(people_database.people.c.id == user_id)
        .with_for_update()
      ).first()
      if held is not None:
        return
    raise ValueError(f"user id {user_id!r} is being erased; try again")

  def set_learnt(
    self,
    learnt: Mapping[str, Learnt],
    choices: Mapping[str, Sequence[structs.Feedback]] | None = None,
  ) -> None:
    """Keeps what was learnt, but of whoever was erased meanwhile.

    Args:
      choices: that it was learnt from. Whoever has others now, since somebody
        of that id was erased and came again, is left alone.
    """
    with self._database.writing() as connection:
      for user_id, of_person in sorted(learnt.items()):
        if choices is not None:
          texts = [*map(comparisons.to_json, choices[user_id])]
          if _comparisons(connection, user_id)[: len(texts)] != texts:
            continue
        self._set_learnt(connection, user_id, of_person)

  def _set_learnt(self, connection, user_id: str, learnt: Learnt) -> None:
    connection.execute(
      people_database.people.update()
      .where(people_database.people.c.id == user_id)
      .values(
        row=np.asarray(learnt.row, np.float32).tobytes(),
        posterior=people_database.packed(learnt.posterior),
        num_choices=learnt.num_choices,
        log_evidence=learnt.log_evidence,
        learnt_at=learnt.learnt_at or now(),
        policy=learnt.policy,
      )
    )

  def rename(self, old: str, new: str) -> None:
    """Gives a person another id, which must be nobody's."""
    with self._database.writing() as connection:
      connection.execute(
        people_database.people.update()
        .where(people_database.people.c.id == old)
        .values(id=new)
      )
    self._database.compact()

  def merge(self, user_id: str, into: str) -> None:
    """Makes one person's choices another's, who is to be learnt again."""
    there = people_database.choices.alias()
    with self._database.writing() as connection:
      # What both of them chose counts once.
      connection.execute(
        people_database.choices.delete().where(
          people_database.choices.c.person == user_id,
          people_database.choices.c.comparison.in_(
            sqlalchemy.select(there.c.comparison).where(there.c.person == into)
          ),
        )
      )
      connection.execute(
        people_database.choices.update()
        .where(people_database.choices.c.person == user_id)
        .values(person=into)
      )
      connection.execute(
        people_database.people.delete().where(
          people_database.people.c.id == user_id
        )
      )
    self._database.compact()

  def erase(self, is_person: Callable[[str], bool]) -> None:
    """Removes whoever it is, so that the file has none of their bytes.

    Args:
      is_person: says so of an id.
    """
    ids = [user_id for user_id in self.ids() if is_person(user_id)]
    if ids:
      with self._database.writing() as connection:
        connection.execute(
          people_database.people.delete().where(
            people_database.people.c.id.in_(ids)
          )
        )
    # Also where it was interrupted before.
    self._database.compact()


def _by_person(
  examples: Iterable[structs.Feedback],
) -> dict[str, list[str]]:
  of_people = collections.defaultdict(list)
  for example in examples:
    of_people[example.user_id].append(comparisons.to_json(example))
  return of_people


def _counts() -> sqlalchemy.Select:
  """How many choices each person has, and since when."""
  choices = people_database.choices.c
  return sqlalchemy.select(
    choices.person,
    sqlalchemy.func.count().label("num_choices"),
    sqlalchemy.func.min(choices.made_at).label("since"),
  ).group_by(choices.person)


def _comparisons(connection: sqlalchemy.Connection, user_id: str) -> list[str]:
  rows = connection.execute(
    sqlalchemy.select(people_database.choices.c.comparison)
    .where(people_database.choices.c.person == user_id)
    .order_by(people_database.choices.c.number)
  )
  return [*rows.scalars()]


def _person(row: sqlalchemy.Row, count: sqlalchemy.Row | None) -> Person:
  if count is None:
    return Person(row.id, 0, _learnt_of(row))
  return Person(row.id, count.num_choices, _learnt_of(row), count.since)


def _learnt_of(row: sqlalchemy.Row) -> Learnt | None:
  if row.policy is None:
    return None
  return Learnt(
    np.frombuffer(row.row, np.float32),
    people_database.unpacked(row.posterior),
    row.num_choices,
    row.log_evidence,
    row.policy,
    row.learnt_at,
  )
