"""What a checkpoint says of its training, and the state of its files."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any


def check(
  saved: Mapping[str, Any], wanted: Mapping[str, Any], place: pathlib.Path
) -> None:
  """Compares a checkpoint's `meta` with this run's, in what both name.

  Raises:
    ValueError: naming each difference.
  """
  there, here = _expand(saved), _expand(wanted)
  differences = [
    f"{name} is {there[name]!r} there and {value!r} here"
    for name, value in here.items()
    if name in there and there[name] != value
  ]
  if differences:
    raise ValueError(
      f"checkpoint {place} is of another run: {'; '.join(differences)}. Use "
      "the base and the data it was trained with, or another --config.workdir"
    )


def _expand(meta: Mapping[str, Any]) -> dict[str, Any]:
  """With the fields of its config, if it has one, for what they are."""
  return {**meta, **json.loads(meta.get("config", "{}")), "config": ""}


def stamp(place: pathlib.Path) -> tuple[Any, ...]:
  """Differs once any file in a folder was written."""
  return tuple(
    (str(file), found.st_ino, found.st_size, found.st_mtime_ns)
    for file in sorted(place.rglob("*"))
    for found in [file.stat()]
  )
