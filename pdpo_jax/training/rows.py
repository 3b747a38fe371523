"""The rows of single users in checkpoints, without a policy around them."""

import json
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdpo_jax.data import users as users_lib
from pdpo_jax.models import user_model
from pdpo_jax.training import checkpoint, sums
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

# What `Policy` calls its user model, in the paths of parameters.
_MODEL = "user_model"
_ITEMS = ("lora", "users", "optimizer")


def kinds(config: user_model.UserConfig) -> dict[str, type]:
  """The kind of each parameter of a user model that has a row a user."""
  model = nnx.eval_shape(
    lambda: user_model.make_user_model(
      config, 1, jnp.zeros((1, 1)), nnx.Rngs(0)
    )
  )
  return {
    ".".join(map(str, path)): type(variable)
    for path, variable in nnx.to_flat_state(nnx.state(model))
    if isinstance(variable, user_model.UserRowParam)
  }


def shared_digest(config: user_model.UserConfig, folder: pathlib.Path) -> str:
  """Names what people's rows are learnt with: base, LoRA, what users share.

  Rows of others are no part of it, so that nobody has to be learnt again since
  somebody else came or went. Weights are not read.

  Args:
    config: of the training.
    folder: of the training.

  Raises:
    ValueError: if it has no checkpoint that can be read.
  """
  with checkpoint.Checkpoints(folder / "checkpoints") as saved:
    described = saved.described()
    if described is None:
      raise ValueError(f"{folder} has no checkpoint; train it first")
    step, meta = described
    values = saved.sums(step)
  names = {f"['table']['{_MODEL}.{name}']" for name in kinds(config)}
  shared = {
    path: value
    for path, value in values.get("users", {}).items()
    if path not in names | {"['ids']"}
  }
  parts = {"base": meta["base"], "config": meta.get("config", "")}
  return sums.of_json(
    {**parts, "lora": values.get("lora"), "users": shared, "step": step}
  )


def read(
  config: user_model.UserConfig, folder: pathlib.Path, user_id: str
) -> np.ndarray | None:
  """A user's row in the newest checkpoint of a training; None without one."""
  with checkpoint.Checkpoints(folder / "checkpoints") as saved:
    row = saved.users().row_or_generic(user_id)
    if not row:
      return None
    step, _ = saved.described()
    table = saved.load_as_saved(step, ("users",))["users"]["table"]
  (name,) = kinds(config)
  return np.asarray(table[f"{_MODEL}.{name}"][row])


class Rewritten(NamedTuple):
  """A step that was written anew.

  Attributes:
    before, after: digests of the policy.
  """

  step: int
  before: str
  after: str


def write_without(
  config: user_model.UserConfig,
  place: pathlib.Path,
  target: pathlib.Path,
  user_id: str,
  data: str | None,
) -> list[Rewritten]:
  """Writes the checkpoints of a training anew, without a user.

  The row is nobody's then and says nothing: an offset of zero, or the weights
  of the generic user. Adam's moments of it are zero. All else is as it was, bit
  by bit. Steps that cannot be read are left out, which is said.

  Args:
    config: of the training.
    place: the folder of its checkpoints.
    target: gets them.
    data: the digest of its data without the user; None: as it is.

  Raises:
    ValueError: if no step can be read.
  """
  rewritten, problem = [], None
  with (
    checkpoint.Checkpoints(place) as saved,
    checkpoint.Checkpoints(target, keep=max(1, len(saved.steps))) as out,
  ):
    for step in saved.steps:
      try:
        meta = saved.meta(step)
        items = saved.load_as_saved(step, _ITEMS)
      except Exception as error:  # Orbax raises what its storage raises.
        problem = f"{place / str(step)} cannot be read ({error})"
        logger.warning("%s, and is removed", problem)
        continue
      before = _digest(items)
      if data is not None and "data" in meta:
        meta["data"] = data
      _clear(config, items, meta, user_id)
      rewritten.append(Rewritten(step, before, _digest(items)))
      out.save(step, items | {"meta": meta})
  if problem and not rewritten:
    raise ValueError(f"{problem}, nor can any other; remove the run folder")
  return rewritten


def _clear(
  config: user_model.UserConfig,
  items: dict[str, Any],
  meta: dict[str, Any],
  user_id: str,
) -> None:
  """Empties a user's row in place."""
  if "users" not in items:
    return
  users = users_lib.UserIndex.from_json(json.loads(items["users"]["ids"]))
  row = users.row_or_generic(user_id)
  if not row:
    return
  users = users.without(user_id)
  meta["num_users"] = len(users.ids)
  table = items["users"]["table"]
  items["users"]["ids"] = json.dumps(users.to_json())
  for name, kind in kinds(config).items():
    path = f"{_MODEL}.{name}"
    is_offset = issubclass(kind, user_model.UserOffsetParam)
    empty = 0.0 if is_offset else table[path][0]
    table[path] = table[path].at[row].set(empty)
    # As `jax.tree_util.keystr` writes it.
    sign = f"['{_MODEL}']['{name}']"
    for moment in [key for key in items["optimizer"] if sign in key]:
      values = items["optimizer"][moment]
      if values.shape[:1] != (users.num_rows,):
        raise ValueError(
          f"the optimizer's {moment} has shape {values.shape}, and not a row "
          f"for each of {users.num_rows}"
        )
      items["optimizer"][moment] = values.at[row].set(0.0)


def _digest(items: dict[str, Any]) -> str:
  """As `policies.SplitPolicy.digest`, of the same values."""
  arrays: dict[str, jax.Array] = {**items.get("lora", {})}
  arrays |= items.get("users", {}).get("table", {})
  return base_lib.digest_of(
    {
      tuple(int(x) if x.isdigit() else x for x in path.split(".")): array
      for path, array in arrays.items()
    }
  )
