"""What is in the way is told at the start, and not at the first request."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest
import sqlalchemy
from absl import flags
from absl.testing import flagsaver

from pdpo_jax import serve
from pdpo_jax.core import kept
from pdpo_jax.data import users as users_lib
from pdpo_jax.inference import remote
from pdpo_jax.runs import people, run_folder, trained
from pdpo_jax.serving import service


def set_config(folder, section, **values):
  config = json.loads((folder / run_folder.CONFIG).read_text())
  config[section] |= values
  kept.write_json(folder / run_folder.CONFIG, config)


def lose_checkpoints(folder):
  shutil.rmtree(folder / "pdpo/checkpoints")
  (folder / "pdpo/checkpoints").mkdir()


def of_newer_version(folder):
  database = people.People.of_run(folder)
  with database._database.writing() as connection:
    connection.execute(sqlalchemy.text("UPDATE schema_version SET version = 9"))


def test_a_run_that_is_whole_can_be_served(folder):
  run = serve.open_run(folder, "")
  assert run.workdir == folder
  assert 0 < serve.positions_of(run, 0) <= run.base.lm.arch.max_positions


@pytest.mark.parametrize(
  ("damage", "problem"),
  [
    (shutil.rmtree, r"is no run folder.*Name the folder"),
    (
      lambda folder: kept.remove(folder / run_folder.HELD_OUT),
      "not trained to its end; start its training again",
    ),
    (lambda folder: shutil.rmtree(folder / "pdpo"), "not trained to its end"),
    (lose_checkpoints, "has no checkpoint"),
    (
      lambda folder: set_config(folder, "user", kind="none"),
      r"no user model.*`export`",
    ),
    (
      lambda folder: set_config(folder, "base", path="/gone"),
      "base.path '/gone' does not exist; name",
    ),
    (of_newer_version, r"is of version 9.*use the version"),
    (
      lambda folder: (folder / run_folder.PEOPLE).write_bytes(b"none" * 1000),
      r"cannot be used.*put it back",
    ),
  ],
)
def test_a_run_that_cannot_be_served_says_what_to_do(folder, damage, problem):
  damage(folder)
  with pytest.raises(ValueError, match=problem):
    serve.open_run(folder, "")


def test_another_base_than_the_runs_is_an_error(folder, monkeypatch):
  described = trained.Trained.described.func
  monkeypatch.setattr(
    trained.Trained,
    "described",
    property(lambda self: described(self) | {"base": "another"}),
  )
  with pytest.raises(ValueError, match="was trained on base another"):
    serve.open_run(folder, "")


def test_a_run_of_nobody_is_an_error(folder, monkeypatch):
  nobody = users_lib.UserIndex([])
  monkeypatch.setattr(trained.Trained, "table", nobody)
  with pytest.raises(ValueError, match="has no users"):
    serve.open_run(folder, "")


@pytest.mark.parametrize(
  ("database", "problem"),
  [
    (
      "postgresql+psycopg://ann:secret@127.0.0.1:1/people",
      r"postgresql\+psycopg://ann:.*refused.*see to its server",
    ),
    (
      "postgresql+psycopg://ann:secret@nowhere.invalid/people",
      r"nowhere.invalid.*see to its server",
    ),
    ("sqlite:////nowhere/people.sqlite", "nor is its folder; make it"),
    ("sqlite:////tmp", "is no file; name a file"),
    ("mysql://ann:secret@host/people", "must be SQLite or PostgreSQL"),
    ("people", "none of SQLAlchemy's"),
  ],
)
def test_a_database_that_is_not_there_is_an_error(whole, database, problem):
  if "psycopg" in database:
    pytest.importorskip("psycopg")
  with pytest.raises(ValueError, match=problem) as raised:
    serve.open_run(whole, database)
  assert "secret" not in str(raised.value)


def test_a_server_that_never_answers_is_taken_for_down(monkeypatch):
  pytest.importorskip("psycopg")
  monkeypatch.setattr("pdpo_jax.runs.people_database._PATIENCE_SECONDS", 2)
  with socket.socket() as silent:
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    port = silent.getsockname()[1]
    url = f"postgresql+psycopg://ann@127.0.0.1:{port}/people"
    with pytest.raises(kept.Damaged, match="timeout"):
      people.People(url).make()


def test_a_port_in_use_is_an_error():
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    with pytest.raises(ValueError, match=r"in use.*choose another"):
      serve.bind("127.0.0.1", port)


def test_of_two_that_start_at_once_the_later_is_told():
  with (
    serve.bind("127.0.0.1", 0) as first,
    serve.bind("127.0.0.1", first.getsockname()[1]) as second,
  ):
    serve.listen(first)
    with pytest.raises(ValueError, match=r"in use.*choose another"):
      serve.listen(second)


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
def test_an_address_of_elsewhere_is_an_error(host):
  with pytest.raises(ValueError, match=rf"--host {host}.*choose another"):
    serve.bind(host, 0)


@pytest.mark.parametrize("positions", [1, 4, 10**6])
def test_positions_that_no_request_fits_are_an_error(whole, positions):
  run = serve.open_run(whole, "")
  with pytest.raises(ValueError, match=f"--positions {positions} must be 5"):
    serve.positions_of(run, positions)
  assert serve.positions_of(run, 5) == 5


def test_an_engine_elsewhere_is_asked_for_at_the_start(whole, monkeypatch):
  monkeypatch.setattr(remote, "_torch_to_base64", lambda: None)
  run = serve.open_run(whole, "")
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["tests"])
  for engine, problem in (
    ("vllm", "neither 'jax' nor an address"),
    ("http://127.0.0.1:1", "--engine http://127.0.0.1:1/v1 does not answer"),
  ):
    with (
      flagsaver.flagsaver(engine=engine),
      pytest.raises(ValueError, match=problem),
      serve.serving(run),
    ):
      pass


def test_a_key_that_is_empty_is_an_error(monkeypatch):
  monkeypatch.delenv(serve.PDPO_API_KEY, raising=False)
  assert serve.read_key() == ""
  monkeypatch.setenv(serve.PDPO_API_KEY, "sesame\n")
  assert serve.read_key() == "sesame"
  for empty in ("", " \n"):
    monkeypatch.setenv(serve.PDPO_API_KEY, empty)
    with pytest.raises(ValueError, match=r"set but empty.*unset it"):
      serve.read_key()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.5", "::1"])
def test_this_machine_is_known_by_its_addresses(host):
  assert serve.is_loopback(host)
  assert not serve.is_loopback("0.0.0.0")


def test_further_names_are_allowed_and_must_be_names():
  hosts = serve.hosts_of("127.0.0.1", ["8000-X.colab.Dev", "proxy"])
  assert {*hosts} == {
    "localhost", "127.0.0.1", "::1", "8000-x.colab.dev", "proxy"
  }  # fmt: skip
  for name in ("https://a.b", "a.b:80", "a.b/c", "", "["):
    with pytest.raises(ValueError, match="is no name of a host"):
      serve.hosts_of("127.0.0.1", ["proxy", name])


def test_a_run_folder_may_have_a_colon_in_its_name():
  room = service.Service.__new__(service.Service)
  room.model = "a:b"
  assert room.who("a:b") is None
  assert room.who("a:b:ann:1") == "ann:1"
  with pytest.raises(Exception, match="no model 'a'"):
    room.who("a")


def test_the_command_ends_with_one_line_and_status_1(tmp_path):
  ended = subprocess.run(
    [sys.executable, "-m", "pdpo_jax.serve", f"--workdir={tmp_path}"],
    cwd=pathlib.Path(serve.__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 1 and ended.stdout == ""
  (line,) = ended.stderr.splitlines()
  assert line.startswith("error: --workdir") and "is no run folder" in line
