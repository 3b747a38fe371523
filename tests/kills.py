"""Kills the whole command again and again, and compares what it ends with.

  python -m tests.kills [--kills=30] [--seed=0]

A run, one that starts from it with newcomers, and an evaluation with a judge
are made twice in the same place: once in peace, and once by processes that kill
themselves at a file operation, at another one each time. Both must end with
the same, bit by bit, but for what tells the time. Ends with status 1 otherwise.
"""

import argparse
import atexit
import json
import os
import pathlib
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
# Seconds and rates, by name, wherever they stand.
_TIMES = ("seconds", "samples_per_second")
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def commands() -> dict[str, list[str]]:
  """Modules and flags by name, in their order."""
  quickstart = [
    "pdpo_jax.main",
    f"--config={ROOT / 'configs' / 'quickstart.py'}:smoke",
    "--config.cache=cache",
    "--config.train.checkpoint_every=2",
    "--config.train.eval_every=3",
    "--config.answers.max_new_tokens=8",
  ]
  newcomers = [
    "--config.data.source=files",
    "--config.data.path=new.jsonl",
    "--config.data.files.heldout_share=0.25",
    "--config.train.start_from=first",
    "--config.train.learn=users",
    "--config.vanilla=False",
  ]
  return {
    "first": [*quickstart, "--config.workdir=first"],
    "newcomers": [*quickstart, *newcomers, "--config.workdir=second"],
    "judge": [
      "pdpo_jax.evaluate",
      "--workdir=first",
      "--judge.kind=rule",
      "--judge.num_users=2",
    ],
  }


def write_new(file: pathlib.Path) -> None:
  """Choices of two people whom the first run does not know."""
  rows = [
    {
      "prompt": f"Post number {number} of {user}.\nTL;DR:",
      "chosen": " short",
      "rejected": f" a longer summary, of {number}",
      "user_id": user,
    }
    for user in ("ann", "bob")
    for number in range(12)
  ]
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def start(place: pathlib.Path, command: Sequence[str], at: int = 0) -> int:
  """Runs a command in `place`, which dies at its file operation number `at`.

  Returns:
    How many operations there were; 0 if it died.

  Raises:
    RuntimeError: if it failed in any other way.
  """
  count = place.with_name("count")
  count.unlink(missing_ok=True)
  child = [sys.executable, "-m", "tests.kills", "--child", str(at), str(count)]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  process = subprocess.run(
    [*child, *command],
    cwd=place,
    env=environment,
    capture_output=True,
    text=True,
  )
  if process.returncode == -signal.SIGKILL:
    return 0
  if process.returncode or "Traceback" in process.stderr:
    raise RuntimeError(f"{' '.join(command)}:\n{process.stderr[-3000:]}")
  return int(count.read_text())


