"""Metrics of a training: JSONL, TensorBoard, and the progress bar."""

import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
import tqdm

from pdpo_jax import processes


class Mean:
  """Means of scalars since the last `take`."""

  def __init__(self):
    self._rows: list[Mapping[str, float]] = []

  def add(self, row: Mapping[str, float]) -> None:
    self._rows.append(row)

  def take(self) -> dict[str, float]:
    """The means; empty if nothing was added."""
    rows, self._rows = self._rows, []
    names = rows[0] if rows else ()
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def open_writer(folder: pathlib.Path, step: int) -> "Writer | NoWriter":
  """The first process writes; see `Writer` for the arguments."""
  return Writer(folder, step) if processes.is_first() else NoWriter()


class NoWriter:
  """A `Writer` of the other processes."""

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
  """

  def __init__(self, folder: pathlib.Path, step: int):
    folder.mkdir(parents=True, exist_ok=True)
    self.file = folder / "metrics.jsonl"
    if self.file.exists():
      _drop_after(self.file, step)
    self._lines = self.file.open("a")
    self._board = tensorboardX.SummaryWriter(
      str(folder / "tensorboard"), purge_step=step + 1
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    self._lines.write(json.dumps({"step": step, **values}) + "\n")
    self._lines.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    self._lines.close()
    self._board.close()


def _drop_after(file: pathlib.Path, step: int) -> None:
  """Keeps the whole lines of steps up to `step`."""
  kept = []
  for line in file.read_text().splitlines():
    try:
      if json.loads(line)["step"] <= step:
        kept.append(line + "\n")
    except ValueError:
      continue  # A line that was cut off while it was written.
  part = file.with_suffix(".part")
  part.write_text("".join(kept))
  os.replace(part, file)


class Progress:
  """A bar with loss, reward accuracy, margin, samples/s and time left."""

  def __init__(self, name: str, step: int, total_steps: int, samples: int):
    self._samples = samples
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
    """Moves the bar to `step`; returns samples/s since the last call."""
    now = time.perf_counter()
    seconds = max(now - self._clock, 1e-9)
    rate = (step - self._since) * self._samples / seconds
    self._clock, self._since = now, step
    short = {"reward_accuracy": "accuracy"}
    names = ("loss", "reward_accuracy", "margin")
    shown = [
      f"{short.get(name, name)} {values[name]:.3f}"
      for name in names
      if name in values
    ]
    shown.append(f"{rate:.1f} samples/s")
    self._bar.set_postfix_str(", ".join(shown), refresh=False)
    self._bar.update(step - self._bar.n)
    return rate

  def step(self, step: int) -> None:
    self._bar.update(step - self._bar.n)

  def close(self) -> None:
    self._bar.close()
