"""Which examples make up which batch, where rows run as they are.

Examples are sorted into a few padded shapes (P, N, R), each of which fits into
the next. What does not fill a batch of one shape moves up to the next larger,
so that only one batch of an epoch is filled up.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from pdpo_jax.data import dealing

Shape = tuple[int, int, int]  # P, N, R


def choose_shapes(
  sizes: Int[np.ndarray, "examples 3"], max_shapes: int
) -> list[Shape]:
  """At most `max_shapes` shapes that pad `sizes` least, smallest first.

  Examples are sorted by their cost `P + N * R` and cut into runs; a run's shape
  is the largest P, N and R up to its end, so that each shape fits into the
  next. Among all such cuts, the one with the least padded cost is taken.
  """
  costs = sizes[:, 0] + sizes[:, 1] * sizes[:, 2]
  largest = np.maximum.accumulate(sizes[np.argsort(costs, kind="stable")])
  # A run may as well go on for as long as its shape stays the same.
  changes = np.any(largest[1:] != largest[:-1], axis=1)
  cuts = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(sizes)]])
  shapes = largest[cuts[1:] - 1]
  # By the cut at which a run ends, and what an example of it costs.
  shape_costs = np.append(0, shapes[:, 0] + shapes[:, 1] * shapes[:, 2])
  counts = cuts[None, :] - cuts[:, None]
  cost = np.where(counts > 0, counts * shape_costs, np.inf)
  runs = dealing.cheapest_runs(cost, max_shapes)
  return [tuple(map(int, shapes[end - 1])) for _, end in runs]


class Dealer(dealing.Dealer):
  """Deals batches of which each is as its largest examples need.

  Args:
    sizes: P, N and R of each example, rounded up as they will be padded.
    batch_size: B.
    seed: of the order; each epoch has its own.
    max_shapes: how many padded shapes there may be.
  """

  def __init__(
    self,
    sizes: Int[np.ndarray, "examples 3"],
    batch_size: int,
    seed: int,
    max_shapes: int,
  ):
    super().__init__(math.ceil(len(sizes) / batch_size), seed)
    self.batch_size = batch_size
    shapes = choose_shapes(sizes, max_shapes)
    fits = np.ones((len(sizes), 0), bool)
    for shape in shapes:
      fit = np.all(sizes <= np.array(shape), axis=1)
      fits = np.concatenate([fits, fit[:, None]], 1)
    shape_of = np.argmax(fits, axis=1)  # the first that fits
    # A shape that never fills a batch is not used: its examples move up.
    used = self._batches_by_shape(shape_of, len(shapes)) > 0
    self.shapes: Sequence[Shape] = [shapes[n] for n in np.flatnonzero(used)]
    self._shape_of = (np.cumsum(used) - used)[shape_of]
    per_shape = self._batches_by_shape(self._shape_of, len(self.shapes))
    self._batch_shapes = np.repeat(np.arange(len(self.shapes)), per_shape)

  def _batches_by_shape(
    self, shape_of: Int[np.ndarray, " examples"], num_shapes: int
  ) -> Int[np.ndarray, " shapes"]:
    """Full batches of each shape; the last shape also takes what is left."""
    up_to = np.cumsum(np.bincount(shape_of, minlength=num_shapes))
    whole = up_to // self.batch_size
    whole[-1] = self.num_batches
    return np.diff(whole, prepend=0)

  @property
  def padded_cost(self) -> int:
    """Positions `P + N * R` of an epoch, padding included."""
    costs = np.array([p + n * r for p, n, r in self.shapes])
    return int(costs[self._batch_shapes].sum()) * self.batch_size

  def in_order(self, rng: np.random.Generator | None = None) -> dealing.Plan:
    count = len(self._shape_of)
    order = np.arange(count) if rng is None else rng.permutation(count)
    by_shape = order[np.argsort(self._shape_of[order], kind="stable")]
    rows = np.full(self.num_batches * self.batch_size, -1)
    rows[:count] = by_shape
    rows = rows.reshape(self.num_batches, self.batch_size)
    return dealing.Plan(self._batch_shapes, [*rows])
