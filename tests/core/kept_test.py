import errno
import json
import os
import stat

import pytest
from typing_extensions import TypedDict

from pdpo_jax.core import kept


class _Record(TypedDict):
  name: str
  number: int


def test_what_was_written_is_read(tmp_path):
  file = tmp_path / "deep" / "er" / "a.json"
  kept.write_json(file, {"é": 1})
  assert kept.read_json(file, dict[str, int]) == {"é": 1}
  lines = [{"name": "a\nb", "number": 1}, {"name": "\u2028", "number": 2}]
  kept.write_jsonl(tmp_path / "b.jsonl", lines)
  assert kept.read_jsonl(tmp_path / "b.jsonl", _Record) == lines
  assert not list(tmp_path.rglob(f"*{kept.UNFINISHED}"))


def _changes(content):
  for place in range(0, len(content), 3):
    for bit in (0, 5):
      flipped = bytearray(content)
      flipped[place] ^= 1 << bit
      yield bytes(flipped)
  yield from (content[:place] for place in range(0, len(content), 5))
  yield from (b"[]", b"{}", b"null", content + b"\n", content + content)


def test_any_change_of_a_kept_file_is_noticed(tmp_path):
  file = tmp_path / "a.json"
  kept.write_json(file, {"name": "x", "number": 12})
  content = file.read_bytes()
  for change in _changes(content):
    file.write_bytes(change)
    with pytest.raises(kept.Damaged, match=r"a\.json is not what was written"):
      kept.read_json(file, _Record)
  file.write_bytes(content)
  kept.read_json(file, _Record)


def test_the_file_of_another_run_is_noticed(tmp_path):
  for name in "ab":
    kept.write_json(tmp_path / name / "a.json", {"name": name, "number": 1})
  (tmp_path / "a/a.json").write_bytes((tmp_path / "b/a.json").read_bytes())
  with pytest.raises(kept.Damaged, match="not what was written"):
    kept.read_json(tmp_path / "a/a.json", _Record)


def test_damaged_sums_are_an_error_that_names_them(tmp_path):
  file = tmp_path / "a.json"
  kept.write_json(file, {"name": "x", "number": 1})
  sums = tmp_path / kept.CHECKSUMS
  content = sums.read_bytes()
  for change in _changes(content):
    sums.write_bytes(change)
    try:
      value = kept.read_json(file, _Record)
    except kept.Damaged as error:
      assert kept.CHECKSUMS in str(error)
    else:  # What was changed says nothing of this file, or nothing else.
      assert value == {"name": "x", "number": 1}


def test_a_file_without_a_sum_is_checked_against_its_type(tmp_path):
  file = tmp_path / "a.json"
  for text, problem in (
    ("", "EOF"),
    ("{", "EOF"),
    ("[]", "be an object"),
    ('{"name": 1, "number": 1}', "name: .*string: 1"),
    ('{"name": "x"}', "number: Field required"),
    ('{"name": "x", "number": "1"}', "number: .*integer"),
    ('{"name": "x", "number": 1, "more": 2}', "more: Extra"),
    ('{"name": "\\ud800", "number": 1}', "damaged"),
    ("[" * 10_000, "damaged"),
    ("9" * 5_000, "damaged"),
  ):
    file.write_text(text)
    with pytest.raises(kept.Damaged, match=problem) as error:
      kept.read_json(file, _Record, "start the training again")
    assert str(error.value).endswith("start the training again")
    assert len(str(error.value)) < 400 + len(str(file))


def test_errors_name_the_line(tmp_path):
  file = tmp_path / "a.jsonl"
  good = '{"name": "x", "number": 1}\n'
  file.write_text(f'{good}{{"name": "x"}}\n{good}')
  with pytest.raises(kept.Damaged, match="line 2 is damaged"):
    kept.read_jsonl(file, _Record)
  file.write_text(good + good[:-5])
  with pytest.raises(kept.Damaged, match="cut off in line 2"):
    kept.read_jsonl(file, _Record)


