"""Where records lie: a file, a folder, or a hub data set, and their splits."""

import abc
import contextlib
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from pdpo_jax.data import records
from pdpo_jax.data.sources import folders, formats, table_files


class Location(abc.ABC):
  """What `data.path` or `data.files.heldout_path` names.

  Attributes:
    path: as it was given.
    asked: the split that the path itself names ("folder:test"), or None.
    splits: names of its splits; just "" where it has none.
  """

  def __init__(self, path: str, asked: str | None, splits: Collection[str]):
    if asked is not None and asked not in splits:
      listed = ", ".join(filter(None, splits)) or "none"
      raise ValueError(f"{path!r} has no split {asked!r}; it has {listed}")
    self.path = path
    self.asked = asked
    self.splits = tuple(splits)

  @abc.abstractmethod
  def names(self, split: str) -> list[str]:
    """What a split is made of, to be named to people."""

  @abc.abstractmethod
  def records(
    self, split: str, tally: records.Tally, columns: Collection[str]
  ) -> records.PlacedRecords:
    """Yields place and record of each in a split, counting what it meets."""

  def training_split(self) -> str:
    """The split to train on: the one asked for, "train", or the only one.

    Raises:
      ValueError: if none is that, with those that there are.
    """
    likely = [name for name in self.splits if folders.kind_of(name) == "train"]
    for names in ([self.asked], ["train"], likely, self.splits):
      names = [name for name in names if name in self.splits]
      if len(names) == 1 and (
        names[0] == self.asked or not folders.is_heldout(*names)
      ):
        return names[0]
    listed = ", ".join(sorted(self.splits)) + self._besides()
    example = f"{self.path}:{min(likely or self.splits)}"
    raise ValueError(
      f"{self.path!r} has the splits {listed}, which do not say what to train "
      f"on; name one, as in {example!r}, give a file, or put 'train' into the "
      "names of files"
    )

  def _besides(self) -> str:
    """What might be meant for training, and is of no split."""
    return ""

  def heldout_split(self) -> str | None:
    """The split to hold out: "validation", or else "test"; None without.

    Of several alike, it is the one that goes with the split to train on, such
    as "test_prefs" with "train_prefs". A path that asks for a split has no
    other.
    """
    if self.asked is not None:
      return None
    behind = ""
    if len(self.splits) > 1:
      with contextlib.suppress(ValueError):
        behind = self.training_split().removeprefix("train")
    for kind in ("validation", "test"):
      likely = [name for name in self.splits if folders.kind_of(name) == kind]
      alike = [name for name in likely if name.endswith(behind)]
      for names in ([kind + behind], alike, likely):
        names = [name for name in names if name in self.splits]
        if len(names) == 1:
          return names[0]
    return None


class _File(Location):
  """One file, without splits."""

  def __init__(self, path: str, file: pathlib.Path):
    super().__init__(path, None, ("",))
    self._file = file

  def names(self, split: str) -> list[str]:
    del split
    return [self._file.name]

  def records(self, split, tally, columns) -> records.PlacedRecords:
    del split
    return formats.read(self._file, tally, columns=columns)


class _Folder(Location):
  """The files of a folder."""

  def __init__(self, path: str, asked: str | None, root: pathlib.Path):
    self._root = root
    self._folder = folders.list_folder(root)
    if not self._folder.splits:
      left_out = ", ".join(list(self._folder.left_out)[:5])
      raise ValueError(
        f"{path!r} holds no file ending in {', '.join(formats.ENDINGS)}"
        + (f"; it has {left_out}" if left_out else "")
      )
    super().__init__(path, asked, self._folder.splits)

  def _besides(self) -> str:
    reasons = self._folder.left_out.items()
    names = [name for name, why in reasons if why == folders.OF_NO_SPLIT]
    return f" (and {', '.join(names[:3])} of no split)" if names else ""

  def names(self, split: str) -> list[str]:
    return [
      file.relative_to(self._root).as_posix()
      if file != self._root
      else file.name  # A data set was saved right here.
      for file in self._folder.splits[split]
    ]

  def records(self, split, tally, columns) -> records.PlacedRecords:
    for name, reason in self._folder.left_out.items():
      tally.leave_out(name, reason)
    files = self._folder.splits[split]
    empty = []
    for file, name in zip(files, self.names(split), strict=True):
      try:
        yield from formats.read(file, tally, name, columns)
      except formats.EmptyFileError:
        empty.append(name)
        tally.leave_out(name, "empty")
    if len(empty) == len(files):
      raise ValueError(
        f"{self.path!r}: {' and '.join(empty[:3])} should have records"
      )


class _HubDataSet(Location):
  """A data set of the Hub."""

  def __init__(self, path: str, asked: str | None, name: str):
    loaded = records.load_hub(name, split=asked)
    if not isinstance(loaded, Mapping):
      loaded = {asked or "train": loaded}
    super().__init__(path, asked, loaded)
    self._name = name
    self._loaded: Mapping[str, Any] = loaded

  def names(self, split: str) -> list[str]:
    return [f"{self._name}/{split}"]

  def records(self, split, tally, columns) -> records.PlacedRecords:
    where = f"{self._name}/{split}"
    loaded = table_files.select(self._loaded[split], where, tally, columns)
    for number, record in enumerate(loaded):
      tally.read()
      yield f"{where}:{number}", record


def find(path: str) -> Location:
  """Looks where a path leads.

  Args:
    path: a file or folder, or a hub data set's id. Behind a colon, the latter
      two may name a split.

  Raises:
    ValueError: if there is nothing to read.
  """
  place, asked = _split_off(path)
  local = _expand(place)
  if local.is_dir():
    return _Folder(path, asked, local)
  if local.is_file():
    if asked is not None:
      raise ValueError(f"{path!r}: a file has no splits")
    return _File(path, local)
  if formats.ending(place):
    raise ValueError(f"there is no file {path!r}")
  return _HubDataSet(path, asked, place)


def _split_off(path: str) -> tuple[str, str | None]:
  """The path proper, and the split that stands behind a colon, if one does."""
  place, colon, split = path.rpartition(":")
  if _expand(path).exists() or not colon:
    return path, None
  return (place, split) if re.fullmatch(r"\w+(\.\w+)*", split) else (path, None)


def _expand(path: str) -> pathlib.Path:
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:  # Nobody has that name.
    raise ValueError(f"{path!r}: {error}") from error
