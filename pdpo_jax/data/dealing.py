"""Which examples make up which batch: what all ways of dealing them share."""

import abc
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Plan:
  """The batches of one epoch: each one's class, and its rows or -1.

  Batches of a class have the same compiled shape, B included.
  """

  classes: Int[np.ndarray, " batches"]
  rows: Sequence[Int[np.ndarray, " _"]]  # B each


class Dealer(abc.ABC):
  """Deals the batches of an epoch in order, or of shuffled ones.

  Args:
    num_batches: of an epoch.
    seed: of the order; each epoch has its own.
  """

  def __init__(self, num_batches: int, seed: int):
    self.num_batches = num_batches
    self._seed = seed
    self._cached: tuple[int, Plan] | None = None

  @abc.abstractmethod
  def in_order(self, rng: np.random.Generator | None = None) -> Plan:
    """Class by class; without `rng`, examples of a class as in the data."""

  def batch(self, step: int) -> tuple[int, Int[np.ndarray, " B"]]:
    """Class and rows of a batch; -1 fills up."""
    epoch, place = divmod(step, self.num_batches)
    if self._cached is None or self._cached[0] != epoch:
      rng = np.random.default_rng([self._seed, epoch])
      plan = self.in_order(rng)
      order = rng.permutation(self.num_batches)
      rows = [plan.rows[number] for number in order]
      self._cached = (epoch, Plan(plan.classes[order], rows))
    plan = self._cached[1]
    return int(plan.classes[place]), plan.rows[place]


def cheapest_runs(
  cost: Float[np.ndarray, "cuts cuts"], most: int
) -> list[tuple[int, int]]:
  """Divides what lies between the first cut and the last into runs.

  Dynamic programming finds, of all ways with at most `most` runs, the one that
  costs least; of those alike, one with fewest.

  Args:
    cost: of a run from cut i to cut j at `[i, j]`, infinite where `i >= j`.

  Returns:
    First and last cut of each run, in their order.
  """
  best, came_from = [cost[0]], []
  for _ in range(1, most):
    # One more run, which begins at i.
    totals = best[-1][:, None] + cost
    came_from.append(np.argmin(totals, axis=0))
    best.append(np.min(totals, axis=0))
  runs = int(np.argmin([costs[-1] for costs in best]))
  ends = [len(cost) - 1]
  for begin in reversed(came_from[:runs]):
    ends.append(int(begin[ends[-1]]))
  return list(itertools.pairwise([0, *reversed(ends)]))
