"""Implicit reward accuracy: how often the chosen response has more reward.

The implicit reward of a response is `beta log(pi(y | x, u) / ref(y | x))`
(arXiv:2305.18290, section 4), so that beta does not matter here.
"""

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.evaluation import statistics
from pdpo_jax.runs import scores as scores_lib

# Whose choices a split holds out.
USERS_OF = {"heldout": "seen users", "unseen": "unseen users"}


@dataclasses.dataclass(frozen=True)
class Accuracy:
  """Reward accuracy of one policy on one set of examples.

  Attributes:
    pairs: share of all pairs whose chosen response has more reward; NaN where
      there is no pair.
    by_user: the same for each user's pairs; unknown users are left out, and
      those without a pair.
    margin_by_user: by how much more, on average, in nats.
    examples_by_user: how many of their choices have a pair.
  """

  pairs: float
  by_user: dict[str, float]
  margin_by_user: dict[str, float]
  examples_by_user: dict[str, int] = dataclasses.field(default_factory=dict)

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

  def interval(self) -> statistics.Interval:
    """95% interval of `users`, bootstrapped over users."""
    return statistics.bootstrap_interval(np.array(list(self.by_user.values())))

  def user_interval(self, user_id: str) -> statistics.Interval:
    """95% interval of one user's accuracy.

    Of their choices rather than of pairs: those of one choice hang together.
    """
    return statistics.wilson_interval(
      self.by_user[user_id], self.examples_by_user[user_id]
    )

  def of(self, user_ids: Iterable[str]) -> float | None:
    """The mean over some users; None if none of them is there."""
    values = [self.by_user[u] for u in user_ids if u in self.by_user]
    return float(np.mean(values)) if values else None

  def to_json(self) -> dict:
    if not self.by_user:
      return {"pairs": self.pairs}
    return {
      "pairs": self.pairs,
      "users": self.users,
      "users_interval": list(self.interval()),
      "worst_decile": self.worst_decile,
      "margin": self.margin,
      "by_user": self.by_user,
      "interval_by_user": {
        u: list(self.user_interval(u)) for u in self.by_user
      },
      "examples_by_user": self.examples_by_user,
      "margin_by_user": self.margin_by_user,
    }


@dataclasses.dataclass(frozen=True)
class Gain:
  """How much more accurate one policy is than another, paired by user.

  Attributes:
    mean: over users.
    interval: its 95% interval, bootstrapped over users.
    p_value: `statistics.sign_flip_p`.
  """

  mean: float
  interval: statistics.Interval
  p_value: float

  @property
  def is_sure(self) -> bool:
    """Whether interval and p-value both exclude that there is none."""
    low, high = self.interval
    return self.p_value < 0.05 and (low > 0 or high < 0)


def gain(ours: Accuracy, theirs: Accuracy) -> Gain:
  """How much more accurate `ours` is.

  Raises:
    ValueError: if the two are not of the same users.
  """
  if ours.by_user.keys() != theirs.by_user.keys():
    raise ValueError("the two accuracies are not of the same users")
  gains = np.array([
    value - theirs.by_user[user_id] for user_id, value in ours.by_user.items()
  ])  # fmt: skip
  return Gain(
    float(gains.mean()),
    statistics.bootstrap_interval(gains),
    statistics.sign_flip_p(gains),
  )


def reward_accuracy(
  ratios: Float[np.ndarray, "examples M"], user_ids: Sequence[str | None]
) -> Accuracy:
  """Shares of pairs with a positive difference, and mean differences.

  Args:
    ratios: log-ratio differences of chosen and rejected, NaN where an example
      has no such pair.
    user_ids: whose choice each example is.
  """
  places: dict[str, list[int]] = {}
  for place, user_id in enumerate(user_ids):
    if user_id is not None:
      places.setdefault(user_id, []).append(place)
  by_user = {
    user_id: ratios[of_user]
    for user_id, of_user in places.items()
    if not np.isnan(ratios[of_user]).all()
  }
  return Accuracy(
    pairs=_share(ratios),
    by_user={u: _share(of_user) for u, of_user in by_user.items()},
    margin_by_user={
      u: float(np.nanmean(of_user)) for u, of_user in by_user.items()
    },
    examples_by_user={
      u: int((~np.isnan(of_user)).any(1).sum())
      for u, of_user in by_user.items()
    },
  )


def of_scores(scores: scores_lib.Scores) -> Accuracy:
  """`reward_accuracy` of kept scores."""
  return reward_accuracy(scores.ratios, scores.user_ids)


def _share(ratios: Float[np.ndarray, "examples M"]) -> float:
  pairs = ratios[~np.isnan(ratios)]
  return float(np.mean(pairs > 0)) if pairs.size else float("nan")


def oracle(
  examples: Iterable[structs.PreferenceExample],
  short_users: Collection[str],
  long_users: Collection[str],
) -> float | None:
  """Accuracy of whoever knows each user's taste in length, counted in words.

  Pairs of equal length count half. Mean over users, as `Accuracy.users`; None
  where no user's taste is known.
  """
  hits: dict[str, list[float]] = {}
  for example in examples:
    if example.user_id in short_users:
      sign = -1
    elif example.user_id in long_users:
      sign = 1
    else:
      continue
    chosen = len(example.chosen.split())
    for rejected in example.rejected:
      more = sign * (chosen - len(rejected.split()))
      hit = 0.5 if more == 0 else float(more > 0)
      hits.setdefault(example.user_id, []).append(hit)
  if not hits:
    return None
  return sum(sum(of_user) / len(of_user) for of_user in hits.values()) / len(
    hits
  )
