"""People who come after training: their choices, and what these say of them.

One database, in the run folder by default. SQLAlchemy's addresses name others,
such as that of a PostgreSQL server. Each call is a transaction: interrupted,
all of it happened, or nothing.
"""

import collections
import contextlib
import dataclasses
import datetime
import io
import os
import pathlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import sqlalchemy
from sqlalchemy import event, exc, pool

from pdpo_jax.core import kept, structs
from pdpo_jax.data import comparisons
from pdpo_jax.runs import run_folder

# Of the tables below. Another version refuses to read them.
_VERSION = 1
_metadata = sqlalchemy.MetaData()
_version = sqlalchemy.Table(
  "schema_version",
  _metadata,
  sqlalchemy.Column("version", sqlalchemy.Integer, primary_key=True),
)
_people = sqlalchemy.Table(
  "people",
  _metadata,
  sqlalchemy.Column("id", sqlalchemy.Text, primary_key=True),
  # The rest is null until they are learnt.
  sqlalchemy.Column("row", sqlalchemy.LargeBinary),  # float32
  sqlalchemy.Column("posterior", sqlalchemy.LargeBinary),  # arrays as NPZ
  sqlalchemy.Column("num_choices", sqlalchemy.Integer),
  sqlalchemy.Column("log_evidence", sqlalchemy.Float),
  sqlalchemy.Column("learnt_at", sqlalchemy.Text),
  sqlalchemy.Column("policy", sqlalchemy.Text),
)
_choices = sqlalchemy.Table(
  "choices",
  _metadata,
  sqlalchemy.Column("number", sqlalchemy.Integer, primary_key=True),
  sqlalchemy.Column(
    "person",
    sqlalchemy.ForeignKey("people.id", ondelete="CASCADE", onupdate="CASCADE"),
    index=True,
    nullable=False,
  ),
  # As `data/comparisons.py` writes it.
  sqlalchemy.Column("comparison", sqlalchemy.Text, nullable=False),
  sqlalchemy.Column("made_at", sqlalchemy.Text, nullable=False),
)


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
  """

  id: str
  num_choices: int
  learnt: Learnt | None

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
    kept.Damaged: if it cannot be read; here, and by each call.
  """

  def __init__(self, url: str | sqlalchemy.URL):
    self._url = sqlalchemy.make_url(url)
    # Connections are closed at once, and with them the files.
    self._engine = sqlalchemy.create_engine(self._url, poolclass=pool.NullPool)
    self._is_sqlite = self._engine.dialect.name == "sqlite"
    if self._is_sqlite:
      event.listen(self._engine, "connect", _set_up_sqlite)

  @classmethod
  def of_run(cls, folder: pathlib.Path) -> "People":
    """Those of a run."""
    return cls(
      sqlalchemy.URL.create("sqlite", database=str(folder / run_folder.PEOPLE))
    )

  @property
  def _is_there(self) -> bool:
    if self._is_sqlite and not pathlib.Path(self._url.database).is_file():
      return False
    with self._engine.connect() as connection:
      return sqlalchemy.inspect(connection).has_table(_version.name)

  @contextlib.contextmanager
  def _reading(self) -> Iterator[sqlalchemy.Connection | None]:
    """A transaction, or None where there is no database."""
    with self._raising():
      if not self._is_there:
        yield None
        return
      with self._engine.begin() as connection:
        self._check_version(connection)
        yield connection

  @contextlib.contextmanager
  def _writing(self) -> Iterator[sqlalchemy.Connection]:
    with self._raising():
      if self._is_sqlite:
        # Made for the owner alone.
        flags = os.O_CREAT | os.O_WRONLY
        os.close(os.open(self._url.database, flags, 0o600))
      with self._engine.begin() as connection:
        _metadata.create_all(connection)
        if connection.execute(sqlalchemy.select(_version)).first() is None:
          connection.execute(_version.insert().values(version=_VERSION))
        self._check_version(connection)
        yield connection

  def _check_version(self, connection: sqlalchemy.Connection) -> None:
    row = connection.execute(sqlalchemy.select(_version)).first()
    if row is not None and row.version != _VERSION:
      raise ValueError(
        f"{self._name} is of version {row.version}, and this program reads "
        f"version {_VERSION}; use the version of pdpo_jax that wrote it"
      )

  @contextlib.contextmanager
  def _raising(self) -> Iterator[None]:
    try:
      yield
    except exc.DBAPIError as error:
      raise kept.Damaged(
        pathlib.Path(self._name),
        f"cannot be used ({error.orig})",
        "put it back from a copy, or try again if it is in use",
      ) from error

  @property
  def _name(self) -> str:
    if self._is_sqlite:
      return self._url.database
    return self._url.render_as_string(hide_password=True)

  def ids(self) -> list[str]:
    """Everyone's id."""
    with self._reading() as connection:
      if connection is None:
        return []
      return [*connection.execute(sqlalchemy.select(_people.c.id)).scalars()]

  def all(self) -> dict[str, Person]:
    """Everyone, by id."""
    with self._reading() as connection:
      if connection is None:
        return {}
      counts = dict(
        connection.execute(
          sqlalchemy.select(
            _choices.c.person, sqlalchemy.func.count()
          ).group_by(_choices.c.person)
        ).all()
      )
      rows = connection.execute(
        sqlalchemy.select(_people).order_by(_people.c.id)
      ).all()
    return {
      row.id: Person(row.id, counts.get(row.id, 0), _learnt_of(row))
      for row in rows
    }

  def choices(self, user_id: str) -> list[structs.Feedback]:
    """A person's choices, in the order in which they were brought."""
    with self._reading() as connection:
      if connection is None:
        return []
      rows = connection.execute(
        sqlalchemy.select(_choices.c.comparison)
        .where(_choices.c.person == user_id)
        .order_by(_choices.c.number)
      ).all()
    return [comparisons.from_json(row.comparison, user_id) for row in rows]

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
    with self._writing() as connection:
      for user_id, of_person in _by_person(examples).items():
        person = connection.execute(
          sqlalchemy.select(_people.c.id).where(_people.c.id == user_id)
        ).first()
        if person is None:
          connection.execute(_people.insert().values(id=user_id))
        known = connection.execute(
          sqlalchemy.select(_choices.c.comparison).where(
            _choices.c.person == user_id
          )
        )
        there = {*known.scalars()}
        for comparison in dict.fromkeys(of_person):
          if comparison in there:
            continue
          connection.execute(
            _choices.insert().values(
              person=user_id, comparison=comparison, made_at=at
            )
          )
          added += 1
        if learnt is not None:
          self._set_learnt(connection, user_id, learnt)
    return added

  def set_learnt(self, learnt: dict[str, Learnt]) -> None:
    """Keeps what was learnt, but of whoever was erased meanwhile."""
    with self._writing() as connection:
      for user_id, of_person in learnt.items():
        self._set_learnt(connection, user_id, of_person)

  def _set_learnt(self, connection, user_id: str, learnt: Learnt) -> None:
    connection.execute(
      _people.update()
      .where(_people.c.id == user_id)
      .values(
        row=np.asarray(learnt.row, np.float32).tobytes(),
        posterior=_packed(learnt.posterior),
        num_choices=learnt.num_choices,
        log_evidence=learnt.log_evidence,
        learnt_at=learnt.learnt_at or now(),
        policy=learnt.policy,
      )
    )

  def rename(self, old: str, new: str) -> None:
    """Gives a person another id, which must be nobody's."""
    with self._writing() as connection:
      connection.execute(
        _people.update().where(_people.c.id == old).values(id=new)
      )
    self._compact()

  def merge(self, user_id: str, into: str) -> None:
    """Makes one person's choices another's, who is to be learnt again."""
    with self._writing() as connection:
      connection.execute(
        _choices.update()
        .where(_choices.c.person == user_id)
        .values(person=into)
      )
      connection.execute(_people.delete().where(_people.c.id == user_id))
    self._compact()

  def erase(self, is_person: Callable[[str], bool]) -> None:
    """Removes whoever it is, so that the file has none of their bytes.

    Args:
      is_person: says so of an id.
    """
    ids = [user_id for user_id in self.ids() if is_person(user_id)]
    if ids:
      with self._writing() as connection:
        connection.execute(_people.delete().where(_people.c.id.in_(ids)))
    # Also where it was interrupted before.
    self._compact()

  def _compact(self) -> None:
    """Has SQLite write its file anew, without what was deleted."""
    if not self._is_sqlite or not self._is_there:
      return
    with self._raising():
      engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
      with engine.connect() as connection:
        connection.execute(sqlalchemy.text("VACUUM"))
        # Of a file that a server put into that mode.
        busy, *_ = connection.execute(
          sqlalchemy.text("PRAGMA wal_checkpoint(TRUNCATE)")
        ).one()
    if busy:
      raise ValueError(
        f"{self._name} is in use, and its log may still have what was deleted; "
        "stop whatever uses it, and give the same command again"
      )


def _set_up_sqlite(connection: sqlite3.Connection, _) -> None:
  cursor = connection.cursor()
  cursor.execute("PRAGMA foreign_keys = ON")
  cursor.execute("PRAGMA secure_delete = ON")
  cursor.execute("PRAGMA busy_timeout = 30000")
  cursor.close()


def _by_person(
  examples: Iterable[structs.Feedback],
) -> dict[str, list[str]]:
  of_people = collections.defaultdict(list)
  for example in examples:
    of_people[example.user_id].append(comparisons.to_json(example))
  return of_people


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def _learnt_of(row: sqlalchemy.Row) -> Learnt | None:
  if row.policy is None:
    return None
  with np.load(io.BytesIO(row.posterior), allow_pickle=False) as arrays:
    posterior = dict(arrays)
  return Learnt(
    np.frombuffer(row.row, np.float32),
    posterior,
    row.num_choices,
    row.log_evidence,
    row.policy,
    row.learnt_at,
  )
