import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from pdpo_jax.core import kept
from pdpo_jax.runs import locks

# Holds a folder until it is killed.
HOLD = """
import pathlib, sys, time
from pdpo_jax.runs import locks
locks._BEAT_SECONDS = 0.1
with locks.writing(pathlib.Path(sys.argv[1])):
  print("has it", flush=True)
  time.sleep(120)
"""


def elsewhere(folder, duration=locks._SILENT_SECONDS):
  """A lock that a process on another machine has."""
  folder.mkdir(exist_ok=True)
  file = folder / locks.LOCK
  lines = ["filelock/2", "pid=7", "host=elsewhere", "mode=lease"]
  lines += ["token=12ab", f"duration={duration!r}"]
  file.write_text("\n".join(lines) + "\n")
  return file


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(locks, "_SILENT_SECONDS", 2.0)
  monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.1)


@pytest.fixture
def holder(tmp_path):
  """A process that has `tmp_path / "run"`."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, tmp_path / "run"],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "has it\n"
  yield process
  process.kill()
  process.communicate()


def test_a_second_writer_is_told_who_the_first_one_is(tmp_path, holder):
  with (
    pytest.raises(ValueError, match="being written by another") as error,
    locks.writing(tmp_path / "run"),
  ):
    pass
  text = str(error.value)
  assert f"process {holder.pid} on {socket.gethostname()}" in text
  assert re.search(r", since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", text)
  assert " -c " in text
  assert "wait until it ends, or stop it, or choose another folder" in text
  assert str(tmp_path / "run" / "lock") in text


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert (tmp_path / "run" / locks.LOCK).exists()
  start = time.monotonic()
  with locks.writing(tmp_path / "run"):
    pass
  assert time.monotonic() - start < 5
  assert list((tmp_path / "run").iterdir()) == []


def test_the_lock_of_a_process_whose_number_another_has_is_taken_over(
  tmp_path,
):
  file = elsewhere(tmp_path / "run")
  text = file.read_text().replace("elsewhere", socket.gethostname())
  # This process began at another time.
  file.write_text(text.replace("pid=7", f"pid={os.getpid()}") + "start=1\n")
  with locks.writing(tmp_path / "run"):
    pass


def test_a_machine_that_gives_no_sign_of_life_has_lost_the_folder(
  tmp_path, quick, caplog
):
  elsewhere(tmp_path / "run", 2.0)
  with locks.writing(tmp_path / "run"):
    pass
  assert "process 7 on elsewhere; waiting for a sign of life" in caplog.text


def test_a_machine_that_gives_a_sign_of_life_keeps_the_folder(
  tmp_path, monkeypatch
):
  file = elsewhere(tmp_path / "run")
  ticks = iter(range(100))
  monkeypatch.setattr(locks, "_touched", lambda lease: next(ticks))
  monkeypatch.setattr(locks, "_TRY_SECONDS", 0.1)
  with (
    pytest.raises(ValueError, match="process 7 on elsewhere"),
    locks.writing(tmp_path / "run"),
  ):
    pass
  assert file.exists()


@pytest.mark.parametrize("content", ["", "x", "filelock/2\npid=", "\0" * 40])
def test_a_damaged_lock_is_taken_over(tmp_path, content):
  (tmp_path / "lock").write_text(content)
  with locks.writing(tmp_path):
    pass


def test_a_command_whose_folder_is_removed_ends_at_once(tmp_path, holder):
  shutil.rmtree(tmp_path / "run")
  _, errors = holder.communicate(timeout=20)
  assert holder.returncode == 1
  assert errors.strip().splitlines()[-1].startswith("error: run folder")
  assert "was removed, or its lock was" in errors


def test_the_same_folder_twice_is_one(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "b").symlink_to(tmp_path / "a")
  with locks.writing(tmp_path / "a", [tmp_path / "b", tmp_path / "c"]):
    assert (tmp_path / "c").exists() is False
    for folder in "ab":
      with (
        pytest.raises(ValueError, match="by another command"),
        locks.writing(tmp_path / folder),
      ):
        pass


def test_a_folder_that_cannot_be_written_is_an_error_for_its_own_run_alone(
  tmp_path,
):
  with locks.writing(tmp_path, [type(tmp_path)("/proc/1")]):
    pass
  with (
    pytest.raises(kept.Unwritable, match="cannot be written"),
    locks.writing(type(tmp_path)("/proc/run")),
  ):
    pass


def test_locks_are_the_owners_alone(tmp_path):
  with locks.writing(tmp_path / "run"):
    for name in (locks.LOCK, locks.HOLDER):
      assert (tmp_path / "run" / name).stat().st_mode & 0o077 == 0