def _run_child(at: int, count: pathlib.Path, command: Sequence[str]) -> None:
  """Runs a module in this process, and kills it at an operation."""
  place = f"{pathlib.Path.cwd()}/"
  operations = 0

  def reach():
    nonlocal operations
    operations += 1
    if operations == at:
      os.kill(os.getpid(), signal.SIGKILL)

  def is_here(path):
    path = os.fsdecode(path) if isinstance(path, str | bytes) else ""
    return os.path.abspath(path).startswith(place) if path else False

  def watch(event, arguments):
    writes = event == "open" and (arguments[2] or 0) & _WRITES
    if (writes or event in _CHANGES) and is_here(arguments[0]):
      reach()

  def fsync(handle, call=os.fsync):
    reach()
    call(handle)

  os.fsync = fsync
  sys.addaudithook(watch)
  atexit.register(lambda: count.write_text(str(operations)))
  sys.argv = list(command)
  runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def kill_through(
  place: pathlib.Path,
  operations: Mapping[str, int],
  kills: int,
  rng: random.Random,
  tell: Callable[[str], None] = print,
) -> None:
  """Makes all in `place`, with a share of the kills in each command."""
  total = sum(operations.values())
  for name, command in commands().items():
    share = max(1, round(kills * operations[name] / total))
    done = 0
    while done < share:
      # So that each start can get as far as the last, and further.
      most = max(2, 2 * operations[name] // share)
      at = rng.randint(1, most)
      if start(place, command, at):
        break  # What was left had fewer operations.
      done += 1
      tell(f"{name}: killed at operation {at} of its start {done}")
    start(place, command)


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
  """Files of two folders that do not say the same."""
  contents = [_read_all(folder) for folder in (first, second)]
  return [
    name
    for name in sorted(contents[0].keys() | contents[1].keys())
    if contents[0].get(name) != contents[1].get(name)
  ]


def _read_all(folder: pathlib.Path) -> dict[str, Any]:
  """What each file says, but for times; of checkpoints, the arrays."""
  found = {}
  for file in sorted(folder.rglob("*")):
    path = file.relative_to(folder)
    if file.is_dir() or "tensorboard" in path.parts:
      continue
    if "checkpoints" in path.parts:
      top = folder.joinpath(*path.parts[: path.parts.index("checkpoints") + 1])
      found[str(top.relative_to(folder))] = None
    elif path.name == "checksums.json":
      found[str(path)] = sorted(json.loads(file.read_text()))
    elif path.suffix in (".json", ".jsonl"):
      lines = file.read_text().splitlines()
      texts = lines if path.suffix == ".jsonl" else [file.read_text()]
      found[str(path)] = [_without_times(json.loads(text)) for text in texts]
    elif path.name not in ("index.html", "report.md"):
      # A report's numbers are in its JSON.
      found[str(path)] = file.read_bytes()
  for name in [name for name, value in found.items() if value is None]:
    found[name] = _arrays(folder / name)
  return found


def _without_times(value: Any) -> Any:
  if isinstance(value, dict):
    return {
      name: _without_times(each)
      for name, each in value.items()
      if name not in _TIMES
    }
  if isinstance(value, list):
    return [_without_times(each) for each in value]
  return value


def _arrays(folder: pathlib.Path) -> dict[str, bytes]:
  """The bytes of all arrays of a training's checkpoints."""
  # Not before a child has set its traps, for which it needs none of them.
  import jax
  import numpy as np

  from pdpo_jax.training import checkpoint

  found = {}
  with checkpoint.Checkpoints(folder) as saved:
    for step in saved.steps:
      names = ("lora", "users", "base", "optimizer")
      items = saved.load_as_saved(step, names)
      for path, leaf in jax.tree_util.tree_leaves_with_path(items):
        name = f"{step}{jax.tree_util.keystr(path)}"
        found[name] = (
          leaf.encode() if isinstance(leaf, str) else np.asarray(leaf).tobytes()
        )
  return found


def compare(
  folder: pathlib.Path, kills: int, seed: int, tell: Callable[[str], None]
) -> list[str]:
  """Makes all twice; what the one that was killed has that differs."""
  work, whole = folder / "work", folder / "whole"
  work.mkdir(parents=True)
  write_new(work / "new.jsonl")
  operations = {
    name: start(work, command) for name, command in commands().items()
  }
  tell(f"file operations: {operations}")
  # In the same place again, since paths are part of what is compared.
  work.rename(whole)
  work.mkdir()
  shutil.copy(whole / "new.jsonl", work)
  kill_through(work, operations, kills, random.Random(seed), tell)
  return differences(whole, work)


def main() -> None:
  if sys.argv[1:2] == ["--child"]:
    at, count, *command = sys.argv[2:]
    _run_child(int(at), pathlib.Path(count), command)
    return
  parser = argparse.ArgumentParser()
  parser.add_argument("--kills", type=int, default=30)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=pathlib.Path, help="Kept, if named.")
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as place:
    folder = flags.folder or pathlib.Path(place)
    different = compare(folder, flags.kills, flags.seed, print)
  if different:
    raise SystemExit(f"differ: {', '.join(different)}")
  print("what is left is the same, bit by bit, as without a kill")


if __name__ == "__main__":
  main()
