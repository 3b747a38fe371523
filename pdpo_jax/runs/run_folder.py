"""The run folder: all that other commands need, but a base it only names."""

import importlib.metadata
import json
import pathlib
import platform
import time
import uuid
from collections.abc import Mapping

import jax

from pdpo_jax.core import kept, processes, sections, together
from pdpo_jax.data import held_out
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import locks

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "transformers",
  "tokenizers",
  "numpy",
)


# By name, what stands in a run folder itself.
CONFIG, VERSIONS = "config.json", "versions.json"
USER_TEXTS, HELD_OUT = "user_texts.json", "held_out.json"
ANSWERS, RESULTS = "answers.jsonl", "results.json"
JOURNAL = "judgements.jsonl"
BASE, BEFORE, REPORT = "base", "before", "report"
DATA_REPORT, DATA_FIGURE = "data_report.txt", "data_report.png"
# People who came after training; and who is left since somebody was erased.
PEOPLE, ROSTER = "people.sqlite", "roster.json"
_TRAININGS = (config_lib.VANILLA, config_lib.PDPO)
# Told by the first process to the others, and gone once they have seen it.
_NOTE = ".processes"
# Folders whose files are kept with their sums, or written whole.
_FOLDERS = (
  "",
  BASE,
  "responses",
  *(
    f"{training}/{name}"
    for training in (*_TRAININGS, BEFORE)
    for name in ("", "scores", "responses")
  ),
  REPORT,
  f"{REPORT}/figures",
)
# What a run makes, besides its description.
_MADE = (BASE, *_TRAININGS)
# Files that hold people's ids, texts, choices, or what was learnt from them, as
# patterns of `fnmatch`. Whoever erases a person has to look into each.
PERSONAL = (
  CONFIG,  # `answers.users`
  USER_TEXTS,
  HELD_OUT,
  ANSWERS,
  RESULTS,
  JOURNAL,
  DATA_REPORT,
  PEOPLE,
  # Beside a database that is in use.
  *(f"{PEOPLE}-{name}" for name in ("journal", "wal", "shm")),
  ROSTER,
  "responses/base_*.jsonl",
  *(
    f"{training}/{name}"
    for training in _TRAININGS
    for name in ("checkpoints/*", "checkpoints_unreadable/*")
  ),
  *(
    f"{training}/{name}"
    for training in (*_TRAININGS, BEFORE)
    for name in (
      "scores/heldout_*.jsonl",
      "scores/unseen_*.jsonl",
      "responses/*.jsonl",
    )
  ),
  f"{REPORT}/index.html",
  f"{REPORT}/report.md",
  f"{REPORT}/report.json",
  f"{REPORT}/figures/*.png",
)
# Every file of a run folder, but those of a change that was interrupted.
FILES = (
  *PERSONAL,
  VERSIONS,
  DATA_FIGURE,
  _NOTE,
  locks.LOCK,
  locks.HOLDER,
  *(str(pathlib.PurePath(name, kept.CHECKSUMS)) for name in _FOLDERS),
  *(
    f"{training}/{name}"
    for training in _MADE
    for name in ("metrics.jsonl", "tensorboard/events.out.tfevents.*")
  ),
  f"{BASE}/checkpoints/*",
  f"{BASE}/checkpoints_unreadable/*",
  f"{BASE}/data.txt",
  f"{BASE}/config.json",
  f"{BASE}/generation_config.json",
  f"{BASE}/tokenizer.json",
  f"{BASE}/tokenizer_config.json",
  f"{BASE}/special_tokens_map.json",
  f"{BASE}/chat_template.jinja",
  f"{BASE}/*.safetensors",
  f"{BASE}/model.safetensors.index.json",
)
# What may change when a run goes on.
_FREE = ("workdir", "cache", "mesh.")
# How long a shared file system may take to show a new file.
_SHOWN_SECONDS = 15
# What to do about a file that a training writes in any case.
_AGAIN = (
  "start its training command again, which writes it anew, or put it "
  "back from a copy"
)


def versions() -> dict[str, str]:
  """Of Python and the main packages, and the devices that JAX sees."""
  numbers = {"python": platform.python_version()}
  for name in _PACKAGES:
    numbers[name] = importlib.metadata.version(name)
  kinds = sorted({device.device_kind for device in jax.devices()})
  return numbers | {"devices": f"{jax.device_count()} x {', '.join(kinds)}"}


def check_processes(config: config_lib.Config) -> None:
  """Checks that all processes are of one run, before any writes to its folder.

  Raises:
    ValueError: if they have different configurations or versions.
  """
  described = sections.flatten(json.loads(config.to_json()))
  processes.agree("the configuration", described)
  processes.agree("versions", versions())


def begin_or_continue(config: config_lib.Config) -> pathlib.Path:
  """Makes the run folder, or goes on in one with the same config.

  Raises:
    ValueError: if the folder cannot be written, or holds a run whose config
      differs, naming each difference; or if processes have different folders.
  """
  folder = processes.from_first(lambda: _open(config))
  _check_shared(folder)
  return folder


