"""Checkpoints of a run: `lora`, `users`, `optimizer` and `meta`, apart.

Each is an Orbax item of one step, so that users can be loaded without LoRA and
LoRA without users. Item `users` also holds the user ids in row order; `meta`
names the base weights by fingerprint. Supervised fine-tuning trains the base
itself, which is then item `base`.
"""

import itertools
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import sharding as jax_sharding
from orbax.checkpoint import v1 as ocp

from pdpo_jax import processes, structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import layers, user_model

logger = logging.getLogger(__name__)

_ITEMS = (
  ("lora", layers.LoraParam),
  ("users", user_model.UserParam),
  ("base", nnx.Param),
)


def _path(path: Sequence[Any]) -> str:
  return ".".join(map(str, path))


def trainable_items(trainable: nnx.State) -> dict[str, dict[str, jax.Array]]:
  """Arrays by item and parameter path; items without any are left out."""
  items = {}
  for path, variable in nnx.to_flat_state(trainable):
    for name, kind in _ITEMS:
      if isinstance(variable, kind):
        items.setdefault(name, {})[_path(path)] = variable.get_value()
        break
    else:
      raise TypeError(f"{_path(path)} is a {type(variable)}, not trainable")
  return items


def _flat_leaves(tree: Any) -> dict[str, jax.Array]:
  return {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def state_items(
  state: structs.TrainState,
  users: users_lib.UserIndex | None,
  meta: Mapping[str, Any],
) -> dict[str, Any]:
  """What a checkpoint of `state` holds.

  Args:
    state: on any mesh.
    users: whose rows the user table has; None where there is no user model.
    meta: strings and numbers that a later load compares with its own.
  """
  items: dict[str, Any] = dict(trainable_items(state.trainable))
  if "users" in items:
    ids = json.dumps(users.to_json())
    items["users"] = {"table": items["users"], "ids": ids}
  return items | {
    "optimizer": _flat_leaves(state.opt_state),
    "meta": dict(meta),
  }


def _abstract(
  tree: Any, place_of: Callable[[Any], jax_sharding.Sharding]
) -> Any:
  """Shapes, dtypes and shardings of a tree of arrays; strings stay."""
  return jax.tree.map(
    lambda x: (
      x
      if isinstance(x, str)
      else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place_of(x))
    ),
    tree,
  )


def load_trainable(
  trainable: nnx.State, items: Mapping[str, Mapping[str, Any]]
) -> nnx.State:
  """`trainable` with the values of the items `lora`, `users` or `base`."""
  flat = {}
  for path, variable in nnx.to_flat_state(trainable):
    for name, kind in _ITEMS:
      if isinstance(variable, kind):
        if name in items:
          values = items[name].get("table", items[name])
          variable = variable.replace(values[_path(path)])
        break
    flat[path] = variable
  return nnx.from_flat_state(list(flat.items()))


