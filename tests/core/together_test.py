import os
import shutil

import pytest

from pdpo_jax.core import kept, together


def make(folder):
  """Files and a folder, and a change of them that is committed."""
  kept.write(folder / "a.json", "old a")
  kept.write(folder / "b.json", "old b")
  kept.write(folder / "more/c.json", "old c")
  kept.write(folder / "more/d.json", "stays")
  kept.write(folder / "steps/1/array", "old")
  kept.write(folder / "steps/2/array", "goes")
  (folder / "journal").write_text("old")


def change(folder):
  new = together.Change(folder)
  new.write("a.json", b"new a")
  new.write("more/e.json", b"new e")
  new.write("journal", b"new", summed=False)
  place = new.replace("steps")
  kept.write(place / "1/array", "new")
  new.remove("b.json")
  new.remove("more/c.json")
  new.remove("not there")
  return new


def contents(folder):
  return {
    file.relative_to(folder).as_posix(): file.read_bytes()
    for file in folder.rglob("*")
    if file.is_file()
  }


@pytest.fixture
def before(tmp_path):
  make(tmp_path / "before")
  return contents(tmp_path / "before")


@pytest.fixture
def after(tmp_path):
  folder = tmp_path / "after"
  make(folder)
  change(folder).commit({})
  together.finish(folder, lambda note: None)
  return contents(folder)


def test_files_and_folders_take_the_places_of_others(after, tmp_path):
  names = {name for name in after if kept.CHECKSUMS not in name}
  assert names == {
    "a.json", "journal", "more/d.json", "more/e.json", "steps/1/array",
  }  # fmt: skip
  folder = tmp_path / "after"
  assert kept.read(folder / "a.json") == b"new a"
  assert kept.read(folder / "more/e.json") == b"new e"
  # Sums are of what is there.
  for place in (folder, folder / "more", folder / "steps/1"):
    kept.check(place)
  assert kept.read_sums(folder).keys() == {"a.json"}


def test_what_is_not_committed_never_happened(before, tmp_path):
  folder = tmp_path / "run"
  make(folder)
  change(folder)
  assert not together.is_unfinished(folder)
  together.finish(folder, lambda note: None)
  assert contents(folder) == before


class Kill(BaseException):
  """As a process is killed: nothing that follows happens."""


def kill(patch, at):
  """Has the file operation number `at` be the last thing that happens."""
  count = 0

  def killing(module, name):
    real = getattr(module, name)

    def operate(*arguments, **others):
      nonlocal count
      if count == at:
        raise Kill
      count += 1
      return real(*arguments, **others)

    patch.setattr(module, name, operate)

  for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "open"):
    killing(os, name)


@pytest.mark.parametrize("step", ["commit", "finish"])
def test_killed_anywhere_all_of_it_happens_or_nothing(
  step, before, after, tmp_path, monkeypatch
):
  monkeypatch.setattr(os, "fsync", lambda handle: None)  # It takes its time.
  folder = tmp_path / "run"
  notes, at, outcomes = [], 0, set()
  while True:
    shutil.rmtree(folder, ignore_errors=True)
    make(folder)
    if step == "finish":
      change(folder).commit({"who": "x"})
    with pytest.MonkeyPatch.context() as patch:
      kill(patch, at)
      try:
        if step == "commit":
          change(folder).commit({"who": "x"})
        else:
          together.finish(folder, notes.append)
        break
      except Kill:
        pass
    is_decided = together.is_unfinished(folder)
    together.finish(folder, notes.append)
    outcome = contents(folder)
    assert outcome in (before, after), f"operation {at}"
    assert outcome == after or not is_decided
    outcomes.add(outcome == after)
    at += 1
  assert at > 10
  # The plan has its name before the last of its sums is written.
  assert outcomes == ({False, True} if step == "commit" else {True})
  assert not notes or {note["who"] for note in notes} == {"x"}


def test_a_plan_that_is_damaged_is_an_error(tmp_path):
  folder = tmp_path / "run"
  make(folder)
  change(folder).commit({})
  (folder / together.FOLDER / "plan.json").write_text('{"replaced": ')
  with pytest.raises(kept.Damaged, match=r"plan\.json"):
    together.finish(folder, lambda note: None)
