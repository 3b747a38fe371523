"""What a long training uses: descriptors, threads, memory, and time for sums.

  python -m tests.endurance [--steps=2000] [--minutes=10]

The first training saves each second step, and evaluates each fifth, at a limit
of 128 open files. The second is a tiny P-DPO for about so many minutes, as its
config would have it saved. Prints what they used, and ends with status 1 where
it grew, or where sums took more than 1% of the time.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import resource
import statistics
import tempfile
import threading
import time

import jax

from pdpo_jax.training import loop, sums
from tests import tiny
from tests.training import loop_test

LIMIT = 128
# From half to half of the training. TensorStore 0.1.86 loses 2 KB whenever it
# is asked for its metrics, as Orbax does several times a save: 10 MB in 500.
MOST_MEGABYTES = 20.0
MOST_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class Use:
  """What this process holds."""

  step: int
  descriptors: int
  threads: int
  megabytes: float

  @classmethod
  def now(cls, step: int) -> "Use":
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return cls(
      step,
      len(os.listdir("/proc/self/fd")),
      threading.active_count(),
      pages * resource.getpagesize() / 1e6,
    )


def train(folder: pathlib.Path, steps: int, looks: int = 10) -> list[Use]:
  """Trains with a save each second step; what is held at each look."""
  uses = []

  def at_step(step):
    if step % (steps // looks) == 0:
      uses.append(Use.now(step))

  training = loop_test.make_training(
    folder,
    total_steps=steps,
    at_step=at_step,
    looks=[loop_test.held_out_look(every=5)],
  )
  cadence = dataclasses.replace(loop_test.CADENCE, checkpoint_every=2)
  before = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, before[1]))
  try:
    loop.run(training, cadence)
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
  return [*uses, Use.now(steps)]


def growth(uses: list[Use]) -> dict[str, float]:
  """From the fullest of the first half to the fullest of the second."""
  # The first look is before anything was saved.
  half = 1 + len(uses) // 2
  parts = uses[1:half], uses[half:]
  names = ("descriptors", "threads", "megabytes")
  return {
    name: max(getattr(use, name) for use in parts[1])
    - max(getattr(use, name) for use in parts[0])
    for name in names
  }


def measure_sums(folder: pathlib.Path, minutes: float) -> tuple[float, float]:
  """Seconds of a training, and those of them that sums took."""
  spent = []

  def timed(function):
    @functools.wraps(function)
    def wrapper(*args):
      # What the devices are about is not the sum's to pay.
      jax.block_until_ready([x for x in args if isinstance(x, dict)])
      begin = time.perf_counter()
      result = function(*args)
      spent.append(time.perf_counter() - begin)
      return result

    return wrapper

  config = tiny.tiny_config(folder)
  parts = tiny.tiny_parts(config)
  config.train = dataclasses.replace(type(config.train)(), batch_size=8)
  config.train.warmup_steps = 0
  # A short one first, to know how long a step takes.
  config.train.epochs = 10
  tiny.train(config, parts)
  lines = (config.folder / "pdpo" / "metrics.jsonl").read_text().splitlines()
  rates = [json.loads(line).get("samples_per_second", 0.0) for line in lines]
  steps = minutes * 60 * statistics.median(rates) / config.train.batch_size
  config.train.epochs = max(1, int(steps / parts[2].num_batches))
  config.workdir = str(folder / "long")
  originals = sums.add, sums.check
  sums.add, sums.check = map(timed, originals)
  begin = time.perf_counter()
  try:
    tiny.train(config, parts)
  finally:
    sums.add, sums.check = originals
  return time.perf_counter() - begin, sum(spent)


def show(uses: list[Use]) -> list[str]:
  """Prints what was held; what is wrong with it."""
  print(f"\n{'step':>6} {'descriptors':>12} {'threads':>8} {'MB':>8}")
  for use in uses:
    print(
      f"{use.step:6,} {use.descriptors:12} {use.threads:8} {use.megabytes:8.1f}"
    )
  more = growth(uses)
  faults = []
  if more["megabytes"] > MOST_MEGABYTES:
    faults.append(f"memory grows by {more['megabytes']:.1f} MB")
  # A save that is under way holds some, more or fewer.
  if more["descriptors"] > 20 or more["threads"] > 20:
    faults.append("descriptors or threads grow")
  return faults


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--steps", type=int, default=2000, help="0: none")
  parser.add_argument("--minutes", type=float, default=10)
  flags = parser.parse_args()
  faults = []
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    if flags.steps:
      faults += show(train(folder / "saves", flags.steps))
    if flags.minutes:
      total, spent = measure_sums(folder / "sums", flags.minutes)
      share = spent / total
      print(f"sums: {spent:.2f} s of {total:.0f} s, {share:.2%}")
      if share > MOST_SHARE:
        faults.append("sums take too long")
  raise SystemExit("; ".join(faults) or 0)


if __name__ == "__main__":
  main()