class Checkpoints:
  """The checkpoints of one training in `folder`, newest last.

  Args:
    folder: made if it is missing.
    keep: how many of the newest are kept; None only reads, and leaves alone
      whatever a training may be writing there.
  """

  def __init__(self, folder: pathlib.Path, keep: int | None = None):
    self.folder = folder.absolute()
    self._writes = keep is not None
    training = ocp.training
    self._checkpointer = training.Checkpointer(
      self.folder,
      preservation_policy=training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=self._writes,
    )
    self._saving: Any = None  # Orbax's response, which has to be asked.

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *exception) -> None:
    try:
      self.wait()
    finally:
      self._checkpointer.close()

  @property
  def steps(self) -> list[int]:
    return sorted(each.step for each in self._checkpointer.checkpoints)

  def save(self, step: int, items: Mapping[str, Any]) -> None:
    """Begins to write step `step` in the background, unless it is there."""
    if step in self.steps:
      return
    self.wait()
    self._saving = self._checkpointer.save_checkpointables_async(
      step, dict(items), force=True
    )

  def wait(self) -> None:
    """Returns once every save is on disk."""
    if self._saving is not None:
      saving, self._saving = self._saving, None
      # Its thread and its descriptors are kept until it is asked.
      saving.result()
    self._checkpointer.wait()

  def users(self) -> users_lib.UserIndex:
    """The users of the newest step that can be read; none without a step.

    Raises:
      ValueError: if no step can be read.
    """
    problems: dict[int, str] = {}
    for step in self._newest_first():
      ids, problems[step] = _read(lambda step=step: self._user_ids(step))
      if ids:
        return users_lib.UserIndex.from_json(json.loads(ids))
    self._refuse(problems)
    return users_lib.UserIndex([])

  def described(self) -> tuple[int, dict[str, Any]] | None:
    """The newest step whose `meta` can be read, and that; None without."""
    for step in self._newest_first():
      meta, problem = _read(lambda step=step: self.meta(step))
      if not problem:
        return step, meta
    return None

  def _newest_first(self) -> list[int]:
    return processes.from_first(lambda: self.steps)[::-1]

  def meta(self, step: int) -> dict[str, Any]:
    return self._load_items(step, {"meta": None})["meta"]

  def _user_ids(self, step: int) -> str | None:
    """The ids alone, however large the table is; None without users."""
    found = self._checkpointer.checkpointables_metadata(step).metadata
    if "users" not in found:
      return None
    if found["users"] is None:  # Orbax has logged why.
      raise ValueError("the table of users is damaged")
    table = dict.fromkeys(found["users"]["table"], ocp.PLACEHOLDER)
    like = {"users": {"table": table, "ids": ""}}
    return self._load_items(step, like)["users"]["ids"]

  def load(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
    """The items of `step` that `like` names, in its shapes and shardings."""
    return self._load_items(step, _abstract(dict(like), lambda x: x.sharding))

  def load_as_saved(self, step: int, names: Sequence[str]) -> dict[str, Any]:
    """Items of `step` in the shapes they have there, in the host's memory.

    The devices that they were saved from need not exist.
    """
    found = self._checkpointer.checkpointables_metadata(step).metadata
    like = {name: found[name] for name in names if name in found}
    # A table of users may be larger than an accelerator.
    here = jax_sharding.SingleDeviceSharding(
      jax.local_devices(backend="cpu")[0]
    )
    return self._load_items(step, _abstract(like, lambda _: here))

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
    for step in self._newest_first():
      found, problems[step] = _read(lambda step=step: self.meta(step))
      if problems[step]:
        continue
      check_meta(found, meta, self.folder / str(step))
      items, problems[step] = _read(lambda step=step: self.load(step, like))
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
        processes.from_first(lambda place=place: _move(place, aside))
        logger.warning("it was moved to %s", aside)
    if self._writes and problems:
      self._checkpointer.reload()


def _read(read: Callable[[], Any]) -> tuple[Any, str]:
  """What `read` gives, and what was wrong if it failed for any process."""
  found, problem = None, ""
  try:
    found = read()
  except Exception as error:  # Orbax raises what its storage raises.
    problem = (str(error) or type(error).__name__).splitlines()[0][:200]
  return found, next(filter(None, processes.gather(problem)), "")


def _move(place: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves a step's folder, and keeps what was moved there before."""
  folder.mkdir(exist_ok=True)
  name = next(
    name
    for number in itertools.count()
    if not (name := folder / f"{place.name}_{number}").exists()
  )
  place.rename(name)


def check_meta(
  found: Mapping[str, Any], wanted: Mapping[str, Any], place: pathlib.Path
) -> None:
  """Compares a checkpoint's `meta` with this run's, in what both name.

  Raises:
    ValueError: naming each difference.
  """
  differences = [
    f"{name} is {found[name]!r} there and {value!r} here"
    for name, value in wanted.items()
    if name in found and found[name] != value
  ]
  if differences:
    raise ValueError(
      f"checkpoint {place} is of another run: {'; '.join(differences)}. Use "
      "the base and the data it was trained with, or another --config.workdir"
    )


def restore(
  checkpoints: Checkpoints,
  state: structs.TrainState,
  users: users_lib.UserIndex | None,
  meta: Mapping[str, Any],
) -> structs.TrainState | None:
  """The newest whole checkpoint as a state shaped like `state`, or None.

  Raises:
    ValueError: if it is of another base or has other users.
  """
  like = state_items(state, users, meta)
  like.pop("meta")
  newest = checkpoints.newest(like, meta)
  if newest is None:
    return None
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
    trainable=load_trainable(state.trainable, items),
    opt_state=opt_state,
  )
