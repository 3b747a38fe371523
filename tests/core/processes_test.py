"""What processes say to each other; tests/training/processes_test.py has two
real ones."""

import os
import pathlib
import pickle
import signal

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from pdpo_jax import command_line
from pdpo_jax.core import liveness, processes


class Store:
  """JAX's key-value store, in as far as it is used."""

  def __init__(self, **kept):
    self.kept = {key.replace("_", "/"): value for key, value in kept.items()}

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite or key not in self.kept
    self.kept[key] = value

  key_value_set_bytes = key_value_set

  def key_value_dir_get(self, folder):
    found = self.kept.items()
    return [(key, value) for key, value in found if key.startswith(folder)]

  def blocking_key_value_get_bytes(self, key, milliseconds):
    return self.kept[key]

  blocking_key_value_get = blocking_key_value_get_bytes

  def key_value_delete(self, key):
    del self.kept[key]


@pytest.fixture
def answers(monkeypatch):
  """Makes this process 0 of two, and says what process 1 answers."""

  def set_answers(*others):
    replies = iter(others)
    monkeypatch.setattr(
      processes, "gather", lambda value: [value, next(replies)]
    )
    monkeypatch.setattr(processes, "_group", processes._Group(0, 2, Store()))

  return set_answers


def test_a_single_process_agrees_with_itself_at_once():
  assert processes.is_first() and not processes.several()
  assert processes.gather(3) == [3]
  assert processes.from_first(lambda: 5) == 5
  processes.agree("anything", {"x": 1})
  assert processes.Announcement().exchange(15) == 15
  processes.finish()


def test_what_differs_is_named_with_its_places_and_values(answers):
  answers({"a": 1, "b": 2})
  with pytest.raises(
    ValueError,
    match=r"agree on the data: b is 2 on process 1 and 7 on process 0\. Start",
  ):
    processes.agree("the data", {"a": 1, "b": 7})
  answers({"a": 1})
  with pytest.raises(ValueError, match="b is None on process 1 and 7 on"):
    processes.agree("the data", {"a": 1, "b": 7})
  answers({"a": 1})
  processes.agree("the data", {"a": 1})


def test_what_the_first_raises_is_raised_on_all(monkeypatch):
  monkeypatch.setattr(processes, "_group", processes._Group(1, 2, Store()))
  error = OSError("the disk is full")
  monkeypatch.setattr(processes, "gather", lambda own: [(None, error), own])

  def make():
    raise AssertionError("only the first makes it")

  with pytest.raises(OSError, match="the disk is full"):
    processes.from_first(make)


def test_gathering_leaves_one_call_at_most_in_the_store(monkeypatch):
  store = Store()
  monkeypatch.setattr(processes, "_group", processes._Group(0, 1, store))
  for value in ("one", "two", "three"):
    assert processes.gather(value) == [value]
  assert list(store.kept) == ["gather/2/0", "ready/2/0"]


class Stranger:
  """Unpickled, it makes a folder."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  def __reduce__(self):
    return os.mkdir, (str(self.folder),)


def test_a_strangers_pickle_in_the_store_runs_nothing(monkeypatch, tmp_path):
  folder = tmp_path / "ran"
  store = Store(gather_0_1=pickle.dumps(Stranger(folder)), ready_0_1="")
  monkeypatch.setattr(processes, "_group", processes._Group(0, 2, store))
  with pytest.raises(ValueError, match="process 1 sent what cannot be read"):
    processes.gather("hello")
  assert not folder.exists()


def test_who_writes_in_the_place_of_a_process_is_noticed(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError("ALREADY_EXISTS: gather/0/0")

  store = Store()
  monkeypatch.setattr(store, "key_value_set_bytes", refuse)
  monkeypatch.setattr(processes, "_group", processes._Group(0, 2, store))
  with pytest.raises(ValueError, match="wrote in place of process 0"):
    processes.gather("hello")


def test_a_failure_of_another_is_a_reason_to_leave():
  store = Store(failed_1="no such file")
  watch = liveness.Watch(store, 0, 2, 30, pytest.fail)
  assert watch.look(0) == "process 1 failed: no such file"


def test_who_gives_no_sign_of_life_is_missed():
  store = Store(alive_1="0", alive_2="0")
  watch = liveness.Watch(store, 0, 3, 30, pytest.fail)
  for beat in range(61):
    store.kept["alive/1"] = str(beat)
    assert watch.look(beat) is None
    assert store.kept["alive/0"] == str(beat)
  reason = watch.look(61)
  assert "process 2 has given no sign of life for 30 s" in reason
  assert watch.silent(30) == [2]


@pytest.mark.parametrize(("status", "ended"), [(0, 1), (75, 75)])
def test_a_signal_outside_of_training_tells_a_scheduler_to_go_on(
  monkeypatch, status, ended
):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["tests"])
  found = []
  monkeypatch.setattr(processes, "several", lambda: True)
  monkeypatch.setattr(processes, "fail", lambda *said: found.append(said))
  monkeypatch.setattr(processes, "is_broken_off", lambda error: False)
  with pytest.raises(processes.Stopped) as stopped:
    processes._stop(signal.SIGTERM, None)
  with flagsaver.flagsaver(interrupted_status=status):
    command_line._end(stopped.value)
  assert found[0] == ("stopped by SIGTERM", ended)
