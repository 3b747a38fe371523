"""Implicit reward accuracy: how often the chosen response has more reward.

The implicit reward of a response is `beta log(pi(y | x, u) / ref(y | x))`
(arXiv:2305.18290, section 4), so that beta does not matter here.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Reward accuracy of one policy on one set of samples.

  Attributes:
    pairs: share of all pairs whose chosen response has more reward.
    by_user: the same for each user's pairs; unknown users are left out.
  """

  pairs: float
  by_user: dict[str, float]

  @property
  def users(self) -> float:
    """The mean over users, each counting the same."""
    return float(np.mean(list(self.by_user.values())))

  def interval(self) -> tuple[float, float]:
    """95% interval of `users`, bootstrapped over users."""
    return bootstrap_interval(np.array(list(self.by_user.values())))

  def to_json(self) -> dict:
    found = {"pairs": self.pairs}
    if self.by_user:
      found |= {
        "users": self.users,
        "users_interval": list(self.interval()),
        "by_user": self.by_user,
      }
    return found


def bootstrap_interval(
  values: Float[np.ndarray, " users"],
) -> tuple[float, float]:
  """95% percentile interval of the mean, resampling users."""
  rng = np.random.default_rng(0)
  means = np.empty(_RESAMPLES)
  for start in range(0, _RESAMPLES, 100):  # at most 100 copies at a time
    picks = rng.integers(0, values.size, (100, values.size))
    means[start : start + 100] = values[picks].mean(1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def difference(
  ours: Accuracy, theirs: Accuracy
) -> tuple[float, tuple[float, float]]:
  """How much more accurate `ours` is for a user, paired, and its interval.

  Raises:
    ValueError: if the two are not of the same users.
  """
  if ours.by_user.keys() != theirs.by_user.keys():
    raise ValueError("the two accuracies are not of the same users")
  gains = np.array([ours.by_user[u] - theirs.by_user[u] for u in ours.by_user])
  return float(gains.mean()), bootstrap_interval(gains)


def reward_accuracy(
  ratios: Float[np.ndarray, "examples M"], user_ids: Sequence[str | None]
) -> Accuracy:
  """The share of pairs with a positive difference.

  Args:
    ratios: log-ratio differences of chosen and rejected, NaN where a sample
      has no such pair.
    user_ids: whose sample each row is.
  """

  def share(rows):
    pairs = ratios[rows]
    return float(np.mean(pairs[~np.isnan(pairs)] > 0))

  rows_of: dict[str, list[int]] = {}
  for row, user_id in enumerate(user_ids):
    if user_id is not None:
      rows_of.setdefault(user_id, []).append(row)
  by_user = {user_id: share(rows) for user_id, rows in rows_of.items()}
  return Accuracy(share(range(len(user_ids))), by_user)
