"""Where rows lie: a file, a folder, or a hub data set, and their splits."""

import contextlib
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping

from pdpo_jax.data import folders, formats, rows


class Location:
  """What `data.path` or `data.files.heldout_path` names.

  Attributes:
    splits: names of its splits; just "" where it has none.
    asked: the split that the path itself names ("folder:test"), or None.
  """

  def __init__(self, path: str):
    """Looks at a path.

    Raises:
      ValueError: if there is nothing to read.
    """
    self.path = path
    self._folder: folders.Folder | None = None
    self._hub = None
    place, self.asked = _split_off(path)
    self._root = _expand(place)
    if self._root.is_dir():
      self._folder = folders.list_folder(self._root)
      if not self._folder.splits:
        left_out = self._folder.left_out
        raise ValueError(
          f"data.path {path!r} holds no file ending in "
          f"{', '.join(formats.ENDINGS)}"
          + (f"; it has {', '.join(list(left_out)[:5])}" if left_out else "")
        )
      self.splits = tuple(self._folder.splits)
    elif (
      self._root.is_file()
      or formats.ending(place)
      or path.startswith((".", "/", "~"))
    ):
      if not self._root.is_file():
        raise ValueError(
          f"data.path: there is no file {path!r}"
          if formats.ending(place)
          else f"data.path: there is no file or folder {path!r}"
        )
      if self.asked is not None:
        raise ValueError(f"data.path {path!r}: a file has no splits")
      self.splits = ("",)
    else:
      self._place = place
      loaded = rows.load_hub(place, split=self.asked)
      if self.asked is not None:
        loaded = {self.asked: loaded}
      elif not isinstance(loaded, Mapping):
        loaded = {"train": loaded}
      self._hub = loaded
      self.splits = tuple(loaded)
    if self.asked is not None and self.asked not in self.splits:
      raise ValueError(
        f"data.path {path!r} has no split {self.asked!r}; it has "
        f"{', '.join(filter(None, self.splits)) or 'none'}"
      )

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
    listed = ", ".join(sorted(self.splits))
    example = f"{self.path}:{min(likely or self.splits)}"
    others = [
      name
      for name, reason in (
        self._folder.left_out if self._folder else {}
      ).items()
      if reason == folders.OF_NO_SPLIT
    ]
    also = f" (and {', '.join(others[:3])} of no split)" if others else ""
    raise ValueError(
      f"data.path {self.path!r} has the splits {listed}{also}, which do not "
      f"say what to train on; name one, as in {example!r}, give a file, or put "
      "'train' into the names of files"
    )

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

  def names(self, split: str) -> list[str]:
    """Names of a split's files, or of the split of a hub data set."""
    if self._hub is not None:
      return [f"{self._place}/{split}"]
    if self._folder is None:
      return [self._root.name]
    return [
      self._root.name
      if file == self._root
      else file.relative_to(self._root).as_posix()
      for file in self._folder.splits[split]
    ]

  def rows(
    self, split: str, tally: rows.Tally, columns: Collection[str]
  ) -> Iterator[tuple[str, rows.Row]]:
    """Yields place and row of each row of a split, counting what it meets."""
    if self._hub is not None:
      for number, row in enumerate(self._hub[split]):
        tally.read()
        yield f"{self._place}/{split}:{number}", row
      return
    if self._folder is None:
      yield from formats.read(self._root, tally, columns=columns)
      return
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
        f"data.path {self.path!r}: {' and '.join(empty[:3])} should have rows"
      )


def _split_off(path: str) -> tuple[str, str | None]:
  """The path proper, and the split that stands behind a colon, if one does."""
  place, colon, split = path.rpartition(":")
  if (
    _expand(path).exists()
    or not colon
    or not re.fullmatch(r"\w+(\.\w+)*", split)
  ):
    return path, None
  return place, split


def _expand(path: str) -> pathlib.Path:
  try:
    return pathlib.Path(path).expanduser()
  except RuntimeError as error:  # Nobody has that name.
    raise ValueError(f"data.path {path!r}: {error}") from error
