"""Implicit reward accuracy: how often the chosen response has more reward.

The implicit reward of a response is `beta log(pi(y | x, u) / ref(y | x))`
(arXiv:2305.18290, section 4), so that beta does not matter here.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def reward_accuracy(
  ratios: Float[np.ndarray, "examples M"], user_ids: Sequence[str | None]
) -> dict[str, float]:
  """The share of pairs with a positive difference, by user and over 'all'.

  Args:
    ratios: log-ratio differences of chosen and rejected, NaN where a sample
      has no such pair.
    user_ids: whose sample each row is; unknown users count in 'all' only.
  """

  def share(rows):
    pairs = ratios[rows]
    return float(np.mean(pairs[~np.isnan(pairs)] > 0))

  rows_of: dict[str, list[int]] = {}
  for row, user_id in enumerate(user_ids):
    if user_id is not None:
      rows_of.setdefault(user_id, []).append(row)
  accuracy = {user_id: share(rows) for user_id, rows in rows_of.items()}
  return accuracy | {"all": share(range(len(user_ids)))}
