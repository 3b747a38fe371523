"""Damages files of a run, and asks the commands that read them what they see.

  python -m tests.corruptions --count=300

makes a tiny run, damages one of its files at a time, and prints how often that
was a clear error, was said and made again, or changed nothing; and each
traceback, and each silent change, of which there must be none.
"""

import argparse
import collections
import contextlib
import dataclasses
import fnmatch
import hashlib
import logging
import pathlib
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pdpo_jax.core import kept
from pdpo_jax.evaluation.judge import journal
from pdpo_jax.runs import answers, responses, run_folder, scores
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import loop, metrics, policies, sft
from tests import tiny_run

# From a file's content, and that of the same file of another run.
Kind = Callable[[bytes, bytes, random.Random], bytes | None]


def _flip(content: bytes, other: bytes, rng: random.Random) -> bytes:
  if not content:
    return b"\0"
  changed = bytearray(content)
  changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
  return bytes(changed)


# What is left of a file; None removes it.
KINDS: dict[str, Kind] = {
  "truncated": lambda content, other, rng: content[
    : rng.randrange(len(content) or 1)
  ],
  "emptied": lambda content, other, rng: b"",
  "flipped": _flip,
  "another type": lambda content, other, rng: rng.choice(
    [b"[]", b"{}", b"null", b'"text"\n', b"7", b"\xff\xfe\0", b"{}\n{}\n"]
  ),
  "another run's": lambda content, other, rng: other,
  "zeros": lambda content, other, rng: bytes(len(content)),
  "removed": lambda content, other, rng: None,
}
# Files that commands write and never read.
WRITTEN_ONLY = (
  run_folder.RESULTS,
  f"{run_folder.REPORT}/",
  f"{run_folder.BASE}/checkpoints",
  f"{run_folder.BASE}/metrics.jsonl",
  "tensorboard",
)
# The only one that writes.
_WRITES = "train again"


def files_of(run: pathlib.Path) -> list[str]:
  """The files of a run, relative to it."""
  return sorted(
    str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()
  )


class _Said(logging.Handler):
  """What was logged."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.texts: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    self.texts.append(record.getMessage())


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
  handler, root = _Said(), logging.getLogger()
  root.addHandler(handler)
  try:
    yield handler.texts
  finally:
    root.removeHandler(handler)


def _digest(value: Any) -> str:
  return hashlib.sha256(repr(value).encode()).hexdigest()[:12]


def _config(run: pathlib.Path) -> config_lib.Config:
  return dataclasses.replace(run_folder.read_config(run), workdir=str(run))


def _policy(run: pathlib.Path, name: str) -> Any:
  """What `generate` and `export` read, of one training."""
  config = _config(run).trainings[name]
  users = policies.read_users(config.recipe, run / name)
  base = run_lib.read_base(config, run, reading=True)
  loaded = policies.load(config.recipe, base, run / name)
  tokens = base.tokenizer("a story of Dana, burned lamps.").input_ids
  return (
    users.ids,
    loaded.step,
    loaded.policy.digest(),
    base.fingerprint,
    base.stop_tokens,
    tokens,
    base.tokenizer.decode(tokens),
  )


def _kept_scores(run: pathlib.Path, originals: list[str]) -> Any:
  """What `evaluate` reads besides the policy."""
  found = {}
  for name in originals:
    if "/scores/" in name and not name.endswith(kept.CHECKSUMS):
      lines = scores.read(run / name)
      found[name] = lines and _digest(lines)
    if "responses/" in name and not name.endswith(kept.CHECKSUMS):
      found[name] = _digest(responses.read(run / name))
  return found


def _train_again(run: pathlib.Path) -> Any:
  """What the training command reads before it goes on."""
  config = _config(run)
  run_folder.begin_or_continue(config)
  dataset = run_lib.load_dataset(config, None, run)
  sft.check_data(run / run_folder.BASE, dataset.digest)
  metrics.Writer(run / config_lib.PDPO, 3).close()
  return run_folder.is_done(run, config)


def _known_verdicts(run: pathlib.Path, original: pathlib.Path) -> bool:
  """Whether a journal says nothing else; what it lacks is asked for again.

  Verdicts of another run are of other questions, which nobody asks here.
  """
  now, before = (
    journal._read(place / run_folder.JOURNAL) for place in (run, original)
  )
  return all(now[key] == before[key] for key in now.keys() & before.keys())


def _answers(run: pathlib.Path) -> tuple[Any, ...]:
  """All that is kept of answers, as values that can be compared."""
  kept = answers.read(run / run_folder.ANSWERS)
  likely = {
    speaker: (own.sums.tolist(), own.tokens.tolist())
    for speaker, own in kept.likelihoods.items()
  }
  return kept.prompts, kept.texts, likely


def commands(
  run: pathlib.Path, original: pathlib.Path
) -> dict[str, Callable[[], Any]]:
  """What the commands read of a run, by what they read it for.

  Args:
    original: the run before it was damaged.
  """
  originals = files_of(original)
  return {
    "config": lambda: _config(run),
    "versions": lambda: sorted(run_folder.read_versions(run)),
    "user texts": lambda: run_folder.read_user_texts(run),
    "held out": lambda: run_folder.read_held_out(run),
    "answers": lambda: _answers(run),
    "scores": lambda: _kept_scores(run, originals),
    "journal": lambda: _known_verdicts(run, original),
    _WRITES: lambda: _train_again(run),
    config_lib.VANILLA: lambda: _policy(run, config_lib.VANILLA),
    config_lib.PDPO: lambda: _policy(run, config_lib.PDPO),
  }


def _asked(name: str, command: str) -> bool:
  """Whether a command reads a file, for all that is known."""
  if name.startswith(f"{run_folder.BASE}/"):
    return command in (_WRITES, config_lib.PDPO)
  for training in (config_lib.VANILLA, config_lib.PDPO):
    if name.startswith(f"{training}/checkpoints"):
      return command == training
  return command not in (config_lib.VANILLA, config_lib.PDPO)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What one command made of a damaged file.

  Attributes:
    kind: "error", "said", "untouched", "traceback" or "silent".
    text: of the error or the warning.
  """

  kind: str
  text: str = ""