def _check_shared(folder: pathlib.Path) -> None:
  """Checks that the run folder of all processes is the first one's."""
  if not processes.several():
    return
  note = folder / _NOTE
  token = uuid.uuid4().hex
  token = processes.from_first(lambda: note.write_text(token) and token)
  deadline = time.monotonic() + _SHOWN_SECONDS
  while not (shown := note.is_file() and note.read_bytes() == token.encode()):
    if time.monotonic() > deadline:
      break
    time.sleep(0.5)
  blind = [
    place for place, sees in enumerate(processes.gather(shown)) if not sees
  ]
  if blind:
    raise ValueError(
      f"run folder {str(folder)!r} is another one on process "
      f"{', '.join(map(str, blind))}; checkpoints are written by all, so "
      "choose a --config.workdir on a file system that all processes share"
    )
  if processes.is_first():
    note.unlink()


def _open(config: config_lib.Config) -> pathlib.Path:
  folder = config.folder
  # A start that failed before it made anything may be mended.
  if any((folder / name).exists() for name in _MADE):
    _check_same(folder, config)
  kept.make_folder(folder)
  remove_unfinished(folder)
  kept.write(folder / CONFIG, config.to_json())
  kept.write_json(folder / VERSIONS, versions())
  return folder


def remove_unfinished(folder: pathlib.Path) -> None:
  """Removes what killed processes were writing, for whoever has the lock."""
  for name in _FOLDERS:
    for part in (folder / name).glob(f".*{kept.UNFINISHED}"):
      part.unlink(missing_ok=True)
  together.abandon(folder)


def _check_same(folder: pathlib.Path, config: config_lib.Config) -> None:
  """Checks that the run that is there has this config."""
  # What a field means that was not there yet is its default.
  before = sections.flatten(json.loads(_read_config(folder).to_json()))
  now = sections.flatten(json.loads(config.to_json()))
  differences = [
    f"{name} is {before.get(name)!r} there and {now.get(name)!r} here"
    for name in sorted(before | now)
    if before.get(name) != now.get(name) and not name.startswith(_FREE)
  ]
  if differences:
    raise ValueError(
      f"run folder {str(folder)!r} holds another run: "
      f"{'; '.join(differences)}. Choose another --config.workdir, or remove "
      "that folder"
    )


def read_config(
  folder: pathlib.Path, name: str = "--workdir"
) -> config_lib.Config:
  """The resolved config of the run in `folder`.

  Args:
    name: of the flag or field that names the folder.

  Raises:
    ValueError: if there is none, or it is damaged.
  """
  if not kept.was_written(folder / CONFIG):
    raise ValueError(
      f"{name} {str(folder)!r} is no run folder: it has no {CONFIG}. "
      "Name the folder that a training printed at its end"
    )
  return _read_config(folder)


def _read_config(folder: pathlib.Path) -> config_lib.Config:
  if together.is_unfinished(folder):
    raise ValueError(
      f"somebody is being erased from {folder}, or that was interrupted; "
      f"`python -m pdpo_jax.users --workdir={folder} list` finishes it"
    )
  file = folder / CONFIG
  remedy = "put it back from a copy, or name another folder"
  text = kept.read_text(file, remedy)
  try:
    return config_lib.Config.from_json(text)
  except json.JSONDecodeError as error:
    raise kept.Damaged(file, f"is damaged ({error})", remedy) from error
  except (ValueError, RecursionError) as error:
    raise kept.Damaged(
      file,
      f"describes no run of this version ({error})",
      f"use the version that wrote it, or {remedy}",
    ) from error


def read_versions(folder: pathlib.Path) -> dict[str, str]:
  """What a run was made with.

  Raises:
    kept.Damaged: if that is not known.
  """
  return kept.read_json(folder / VERSIONS, dict[str, str], _AGAIN)


def write_user_texts(folder: pathlib.Path, texts: Mapping[str, str]) -> None:
  """Keeps what users say of themselves, by id, where any does."""
  if texts and processes.is_first():
    kept.write_json(folder / USER_TEXTS, dict(texts))


def read_user_texts(folder: pathlib.Path) -> dict[str, str]:
  """What the run's data says of its users, by id; empty where nothing.

  Raises:
    kept.Damaged: if it is not what was written.
  """
  file = folder / USER_TEXTS
  if not kept.was_written(file):
    return {}
  return kept.read_json(file, dict[str, str], _AGAIN)


def write_held_out(folder: pathlib.Path, record: held_out.Record) -> None:
  """Keeps what a run was trained on, and what it held out."""
  if processes.is_first():
    text = json.dumps(record.to_json())
    kept.write(folder / HELD_OUT, text + "\n")


def read_held_out(folder: pathlib.Path) -> held_out.Record:
  """What a run, and those that it started from, were trained on.

  Raises:
    ValueError: if the run did not keep it, or it is damaged.
  """
  file = folder / HELD_OUT
  if not kept.was_written(file):
    raise ValueError(
      f"{folder} has no {HELD_OUT}, so that nobody knows which comparisons it "
      "was trained on, and must not be held out; start its training command "
      "again, which writes it at its end"
    )
  fields = kept.read_json(file, held_out.Fields, _AGAIN)
  return held_out.Record.from_json(fields)


def is_done(folder: pathlib.Path, config: config_lib.Config) -> bool:
  """Whether the run in `folder` was trained to its end."""
  trained = folder / config.training_name / "checkpoints"
  return trained.is_dir() and kept.was_written(folder / HELD_OUT)


def base_path(config: config_lib.Config, folder: pathlib.Path) -> str:
  """Where a run's base lies: its own folder where it trained one."""
  return config.base.path or str(folder / BASE)
