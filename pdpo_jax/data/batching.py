"""Batches as a pure function of (seed, step), with little padding.

Samples are sorted into a few padded shapes (P, N, R), each of which fits into
the next. What does not fill a batch of one shape moves up to the next larger,
so that an epoch is `ceil(samples / batch_size)` batches and only one of them
is filled up. Nothing about the position in the data needs saving.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from pdpo_jax import structs

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


@dataclasses.dataclass(frozen=True)
class Plan:
  """The batches of one epoch: each one's shape, and its samples or -1."""

  shapes: Int[np.ndarray, " batches"]
  rows: Int[np.ndarray, "batches B"]


class Planner:
  """Which samples make up which batch, and in what shape.

  Args:
    sizes: P, N and R of each sample, rounded up as they will be padded.
    batch_size: B, over all hosts.
    seed: of the order; each epoch has its own.
    max_shapes: how many padded shapes there may be.
    share: index and count of the hosts that split a batch's rows.
  """

  def __init__(
    self,
    sizes: Int[np.ndarray, "samples 3"],
    batch_size: int,
    seed: int,
    max_shapes: int,
    share: tuple[int, int],
  ):
    for name, value in (("batch_size", batch_size), ("max_shapes", max_shapes)):
      if value < 1:
        raise ValueError(f"{name} {value} must be 1 or more")
    if not len(sizes):
      raise ValueError("there are no samples to make batches of; give some")
    index, count = share
    if not 0 <= index < count:
      raise ValueError(f"share {share} must be (index, count), index < count")
    if batch_size % count:
      raise ValueError(
        f"batch_size {batch_size} is not divisible by the {count} hosts that "
        "share a batch; use a multiple"
      )
    self.batch_size = batch_size
    self.seed = seed
    self.num_batches = math.ceil(len(sizes) / batch_size)
    part = batch_size // count
    self._own = slice(index * part, (index + 1) * part)
    self._cached: tuple[int, Plan] | None = None
    shapes = choose_shapes(sizes, max_shapes)
    fits = np.ones((len(sizes), 0), bool)
    for shape in shapes:
      fit = np.all(sizes <= np.array(shape), axis=1)
      fits = np.concatenate([fits, fit[:, None]], 1)
    shape_of = np.argmax(fits, axis=1)  # the first that fits
    # A shape that never fills a batch is not used: its samples move up.
    used = self._batches_by_shape(shape_of, len(shapes)) > 0
    self.shapes = [shapes[place] for place in np.flatnonzero(used)]
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

  def ordered(
    self, order: Int[np.ndarray, " samples"]
  ) -> Int[np.ndarray, "batches B"]:
    """Fills batches shape by shape, samples of a shape as in `order`."""
    by_shape = order[np.argsort(self._shape_of[order], kind="stable")]
    rows = np.full(self.num_batches * self.batch_size, -1)
    rows[: len(order)] = by_shape
    return rows.reshape(self.num_batches, self.batch_size)

  def epoch(self, epoch: int) -> Plan:
    """The plan of an epoch, with samples, batches and shapes shuffled."""
    cached = self._cached
    if cached is None or cached[0] != epoch:
      rng = np.random.default_rng([self.seed, epoch])
      rows = self.ordered(rng.permutation(len(self._shape_of)))
      order = rng.permutation(self.num_batches)
      cached = (epoch, Plan(self._batch_shapes[order], rows[order]))
      self._cached = cached
    return cached[1]

  def batch(self, step: int) -> tuple[Shape, Int[np.ndarray, " rows"]]:
    """Shape and this host's samples of a batch; -1 fills up."""
    epoch, place = divmod(step, self.num_batches)
    plan = self.epoch(epoch)
    return self.shapes[plan.shapes[place]], plan.rows[place, self._own]

  def in_order(self) -> Iterator[tuple[Shape, Int[np.ndarray, " rows"]]]:
    """As `batch`, for one epoch that is not shuffled."""
    rows = self.ordered(np.arange(len(self._shape_of)))
    for shape, batch in zip(self._batch_shapes, rows, strict=True):
      yield self.shapes[shape], batch[self._own]


