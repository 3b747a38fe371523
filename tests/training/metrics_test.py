import json
import logging

import pytest
from tensorboardX.proto import event_pb2

from pdpo_jax.core import kept
from pdpo_jax.training import metrics


def records(folder):
  text = (folder / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def write(folder, start, *steps):
  writer = metrics.Writer(folder, start)
  for step in steps:
    writer.write(step, {"loss": float(step)})
  writer.close()


DAMAGED = [
  b"",
  b"{",
  b"[1, 2]",
  b"7",
  b'"step"',
  b"null",
  b"{}",
  b'{"step": "two"}',
  b'{"step": null}',
  b'{"step": [1]}',
  b"\xff\xfe\x00",
  b'{"step": 1, "lo\x00ss": ',
  b"[" * 100_000,
]


@pytest.mark.parametrize("line", DAMAGED, ids=lambda line: repr(line[:12]))
def test_a_damaged_line_of_metrics_is_dropped_and_told(tmp_path, caplog, line):
  write(tmp_path, 0, 2, 4, 6)
  file = tmp_path / "metrics.jsonl"
  first, *others = file.read_bytes().splitlines(keepends=True)
  file.write_bytes(first + line + b"\n" + b"".join(others))
  with caplog.at_level(logging.WARNING):
    write(tmp_path, 4, 6, 8)
  assert [record["step"] for record in records(tmp_path)] == [2, 4, 6, 8]
  assert f"{file}: 1 damaged lines were dropped" in caplog.text


def test_a_line_that_a_kill_cut_off_is_no_damage(tmp_path, caplog):
  write(tmp_path, 0, 2, 4)
  with (tmp_path / "metrics.jsonl").open("a") as out:
    out.write('{"step": 4, "lo')
  write(tmp_path, 4, 6)
  assert [record["step"] for record in records(tmp_path)] == [2, 4, 6]
  assert not caplog.records


def read_events(file):
  """Events of a file in TensorFlow's record format."""
  content, place, events = file.read_bytes(), 0, []
  while place < len(content):
    size = int.from_bytes(content[place : place + 8], "little")
    data = content[place + 12 : place + 12 + size]
    events.append(event_pb2.Event.FromString(data))
    place += size + 16
  return events


def test_tensorboard_has_each_step_once_after_a_restart(tmp_path):
  write(tmp_path, 0, 2, 4, 6)
  write(tmp_path, 4, 6, 8)  # As TensorBoard reads it: from step 5 on, anew.
  first, second = sorted((tmp_path / "tensorboard").iterdir())
  steps = [each.step for each in read_events(first) if each.summary.value]
  assert steps == [2, 4, 6]
  version, start, *others = read_events(second)
  assert version.file_version and start.step == 5
  assert start.session_log.status == event_pb2.SessionLog.START
  assert [(x.step, x.summary.value[0].simple_value) for x in others] == [
    (6, 6.0),
    (8, 8.0),
  ]


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensorboard"])
def test_what_is_in_the_way_of_metrics_is_named(tmp_path, name):
  place = tmp_path / name
  if name == "tensorboard":
    place.write_text("")
  else:
    place.mkdir()
  with pytest.raises(kept.Unwritable, match=name):
    metrics.Writer(tmp_path, 0)
