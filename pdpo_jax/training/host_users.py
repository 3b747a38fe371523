"""A user table in the host's memory, for one that devices have no room for.

A million users with prefixes of ten tokens of a model of width 4096 are 164 GB,
and twice that in Adam moments. A step touches the rows of its own users alone
(`sparse_users`); here these are gathered by the host, sent to the devices,
trained there as a small table, and written back. JAX orders it all, and nothing
waits for a step to end.

The table is an array like any other, on the CPU that JAX has beside its
accelerator. So checkpoints and metrics need not know.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from pdpo_jax.core import structs
from pdpo_jax.models import user_model
from pdpo_jax.training import sharding, sparse_users


def host() -> jax.Device:
  """The CPU of this process."""
  return jax.local_devices(backend="cpu")[0]


def is_apart(tree: Any) -> bool:
  """Whether rows of users lie on other devices than what else is in `tree`."""
  rows, others = set(), set()
  for variable in sparse_users.variables(tree):
    is_row = isinstance(variable, user_model.UserRowParam)
    for leaf in jax.tree.leaves(variable):
      (rows if is_row else others).update(leaf.devices())
  return bool(rows and others) and rows != others


def to_host(tree: Any) -> Any:
  """The same, all of it on the host."""
  return jax.device_put(tree, host())


def on_one_device(model: nnx.Module) -> nnx.Module:
  """A user model that can be called: on the host, if its table is there."""
  graphdef, state = nnx.split(model)
  return nnx.merge(graphdef, to_host(state)) if is_apart(state) else model


_rows_of_batch = jax.jit(sparse_users.batch_rows, static_argnums=1)
_gather = jax.jit(sparse_users.gather)
_scatter = jax.jit(sparse_users.scatter, donate_argnums=0)


def fetch(
  tree: Any, user_row: Int[Any, " B"]
) -> tuple[Any, Int[Array, " R"], Int[Array, " B"]]:
  """Brings the rows of a batch's users to where all else in `tree` is.

  Returns:
    `tree` with these rows in place of all; which they are, on the host; and
    where in them each example's is, `sparse_users.batch_rows`.
  """
  near = _place_beside(tree)
  rows, places = _rows_of_batch(
    jax.device_put(user_row, host()), sparse_users.num_rows(tree)
  )
  small = sparse_users.take(
    tree,
    rows,
    lambda table, rows: jax.device_put(_gather(table, rows), near),
  )
  return small, rows, jax.device_put(places, near)


def put_back(tree: Any, small: Any, rows: Int[Array, " R"]) -> Any:
  """`tree`, whose table is used up, with the rows of `small` written to it.

  All else is from `small`.
  """
  return sparse_users.put(
    tree,
    small,
    rows,
    lambda table, values, rows: _scatter(table, to_host(values), rows),
  )


def _place_beside(tree):
  """Whole, on the devices of what is no row of a user."""
  mesh = sharding.mesh_of(tree)
  if mesh is not None:
    return sharding.whole(mesh)
  for variable in sparse_users.variables(tree):
    if not isinstance(variable, user_model.UserRowParam):
      return next(iter(jax.tree.leaves(variable))).sharding
  raise ValueError("there is nothing besides rows of users")


def make_step(dense_step: Callable) -> Callable:
  """The step `(state, frozen, batch) -> (state, metrics)` on a table apart.

  Args:
    dense_step: likewise, on a small table and all of its rows.
  """

  def step(state, frozen, batch):
    small, rows, places = fetch(state, batch.user_row)
    small, metrics = dense_step(
      small, frozen, dataclasses.replace(batch, user_row=places)
    )
    return put_back(state, small, rows), metrics

  return step


def settle(state: structs.TrainState) -> tuple[structs.TrainState, Any]:
  """Puts all but the table where steps are to leave it.

  Returns:
    The state, and those places for the state of a small table.
  """
  small, rows, _ = fetch(state, jnp.zeros((1,), jnp.int32))
  places = sharding.pinned(small)
  if places is not None:
    small = jax.device_put(small, places)
  return put_back(state, small, rows), places


def narrow(trainable: nnx.State, user_row: Int[Any, " B"]) -> tuple[Any, Any]:
  """What reading a batch takes: a table of its own users, and rows in it.

  What lies on one device with all else is handed back as it is.
  """
  if not is_apart(trainable):
    return trainable, user_row
  small, _, places = fetch(trainable, user_row)
  return small, places
