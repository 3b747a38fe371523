import random

import pytest

from tests import kills

# Two steps, each done once; the second needs the first.
WHOLE = """
import os, pathlib
for name in ("one", "two"):
  file = pathlib.Path(name + ".txt")
  if not file.exists():
    part = pathlib.Path(name + ".part")
    with part.open("w") as out:
      out.write("x" * 9)
      out.flush()
      os.fsync(out.fileno())
    part.replace(file)
"""
# As if there were a file only when it is whole.
TORN = WHOLE.replace('name + ".part"', 'name + ".txt"')
TORN = TORN.replace("    part.replace(file)\n", "")
TORN = TORN.replace("      out.flush()\n", "")


@pytest.mark.parametrize(("text", "differ"), [(WHOLE, []), (TORN, ["one.txt"])])
def test_kills_at_file_operations_show_what_is_not_written_whole(
  tmp_path, monkeypatch, text, differ
):
  work, whole = tmp_path / "work", tmp_path / "whole"
  for place in (work, whole):
    place.mkdir()
    (place / "task.py").write_text(text)
  monkeypatch.setattr(kills, "commands", lambda: {"task": ["task"]})
  operations = kills.start(whole, ["task"])
  # Of each file: opened, synced, and renamed where it was another's name.
  assert operations == (6 if text == WHOLE else 4)
  # Just before the first sync: there is a file, and nothing is in it yet.
  assert kills.start(work, ["task"], at=2) == 0
  kills.kill_through(work, {"task": 3}, 1, random.Random(0), lambda _: None)
  (work / "one.part").unlink(missing_ok=True)
  assert kills.differences(whole, work) == differ