def _round_up(
  sizes: Int[np.ndarray, " samples"], multiple: int, offset: int = 0
) -> Int[np.ndarray, " samples"]:
  """The least sizes at or above, such that `offset + size` is a multiple."""
  if multiple < 1:
    raise ValueError(f"pad_multiple {multiple} must be 1 or more")
  return -(-(sizes + offset) // multiple) * multiple - offset


class PreferenceBatches:
  """Padded batches of comparisons.

  Args:
    examples: at least one.
    reference_logps: in nats, the chosen response first; beyond an example's
      last response anything. Without it, batches hold NaN there, so that a
      loss that reads it is not quietly wrong.
    batch_size: B, over all hosts.
    seed: of the order.
    prefix_length: T, how many user tokens will stand before a prompt.
    pad_multiple: of what `T + P` and R are multiples.
    max_shapes: how many shapes (P, N, R), and so compilations, there may be.
    share: index and count of the hosts that split a batch's rows.
    with_bare_prompt: whether batches hold the prompts without user text too.
  """

  def __init__(
    self,
    examples: Sequence[structs.TokenizedExample],
    reference_logps: Float[np.ndarray, "samples N"] | None,
    batch_size: int,
    seed: int,
    prefix_length: int,
    *,
    with_bare_prompt: bool = False,
    pad_multiple: int = 8,
    max_shapes: int = 4,
    share: tuple[int, int] = (0, 1),
  ):
    prompts = [
      max(len(example.prompt), with_bare_prompt * len(example.bare_prompt))
      for example in examples
    ]
    counts = [len(example.responses) for example in examples]
    longest = [max(map(len, example.responses)) for example in examples]
    sizes = np.stack(
      [
        _round_up(np.array(prompts, np.int64), pad_multiple, prefix_length),
        np.array(counts, np.int64),
        _round_up(np.array(longest, np.int64), pad_multiple),
      ],
      1,
    )
    self._planner = Planner(sizes, batch_size, seed, max_shapes, share)
    if reference_logps is not None:
      expected = (len(examples), max(counts))
      if reference_logps.shape != expected:
        raise ValueError(
          f"reference_logps has shape {reference_logps.shape}, but the data "
          f"has (examples, responses) {expected}; compute it for this data"
        )
    self._examples = examples
    self._with_bare_prompt = with_bare_prompt
    self._reference_logps = reference_logps
    responses = sum(sum(map(len, example.responses)) for example in examples)
    self._real_cost = sum(prompts) + responses

  @property
  def num_batches(self) -> int:
    """Of an epoch."""
    return self._planner.num_batches

  @property
  def shapes(self) -> list[Shape]:
    """(P, N, R) of the batches that occur, smallest first."""
    return self._planner.shapes

  @property
  def padding_share(self) -> float:
    """Share of an epoch's prompt and response positions that are padding."""
    return 1.0 - self._real_cost / self._planner.padded_cost

  def batch(self, step: int) -> structs.PreferenceBatch:
    """The batch of a step, counted from the first epoch's first."""
    return self._make(*self._planner.batch(step))

  def in_order(self) -> Iterator[structs.PreferenceBatch]:
    """Every example once, not shuffled: by shape, then as in the data."""
    for shape, rows in self._planner.in_order():
      yield self._make(shape, rows)

  def _make(self, shape, rows):
    prompt_size, num_responses, response_size = shape
    batch = structs.PreferenceBatch(
      index=rows.astype(np.int32),
      user_row=np.zeros(len(rows), np.int32),
      prompt=np.zeros((len(rows), prompt_size), np.int32),
      prompt_mask=np.zeros((len(rows), prompt_size), bool),
      responses=np.zeros((len(rows), num_responses, response_size), np.int32),
      response_mask=np.zeros((len(rows), num_responses, response_size), bool),
      reference_logps=np.zeros((len(rows), num_responses), np.float32),
      weight=(rows >= 0).astype(np.float32),
    )
    if self._with_bare_prompt:
      batch = dataclasses.replace(
        batch,
        bare_prompt=np.zeros_like(batch.prompt),
        bare_prompt_mask=np.zeros_like(batch.prompt_mask),
      )
    for place in np.flatnonzero(rows >= 0):
      example = self._examples[rows[place]]
      batch.user_row[place] = example.user_row
      start = prompt_size - len(example.prompt)
      batch.prompt[place, start:] = example.prompt
      batch.prompt_mask[place, start:] = True
      if self._with_bare_prompt:
        start = prompt_size - len(example.bare_prompt)
        batch.bare_prompt[place, start:] = example.bare_prompt
        batch.bare_prompt_mask[place, start:] = True
      for number, response in enumerate(example.responses):
        batch.responses[place, number, : len(response)] = response
        batch.response_mask[place, number, : len(response)] = True
        batch.reference_logps[place, number] = (
          np.nan
          if self._reference_logps is None
          else self._reference_logps[rows[place], number]
        )
    return batch


class TextBatches:
  """Padded batches of prompts and responses, for supervised fine-tuning.

  Args:
    sequences: prompt and response ids; the response is to be predicted.
    batch_size: B, over all hosts.
    seed: of the order.
    pad_multiple: of what S is a multiple.
    max_shapes: how many lengths S, and so compilations, there may be.
    share: index and count of the hosts that split a batch's rows.
  """

  def __init__(
    self,
    sequences: Sequence[tuple[np.ndarray, np.ndarray]],
    batch_size: int,
    seed: int,
    *,
    pad_multiple: int = 8,
    max_shapes: int = 4,
    share: tuple[int, int] = (0, 1),
  ):
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    sizes = np.zeros((len(lengths), 3), np.int64)
    sizes[:, 0] = _round_up(np.array(lengths, np.int64), pad_multiple)
    self._planner = Planner(sizes, batch_size, seed, max_shapes, share)
    self._sequences = sequences
    self._real_cost = sum(lengths)

  @property
  def num_batches(self) -> int:
    """Of an epoch."""
    return self._planner.num_batches

  @property
  def shapes(self) -> list[int]:
    """S of the batches that occur, smallest first."""
    return [size for size, _, _ in self._planner.shapes]

  @property
  def padding_share(self) -> float:
    """Share of an epoch's positions that are padding."""
    return 1.0 - self._real_cost / self._planner.padded_cost

  def batch(self, step: int) -> structs.TextBatch:
    """The batch of a step, counted from the first epoch's first."""
    return self._make(*self._planner.batch(step))

  def in_order(self) -> Iterator[structs.TextBatch]:
    """Every sequence once, not shuffled: by shape, then as in the data."""
    for shape, rows in self._planner.in_order():
      yield self._make(shape, rows)

  def _make(self, shape, rows):
    tokens = np.zeros((len(rows), shape[0]), np.int32)
    mask = np.zeros(tokens.shape, bool)
    target_mask = np.zeros(tokens.shape, bool)
    for place in np.flatnonzero(rows >= 0):
      prompt, response = self._sequences[rows[place]]
      end = len(prompt) + len(response)
      tokens[place, : len(prompt)] = prompt
      tokens[place, len(prompt) : end] = response
      mask[place, :end] = True
      target_mask[place, len(prompt) : end] = True
    return structs.TextBatch(tokens, mask, target_mask)
