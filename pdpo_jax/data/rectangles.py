"""Which samples make up which batch, where rows run as they are.

Samples are sorted into a few padded shapes (P, N, R), each of which fits into
the next. What does not fill a batch of one shape moves up to the next larger,
so that only one batch of an epoch is filled up.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from pdpo_jax.data import packing

Shape = tuple[int, int, int]  # P, N, R


def choose_shapes(
  sizes: Int[np.ndarray, "samples 3"], max_shapes: int
) -> list[Shape]:
  """At most `max_shapes` shapes that pad `sizes` least, smallest first.

  Samples are sorted by their cost `P + N * R` and cut into runs; a run's shape
  is the largest P, N and R up to its end, so that each shape fits into the
  next. Among all such cuts, dynamic programming finds the one with the least
  padded cost.
  """
  costs = sizes[:, 0] + sizes[:, 1] * sizes[:, 2]
  largest = np.maximum.accumulate(sizes[np.argsort(costs, kind="stable")])
  # A run may as well go on for as long as its shape stays the same.
  changes = np.any(largest[1:] != largest[:-1], axis=1)
  ends = np.append(np.flatnonzero(changes), len(sizes) - 1)
  shapes = largest[ends]
  shape_costs = shapes[:, 0] + shapes[:, 1] * shapes[:, 2]
  # run[i, j]: cost of a run after end i - 1 (i = 0: from the start) to end j.
  begins = np.append(0, ends[:-1] + 1)
  counts = ends[None, :] + 1 - begins[:, None]
  run = np.where(counts > 0, counts * shape_costs[None, :], np.inf)
  best = run[0]
  came_from = []
  for _ in range(1, min(max_shapes, len(ends))):
    # One more run, which begins at i; what is before it ends at i - 1.
    totals = np.append(0.0, best[:-1])[:, None] + run
    came_from.append(np.argmin(totals, axis=0))
    best = np.min(totals, axis=0)
  chosen = [len(ends) - 1]
  for begin in reversed(came_from):
    previous = begin[chosen[-1]] - 1
    if previous < 0:
      break
    chosen.append(int(previous))
  return [tuple(map(int, shapes[place])) for place in reversed(chosen)]


class Dealer:
  """Deals the batches of a shuffled epoch, or of one in order.

  Args:
    sizes: P, N and R of each sample, rounded up as they will be padded.
    batch_size: B.
    seed: of the order; each epoch has its own.
    max_shapes: how many padded shapes there may be.
  """

  def __init__(
    self,
    sizes: Int[np.ndarray, "samples 3"],
    batch_size: int,
    seed: int,
    max_shapes: int,
  ):
    self.batch_size = batch_size
    self._seed = seed
    self.num_batches = math.ceil(len(sizes) / batch_size)
    self._cached: tuple[int, packing.Plan] | None = None
    shapes = choose_shapes(sizes, max_shapes)
    fits = np.ones((len(sizes), 0), bool)
    for shape in shapes:
      fit = np.all(sizes <= np.array(shape), axis=1)
      fits = np.concatenate([fits, fit[:, None]], 1)
    shape_of = np.argmax(fits, axis=1)  # the first that fits
    # A shape that never fills a batch is not used: its samples move up.
    used = self._batches_by_shape(shape_of, len(shapes)) > 0
    self.shapes: Sequence[Shape] = [shapes[n] for n in np.flatnonzero(used)]
    self._shape_of = (np.cumsum(used) - used)[shape_of]
    per_shape = self._batches_by_shape(self._shape_of, len(self.shapes))
    self._batch_shapes = np.repeat(np.arange(len(self.shapes)), per_shape)

  def _batches_by_shape(
    self, shape_of: Int[np.ndarray, " samples"], num_shapes: int
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

  def _fill(
    self, order: Int[np.ndarray, " samples"]
  ) -> Int[np.ndarray, "batches B"]:
    """Fills batches shape by shape, samples of a shape as in `order`."""
    by_shape = order[np.argsort(self._shape_of[order], kind="stable")]
    rows = np.full(self.num_batches * self.batch_size, -1)
    rows[: len(order)] = by_shape
    return rows.reshape(self.num_batches, self.batch_size)

  def in_order(self) -> packing.Plan:
    """Shape by shape, samples of a shape as in the data."""
    rows = self._fill(np.arange(len(self._shape_of)))
    return packing.Plan(self._batch_shapes, rows)

  def batch(self, step: int) -> tuple[int, Int[np.ndarray, " B"]]:
    """Number of the shape, and samples, of a batch; -1 fills up."""
    epoch, place = divmod(step, self.num_batches)
    if self._cached is None or self._cached[0] != epoch:
      rng = np.random.default_rng([self._seed, epoch])
      rows = self._fill(rng.permutation(len(self._shape_of)))
      order = rng.permutation(self.num_batches)
      plan = packing.Plan(self._batch_shapes[order], rows[order])
      self._cached = (epoch, plan)
    plan = self._cached[1]
    return int(plan.classes[place]), plan.rows[place]
