"""Metrics of a training: JSONL, TensorBoard, and the progress bar."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tqdm
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from pdpo_jax.core import kept, processes

logger = logging.getLogger(__name__)

# What the names of scalars begin with that are on held-out data, and of text.
HELD_OUT, TEXT = "heldout_", "text_"
# Between times at which TensorBoard is given what there is.
_FLUSH_SECONDS = 30.0


class Mean:
  """Means of scalars since the last `take`."""

  def __init__(self):
    self._steps: list[Mapping[str, float]] = []

  def add(self, scalars: Mapping[str, float]) -> None:
    self._steps.append(scalars)

  def take(self) -> dict[str, float]:
    """The means; empty if nothing was added."""
    steps, self._steps = self._steps, []
    names = steps[0] if steps else ()
    return {
      name: float(np.mean([scalars[name] for scalars in steps]))
      for name in names
    }


def open_writer(folder: pathlib.Path, step: int) -> "Writer | NoWriter":
  """The first process writes; see `Writer` for the arguments."""
  return Writer(folder, step) if processes.is_first() else NoWriter()


class NoWriter:
  """A `Writer` of the other processes."""

  records: tuple[dict[str, Any], ...] = ()

  def flush(self) -> None:
    pass

  def write(self, step: int, values: Mapping[str, float]) -> None:
    pass

  def close(self) -> None:
    pass


class Writer:
  """Writes `metrics.jsonl` and TensorBoard events under `folder`.

  Args:
    folder: made if it is missing.
    step: of the checkpoint that training goes on from. What a cut-off run
      wrote beyond it is dropped, since those steps are run again.

  Raises:
    kept.Unwritable: here and at each call, if the disk refuses.
  """

  def __init__(self, folder: pathlib.Path, step: int):
    self.file = folder / "metrics.jsonl"
    self._flushed = time.monotonic()
    kept.make_folder(folder / "tensorboard")
    with self._writing():
      # What is there already.
      self.records = _keep_until(self.file, step)
      self._lines = self.file.open("a")
      # The library's own writer has a thread, which a full disk ends unseen.
      self._board = event_file_writer.EventsWriter(
        str(folder / "tensorboard" / "events"), f".{time.time_ns()}"
      )
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add_event(step=step + 1, session_log=start)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise kept.Unwritable(self.file, error) from error

  def _add_event(self, **fields: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), **fields)
    self._board.write_event(event)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    with self._writing():
      # A folder that was moved or removed would swallow all that comes.
      opened = os.fstat(self._lines.fileno())
      if not os.path.samestat(opened, self.file.stat()):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
      self._lines.write(json.dumps({"step": step, **values}) + "\n")
      self._lines.flush()
      for name, value in values.items():
        self._add_event(step=step, summary=summary.scalar(name, value))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Returns once all is on the disk."""
    with self._writing():
      os.fsync(self._lines.fileno())
      self._board.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    with self._writing():
      self._lines.close()
      self._board.close()


def _keep_until(file: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Drops the lines of later steps, and those that are damaged."""
  lines, records, damaged = [], [], 0
  text = file.read_bytes() if file.is_file() else b""
  *whole, last = text.split(b"\n")
  for number, line in enumerate([*whole, last]):
    try:
      record = {name: +value for name, value in json.loads(line).items()}
      late = record["step"] > step
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
      # The last may have been cut off while it was written.
      damaged += number < len(whole)
      continue
    if not late:
      lines.append(line + b"\n")
      records.append(record)
  if damaged:
    logger.warning("%s: %d damaged lines were dropped", file, damaged)
  if text:
    with kept.writing(file, summed=False) as out:
      out.write(b"".join(lines))
  return records


class Progress:
  """A bar with loss, reward accuracy, margin, examples/s and time left.

  A step is done once its metrics were read: devices are given steps ahead.
  """

  def __init__(self, name: str, step: int, total_steps: int, examples: int):
    self._examples = examples
    self._bar = tqdm.tqdm(
      total=total_steps,
      initial=step,
      disable=not processes.is_first(),
      desc=name,
      unit="step",
      dynamic_ncols=True,
      mininterval=0.5,
      bar_format="{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} "
      "[{elapsed}<{remaining}{postfix}]",
    )
    self._clock = time.perf_counter()
    self._since = step

  def show(self, step: int, values: Mapping[str, Any]) -> float:
    """Moves the bar to `step`; returns examples/s since the last call."""
    now = time.perf_counter()
    seconds = max(now - self._clock, 1e-9)
    rate = (step - self._since) * self._examples / seconds
    self._clock, self._since = now, step
    short = {"reward_accuracy": "accuracy"}
    names = ("loss", "reward_accuracy", "margin")
    shown = [
      f"{short.get(name, name)} {values[name]:.3f}"
      for name in names
      if name in values
    ]
    shown.append(f"{rate:.1f} examples/s")
    self._bar.set_postfix_str(", ".join(shown), refresh=False)
    self._bar.update(step - self._bar.n)
    return rate

  def step(self, step: int) -> None:
    self._bar.update(step - self._bar.n)

  def say(self, text: str) -> None:
    """Prints a line above the bar."""
    if not self._bar.disable:
      self._bar.write(text)

  def close(self) -> None:
    self._bar.close()
