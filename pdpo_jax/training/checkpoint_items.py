"""What a checkpoint holds: arrays by item and parameter path.

Items are apart, so that users can be loaded without LoRA and LoRA without
users. Item `users` also holds the user ids in row order; `meta` names the base
weights by fingerprint. Supervised fine-tuning trains the base itself, which is
then item `base`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jax import sharding as jax_sharding

from pdpo_jax.core import structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import layers, user_model

_ITEMS = (
  ("lora", layers.LoraParam),
  ("users", user_model.UserParam),
  ("base", nnx.Param),
)


def abstract(
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


def _path(path: Sequence[Any]) -> str:
  return ".".join(map(str, path))


def of_trainable(trainable: nnx.State) -> dict[str, dict[str, jax.Array]]:
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


def of_state(
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
  items: dict[str, Any] = dict(of_trainable(state.trainable))
  if "users" in items:
    ids = json.dumps(users.to_json())
    items["users"] = {"table": items["users"], "ids": ids}
  return items | {
    "optimizer": _flat_leaves(state.opt_state),
    "meta": dict(meta),
  }


def load(
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
