"""Where rows lie: a file, a folder with splits by the Hub's rules, or the Hub.

Of a folder, as the Hub has it, the first rule that says something holds:

1. `data/train-00000-of-00002.parquet` names its split, which may be any;
2. where a folder inside is named after a split, folders tell;
3. where a file is, files do;
4. all files are one, without splits.

Names of splits are those in `_KEYWORDS`, set off from other words by `-._`,
spaces or digits. Here upper case is as lower case, and of folders in each other
the innermost tells. Files that the rule does not reach are left out and named.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from pdpo_jax.data import formats, rows

_KEYWORDS = {
  "train": ("train", "training"),
  "validation": ("validation", "valid", "dev", "val"),
  "test": ("test", "testing", "eval", "evaluation"),
}
_OF_NO_SPLIT = "of no split, where others are of one"
_APART = "[-._ 0-9]"
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*\.")
# About a data set, and no rows of it.
_ABOUT = {
  "config.json",
  "dataset_dict.json",
  "dataset_info.json",
  "dataset_infos.json",
  "state.json",
}


@dataclasses.dataclass(frozen=True)
class Folder:
  """The files of a folder.

  Attributes:
    splits: files by split; by "" where there are no splits.
    left_out: the other files, and why.
  """

  splits: Mapping[str, Sequence[pathlib.Path]]
  left_out: Mapping[str, str]


def list_folder(folder: pathlib.Path) -> Folder:
  """The files of a folder by split; see the top of this module."""
  left_out: dict[str, str] = {}
  files = sorted(_walk(folder, left_out))
  # A saved data set is told by its folder, as if by one of the files in it.
  named = {
    file: (file / "saved" if file.is_dir() else file).relative_to(folder)
    for file in files
  }
  for rule in (_split_of_shard, _split_of_folder, _split_of_file):
    split_of = {file: rule(path) for file, path in named.items()}
    if any(split_of.values()):
      break
  splits: dict[str, list[pathlib.Path]] = {}
  divided = any(split_of.values())
  for file, split in split_of.items():
    if split or not divided:
      splits.setdefault(split, []).append(file)
    else:
      left_out[named[file].as_posix()] = _OF_NO_SPLIT
  return Folder(splits, left_out)


def _walk(
  folder: pathlib.Path, left_out: dict[str, str]
) -> Iterator[pathlib.Path]:
  """Files of rows, and folders that a data set was saved to."""
  if formats.is_saved(folder):
    yield folder
    return
  seen = {os.path.realpath(folder)}
  for place, folders, names in os.walk(folder, followlinks=True):
    here = pathlib.Path(place)

    def shown(name, here=here):
      return (here / name).relative_to(folder).as_posix()

    inner, folders[:] = sorted(folders), []
    for name in inner:
      real = os.path.realpath(here / name)
      if _is_hidden(name):
        left_out[f"{shown(name)}/"] = "hidden"
      elif real in seen:  # Of links that go round in a circle.
        left_out[f"{shown(name)}/"] = "a second time"
      elif formats.is_saved(here / name):
        yield here / name
      else:
        seen.add(real)
        folders.append(name)
    for name in names:
      if _is_hidden(name):
        left_out[shown(name)] = "hidden"
      elif name in _ABOUT:
        left_out[shown(name)] = "about the data"
      elif formats.ending(name):
        yield here / name
      else:
        left_out[shown(name)] = "no format of rows"


def _is_hidden(name: str) -> bool:
  """Like files of macOS (`._a.jsonl`), editors, and Spark (`_delta_log`)."""
  return name.startswith((".", "_", "~"))


def _split_of_shard(path: pathlib.PurePath) -> str:
  match = _SHARD.match(path.name) if path.parts[:-1] == ("data",) else None
  return match[1] if match else ""


def _split_of_folder(path: pathlib.PurePath) -> str:
  for name in reversed(path.parts[:-1]):
    if split := _split_in(name, f"(?:{_APART}.*)?"):
      return split
  return ""


def _split_of_file(path: pathlib.PurePath) -> str:
  return _split_in(path.name, f"{_APART}.*")


def _split_in(name: str, behind: str) -> str:
  """The split that a name has a word of; "" for none, and for several."""
  splits = [
    split
    for split, words in _KEYWORDS.items()
    if re.fullmatch(
      f"(?:.*{_APART})?(?:{'|'.join(words)}){behind}", name, re.I | re.S
    )
  ]
  return splits[0] if len(splits) == 1 else ""


def _is_heldout(name: str) -> bool:
  return _kind(name) in ("validation", "test")


def _kind(name: str) -> str:
  return _split_in(name, f"(?:{_APART}.*)?")


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
    self._folder: Folder | None = None
    self._hub = None
    place, self.asked = _split_off(path)
    self._root = _expand(place)
    if self._root.is_dir():
      self._folder = list_folder(self._root)
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
    likely = [name for name in self.splits if _kind(name) == "train"]
    for names in ([self.asked], ["train"], likely, self.splits):
      names = [name for name in names if name in self.splits]
      if len(names) == 1 and (
        names[0] == self.asked or not _is_heldout(*names)
      ):
        return names[0]
    listed = ", ".join(sorted(self.splits))
    example = f"{self.path}:{min(likely or self.splits)}"
    others = [
      name
      for name, reason in (
        self._folder.left_out if self._folder else {}
      ).items()
      if reason == _OF_NO_SPLIT
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
      likely = [name for name in self.splits if _kind(name) == kind]
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
