"""The database of people who come after training."""

import dataclasses
import os
import sqlite3
from concurrent import futures

import numpy as np
import pytest
import sqlalchemy

from pdpo_jax.core import kept, structs
from pdpo_jax.runs import people, people_database, run_folder

DIALOGUE = (structs.Message("user", "why?"), structs.Message("user", "\ud7ff"))


def choice(user_id, prompt="p", chosen="good", rejected=("bad",), text=""):
  return structs.PreferenceExample(prompt, chosen, rejected, user_id, text)


def learnt(number, policy="a"):
  row = np.full(6, number, np.float32)
  posterior = {"covariance": np.eye(2) * number, "converged": np.array(True)}
  return people.Learnt(row, posterior, number, -0.5, policy, "2026-01-01")


@pytest.fixture
def database(tmp_path):
  return people.People.of_run(tmp_path)


def test_a_run_without_people_has_no_database(database, tmp_path):
  assert database.ids() == [] and database.all() == {}
  assert database.choices("ann") == []
  assert [*tmp_path.iterdir()] == []


def test_choices_are_read_as_they_were_brought(database, tmp_path):
  choices = [
    choice("ann", DIALOGUE, "a\n", ("b", "c"), "I am Ann."),
    choice("ann", "q"),
    choice("bob", "q"),
  ]
  assert database.add(choices) == 3
  assert database.choices("ann") == choices[:2]
  # Brought again, they are the same.
  assert database.add([choices[1], choice("ann", "r"), choice("ann", "r")]) == 1
  ann = database.all()["ann"]
  assert (ann.num_choices, ann.learnt) == (3, None)
  assert (tmp_path / run_folder.PEOPLE).stat().st_mode & 0o077 == 0


def test_what_was_learnt_is_of_a_policy_and_of_so_many_choices(database):
  database.add([choice("ann"), choice("bob")])
  database.set_learnt({"ann": learnt(1), "nobody": learnt(1)})
  ann = database.all()["ann"]
  np.testing.assert_array_equal(ann.learnt.row, learnt(1).row)
  np.testing.assert_array_equal(ann.learnt.posterior["covariance"], np.eye(2))
  assert ann.learnt.learnt_at == "2026-01-01"
  assert ann.is_current("a") and not ann.is_answered("b")
  # Whoever was erased meanwhile does not come back.
  assert database.ids() == ["ann", "bob"]
  database.add([choice("ann", "more")])
  ann = database.all()["ann"]
  assert ann.is_answered("a") and not ann.is_current("a")


def test_people_get_other_ids_and_become_one(database):
  database.add([choice("ann", "p"), choice("Ann", "q")], learnt(1))
  database.rename("Ann", "ann2")
  assert database.choices("ann2") == [choice("ann2", "q")]
  # What both of them chose counts once.
  database.add([choice("ann2", "p")])
  database.merge("ann2", "ann")
  assert database.choices("ann") == [choice("ann", "p"), choice("ann", "q")]
  assert database.ids() == ["ann"]


def test_a_call_that_fails_changes_nothing(database):
  database.add([choice("ann")])

  def examples():
    yield choice("bob")
    yield choice("ann", "more")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    database.add(examples())
  with pytest.raises(kept.Damaged, match="cannot be used"):
    # The second is somebody's already.
    database.add([choice("bob")])
    database.rename("bob", "ann")
  assert database.choices("ann") == [choice("ann")]


def test_bytes_of_whoever_is_erased_are_in_no_file(database, tmp_path):
  many = [choice("ann", f"secret {n} " * 50) for n in range(200)]
  database.add([*many, choice("bob")])
  # As a server may have it.
  with sqlite3.connect(tmp_path / run_folder.PEOPLE) as connection:
    connection.execute("PRAGMA journal_mode = WAL")
  connection.close()
  database.erase(lambda user_id: user_id == "ann")
  assert database.ids() == ["bob"]
  for file in tmp_path.iterdir():
    assert b"secret" not in file.read_bytes(), file
    assert b"ann" not in file.read_bytes(), file
  # Again, as where it was interrupted.
  database.erase(lambda user_id: user_id == "ann")


