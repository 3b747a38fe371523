"""What was learnt about users, seen through their embeddings."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from sklearn import (
  cluster,
  decomposition,
  linear_model,
  metrics,
  model_selection,
)

from pdpo_jax.core import processes
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import user_model
from pdpo_jax.training import host_users

# Of a class that has fewer, nothing can be said.
_LEAST_OF_A_CLASS = 3
# Principal components that a probe reads, and exchanges of labels it compares
# its accuracy with.
_COMPONENTS, _PERMUTATIONS = 10, 100


@dataclasses.dataclass(frozen=True)
class UserVectors:
  """The embeddings of some users.

  Attributes:
    ids: whose they are.
    prefixes: `[users, T, D]`, the soft prefixes.
    generic: `[T, D]`, the unknown user's.
    weights: `[users, C]`, of the cluster model; None of another.
    centers: `[C, T, D]`, likewise.
  """

  ids: tuple[str, ...]
  prefixes: np.ndarray
  generic: np.ndarray
  weights: np.ndarray | None = None
  centers: np.ndarray | None = None

  @property
  def features(self) -> Float[np.ndarray, "users F"]:
    """What tells users apart: their weights, or else their offsets."""
    if self.weights is not None:
      return self.weights
    return (self.prefixes - self.generic).reshape(len(self.ids), -1)


def read_vectors(
  model: nnx.Module, users: users_lib.UserIndex, ids: Sequence[str]
) -> UserVectors:
  """The embeddings of known users.

  Args:
    model: a user model.

  Raises:
    ValueError: if an id is unknown.
  """
  model = host_users.on_one_device(model)
  rows = jnp.asarray([users.row_of(user) for user in ids], jnp.int32)
  weights = centers = None
  if isinstance(model, user_model.ClusterUsers):
    weights = processes.fetch(model.mixing(rows))
    centers = processes.fetch(model.centers[...])
  return UserVectors(
    tuple(ids),
    processes.fetch(model(rows)),
    processes.fetch(model.generic()),
    weights,
    centers,
  )


def nearest_tokens(
  prefix: Float[np.ndarray, "T D"],
  table: Float[np.ndarray, "V D"],
  count: int = 3,
) -> list[list[int]]:
  """For each user token, the vocabulary's nearest by cosine, nearest first.

  The table's mean is taken off both sides first: token embeddings share a
  direction, which else makes everything near everything.
  """
  center = table.mean(0)
  near = _unit(prefix - center) @ _unit(table - center).T
  return np.argsort(-near, axis=1)[:, :count].tolist()


def cosine_map(
  features: Float[np.ndarray, "users F"],
) -> Float[np.ndarray, "users users"]:
  """Cosines between users; a user without any offset has 0 with all."""
  unit = _unit(features)
  return unit @ unit.T


def project(
  features: Float[np.ndarray, "users F"],
) -> tuple[Float[np.ndarray, "users 2"], float]:
  """Principal components, two of them, and the share of variance they hold."""
  if (
    len(features) < 2 or features.shape[1] < 2 or not np.ptp(features, 0).any()
  ):
    return np.zeros((len(features), 2)), 1.0
  pca = decomposition.PCA(2, svd_solver="full")
  places = pca.fit_transform(features.astype(np.float64))
  return places, float(pca.explained_variance_ratio_.sum())


def recover_groups(
  features: Float[np.ndarray, "users F"], count: int
) -> list[int]:
  """The number of each user's group, found without knowing any (k-means)."""
  unit = _unit(features)
  distinct, groups = np.unique(unit, axis=0, return_inverse=True)
  if len(distinct) <= count:
    return groups.tolist()
  means = cluster.KMeans(count, n_init=10, random_state=0)
  return means.fit_predict(unit).tolist()


def group_agreement(recovered: Sequence[int], true: Sequence[str]) -> float:
  """Adjusted Rand index: 1 for the same groups, 0 for what chance gives."""
  return float(metrics.adjusted_rand_score(true, recovered))


@dataclasses.dataclass(frozen=True)
class Probe:
  """How well embeddings tell an attribute of users.

  Attributes:
    accuracy: balanced, of users that the probe was not fitted to.
    chance: 1 / number of classes.
    p_value: share of 100 random exchanges of the labels among users that gave
      as much.
    users: how many have the attribute.
    classes: of the attribute.
  """

  accuracy: float
  chance: float
  p_value: float
  users: int
  classes: tuple[str, ...]


def probe(
  features: Float[np.ndarray, "users F"], labels: Sequence[str | None]
) -> Probe | None:
  """A linear classifier from embeddings to an attribute, cross-validated.

  Users without the attribute are left out, and those of classes with fewer
  than three users. The features are reduced to principal components first, as
  there are often more of them than users.

  Returns:
    None if fewer than two classes are left, or all users are alike.
  """
  counts = {label: list(labels).count(label) for label in set(labels) - {None}}
  classes = sorted(c for c, n in counts.items() if n >= _LEAST_OF_A_CLASS)
  kept = [place for place, label in enumerate(labels) if label in classes]
  if len(classes) < 2 or not np.ptp(features[kept], 0).any():
    return None
  targets = np.array([labels[place] for place in kept])
  inputs = features[kept].astype(np.float64)
  # Once for all folds: it does not look at the labels.
  size = min(_COMPONENTS, len(kept) - 1, inputs.shape[1])
  inputs = decomposition.PCA(size, svd_solver="full").fit_transform(inputs)
  folds = min(5, min(counts[label] for label in classes))
  # In one unit, so that a component weighs by how much users differ in it:
  # scaled one by one, those that are noise would drown the others.
  inputs /= inputs.std() or 1.0
  model = linear_model.RidgeClassifier(class_weight="balanced")
  score, _, p_value = model_selection.permutation_test_score(
    model,
    inputs,
    targets,
    cv=model_selection.StratifiedKFold(folds, shuffle=True, random_state=0),
    n_permutations=_PERMUTATIONS,
    random_state=0,
    scoring="balanced_accuracy",
  )
  return Probe(
    float(score), 1 / len(classes), float(p_value), len(kept), tuple(classes)
  )


def _unit(
  vectors: Float[np.ndarray, "vectors F"],
) -> Float[np.ndarray, "vectors F"]:
  norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.where(norms > 0, norms, 1.0)
