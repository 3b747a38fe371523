"""Controls: what a result must do if it is personal, and what it must not."""

import dataclasses
from collections.abc import Collection, Sequence

from pdpo_jax.core import structs
from pdpo_jax.evaluation import accuracy


@dataclasses.dataclass(frozen=True)
class Flips:
  """Who was learnt the other way round once their choices were swapped.

  A user flips when their mean margin changes its sign between the two runs.

  Attributes:
    swapped: users whose choices were swapped, of those in both runs.
    flipped: how many of them flipped.
    others: users whose choices were left alone.
    others_flipped: how many of them flipped all the same.
  """

  swapped: int
  flipped: int
  others: int
  others_flipped: int


def flips(
  before: accuracy.Accuracy,
  after: accuracy.Accuracy,
  swapped: Collection[str],
) -> Flips:
  """Compares a run with one that was trained on swapped choices of some."""
  turned = {
    user
    for user, margin in before.margin_by_user.items()
    if user in after.margin_by_user and margin * after.margin_by_user[user] < 0
  }
  both = before.margin_by_user.keys() & after.margin_by_user.keys()
  of_swapped = both & set(swapped)
  others = both - of_swapped
  return Flips(
    len(of_swapped),
    len(turned & of_swapped),
    len(others),
    len(turned & others),
  )


def oracle(
  examples: Sequence[structs.PreferenceExample],
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
  return sum(sum(own) / len(own) for own in hits.values()) / len(hits)