def test_a_kill_at_any_moment_leaves_a_file_that_is_known(
  tmp_path, monkeypatch
):
  file = tmp_path / "a.json"
  kept.write_json(file, {"name": "old", "number": 1})
  replace = os.replace
  for survived in range(3):
    calls = []

    def killed(source, target, survived=survived, calls=calls):
      if len(calls) == survived:
        raise KeyboardInterrupt
      calls.append(target)
      replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      kept.write_json(file, {"name": "new", "number": 2})
    monkeypatch.undo()
    value = kept.read_json(file, _Record)
    assert value["name"] == ("old" if survived < 2 else "new")
    assert not list(tmp_path.glob(f".*{kept.UNFINISHED}"))


def test_a_full_disk_leaves_what_was_there_and_says_what_to_do(
  tmp_path, monkeypatch
):
  file = tmp_path / "a.json"
  kept.write_json(file, {"name": "old", "number": 1})

  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  for write in (
    lambda: kept.write_json(file, {"name": "new", "number": 1}),
    lambda: kept.append(tmp_path / "journal.jsonl", [{}]),
  ):
    with pytest.raises(kept.Unwritable, match=r"No space.*free some space"):
      write()
  monkeypatch.undo()
  assert kept.read_json(file, _Record)["name"] == "old"
  assert not list(tmp_path.glob(f".*{kept.UNFINISHED}"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "a").write_text("")
  with pytest.raises(kept.Unwritable, match="cannot be written"):
    kept.write(tmp_path / "a" / "b.json", "")


def test_only_the_owner_reads_what_is_kept(tmp_path):
  kept.write(tmp_path / "new" / "a", "")
  kept.append(tmp_path / "new" / "b", [{}])
  modes = {
    place.name: stat.S_IMODE(place.stat().st_mode)
    for place in (tmp_path / "new", *(tmp_path / "new").iterdir())
  }
  files = dict.fromkeys(["a", "b", kept.CHECKSUMS], 0o600)
  assert modes == {"new": 0o700} | files


def test_a_journal_loses_the_lines_that_are_damaged_and_names_them(tmp_path):
  file = tmp_path / "journal.jsonl"
  records = [{"name": f"n{number}", "number": number} for number in range(4)]
  for record in records:
    kept.append(file, [record])
  assert kept.read_journal(file, _Record) == (records, [])
  content = file.read_bytes()
  second = content.index(b"\n") + 1
  for place in range(second, second + content[second:].index(b"\n")):
    flipped = bytearray(content)
    flipped[place] ^= 1
    file.write_bytes(flipped)
    kept_records, problems = kept.read_journal(file, _Record)
    assert kept_records == [records[0], *records[2:]]
    assert problems and all("journal.jsonl:2" in each for each in problems[:1])


@pytest.mark.parametrize("left", [1, 20, 47, 48, 49, 70, 95, 96])
def test_a_journal_goes_on_after_a_line_that_a_kill_cut_off(
  tmp_path, left, caplog
):
  file = tmp_path / "journal.jsonl"
  first, second, third = [
    {"name": name, "number": number} for number, name in enumerate("abc")
  ]
  kept.append(file, [first, second])
  content = file.read_bytes()
  file.write_bytes(content[:left])
  known, problems = kept.read_journal(file, _Record)
  assert known == [first, second][: len(known)] and not problems
  kept.append(file, [])
  assert kept.read_journal(file, _Record) == (known, [])
  kept.append(file, [third])
  assert kept.read_journal(file, _Record) == ([*known, third], [])
  whole = content[:left].endswith((b"}", b"\n"))
  assert ("the last line was cut off" in caplog.text) == (not whole)


def test_lines_of_a_journal_without_a_sum_are_read(tmp_path):
  file = tmp_path / "journal.jsonl"
  file.write_text(json.dumps({"name": "a", "number": 1}) + "\n")
  assert kept.read_journal(file, _Record)[0] == [{"name": "a", "number": 1}]
