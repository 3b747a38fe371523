"""Somebody leaves a run: all that it holds of them goes, or nothing does."""

import contextlib
import dataclasses
import fnmatch
import hashlib
import hmac
import json
import logging
import os
import pathlib
import secrets
from collections.abc import Mapping, Sequence

from pdpo_jax.core import kept, together
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import people as people_lib
from pdpo_jax.runs import roster, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs.erasure import files
from pdpo_jax.training import checkpoint, rows

logger = logging.getLogger(__name__)

_TRAININGS = (config_lib.VANILLA, config_lib.PDPO)


@dataclasses.dataclass(frozen=True)
class Erased:
  """What became of it.

  Attributes:
    places: of the person's comparisons in the run's data.
    trained: how many of them it was trained on.
    shared: prompts of theirs that stay, since others compared responses to
      them, too.
    removed: files that had to go as a whole, with what was others'.
    unknown: files that are no business of a run's, and were not looked into.
    knows_data: whether the run's data could be read.
    others: folders of runs that started from this one, or that it started from.
  """

  places: Sequence[str]
  trained: int
  shared: int
  removed: Sequence[str]
  unknown: Sequence[str]
  knows_data: bool
  others: Sequence[pathlib.Path]


def read_dataset(run: run_lib.Run) -> dataset_lib.Dataset | None:
  """The data of a run as it is now, without whoever was erased.

  None, with a warning, where it cannot be read.
  """
  try:
    return run_lib.load_dataset(run.config, run.tokenizer, run.workdir)
  except (ValueError, OSError) as error:
    logger.warning("the data of %s cannot be read: %s", run.workdir, error)
    return None


def erase(run: run_lib.Run, user_id: str) -> Erased:
  """Removes a person from a run, for whoever has its lock.

  Raises:
    ValueError: if the run does not know them, or none of its checkpoints can be
      read, or its database of people cannot.
  """
  folder = run.workdir
  run_folder.remove_unfinished(folder)
  # Before anything is written, since it may be damaged.
  came = people_lib.People.of_run(folder).ids()
  dataset = read_dataset(run)
  ids = _ids_in_files(folder)
  in_data = dataset is not None and user_id in roster.ids_of(dataset)
  is_trained = in_data or user_id in ids
  if not is_trained and user_id not in came:
    raise ValueError(
      f"user id {user_id!r} is none of the people of {folder}: nothing there "
      "is theirs, or they were erased before"
    )
  left = ids | (set() if dataset is None else roster.ids_of(dataset))
  leaver = files.Leaver.of(user_id, left, dataset)
  change = together.Change(folder)
  removed = []
  if is_trained:
    names = _rewrite_checkpoints(run, user_id, dataset, left, change)
    removed = _rewrite_files(folder, leaver, names, change)
    _write_roster(folder, left - {user_id}, change)
  salt = secrets.token_hex(16)
  change.commit({"salt": salt, "person": _digest(user_id, salt)})
  finish(folder)
  examples = [] if dataset is None else [*dataset.train, *dataset.heldout]
  theirs = [x for x in examples if x.user_id == user_id]
  if dataset is not None:
    theirs += [x for x in dataset.unseen if x.user_id == user_id]
  return Erased(
    [example.place for example in theirs if example.place],
    sum(x.user_id == user_id for x in dataset.train) if dataset else 0,
    len(leaver.shared),
    removed,
    _unknown(folder),
    dataset is not None,
    _relatives(run),
  )


def finish(folder: pathlib.Path) -> None:
  """Does what is left to do of an erasure, for whoever has the run's lock."""

  def erase_from_database(note: Mapping[str, str]) -> None:
    people_lib.People.of_run(folder).erase(
      lambda user_id: hmac.compare_digest(
        _digest(user_id, note["salt"]), note["person"]
      )
    )

  together.finish(folder, erase_from_database)


def is_in_files(folder: pathlib.Path, user_id: str) -> bool:
  """Whether a run knows somebody, other than by the database of people."""
  return user_id in _ids_in_files(folder)


def _digest(user_id: str, salt: str) -> str:
  """Names a person to whoever has their id, until the erasure is done."""
  return hmac.new(salt.encode(), user_id.encode(), hashlib.sha256).hexdigest()


