"""The run folder: all that other commands need, but a base it only names."""

import importlib.metadata
import json
import pathlib
import platform
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax

from pdpo_jax import config as config_lib
from pdpo_jax import processes
from pdpo_jax.config import sections
from pdpo_jax.data import held_out

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


_USER_TEXTS = "user_texts.json"
_HELD_OUT = "held_out.json"
# What a run makes, besides its description.
_MADE = ("base", "vanilla", "pdpo")
# What may change when a run goes on.
_FREE = ("workdir", "cache", "mesh.")
# How long a shared file system may take to show a new file.
_SHOWN_SECONDS = 15


def versions() -> dict[str, str]:
  """Of Python and the main packages, and the devices that JAX sees."""
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    found[name] = importlib.metadata.version(name)
  kinds = sorted({device.device_kind for device in jax.devices()})
  return found | {"devices": f"{jax.device_count()} x {', '.join(kinds)}"}


def open_run(config: config_lib.Config) -> pathlib.Path:
  """Makes the run folder, or goes on in one with the same config.

  Raises:
    ValueError: if the folder cannot be written, or holds a run whose config
      differs, naming each difference; or if processes have different
      configurations, versions or folders.
  """
  described = sections.flatten(json.loads(config.to_json()))
  processes.agree("the configuration", described)
  processes.agree("versions", versions())
  folder = processes.from_first(lambda: _open(config))
  _check_shared(folder)
  return folder


def _check_shared(folder: pathlib.Path) -> None:
  """Checks that the run folder of all processes is the first one's."""
  if not processes.several():
    return
  note = folder / ".processes"
  token = uuid.uuid4().hex
  token = processes.from_first(lambda: note.write_text(token) and token)
  deadline = time.monotonic() + _SHOWN_SECONDS
  while not (shown := note.is_file() and note.read_text() == token):
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
  file = folder / "config.json"
  # A start that failed before it made anything may be mended.
  begun = any((folder / name).exists() for name in _MADE)
  if file.is_file() and begun:
    # What a field means that was not there yet is its default.
    before = sections.flatten(json.loads(read_config(folder).to_json()))
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
  try:
    folder.mkdir(parents=True, exist_ok=True)
    _write(file, config.to_json())
    _write(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")
  except OSError as error:
    raise ValueError(
      f"run folder {str(folder)!r} cannot be written ({error}); choose another "
      "--config.workdir"
    ) from error
  return folder


def _write(file: pathlib.Path, text: str) -> None:
  """Writes the whole file or nothing."""
  part = file.with_suffix(".part")
  part.write_text(text)
  part.replace(file)


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(
      f"{file} is damaged ({error}); put it back from a copy, or name another "
      "folder"
    ) from error


def read_config(
  folder: pathlib.Path, name: str = "--workdir"
) -> config_lib.Config:
  """The resolved config of the run in `folder`.

  Args:
    name: of the flag or field that names the folder.

  Raises:
    ValueError: if there is none.
  """
  file = folder / "config.json"
  if not file.is_file():
    raise ValueError(
      f"{name} {str(folder)!r} is no run folder: it has no config.json. "
      "Name the folder that a training printed at its end"
    )
  return config_lib.Config.from_json(json.dumps(_read_json(file)))


def write_user_texts(folder: pathlib.Path, texts: Mapping[str, str]) -> None:
  """Keeps what users say of themselves, by id, where any does."""
  if texts and processes.is_first():
    text = json.dumps(texts, indent=2, ensure_ascii=False)
    _write(folder / _USER_TEXTS, text + "\n")


def read_user_texts(folder: pathlib.Path) -> dict[str, str]:
  """What the run's data says of its users, by id; empty where nothing."""
  file = folder / _USER_TEXTS
  return _read_json(file) if file.is_file() else {}


def write_held_out(folder: pathlib.Path, record: held_out.Record) -> None:
  """Keeps what a run was trained on, and what it held out."""
  if processes.is_first():
    _write(folder / _HELD_OUT, json.dumps(record.to_json()) + "\n")


def read_held_out(folder: pathlib.Path) -> held_out.Record:
  """What a run, and those that it started from, were trained on.

  Raises:
    ValueError: if the run did not keep it.
  """
  file = folder / _HELD_OUT
  if not file.is_file():
    raise ValueError(
      f"{folder} has no {_HELD_OUT}, so that nobody knows which comparisons it "
      "was trained on, and must not be held out; start its training command "
      "again, which writes it at its end"
    )
  return held_out.Record.from_json(_read_json(file))


def is_done(folder: pathlib.Path, config: config_lib.Config) -> bool:
  """Whether the run in `folder` was trained to its end."""
  trained = folder / training_name(config) / "checkpoints"
  return trained.is_dir() and (folder / _HELD_OUT).is_file()


def base_path(config: config_lib.Config, folder: pathlib.Path) -> str:
  """Where a run's base lies: its own folder where it trained one."""
  return config.base.path or str(folder / "base")


def training_name(config: config_lib.Config) -> str:
  """The folder of a config's own training within its run."""
  return "vanilla" if config.user.kind == "none" else "pdpo"
