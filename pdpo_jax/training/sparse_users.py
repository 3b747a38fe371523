"""A step that touches the rows of its own users alone, however long the table.

The rows of a batch's users are gathered into a small table before the gradient
is taken; the step runs on that, optimizer and all, as it would on the whole.
Then the rows are written back. Duplicates are one row of the small table, so
that their gradients add up.

Users who are not in a batch keep their rows and their Adam moments as they are
("lazy" moments). With a dense step, such rows go on moving with the momentum
that they have, and their moments decay. For users who are in every batch the
two are the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, Shaped

from pdpo_jax.models import user_model


def batch_rows(
  user_row: Int[Array, " B"], num_rows: int
) -> tuple[Int[Array, " R"], Int[Array, " B"]]:
  """The rows that a batch touches, and where in them each example's is.

  Row 0, the generic user's, is always the first. R is B + 1; places that are
  left over hold `num_rows`, which is no row.

    user_row  7 0 7 3   ->  rows  0 3 7 10 10, places  2 0 2 1   (10 rows)
  """
  batch = user_row.shape[0]
  # Row 0 is put apart, so that it is not found twice.
  known = jnp.where(user_row > 0, user_row, num_rows)
  touched = jnp.unique(known, size=batch, fill_value=num_rows)
  places = jnp.where(user_row > 0, jnp.searchsorted(touched, user_row) + 1, 0)
  zero = jnp.zeros((1,), touched.dtype)
  return jnp.concatenate([zero, touched]), places.astype(user_row.dtype)


def take(
  tree: Any, rows: Int[Array, " R"], read: Callable | None = None
) -> Any:
  """The same tree, with these rows in place of all in what has a row a user.

  Args:
    read: in place of `gather`.
  """
  read = read or gather
  return map_rows(
    lambda variable: jax.tree.map(lambda table: read(table, rows), variable),
    tree,
  )


def put(
  tree: Any,
  small: Any,
  rows: Int[Array, " R"],
  write: Callable | None = None,
) -> Any:
  """`tree` with the rows of `small` written back, and all else from `small`.

  Args:
    write: in place of `scatter`.
  """
  write = write or scatter
  return map_rows(
    lambda variable, new: jax.tree.map(
      lambda table, values: write(table, values, rows), variable, new
    ),
    tree,
    small,
    others=lambda _, new: new,
  )


def gather(
  table: Shaped[Array, "U *rest"], rows: Int[Array, " R"]
) -> Shaped[Array, "R *rest"]:
  """Rows of a table; for those that there are not, its last."""
  return jnp.take(table, rows, axis=0, mode="clip")


def scatter(
  table: Shaped[Array, "U *rest"],
  values: Shaped[Array, "R *rest"],
  rows: Int[Array, " R"],
) -> Shaped[Array, "U *rest"]:
  """A table with rows written to it; those that there are not are dropped."""
  return table.at[rows].set(values, mode="drop")


def num_rows(tree: Any) -> int:
  """U of the user table; 0 where there is none."""
  for variable in variables(tree):
    if isinstance(variable, user_model.UserRowParam):
      return jax.tree.leaves(variable)[0].shape[0]
  return 0


def variables(tree: Any) -> list[Any]:
  """Variables, and arrays that are in none."""
  return jax.tree.leaves(
    tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
  )


def map_rows(
  change: Callable,
  tree: Any,
  *more: Any,
  others: Callable = lambda variable: variable,
) -> Any:
  """Maps variables with a row a user by `change`, and the rest by `others`.

  Args:
    change: of a variable, and of those in its place in `more`.
    tree: a state.
    more: others of its structure.
    others: like `change`.
  """
  return jax.tree.map(
    lambda variable, *values: (
      change(variable, *values)
      if isinstance(variable, user_model.UserRowParam)
      else others(variable, *values)
    ),
    tree,
    *more,
    is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
  )