def _ids_in_files(folder: pathlib.Path) -> set[str]:
  """Everyone whom a run's files know, but the database of people."""
  ids = set()
  for name in _TRAININGS:
    place = folder / name / "checkpoints"
    if place.is_dir():
      with checkpoint.Checkpoints(place) as saved:
        ids |= {*saved.users().ids} if _has_users(saved) else set()
  for name in files_of(folder):
    file = folder / name
    if pathlib.PurePath(name).suffix == ".jsonl" and _handler(name):
      # A line that cannot be read is nobody's; it goes.
      for line in file.read_bytes().splitlines():
        try:
          fields = json.loads(line)
          ids.add(fields.get("user_id"))
        except (ValueError, AttributeError):
          continue
  # What is damaged goes as a whole.
  with contextlib.suppress(ValueError):
    ids |= run_folder.read_held_out(folder).users
  with contextlib.suppress(ValueError):
    ids |= run_folder.read_user_texts(folder).keys()
  return ids - {None}


def _has_users(saved: checkpoint.Checkpoints) -> bool:
  """Whether a training has a user model."""
  described = saved.described()
  return described is not None and described[1]["user_kind"] != "none"


def files_of(folder: pathlib.Path) -> list[str]:
  """The names of all files in a folder, less those of a change of it."""
  return sorted(
    file.relative_to(folder).as_posix()
    for file in folder.rglob("*")
    if file.is_file() and together.FOLDER not in file.parts
  )


def _handler(name: str) -> files.Handler | None:
  for pattern, handler in files.HANDLERS.items():
    if fnmatch.fnmatchcase(name, pattern):
      return handler
  return None


def _unknown(folder: pathlib.Path) -> list[str]:
  return [
    name
    for name in files_of(folder)
    if not any(fnmatch.fnmatchcase(name, each) for each in run_folder.FILES)
  ]


def _rewrite_checkpoints(
  run: run_lib.Run,
  user_id: str,
  dataset: dataset_lib.Dataset | None,
  left: set[str],
  change: together.Change,
) -> dict[str, dict[str, str]]:
  """Stages checkpoints without a user.

  Returns:
    By training, what names of files have of a policy, before and after.
  """
  names: dict[str, dict[str, str]] = {}
  before = after = None
  if dataset is not None:
    before = dataset.digest
    after = roster.of_people(dataset, left - {user_id}).digest
  for name in _TRAININGS:
    place = run.workdir / name / "checkpoints"
    if not place.is_dir():
      continue
    with checkpoint.Checkpoints(place) as saved:
      if not saved.steps:
        continue
      described = saved.described()
    is_same = described and described[1].get("data") == before
    rewritten = rows.write_without(
      run.config.trainings.get(name, run.config).user,
      place,
      change.replace(f"{name}/checkpoints"),
      user_id,
      after if is_same else None,
    )
    names[name] = {
      f"{step.step}_{step.before}": f"{step.step}_{step.after}"
      for step in rewritten
    }
    if (run.workdir / name / "checkpoints_unreadable").exists():
      change.remove(f"{name}/checkpoints_unreadable")
  return names


def _rewrite_files(
  folder: pathlib.Path,
  leaver: files.Leaver,
  names: Mapping[str, Mapping[str, str]],
  change: together.Change,
) -> list[str]:
  """Stages all other files; returns those that had to go as a whole."""
  removed = []
  for name in files_of(folder):
    handler = _handler(name)
    if handler is None:
      continue
    file, path = folder / name, pathlib.PurePath(name)
    try:
      content = handler(file, leaver)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      logger.warning("%s: %s; it is removed as a whole", file, error)
      removed.append(name)
      content = None
    new = name
    for before, after in names.get(path.parts[0], {}).items():
      new = str(path.with_name(path.name.replace(before, after)))
      if new != name:
        break
    if content is None or new != name:
      change.remove(name)
    if content is None:
      if name == run_folder.ANSWERS and not leaver.knows_data:
        removed.append(name)
    elif new != name or content != file.read_bytes():
      is_summed = file.name in kept.read_sums(file.parent)
      change.write(new, content, summed=is_summed)
  for name in (run_folder.REPORT, run_folder.DATA_FIGURE):
    if (folder / name).exists():
      change.remove(name)
  return removed


def _write_roster(
  folder: pathlib.Path, left: set[str], change: together.Change
) -> None:
  before = roster.read(folder)
  if before is not None:
    left &= {*before["people"]}
  fields = roster.Roster(
    people=sorted(left), erased=1 + (before["erased"] if before else 0)
  )
  text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
  change.write(run_folder.ROSTER, text.encode())


def _relatives(run: run_lib.Run) -> list[pathlib.Path]:
  """Runs beside this one that started from it, and the one it started from."""
  here = run.workdir.resolve()
  found = [run.config.start] if run.config.start else []
  for file in sorted(here.parent.glob(f"*/{run_folder.CONFIG}")):
    try:
      start = json.loads(file.read_bytes())["train"]["start_from"]
    except (ValueError, KeyError, TypeError, OSError):
      continue
    if start and pathlib.Path(os.path.abspath(start)).resolve() == here:
      found.append(file.parent)
  return found
