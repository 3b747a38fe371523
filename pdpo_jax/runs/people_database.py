"""The database in which `people.py` keeps people."""

import contextlib
import io
import os
import pathlib
import sqlite3
from collections.abc import Iterator, Mapping

import numpy as np
import sqlalchemy
from sqlalchemy import event, exc, pool
from sqlalchemy.dialects import postgresql, sqlite

from pdpo_jax.core import kept

# Of the tables below. Another version refuses to read them.
_VERSION = 1
metadata = sqlalchemy.MetaData()
version = sqlalchemy.Table(
  "schema_version",
  metadata,
  sqlalchemy.Column("version", sqlalchemy.Integer, primary_key=True),
)
people = sqlalchemy.Table(
  "people",
  metadata,
  sqlalchemy.Column("id", sqlalchemy.Text, primary_key=True),
  # The rest is null until they are learnt.
  sqlalchemy.Column("row", sqlalchemy.LargeBinary),  # float32
  sqlalchemy.Column("posterior", sqlalchemy.LargeBinary),  # arrays as NPZ
  sqlalchemy.Column("num_choices", sqlalchemy.Integer),
  sqlalchemy.Column("log_evidence", sqlalchemy.Float),
  sqlalchemy.Column("learnt_at", sqlalchemy.Text),
  sqlalchemy.Column("policy", sqlalchemy.Text),
)
choices = sqlalchemy.Table(
  "choices",
  metadata,
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

# How a transaction of SQLite begins, as an option of a connection. One that
# writes has to be the only one from its first statement on: what it read would
# otherwise be old when it writes.
_BEGIN = "sqlite_begin"
_READS, _WRITES = {_BEGIN: "BEGIN"}, {_BEGIN: "BEGIN IMMEDIATE"}
# All that a transaction reads is of one moment, as SQLite has it anyway.
_READS_OF_SERVER = {"isolation_level": "REPEATABLE READ"}
_KINDS = ("sqlite", "postgresql")
# Until a server that does not answer is taken for down, as its drivers call it.
_PATIENCE_SECONDS = 10
_PATIENT = {"psycopg": "connect_timeout", "psycopg2": "connect_timeout",
            "pg8000": "timeout"}  # fmt: skip


class Database:
  """Transactions on the tables above, which are made when they are needed.

  Args:
    url: SQLAlchemy's address of a SQLite file or a PostgreSQL server.

  Raises:
    ValueError: if it is of another kind.
    kept.Damaged: if it cannot be used, by each call.
  """

  def __init__(self, url: str | sqlalchemy.URL):
    try:
      self._url = sqlalchemy.make_url(url)
    except exc.ArgumentError as error:
      # The address may have a password in it.
      raise ValueError(
        "the address of the database is none of SQLAlchemy's, such as "
        "sqlite:////srv/people.sqlite or postgresql+psycopg://user@host/people"
      ) from error
    self._engine = _connect(self._url)
    self._is_sqlite = self._engine.dialect.name == "sqlite"
    # Of a dialect, with what is to be done about a row that is there.
    self.insert = sqlite.insert if self._is_sqlite else postgresql.insert

  @property
  def _is_there(self) -> bool:
    if self._is_sqlite and not self._has_file():
      return False
    with self._engine.connect() as connection:
      return sqlalchemy.inspect(connection).has_table(version.name)

  def _has_file(self) -> bool:
    file = pathlib.Path(self._url.database)
    if file.exists() and not file.is_file():
      raise kept.Damaged(
        self._name, "is no file", "name a file, or none that is there yet"
      )
    if not file.parent.is_dir():
      raise kept.Damaged(
        self._name,
        "is not there, nor is its folder",
        "make it, or name another",
      )
    return file.is_file()

  @contextlib.contextmanager
  def reading(self) -> Iterator[sqlalchemy.Connection | None]:
    """A transaction, or None where there is no database."""
    with self._raising():
      if not self._is_there:
        yield None
        return
      options = _READS if self._is_sqlite else _READS_OF_SERVER
      engine = self._engine.execution_options(**options)
      with engine.begin() as connection:
        self._check_version(connection)
        yield connection

  @contextlib.contextmanager
  def writing(self) -> Iterator[sqlalchemy.Connection]:
    """A transaction that nobody else's comes between."""
    self.make()
    with self._raising():
      engine = self._engine.execution_options(**_WRITES)
      with engine.begin() as connection:
        self._check_version(connection)
        yield connection

  def make(self) -> None:
    """Makes the tables, if they are not there.

    Raises:
      ValueError: if they are of another version.
    """
    with self._raising():
      if self._is_there:
        with self.reading() as connection:
          if connection.execute(sqlalchemy.select(version)).first():
            return
      if self._is_sqlite:
        _make_file(pathlib.Path(self._url.database))
      engine = self._engine.execution_options(**_WRITES)
      with engine.begin() as connection:
        if not self._is_sqlite:
          # Servers that begin at once take turns.
          connection.execute(
            sqlalchemy.text("SELECT pg_advisory_xact_lock(727366)")
          )
        metadata.create_all(connection)
        if connection.execute(sqlalchemy.select(version)).first():
          self._check_version(connection)
        else:
          connection.execute(version.insert().values(version=_VERSION))

  def _check_version(self, connection: sqlalchemy.Connection) -> None:
    row = connection.execute(sqlalchemy.select(version)).first()
    if row is not None and row.version != _VERSION:
      raise ValueError(
        f"{self._name} is of version {row.version}, and this program reads "
        f"version {_VERSION}; use the version of pdpo_jax that wrote it"
      )

  @contextlib.contextmanager
  def _raising(self) -> Iterator[None]:
    try:
      yield
    except (exc.DBAPIError, exc.TimeoutError) as error:
      # Some drivers write several lines.
      reason = " ".join(str(getattr(error, "orig", error)).split())
      raise kept.Damaged(
        self._name,
        f"cannot be used ({reason})",
        "put it back from a copy, or try again if it is in use"
        if self._is_sqlite
        else "see to its server",
      ) from error

  @property
  def _name(self) -> str:
    if self._is_sqlite:
      return self._url.database
    return self._url.render_as_string(hide_password=True)

  def compact(self) -> None:
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


def _connect(url: sqlalchemy.URL) -> sqlalchemy.Engine:
  """The engine of a database.

  Raises:
    ValueError: if it is of a kind that is not supported, or its driver is
      missing.
  """
  shown = url.render_as_string(hide_password=True)
  if url.get_backend_name() not in _KINDS:
    raise ValueError(
      f"database {shown!r} must be SQLite or PostgreSQL, such as "
      "sqlite:////srv/people.sqlite or postgresql+psycopg://user@host/people"
    )
  if url.get_backend_name() != "sqlite":
    patience = _PATIENT.get(url.get_driver_name())
    arguments = {}
    if patience and patience not in url.query:
      arguments[patience] = _PATIENCE_SECONDS
    try:
      return sqlalchemy.create_engine(
        url, pool_pre_ping=True, connect_args=arguments
      )
    except ModuleNotFoundError as error:
      raise ValueError(
        f"database {shown!r} needs the package {error.name!r}; install it, or "
        "name another driver"
      ) from error
  if not url.database or url.database == ":memory:":
    raise ValueError(f"database {shown!r} names no file; name one")
  # Connections are closed at once, and with them the files.
  engine = sqlalchemy.create_engine(url, poolclass=pool.NullPool)
  event.listen(engine, "connect", _set_up_sqlite)
  event.listen(engine, "begin", _begin_sqlite)
  return engine


def _make_file(file: pathlib.Path) -> None:
  """An empty file, for the owner alone, if there is none."""
  try:
    os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
  except OSError as error:
    raise kept.Unwritable(file, error) from error


def _set_up_sqlite(connection: sqlite3.Connection, _) -> None:
  # Transactions begin where `_begin_sqlite` says.
  connection.isolation_level = None
  cursor = connection.cursor()
  cursor.execute("PRAGMA foreign_keys = ON")
  cursor.execute("PRAGMA secure_delete = ON")
  cursor.execute("PRAGMA busy_timeout = 30000")
  # With the usual FULL, a power cut may undo what was the last to be written:
  # the journal is removed, but its folder is not on the disk yet.
  cursor.execute("PRAGMA synchronous = EXTRA")
  cursor.close()


def _begin_sqlite(connection: sqlalchemy.Connection) -> None:
  begin = connection.get_execution_options().get(_BEGIN)
  if begin is not None:
    connection.exec_driver_sql(begin)


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def unpacked(content: bytes) -> dict[str, np.ndarray]:
  with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
    return dict(arrays)
