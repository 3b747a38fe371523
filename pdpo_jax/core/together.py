"""Files of a folder that change together: all of them, or none.

What is to take their places is written to a folder of its own first, and then
a plan, with which all of it counts as done. Whoever comes upon a plan finishes
it, as often as it takes; what has no plan never happened.

  change = together.Change(folder)
  change.write("scores/a.jsonl", content)
  change.remove("report")
  change.commit()
  together.finish(folder)
"""

import os
import pathlib
import shutil
from collections.abc import Callable

from typing_extensions import TypedDict

from pdpo_jax.core import kept

# In the folder that changes.
FOLDER = ".changing"
_PLAN, _NEW = "plan.json", "new"


class Plan(TypedDict):
  """What is to be done; a name may be a file's or a folder's."""

  replaced: list[str]
  removed: list[str]
  note: dict[str, str]


class Change:
  """A change of a folder, of which nothing is seen before `commit`.

  What an earlier change left behind that was never committed is removed.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._replaced: list[str] = []
    self._removed: list[str] = []
    abandon(folder)

  def write(self, name: str, content: bytes, *, summed: bool = True) -> None:
    """Puts a file in the place of one that is there, or is not.

    Args:
      summed: as for `kept.writing`.
    """
    with kept.writing(self.replace(name), summed=summed) as out:
      out.write(content)

  def replace(self, name: str) -> pathlib.Path:
    """Where to write the file or folder that is to be `name`."""
    self._replaced.append(name)
    return self._folder / FOLDER / _NEW / name

  def remove(self, name: str) -> None:
    """Removes a file or a folder, if it is there."""
    self._removed.append(name)

  def commit(self, note: dict[str, str]) -> None:
    """Has the change happen; from here on `finish` is all that is left to do.

    Args:
      note: what `finish` is to be told.
    """
    self._update_sums()
    for path in sorted((self._folder / FOLDER).rglob("*")):
      handle = os.open(path, os.O_RDONLY)
      os.fsync(handle)
      os.close(handle)
    plan = Plan(replaced=self._replaced, removed=self._removed, note=note)
    kept.write_json(self._folder / FOLDER / _PLAN, plan)

  def _update_sums(self) -> None:
    """Writes the sums of folders of which some files change."""
    names = [*self._replaced, *self._removed]
    places = {pathlib.PurePath(name).parent for name in names}
    for place in sorted(places):
      new = self._folder / FOLDER / _NEW / place
      sums = kept.read_sums(self._folder / place)
      for name in names:
        if pathlib.PurePath(name).parent == place:
          sums.pop(pathlib.PurePath(name).name, None)
      sums |= kept.read_sums(new)
      if sums or (self._folder / place / kept.CHECKSUMS).is_file():
        kept.make_folder(new)
        kept.write_sums(new, sums)
        self._replaced.append(str(place / kept.CHECKSUMS))


def is_unfinished(folder: pathlib.Path) -> bool:
  """Whether there is a change that was committed, and not finished."""
  return (folder / FOLDER / _PLAN).is_file()


def finish(
  folder: pathlib.Path, first: Callable[[dict[str, str]], None]
) -> None:
  """Does what is left to do of a change that was committed, if there is one.

  Args:
    first: is called with the note, perhaps for the second time.
  """
  if not is_unfinished(folder):
    abandon(folder)
    return
  place = folder / FOLDER
  plan = kept.read_json(place / _PLAN, Plan, "remove the folder that it is in")
  first(plan["note"])
  for name in plan["replaced"]:
    new, old = place / _NEW / name, folder / name
    if not new.exists():
      continue  # It has its name already.
    if old.is_dir():
      shutil.rmtree(old)
    kept.make_folder(old.parent)
    new.replace(old)
  for name in plan["removed"]:
    _remove(folder / name)
  (place / _PLAN).unlink()
  abandon(folder)


def abandon(folder: pathlib.Path) -> None:
  """Removes what was written for a change that was not committed."""
  if not is_unfinished(folder):
    _remove(folder / FOLDER)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)
