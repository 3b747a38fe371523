"""The soft prefix of one person, for whoever puts it into a prompt."""

import functools

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Shaped

from pdpo_jax.models import policy as policy_lib
from pdpo_jax.models import user_model
from pdpo_jax.training import host_users


@functools.partial(jax.jit, static_argnums=0)
def _of_row(graphdef, state, row):
  return nnx.merge(graphdef, state)(row[None])[0]


@functools.partial(jax.jit, static_argnums=0)
def _of_learnt(graphdef, state, row):
  return nnx.merge(graphdef, state).prefixes(row[None])[0]


def of_row(
  policy: policy_lib.Policy, row: int
) -> Float[np.ndarray, "T D"] | None:
  """Of a row of the user table, 0 being the generic user's.

  Returns:
    float32; None where a policy has no users.

  Raises:
    ValueError: if the table has no such row.
  """
  users = policy.user_model
  if users.num_tokens == 0:
    return None
  if not 0 <= row < users.num_rows:
    raise ValueError(
      f"row {row} is outside the user table of {users.num_rows} rows; use 0 "
      f"(generic) to {users.num_rows - 1}"
    )
  parts = nnx.split(host_users.on_one_device(users))
  return np.asarray(_of_row(*parts, np.int32(row)))


def of_learnt(
  policy: policy_lib.Policy, row: Shaped[np.ndarray, "..."]
) -> Float[np.ndarray, "T D"] | None:
  """Of a person who need not be in the table.

  Args:
    row: as the table would have it, an offset `[T, D]` or weights `[C]` of
      clusters (`people.Person.row`).

  Returns:
    float32; None where a policy has no users.

  Raises:
    ValueError: if a row of this policy's table has another shape.
  """
  users = policy.user_model
  if users.num_tokens == 0:
    return None
  (table,) = jax.tree.leaves(nnx.state(users, user_model.UserRowParam))
  shape = table.shape[1:]
  if np.shape(row) != shape or not np.isfinite(row).all():
    raise ValueError(
      f"a learnt row has shape {np.shape(row)} and must be of {shape}, and "
      "finite; was it learnt with this run?"
    )
  parts = nnx.split(host_users.on_one_device(users))
  return np.asarray(_of_learnt(*parts, np.asarray(row, np.float32)))
