"""Contenders that take turns, each a process of its own, and what they ran on.

A shared machine is never twice the same, so only what alternates is compared:
every contender does its next step when it is told to, and ratios are of medians
over steps that were done in turn. This module is for the Python of the peers
too and imports nothing but the standard library.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Facts = dict[str, Any]


def resident(what: str) -> int:
  """Bytes in memory, now ("VmRSS") or at the peak ("VmHWM"), on Linux."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  (line,) = (line for line in lines if line.startswith(what))
  return int(line.split()[1]) * 1024


def reset_peak() -> None:
  """Makes "VmHWM" begin again, from what is in memory now."""
  pathlib.Path("/proc/self/clear_refs").write_text("5")


def look_at(array: Any) -> None:
  """Brings every page of a NumPy array into memory."""
  array.reshape(-1).view("uint8")[::4096].sum()


def environment(threads: int) -> dict[str, str]:
  """Of a contender's process."""
  return os.environ | {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": str(threads),
    # Threads that wait must sleep, not take time from whose turn it is.
    "OMP_WAIT_POLICY": "PASSIVE",
  }


class Turns:
  """The contender's side: waits for its turn, and reports what it took.

  Whatever the contender prints goes to standard error.
  """

  def __init__(self):
    self._replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    self._start = self._cpu_start = 0.0

  def _write(self, facts: Facts) -> None:
    self._replies.write(json.dumps(facts) + "\n")
    self._replies.flush()

  def ready(self, **facts: Any) -> None:
    """Ends the preparation; `facts` are what is to be known of it."""
    self._write(facts)

  def wait(self) -> None:
    """Returns when it is this contender's turn; exits when all is done."""
    if not sys.stdin.readline().strip():
      self._replies.close()
      os._exit(0)
    reset_peak()
    self._start = time.perf_counter()
    self._cpu_start = time.process_time()

  def report(
    self, after: Callable[[], Facts] | None = None, **facts: Any
  ) -> None:
    """Ends the turn; `after` is still part of it, and not of what it took."""
    took = {
      "seconds": time.perf_counter() - self._start,
      "cpu_seconds": time.process_time() - self._cpu_start,
      "peak_bytes": resident("VmHWM"),
    }
    self._write(took | facts | (after() if after else {}))


@dataclasses.dataclass
class Contender:
  """The other side: a process that is told when its turn is.

  Attributes:
    name: in tables.
    facts: what it said when it was ready.
    turns: what it said after each turn.
  """

  name: str
  process: subprocess.Popen
  facts: Facts = dataclasses.field(default_factory=dict)
  turns: list[Facts] = dataclasses.field(default_factory=list)

  @classmethod
  def start(
    cls,
    name: str,
    python: str,
    module: str,
    spec: Facts,
    threads: int,
    folder: str | None = None,
  ) -> "Contender":
    """Starts `python -m module SPEC`, which is told to use `threads`.

    Args:
      folder: that has the module; this checkout without.
    """
    process = subprocess.Popen(
      [python, "-m", module, json.dumps(spec | {"threads": threads})],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=None if os.environ.get("BENCHMARK_LOG") else subprocess.DEVNULL,
      text=True,
      env=environment(threads),
      cwd=folder,
    )
    contender = cls(name, process)
    contender.facts = contender.reply()
    return contender

  def reply(self) -> Facts:
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(
        f"{self.name} ended early, with exit status {self.process.wait()}; "
        "run it with BENCHMARK_LOG=1 to see why"
      )
    return json.loads(line)

  def turn(self) -> None:
    self.process.stdin.write("go\n")
    self.process.stdin.flush()
    self.turns.append(self.reply())

  def stop(self) -> None:
    self.process.stdin.close()
    self.process.wait()

  def median(self, what: str = "seconds") -> float:
    return statistics.median(turn[what] for turn in self.turns)

  @property
  def peak_bytes(self) -> int:
    return max(turn["peak_bytes"] for turn in self.turns)


def use_cores(count: int) -> None:
  """Keeps this process, and those that it starts, to so many cores."""
  cores = sorted(os.sched_getaffinity(0))
  if count > len(cores):
    raise ValueError(f"threads {count}: there are {len(cores)} cores to use")
  os.sched_setaffinity(0, cores[:count])


def take_turns(
  contenders: Sequence[Contender], repeats: int, warm_up: int = 1
) -> None:
  """Every contender in turn, over and over; then stops them all."""
  for _ in range(warm_up + repeats):
    for contender in contenders:
      contender.turn()
  for contender in contenders:
    del contender.turns[:warm_up]
    contender.stop()


def hardware() -> dict[str, str]:
  """The processor, its cores that may be used, and memory."""
  processor = platform.processor() or platform.machine()
  information = pathlib.Path("/proc/cpuinfo")
  if information.is_file():
    for line in information.read_text().splitlines():
      if line.startswith("model name"):
        processor = line.partition(":")[2].strip()
        break
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  cores = len(os.sched_getaffinity(0))
  return {
    "processor": processor,
    "cores": str(cores),
    "memory": f"{memory / 1e9:.0f} GB",
  }


def versions(*packages: str) -> dict[str, str]:
  """Of this Python and of packages that it has."""
  found = {"python": platform.python_version()}
  return found | {name: importlib.metadata.version(name) for name in packages}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Aligned columns, the first to the left and the others to the right."""
  cells = [list(header)] + [[str(cell) for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = []
  for row in cells:
    first, *others = (
      cell.ljust(width) if place == 0 else cell.rjust(width)
      for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    lines.append("  ".join([first, *others]).rstrip())
  return "\n".join(lines)


def write(file: str, found: Mapping[str, Any]) -> None:
  """Writes `file`.json beside a benchmark, with the hardware."""
  path = pathlib.Path(file).with_suffix(".json")
  text = json.dumps({"hardware": hardware()} | dict(found), indent=2)
  path.write_text(text + "\n")
  print(f"Written: {path}")