def test_a_log_that_is_in_use_is_an_error(database, tmp_path, monkeypatch):
  database.add([choice("ann"), choice("bob")])
  reader = sqlite3.connect(tmp_path / run_folder.PEOPLE)
  reader.execute("PRAGMA journal_mode = WAL")
  reader.execute("BEGIN").execute("SELECT * FROM people").fetchone()
  real = people_database._set_up_sqlite

  def hurry(connection, _):
    real(connection, _)
    connection.execute("PRAGMA busy_timeout = 10")

  monkeypatch.setattr(people_database, "_set_up_sqlite", hurry)
  try:
    with pytest.raises(ValueError, match="is in use"):
      people.People.of_run(tmp_path).erase(lambda user_id: user_id == "ann")
  finally:
    reader.close()
  database.erase(lambda user_id: user_id == "ann")
  assert database.ids() == ["bob"]


def test_a_file_that_is_none_or_of_another_version_is_an_error(
  database, tmp_path
):
  file = tmp_path / run_folder.PEOPLE
  file.write_text("no database" * 100)
  with pytest.raises(kept.Damaged, match=r"people\.sqlite cannot be used"):
    database.all()
  file.unlink()
  database.add([choice("ann")])
  with database._database.writing() as connection:
    connection.execute(sqlalchemy.text("UPDATE schema_version SET version = 9"))
  for call in (database.ids, lambda: database.add([choice("bob")])):
    with pytest.raises(ValueError, match="is of version 9, and this program"):
      call()


def test_an_address_that_can_have_no_file_is_an_error(tmp_path):
  for place, problem in (
    (tmp_path, "is no file; name a file"),
    (tmp_path / "none" / "people.sqlite", "is not there, nor is its folder"),
  ):
    with pytest.raises(kept.Damaged, match=problem):
      people.People(f"sqlite:///{place}").ids()
  assert people.People(f"sqlite:///{tmp_path}/new.sqlite").ids() == []


def test_a_database_that_was_killed_while_it_was_made_is_made(
  database, tmp_path
):
  os.close(os.open(tmp_path / run_folder.PEOPLE, os.O_CREAT, 0o600))
  assert database.ids() == []
  database.add([choice("ann")])
  assert database.ids() == ["ann"]


def test_one_person_is_read_with_how_many_choices_and_since_when(database):
  assert database.get("ann") is None and database.waiting("a") == []
  database.add([choice("ann"), choice("ann", "q"), choice("bob")], None)
  database.set_learnt({"ann": learnt(2), "bob": learnt(0)})
  ann = database.get("ann")
  assert ann == dataclasses.replace(database.all()["ann"], learnt=ann.learnt)
  assert (ann.num_choices, ann.learnt.num_choices) == (2, 2)
  assert ann.since <= people.now()
  assert database.waiting("a") == ["bob"]
  assert database.waiting("b") == ["ann", "bob"]


def test_what_was_learnt_of_somebody_erased_is_not_of_who_comes_again(database):
  before = [choice("ann"), choice("ann", "q")]
  database.add(before)
  database.erase(lambda user_id: user_id == "ann")
  database.add([choice("ann", "r")])
  database.set_learnt({"ann": learnt(2)}, {"ann": before})
  assert database.get("ann").learnt is None
  # One more choice since then is no matter.
  database.add([choice("ann", "s")])
  database.set_learnt({"ann": learnt(1)}, {"ann": [choice("ann", "r")]})
  assert database.get("ann").learnt.num_choices == 1


def test_the_same_choice_at_the_same_time_counts_once(database):
  with futures.ThreadPoolExecutor(8) as pool:
    added = [
      *pool.map(lambda _: database.add([choice("ann"), choice("bob")]), "x" * 8)
    ]
  assert sum(added) == 2
  assert {*database.all()} == {"ann", "bob"}
  assert len(database.choices("ann")) == 1


@pytest.mark.parametrize(
  ("url", "problem"),
  [
    ("mysql://h/d", "must be SQLite or PostgreSQL"),
    ("no address", "none of SQLAlchemy's"),
    ("sqlite://", "names no file"),
    ("postgresql+pg8000://h/d", "needs the package"),
  ],
)
def test_a_database_of_another_kind_is_an_error(url, problem):
  with pytest.raises(ValueError, match=problem):
    people.People(url)


def test_a_database_that_is_down_is_an_error_without_its_password():
  pytest.importorskip("psycopg")
  down = people.People("postgresql+psycopg://ann:secret@127.0.0.1:1/people")
  with pytest.raises(kept.Damaged, match="see to its server") as raised:
    down.make()
  assert "secret" not in str(raised.value)


def test_a_power_cut_undoes_nothing_that_was_kept(database):
  database.add([choice("ann")])
  with database._database.writing() as connection:
    # EXTRA: the folder is on the disk, too, when the journal is gone.
    assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3
    mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
    assert mode == "delete"
