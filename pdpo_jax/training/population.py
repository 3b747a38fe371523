"""How people differ: a prior for somebody new, from the table of a run's users.

A row of the user table (an individual's offset, or the weights of clusters) is
a vector of F numbers. Of people in general it is taken to be normal, with the
mean and the covariance of the run's users,

    row = m + z B,    z ~ N(0, I),

where the k rows of B are the directions in which users differ most, each as
long as one standard deviation of them. The covariance is shrunk by Ledoit and
Wolf's formula (2004, "A well-conditioned estimator for large-dimensional
covariance matrices"): of few users, chance makes a part of the differences.

Axes: U users · k directions · F numbers of a row.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from pdpo_jax.core import processes
from pdpo_jax.models import user_model
from pdpo_jax.training import policies

# Directions of individual users, at most.
MAX_DIRECTIONS = 16
# Users that directions are found from; of more, so many are taken, evenly
# spread over the table. The directions of a thousand are those of a million.
_MAX_USERS = 2048


@dataclasses.dataclass(frozen=True)
class Population:
  """A normal distribution of users' rows.

  Attributes:
    mean: m.
    directions: B, orthogonal, in the order of their lengths.
    shape: of a row, `[T, D]` or `[C]`.
    users: that it was made from.
    shrinkage: Ledoit and Wolf's, 0 (the users' own covariance) to 1 (the same
      in every direction).
  """

  mean: Float[np.ndarray, " F"]
  directions: Float[np.ndarray, "k F"]
  shape: tuple[int, ...]
  users: int
  shrinkage: float

  @property
  def size(self) -> int:
    """k."""
    return len(self.directions)

  def row(self, z: Float[np.ndarray, " k"]) -> Float[np.ndarray, "..."]:
    """The row of a user table that somebody with these coordinates has."""
    row = self.mean + z @ self.directions
    return row.reshape(self.shape).astype(np.float32)


def of_policy(
  policy: policies.SplitPolicy, num_users: int | None = None
) -> Population:
  """The population of a policy's users.

  Args:
    num_users: that count, from row 1 on; all rows without.

  Raises:
    ValueError: if the policy has no user model, or no users.
  """
  tables = [
    variable
    for _, variable in nnx.to_flat_state(policy.trainable)
    if isinstance(variable, user_model.UserRowParam)
  ]
  if not tables:
    raise ValueError(
      "user.kind 'none' has no rows, so that nobody can be learnt; train with "
      "user.kind 'individual' or 'cluster'"
    )
  (variable,) = tables
  table = variable.get_value()
  if num_users is None:
    num_users = table.shape[0] - 1
  if num_users < 1:
    raise ValueError(
      "the run has no users, and how people differ is learnt from them; train "
      "it on choices whose users are known"
    )
  chosen = np.unique(
    np.linspace(1, num_users, min(num_users, _MAX_USERS)).astype(np.int32)
  )
  read = jax.jit(lambda table, rows: jnp.take(table, rows, axis=0))
  rows = processes.fetch(read(table, np.concatenate([[0], chosen])))
  rows = rows.astype(np.float64).reshape(len(rows), -1)
  generic, rows = rows[0], rows[1:]
  is_offset = isinstance(variable, user_model.UserOffsetParam)
  if is_offset:
    generic = np.zeros_like(generic)
  return of_rows(
    rows,
    generic,
    table.shape[1:],
    MAX_DIRECTIONS if is_offset else rows.shape[1],
    num_users,
  )


def of_rows(
  rows: Float[np.ndarray, "U F"],
  generic: Float[np.ndarray, " F"],
  shape: tuple[int, ...],
  max_directions: int,
  num_users: int | None = None,
) -> Population:
  """The population that users with these rows are drawn from.

  Args:
    generic: the row of the generic user, who counts as one more person. So the
      mean of few users is near the generic one, and a single user differs from
      somebody.
    shape: of a row.
    max_directions: k is no more than that, nor than there are users, unless the
      covariance has to be of full rank (k = F).
    num_users: that `rows` stand for.
  """
  everyone = np.concatenate([rows, generic[None]])
  count, size = everyone.shape
  mean = everyone.mean(0)
  centered = everyone - mean
  # Singular vectors by the smaller of the two products.
  gram = centered @ centered.T
  shrinkage, common = _shrinkage(gram, size)
  if size <= max_directions:
    values, vectors = np.linalg.eigh(centered.T @ centered)
    vectors = vectors.T
  else:
    values, left = np.linalg.eigh(gram)
    keep = values > 1e-9 * max(values[-1], 1e-30)
    values, left = values[keep], left[:, keep]
    vectors = (left.T @ centered) / np.sqrt(values)[:, None]
  order = np.argsort(values)[::-1][:max_directions]
  values, vectors = values[order].clip(0), vectors[order]
  # Unbiased, and of somebody new, whose distance from the mean also has the
  # mean's own error in it.
  scale = (1 + 1 / count) / (count - 1)
  variances = scale * ((1 - shrinkage) * values + shrinkage * common)
  directions = np.sqrt(variances)[:, None] * vectors
  return Population(
    mean.astype(np.float32),
    directions.astype(np.float32),
    tuple(shape),
    len(rows) if num_users is None else num_users,
    float(shrinkage),
  )


def _shrinkage(
  gram: Float[np.ndarray, "U U"], size: int
) -> tuple[float, float]:
  """How much to shrink, and towards what sum of squares in each direction."""
  count = len(gram)
  common = np.trace(gram) / size
  squares = np.square(gram).sum()
  # Squared distances, of the users' covariance from one that is the same in
  # all directions, and of one user's from that of all.
  distance = squares - size * common**2
  error = (np.square(np.diag(gram)).sum() * count - squares) / count
  if distance <= 0:
    return 1.0, common
  return float(np.clip(error / distance, 0, 1)), common
