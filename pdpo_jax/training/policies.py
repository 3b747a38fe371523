"""Policies on a base: made anew, begun as another one, and loaded again."""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Shaped

from pdpo_jax.core import processes, sections
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import kernels, user_model
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import (
  checkpoint,
  checkpoint_items,
  host_users,
  recipes,
  sharding,
)
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

# What a policy is, and what it was learnt by, in the recipe.
_LEARNT_BY = ("seed", "user.", "lora.", "loss.", "train.")


@dataclasses.dataclass(frozen=True)
class SplitPolicy:
  """A `Policy` taken apart, as jitted functions want it."""

  graphdef: Any
  trainable: nnx.State  # LoRA and users, float32
  frozen: nnx.State  # the base

  def merge(self) -> policy_lib.Policy:
    return nnx.merge(self.graphdef, self.trainable, self.frozen)

  def digest(self) -> str:
    """Names what was trained; that of other values is another."""
    flat = nnx.to_flat_state(self.trainable)
    return base_lib.digest_of({path: x.get_value() for path, x in flat})


def check_policy(recipe: recipes.Recipe, arch: policy_lib.Architecture) -> None:
  """Checks that the policy can be made, without making it.

  Raises:
    ValueError: naming what is wrong with `user`, `lora` or `base`.
  """
  make = policy_factory(recipe, arch, num_rows=1)
  size = arch.vocab_size, arch.width
  nnx.eval_shape(make, jax.ShapeDtypeStruct(size, jnp.float32))


def policy_factory(
  recipe: recipes.Recipe,
  arch: policy_lib.Architecture,
  num_rows: int,
) -> Callable[[Any], policy_lib.Policy]:
  """Makes the policy that a configuration describes, with random weights.

  Args:
    recipe: `base`, `user` and `lora` say what it is, `seed` how it starts.
    arch: of the base.
    num_rows: U, users and the generic one.

  Returns:
    A function of the base's token embeddings `[V, D]`, which users start from.
  """
  # Copies, which the policy keeps.
  users_config = dataclasses.replace(recipe.user)
  targets = recipe.lora.targets
  lora = dataclasses.replace(
    recipe.lora, targets=arch.linears if targets == ("all",) else targets
  )
  keys = jax.random.split(jax.random.key(recipe.seed), 2)

  def make(table):
    lm = policy_lib.make_language_model(
      arch,
      lora=lora,
      dtype=jnp.dtype(recipe.base.dtype),
      param_dtype=jnp.dtype(recipe.base.param_dtype),
      remat=recipe.base.remat,
      kernel=kernels.Kernel(recipe.base.attention),
      rngs=nnx.Rngs(params=keys[0], lora=keys[0]),
    )
    users = user_model.make_user_model(
      users_config, num_rows, table, nnx.Rngs(keys[1])
    )
    return policy_lib.Policy(lm, users, recipe.user.prefix_position)

  return make


def make_policy(
  recipe: recipes.Recipe, base: base_lib.Base, num_rows: int
) -> SplitPolicy:
  """A new policy: the base, LoRA that changes nothing yet, and users.

  Args:
    recipe: as for `policy_factory`.
    base: stays as it is.
    num_rows: U, users and the generic one.
  """
  arch = base.lm.arch
  make = policy_factory(recipe, arch, num_rows)

  def trainable_of(table):
    # Compiled, the base weights that `make` draws are never computed.
    return nnx.split(make(table), policy_lib.trainable, ...)[1]

  table = base.lm.embed(jnp.arange(arch.vocab_size))
  graphdef = nnx.graphdef(nnx.eval_shape(make, table))
  places = sharding.of_trainable(
    jax.eval_shape(trainable_of, table), sharding.mesh_of(base.params)
  )
  if recipe.train.users_on_host:
    if processes.several():
      raise ValueError(
        "train.users_on_host keeps the users in the memory of one process, and "
        "there are several; leave it off, and split the table over the devices "
        "by mesh.fsdp"
      )
    trainable = _with_users_on_host(trainable_of, table, places)
  else:
    trainable = jax.jit(trainable_of, out_shardings=places)(table)
  return SplitPolicy(graphdef, trainable, base.params)


def _with_users_on_host(trainable_of, table, places):
  """Computes what has a row a user on the host, and the rest where it goes."""

  is_row = user_model.UserRowParam
  if places is not None:
    places = nnx.split_state(places, nnx.Not(is_row), ...)[0]
  others = jax.jit(
    lambda table: nnx.split_state(trainable_of(table), nnx.Not(is_row), ...)[0],
    out_shardings=places,
  )(table)
  rows = jax.jit(
    lambda table: nnx.split_state(trainable_of(table), is_row, ...)[0],
    out_shardings=jax.sharding.SingleDeviceSharding(host_users.host()),
  )(host_users.to_host(table))
  return nnx.merge_state(others, rows)


def is_begun(folder: pathlib.Path) -> bool:
  """Whether a training has a checkpoint, with which it goes on."""
  place = folder / "checkpoints"
  if not processes.from_first(place.is_dir):
    return False
  with checkpoint.Checkpoints(place) as saved:
    return bool(processes.from_first(lambda: saved.steps))


