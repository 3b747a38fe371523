"""How people differ: a prior for somebody new, from the table of a run's users.

A row of the user table (an individual's offset, or the weights of clusters) is
a vector of F numbers. Somebody new belongs to one of a few groups g, and is
like its mean up to normal differences, which are the same in all groups:

    row = m_g + z B,    z ~ N(0, I).

The k rows of B are the directions in which users of a group differ most, each
as long as one standard deviation. The covariance is shrunk by Ledoit and Wolf's
formula (2004, "A well-conditioned estimator for large-dimensional covariance
matrices"): of few users, chance makes a part of the differences. There are as
many groups as users fall into, often one.

Axes: U users · G groups · k directions · F numbers of a row.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int
from scipy.cluster import vq

from pdpo_jax.core import processes
from pdpo_jax.models import user_model
from pdpo_jax.training import policies

# Directions of individual users, at most.
MAX_DIRECTIONS = 16
# Users that directions are found from; of more, so many are taken, evenly
# spread over the table. The directions of a thousand are those of a million.
_MAX_USERS = 2048
# A choice is read once for each group.
MAX_GROUPS = 4
_RESTARTS = 10
# Directions whose squares are a smaller share of the largest's are none.
_RANK = 1e-9


@dataclasses.dataclass(frozen=True)
class Population:
  """A distribution of users' rows.

  Attributes:
    means: m, of each group.
    shares: of all people, who belong to it.
    directions: B, orthogonal, in the order of their lengths.
    generic: the row of the generic user, who stands for somebody unknown.
    shape: of a row, `[T, D]` or `[C]`.
    users: that it was made from.
    shrinkage: Ledoit and Wolf's, 0 (the users' own covariance) to 1 (the same
      in every direction).
  """

  means: Float[np.ndarray, "G F"]
  shares: Float[np.ndarray, " G"]
  directions: Float[np.ndarray, "k F"]
  generic: Float[np.ndarray, " F"]
  shape: tuple[int, ...]
  users: int
  shrinkage: float

  @property
  def groups(self) -> int:
    """G."""
    return len(self.means)

  @property
  def size(self) -> int:
    """k."""
    return len(self.directions)

  def row(
    self, group: int, z: Float[np.ndarray, " k"]
  ) -> Float[np.ndarray, "..."]:
    """What somebody of a group has in the user table, at these coordinates."""
    row = self.means[group] + z @ self.directions
    return row.reshape(self.shape).astype(np.float32)


def of_policy(
  policy: policies.SplitPolicy, user_rows: Sequence[int] | None = None
) -> Population:
  """The population of a policy's users.

  Args:
    user_rows: of the table, that are somebody's; without, all but row 0.

  Raises:
    ValueError: if the policy has no user model, or no users.
  """
  variable = _table_of(policy)
  table = variable.get_value()
  if user_rows is None:
    user_rows = range(1, table.shape[0])
  if not len(user_rows):
    raise ValueError(
      "the run has no users, and how people differ is learnt from them; train "
      "it on choices whose users are known"
    )
  chosen = spread(user_rows, _MAX_USERS)
  rows = rows_of(policy, [0, *chosen])
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
    len(user_rows),
  )


def rows_of(
  policy: policies.SplitPolicy, numbers: Sequence[int]
) -> Float[np.ndarray, "n ..."]:
  """Rows of the user table, as they stand there."""
  table = _table_of(policy).get_value()
  return processes.fetch(_take(table, np.asarray(numbers, np.int32)))


@jax.jit
def _take(table, rows):
  return jnp.take(table, rows, axis=0)


def spread(numbers: Sequence[int], most: int) -> list[int]:
  """At most so many of them, from all over."""
  places = np.linspace(0, len(numbers) - 1, most).astype(np.int32)
  return np.asarray(numbers, np.int32)[np.unique(places)].tolist()


def _table_of(policy: policies.SplitPolicy) -> user_model.UserRowParam:
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
  (table,) = tables
  return table


def of_rows(
  rows: Float[np.ndarray, "U F"],
  generic: Float[np.ndarray, " F"],
  shape: tuple[int, ...],
  max_directions: int,
  num_users: int | None = None,
) -> Population:
  """The population that users with these rows are drawn from.

  Args:
    generic: the row of the generic user, who counts as one more person, so that
      a single user differs from somebody.
    shape: of a row.
    max_directions: k is no more than that, nor than there are users, unless the
      covariance has to be of full rank (k = F).
    num_users: that `rows` stand for.
  """
  everyone = np.concatenate([rows, generic[None]])
  count, size = everyone.shape
  labels = find_groups(everyone)
  groups = labels.max() + 1
  means = np.stack([everyone[labels == g].mean(0) for g in range(groups)])
  centered = everyone - means[labels]
  gram = centered @ centered.T
  shrinkage, common = _shrinkage(gram, size)
  # Singular vectors, by the smaller of the two products.
  if size <= max_directions:
    values, vectors = np.linalg.eigh(centered.T @ centered)
    vectors = vectors.T
  else:
    values, left = np.linalg.eigh(gram)
    keep = values > _RANK * max(values[-1], np.finfo(np.float32).tiny)
    values, left = values[keep], left[:, keep]
    vectors = (left.T @ centered) / np.sqrt(values)[:, None]
  order = np.argsort(values)[::-1][:max_directions]
  values, vectors = values[order].clip(0), vectors[order]
  # Unbiased, and of somebody new, whose distance from a mean also has the
  # mean's own error in it.
  scale = (1 + groups / count) / max(count - groups, 1)
  variances = scale * ((1 - shrinkage) * values + shrinkage * common)
  return Population(
    means.astype(np.float32),
    np.bincount(labels) / count,
    (np.sqrt(variances)[:, None] * vectors).astype(np.float32),
    generic.astype(np.float32),
    tuple(shape),
    len(rows) if num_users is None else num_users,
    float(shrinkage),
  )


def find_groups(rows: Float[np.ndarray, "U F"]) -> Int[np.ndarray, " U"]:
  """The groups that users fall into, numbered from 0, the largest first.

  One more group is made where it explains twice as much of the differences
  within groups as it would if there were none: of users who differ by chance
  alone, one who is a group of their own takes a share of 1 / (U - G + 1).
  """
  count = len(rows)
  centered = rows - rows.mean(0)
  values, vectors = np.linalg.eigh(centered @ centered.T)
  # Users' places in the directions in which they differ most.
  places = (vectors * np.sqrt(values.clip(0)))[:, -MAX_DIRECTIONS:]
  rest = values[:-MAX_DIRECTIONS].clip(0).sum()
  labels = np.zeros(count, np.int64)
  within = values.clip(0).sum()
  if within <= 0:
    return labels
  for groups in range(2, min(MAX_GROUPS, (count - 1) // 2) + 1):
    found, left = _split(places, groups)
    left += rest
    if left > within * (1 - 2 / (count - groups + 1)):
      break
    labels, within = found, left
  order = np.argsort(-np.bincount(labels), kind="stable")
  return np.argsort(order)[labels]


def _split(places, groups):
  """The best of a few runs of k-means: labels, and squares within groups."""
  best = None
  for seed in range(_RESTARTS):
    _, labels = vq.kmeans2(places, groups, minit="++", iter=50, rng=seed)
    if len(np.unique(labels)) < groups:
      continue
    within = sum(
      np.square(places[labels == g] - places[labels == g].mean(0)).sum()
      for g in range(groups)
    )
    if best is None or within < best[1]:
      best = labels, within
  return best or (np.zeros(len(places), np.int64), np.inf)


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
  if distance <= _RANK * max(squares, np.finfo(np.float32).tiny):
    return 1.0, common
  return float(np.clip(error / distance, 0, 1)), common
