"""Implicit reward accuracy: how often the chosen response has more reward.

The implicit reward of a response is `beta log(pi(y | x, u) / ref(y | x))`
(arXiv:2305.18290, section 4), so that beta does not matter here.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Int

from pdpo_jax.runs import scores as scores_lib

_RESAMPLES = 10_000
# Users whose signs are turned round in all ways: 4,096.
_EXACT = 12


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Reward accuracy of one policy on one set of samples.

  Attributes:
    pairs: share of all pairs whose chosen response has more reward; NaN where
      there is no pair.
    by_user: the same for each user's pairs; unknown users are left out, and
      those without a pair.
    margin_by_user: by how much more, on average, in nats.
  """

  pairs: float
  by_user: dict[str, float]
  margin_by_user: dict[str, float]

  @property
  def users(self) -> float:
    """The mean over users, each counting the same."""
    return float(np.mean(list(self.by_user.values())))

  @property
  def margin(self) -> float:
    """The mean of users' margins, in nats."""
    return float(np.mean(list(self.margin_by_user.values())))

  @property
  def worst_decile(self) -> float:
    """The mean of the tenth of users with the least accuracy."""
    values = sorted(self.by_user.values())
    return float(np.mean(values[: max(1, round(len(values) / 10))]))

  def interval(self) -> tuple[float, float]:
    """95% interval of `users`, bootstrapped over users."""
    return bootstrap_interval(np.array(list(self.by_user.values())))

  def of(self, user_ids: Iterable[str]) -> float | None:
    """The mean over some users; None if none of them is there."""
    values = [self.by_user[u] for u in user_ids if u in self.by_user]
    return float(np.mean(values)) if values else None

  def to_json(self) -> dict:
    found = {"pairs": self.pairs}
    if self.by_user:
      found |= {
        "users": self.users,
        "users_interval": list(self.interval()),
        "worst_decile": self.worst_decile,
        "margin": self.margin,
        "by_user": self.by_user,
        "margin_by_user": self.margin_by_user,
      }
    return found


def bootstrap_interval(
  values: Float[np.ndarray, " users"],
  counts: Int[np.ndarray, " users"] | None = None,
) -> tuple[float, float]:
  """95% percentile interval of the mean, resampling users.

  Args:
    values: one a user, or, with `counts`, sums over a user's samples.
    counts: a user's samples, where it is their mean that is wanted.
  """
  rng = np.random.default_rng(0)
  if counts is None:
    counts = np.ones(values.size, np.int64)
  means = np.empty(_RESAMPLES)
  for start in range(0, _RESAMPLES, 100):  # at most 100 copies at a time
    picks = rng.integers(0, values.size, (100, values.size))
    totals = values[picks].sum(1) / counts[picks].sum(1)
    means[start : start + 100] = totals
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def sign_flip_p(gains: Float[np.ndarray, " users"]) -> float:
  """Two-sided p-value of a mean gain, by turning round users' signs.

  A randomisation test (Fisher, 1935): if there is no gain, each user's could as
  well have been a loss of the same size. Exact up to 12 users; with few of them
  a bootstrapped interval excludes 0 too often, and this does not.
  """
  size, seen = gains.size, np.abs(gains.sum()) * (1 - 1e-9)
  if size <= _EXACT:
    signs = np.array(list(itertools.product((1, -1), repeat=size)))
    return float(np.mean(np.abs(signs @ gains) >= seen))
  rng = np.random.default_rng(0)
  reached = 1  # What was seen is one of the possible.
  for _ in range(_RESAMPLES - 1):
    signs = rng.integers(0, 2, size, np.int8) * 2 - 1
    reached += abs(signs @ gains) >= seen
  return float(reached / _RESAMPLES)


def gains(ours: Accuracy, theirs: Accuracy) -> Float[np.ndarray, " users"]:
  """How much more accurate `ours` is for each user.

  Raises:
    ValueError: if the two are not of the same users.
  """
  if ours.by_user.keys() != theirs.by_user.keys():
    raise ValueError("the two accuracies are not of the same users")
  return np.array([ours.by_user[u] - theirs.by_user[u] for u in ours.by_user])


def difference(
  ours: Accuracy, theirs: Accuracy
) -> tuple[float, tuple[float, float]]:
  """How much more accurate `ours` is on average, paired, and its interval.

  Raises:
    ValueError: if the two are not of the same users.
  """
  found = gains(ours, theirs)
  return float(found.mean()), bootstrap_interval(found)


def reward_accuracy(
  ratios: Float[np.ndarray, "examples M"], user_ids: Sequence[str | None]
) -> Accuracy:
  """Shares of pairs with a positive difference, and mean differences.

  Args:
    ratios: log-ratio differences of chosen and rejected, NaN where a sample
      has no such pair.
    user_ids: whose sample each row is.
  """
  rows_of: dict[str, list[int]] = {}
  for row, user_id in enumerate(user_ids):
    if user_id is not None:
      rows_of.setdefault(user_id, []).append(row)
  by_user = {
    user_id: ratios[rows]
    for user_id, rows in rows_of.items()
    if not np.isnan(ratios[rows]).all()
  }
  return Accuracy(
    pairs=_share(ratios),
    by_user={user_id: _share(own) for user_id, own in by_user.items()},
    margin_by_user={
      user_id: float(np.nanmean(own)) for user_id, own in by_user.items()
    },
  )


def of_scores(scores: scores_lib.Scores) -> Accuracy:
  """`reward_accuracy` of kept scores."""
  return reward_accuracy(scores.ratios, scores.user_ids)


def _share(ratios: Float[np.ndarray, "examples M"]) -> float:
  pairs = ratios[~np.isnan(ratios)]
  return float(np.mean(pairs > 0)) if pairs.size else float("nan")