def begin_as(
  policy: SplitPolicy, earlier: SplitPolicy, known: users_lib.UserIndex
) -> SplitPolicy:
  """A new policy with the weights of one that was trained before.

  Args:
    policy: new; the first rows of its user table are those of `known`.
    earlier: of the same base, LoRA and user model.
    known: the users that it was trained for. Those who come after them begin
      as the generic user.
  """
  taken = 1 + known.last_row

  def extend(table, *, rows, is_offset):
    first = jnp.zeros_like(table[:1]) if is_offset else table[:1]
    more = jnp.broadcast_to(first, (rows, *table.shape[1:]))
    return jnp.concatenate([table[:taken], more])

  trainable = []
  before = dict(nnx.to_flat_state(earlier.trainable))
  for path, variable in nnx.to_flat_state(policy.trainable):
    new, value = variable.get_value(), before[path].get_value()
    if isinstance(variable, user_model.UserRowParam):
      rows = new.shape[0] - taken
      is_offset = isinstance(variable, user_model.UserOffsetParam)
      extended = jax.jit(
        functools.partial(extend, rows=rows, is_offset=is_offset),
        out_shardings=new.sharding,
      )
      value = extended(value)
    trainable.append((path, variable.replace(value)))
  return dataclasses.replace(policy, trainable=nnx.from_flat_state(trainable))


def row_shape(policy: SplitPolicy) -> tuple[int, ...]:
  """Of a user's row; empty without a user model."""
  for _, variable in nnx.to_flat_state(policy.trainable):
    if isinstance(variable, user_model.UserRowParam):
      return variable.get_value().shape[1:]
  return ()


def with_rows(
  policy: SplitPolicy, rows: Sequence[Shaped[np.ndarray, "..."]]
) -> SplitPolicy:
  """The policy with more people behind those of its table.

  Args:
    rows: of each; the first has number U, the length of the table before.
  """
  if not rows:
    return policy
  trainable = []
  for path, variable in nnx.to_flat_state(policy.trainable):
    if isinstance(variable, user_model.UserRowParam):
      table = variable.get_value()
      more = np.stack(rows).astype(table.dtype)
      place = table.sharding
      if isinstance(place, jax.sharding.NamedSharding):
        # A split of rows that was even need not be so with more of them.
        place = sharding.place_of(
          ".".join(map(str, path)),
          (len(table) + len(more), *table.shape[1:]),
          place.mesh,
        )
      join = jax.jit(
        lambda table, more: jnp.concatenate([table, more]), out_shardings=place
      )
      variable = variable.replace(join(table, more))
    trainable.append((path, variable))
  return dataclasses.replace(policy, trainable=nnx.from_flat_state(trainable))


def meta(
  recipe: recipes.Recipe, base: base_lib.Base, users: users_lib.UserIndex
) -> dict[str, Any]:
  """What must be the same where a checkpoint is loaded."""
  return {
    **base.names,
    "user_kind": recipe.user.kind,
    # Without a user model, nothing depends on who there is.
    "num_users": len(users.ids) if recipe.user.kind != "none" else 0,
    "config": json.dumps(
      {
        name: value
        for name, value in sections.flatten(
          json.loads(json.dumps(dataclasses.asdict(recipe)))
        ).items()
        if name.startswith(_LEARNT_BY)
      }
    ),
  }


class Loaded(NamedTuple):
  """A trained policy, the users of its table, and the step it is of."""

  policy: SplitPolicy
  users: users_lib.UserIndex
  step: int


def read_users(
  recipe: recipes.Recipe, folder: pathlib.Path
) -> users_lib.UserIndex:
  """The users of a training's table, without the table.

  Raises:
    ValueError: if there is no checkpoint, or none that can be read.
  """
  place = folder / "checkpoints"
  if not place.is_dir():
    raise ValueError(
      f"{folder} has no checkpoints; train first, or name another --workdir"
    )
  if recipe.user.kind == "none":
    return users_lib.UserIndex([])
  with checkpoint.Checkpoints(place) as saved:
    return saved.users()


def load(
  recipe: recipes.Recipe,
  base: base_lib.Base,
  folder: pathlib.Path,
  *,
  of_run: bool = True,
) -> Loaded:
  """The newest policy of a training that can be read.

  Its step is not always that of the newest folder: one that is damaged is
  passed over with a warning. What is made with the policy is to be filed under
  the step that comes with it.

  Args:
    recipe: of its run, or of one that starts from it.
    base: what it was trained on.
    folder: of the training.
    of_run: whether `recipe` is that of its run, and it is checked.

  Raises:
    ValueError: if there is none, or it is of another base or run.
  """
  users = read_users(recipe, folder)
  checkpoints_folder = folder / "checkpoints"
  with checkpoint.Checkpoints(checkpoints_folder) as saved:
    policy = make_policy(recipe, base, users.num_rows)
    like = checkpoint_items.of_trainable(policy.trainable)
    if "users" in like:
      like["users"] = {"table": like["users"], "ids": ""}
    wanted = meta(recipe, base, users)
    if not of_run:
      del wanted["config"]
    newest = saved.newest(like, wanted)
  if newest is None:
    raise ValueError(f"{checkpoints_folder} has no whole checkpoint")
  step, items = newest
  trainable = checkpoint_items.load(policy.trainable, items)
  return Loaded(dataclasses.replace(policy, trainable=trainable), users, step)
