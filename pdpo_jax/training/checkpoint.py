"""Checkpoints of a run: `lora`, `users`, `optimizer` and `meta`, apart.

Each is an Orbax item of one step, so that users can be loaded without LoRA and
LoRA without users. Item `users` also holds the user ids in row order; `meta`
names the base weights by fingerprint. Supervised fine-tuning trains the base
itself, which is then item `base`.

`meta` also has a sum of each array, of the ids, of itself and of the step's
number. What is not what was saved cannot be read, whatever changed it. A step
of an earlier version has no sums, and is read as it is.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import sharding as jax_sharding
from orbax.checkpoint import v1 as ocp

from pdpo_jax.core import kept, processes, structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.training import (
  checkpoint_errors,
  checkpoint_items,
  checkpoint_meta,
  checkpoint_steps,
)
from pdpo_jax.training import sums as sums_lib

logger = logging.getLogger(__name__)


class Checkpoints:
  """The checkpoints of one training in `folder`, newest last.

  Args:
    folder: made if it is missing.
    keep: how many of the newest are kept, besides that of `preserve`; None
      only reads, and leaves alone whatever a training may be writing there.

  Raises:
    kept.Unwritable: here and by whatever writes, if the disk refuses.
  """

  def __init__(self, folder: pathlib.Path, keep: int | None = None):
    self.folder = folder.absolute()
    self._writes = keep is not None
    self._saving: tuple[int, Any] | None = None  # a step, and Orbax's response
    self._newest = checkpoint_steps.Newest(keep)
    training = ocp.training
    if self._writes:
      kept.make_folder(self.folder)
    logging.getLogger("absl").addFilter(checkpoint_errors.is_not_orbax)
    with self._raising(self.folder), checkpoint_errors.listing(self.folder):
      self._checkpointer = training.Checkpointer(
        self.folder,
        preservation_policy=self._newest,
        cleanup_tmp_directories=self._writes,
      )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    try:
      if kind is None:
        self.wait()
    finally:
      # An error of a save was raised before, or there is a worse one.
      with contextlib.suppress(Exception):
        self._checkpointer.close()

  @property
  def steps(self) -> list[int]:
    return sorted(each.step for each in self._checkpointer.checkpoints)

  @property
  def preserved(self) -> int | None:
    return self._newest.preserved

  def preserve(self, step: int | None) -> None:
    """Keeps a step, however many newer ones come; None keeps none."""
    self._newest.preserved = step

  def save(self, step: int, items: Mapping[str, Any]) -> None:
    """Begins to write step `step` in the background, unless it is there."""
    if step in self.steps:
      return
    self.wait()
    place = self.folder / str(step)
    with self._raising(place):
      if not self.folder.is_dir():  # Orbax would make it again.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
      response = self._checkpointer.save_checkpointables_async(
        step, sums_lib.add(step, items), force=True
      )
    self._saving = step, response

  def check(self) -> None:
    """Raises what a save in the background came to, if it has ended."""
    if self._saving and not self._checkpointer.is_saving_in_progress():
      self.wait()

  def wait(self) -> None:
    """Returns once every save is on disk."""
    if self._saving is None:
      return
    (step, response), self._saving = self._saving, None
    with self._raising(self.folder / str(step)):
      # Its thread and its descriptors are kept until it is asked.
      response.result()
      self._checkpointer.wait()

  @contextlib.contextmanager
  def _raising(self, place: pathlib.Path) -> Iterator[None]:
    """Turns what Orbax and its storage raise into one clear error."""
    try:
      yield
    except Exception as error:
      if not self._writes or isinstance(error, kept.Damaged):
        raise
      raise kept.Unwritable(
        place, checkpoint_errors.os_error(self.folder, error)
      ) from error

  def users(self) -> users_lib.UserIndex:
    """The users of the newest step that can be read; none without a step.

    Raises:
      ValueError: if no step can be read.
    """
    problems: dict[int, str] = {}
    for step in self._newest_first():
      users, problems[step] = checkpoint_errors.attempt(
        lambda step=step: self._users_of(step)
      )
      if users is not None:
        return users
    self._refuse(problems)
    return users_lib.UserIndex([])

  def described(self) -> tuple[int, dict[str, Any]] | None:
    """The newest step whose `meta` can be read, and that; None without."""
    for step in self._newest_first():
      meta, problem = checkpoint_errors.attempt(
        lambda step=step: self.meta(step)
      )
      if not problem:
        return step, meta
    return None

  def _newest_first(self) -> list[int]:
    return processes.from_first(lambda: self.steps)[::-1]

  def meta(self, step: int) -> dict[str, Any]:
    return self._meta_and_sums(step)[0]

  def sums(self, step: int) -> dict[str, Any]:
    """Of the items of a step; empty in one of an earlier version."""
    return self._meta_and_sums(step)[1]

  def _meta_and_sums(self, step: int) -> tuple[dict, dict[str, Any]]:
    """`meta` as it was saved, and the sums of the other items.

    Raises:
      ValueError: if it is not what was saved, or is of another step.
    """
    meta = self._load_items(step, {"meta": None})["meta"]
    return sums_lib.take(step, meta)

  def _users_of(self, step: int) -> users_lib.UserIndex | None:
    if processes.several():  # Who reads, reads together with all.
      return self.read_users(step)
    return _known_users(
      self.folder, step, checkpoint_meta.stamp(self.folder / str(step))
    )

  def read_users(self, step: int) -> users_lib.UserIndex | None:
    """Those of a step, however large the table is; None without a table."""
    _, sums = self._meta_and_sums(step)
    saved = self._as_saved(step, ("users",))
    if not saved:
      return None
    if saved["users"] is None:  # Orbax has logged why.
      raise ValueError("the table of users is damaged")
    table = dict.fromkeys(saved["users"]["table"], ocp.PLACEHOLDER)
    like = {"users": {"table": table, "ids": ""}}
    ids = self._load_items(step, like)["users"]["ids"]
    sums_lib.check({"users": {"ids": ids}}, sums)
    return users_lib.UserIndex.from_json(json.loads(ids))

  def _as_saved(self, step: int, names: Sequence[str]) -> dict[str, Any]:
    """Metadata of the items of a step that are there.

    No others are read, since each array's costs time, and TensorStore 0.1.86
    never gives back 3 KB of it.
    """
    place = self.folder / str(step)
    return {
      name: ocp.metadata(place, name).metadata
      for name in names
      if (place / name).is_dir()
    }

  def load(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
    """The items of `step` that `like` names, in its shapes and shardings.

    Raises:
      ValueError: if they cannot be read, or are not what was saved.
    """
    like = checkpoint_items.abstract(dict(like), lambda x: x.sharding)
    return self._whole(step, *self._load_checked(step, like))

  def load_as_saved(self, step: int, names: Sequence[str]) -> dict[str, Any]:
    """Items of `step` in the shapes they have there, in the host's memory.

    The devices that they were saved from need not exist.

    Raises:
      ValueError: if they cannot be read, or are not what was saved.
    """
    # A table of users may be larger than an accelerator.
    here = jax_sharding.SingleDeviceSharding(
      jax.local_devices(backend="cpu")[0]
    )

    def like():
      return checkpoint_items.abstract(
        self._as_saved(step, names), lambda _: here
      )

    like, problem = checkpoint_errors.attempt(like)
    if not problem:
      like, problem = self._load_checked(step, like)
    return self._whole(step, like, problem)

  def _whole(self, step: int, items: Any, problem: str) -> dict[str, Any]:
    if problem:
      raise ValueError(f"{self.folder / str(step)} cannot be read ({problem})")
    return items

  def _load_checked(
    self, step: int, like: Mapping[str, Any]
  ) -> tuple[dict[str, Any] | None, str]:
    """Items, and what is wrong if they are not what was saved."""
    sums, problem = checkpoint_errors.attempt(
      lambda: self._meta_and_sums(step)[1]
    )
    items = None
    if not problem:
      items, problem = checkpoint_errors.attempt(
        lambda: self._load_items(step, like)
      )
    # All have read theirs, since summing is done by all together.
    if not problem:
      _, problem = checkpoint_errors.attempt(
        lambda: sums_lib.check(items, sums)
      )
    return items, problem

  def _load_items(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
    # One after the other, as Orbax does too. Asked for several of which one
    # cannot be read, it would never await the others, and Python would warn.
    load = self._checkpointer.load_checkpointables
    return {name: load(step, {name: each})[name] for name, each in like.items()}

  def newest(
    self, like: Mapping[str, Any], meta: Mapping[str, Any]
  ) -> tuple[int, dict[str, Any]] | None:
    """The newest step that can be read, or None where there is no step.

    One that cannot, damaged perhaps, is passed over with a warning; a training
    moves it aside, to write it anew.

    Raises:
      ValueError: if a checkpoint is of another base or other users than `meta`
        says, or none of them can be read.
    """
    problems: dict[int, str] = {}
    shapes = checkpoint_items.abstract(dict(like), lambda x: x.sharding)
    for step in self._newest_first():
      saved_meta, problems[step] = checkpoint_errors.attempt(
        lambda step=step: self.meta(step)
      )
      if problems[step]:
        continue
      checkpoint_meta.check(saved_meta, meta, self.folder / str(step))
      items, problems[step] = self._load_checked(step, shapes)
      if not problems[step]:
        del problems[step]
        self._pass_over(problems)
        return step, items
    self._refuse(problems)
    return None

  def _refuse(self, problems: Mapping[int, str]) -> None:
    """Raises if there are steps, and none of them can be read."""
    if problems:
      step, problem = next(iter(problems.items()))
      raise ValueError(
        f"none of the checkpoints in {self.folder} can be read; step {step}: "
        f"{problem or 'it has no users'}. All are still there: try again if "
        "memory or storage failed, or move the folder away to begin anew"
      )

  def _pass_over(self, problems: Mapping[int, str]) -> None:
    """Warns of steps that cannot be read; a training moves them aside."""
    aside = self.folder.with_name(f"{self.folder.name}_unreadable")
    for step, problem in problems.items():
      place = self.folder / str(step)
      logger.warning(
        "checkpoint %s cannot be read and is passed over (%s)", place, problem
      )
      if self._writes:
        processes.from_first(
          lambda place=place: checkpoint_steps.move_aside(place, aside)
        )
        logger.warning("it was moved to %s", aside)
    if self._writes and problems:
      self._checkpointer.reload()


@functools.lru_cache(4)
def _known_users(
  folder: pathlib.Path, step: int, stamp: tuple[Any, ...]
) -> users_lib.UserIndex | None:
  """A step's users, read once for each state of its files.

  A server asks with each request that tells of somebody or erases them.

  Args:
    stamp: of that state.
  """
  with Checkpoints(folder) as saved:
    return saved.read_users(step)


def restore(
  checkpoints: Checkpoints,
  state: structs.TrainState,
  users: users_lib.UserIndex | None,
  meta: Mapping[str, Any],
  at_step: int | None = None,
) -> structs.TrainState | None:
  """The newest whole checkpoint as a state shaped like `state`, or None.

  Args:
    at_step: that one in place of the newest.

  Raises:
    ValueError: if it is of another base or has other users.
  """
  like = checkpoint_items.of_state(state, users, meta)
  like.pop("meta")
  if at_step is None:
    newest = checkpoints.newest(like, meta)
    if newest is None:
      return None
  else:
    newest = at_step, checkpoints.load(at_step, like)
  step, items = newest
  if "users" in items and items["users"]["ids"] != like["users"]["ids"]:
    raise ValueError(
      f"checkpoint {checkpoints.folder / str(step)} has the users of other "
      "data; use another --config.workdir"
    )
  leaves, treedef = jax.tree_util.tree_flatten_with_path(state.opt_state)
  names = [jax.tree_util.keystr(path) for path, _ in leaves]
  opt_state = treedef.unflatten([items["optimizer"][name] for name in names])
  return structs.TrainState(
    step=jax.device_put(np.int32(step), state.step.sharding),
    trainable=checkpoint_items.load(state.trainable, items),
    opt_state=opt_state,
  )