def ask(command: Callable[[], Any], before: Any) -> Outcome:
  """What a command sees, and what it saw `before` the damage."""
  with _listening() as texts:
    try:
      now = command()
    # What `command_line` prints as one line.
    except (ValueError, OSError, loop.NonFiniteLoss) as error:
      return Outcome("error", str(error))
    except Exception as error:
      return Outcome("traceback", repr(error))
  try:
    np.testing.assert_equal(now, before)
  except AssertionError:
    return Outcome("said" if texts else "silent", "; ".join(texts))
  return Outcome("untouched", "; ".join(texts))


def damage(
  file: pathlib.Path, kind: str, seed: float, other: bytes = b""
) -> None:
  """Damages a file in place, the same for the same seed."""
  content = KINDS[kind](file.read_bytes(), other, random.Random(seed))
  if content is None:
    file.unlink()
  else:
    file.write_bytes(content)


class Subject:
  """A run that is damaged, and put back, again and again.

  Args:
    original: a whole run; stays as it is.
    other: another one, of another seed.
    folder: gets a copy, and is damaged there.
  """

  def __init__(
    self, original: pathlib.Path, other: pathlib.Path, folder: pathlib.Path
  ):
    self.original, self.other, self.run = original, other, folder
    self.names = files_of(original)
    self._put_back()
    self._before = {
      name: command() for name, command in self._commands().items()
    }

  def _commands(self) -> dict[str, Callable]:
    return commands(self.run, self.original)

  def _put_back(self) -> None:
    shutil.rmtree(self.run, ignore_errors=True)
    shutil.copytree(self.original, self.run)

  def _of_other(self, name: str) -> bytes:
    """The other run's file of a name, or of its kind, as digests differ."""
    pattern = next(
      pattern
      for pattern in run_folder.FILES
      if fnmatch.fnmatchcase(name, pattern)
    )
    names = files_of(self.other)
    alike = fnmatch.filter(names, pattern)
    return (self.other / (name if name in names else alike[0])).read_bytes()

  def outcomes(self, name: str, kind: str, seed: float) -> dict[str, Outcome]:
    """What each command that reads a file makes of its damage."""
    outcomes = {}
    other = self._of_other(name)
    for title, command in self._commands().items():
      if _asked(name, title):
        damage(self.run / name, kind, seed, other)
        outcomes[title] = ask(command, self._before[title])
        shutil.copyfile(self.original / name, self.run / name)
        if title == _WRITES:
          self._put_back()
    return outcomes


def parse_arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--count", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--runs",
    type=pathlib.Path,
    nargs=2,
    help="of tests.tiny_run, of other seeds; default: new ones",
  )
  return parser.parse_args()


def run() -> None:
  arguments = parse_arguments()
  rng = random.Random(arguments.seed)
  counts: collections.Counter[str] = collections.Counter()
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    original, other = arguments.runs or (
      tiny_run.make(folder / str(seed), seed).folder for seed in (0, 1)
    )
    subject = Subject(original, other, folder / "damaged")
    names = [
      name
      for name in subject.names
      if not any(part in name for part in WRITTEN_ONLY)
    ]
    # As often a file of few as one of a checkpoint's many.
    groups = [fnmatch.filter(names, pattern) for pattern in run_folder.FILES]
    groups = [group for group in groups if group]
    for number in range(arguments.count):
      name, kind = rng.choice(rng.choice(groups)), rng.choice([*KINDS])
      outcomes = subject.outcomes(name, kind, rng.random())
      for command, outcome in outcomes.items():
        counts[outcome.kind] += 1
        if outcome.kind in ("traceback", "silent"):
          print(f"{name} {kind}: {command} {outcome.kind}: {outcome.text}")
      if not any(each.kind != "untouched" for each in outcomes.values()):
        counts["files that nobody missed"] += 1
      if number % 20 == 19:
        print(f"{number + 1}: {dict(counts)}", flush=True)
  print(dict(counts))
  if counts["traceback"] or counts["silent"]:
    sys.exit("error: a damaged file ended in a traceback, or was not noticed")


if __name__ == "__main__":
  run()
