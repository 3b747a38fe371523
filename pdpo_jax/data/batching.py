"""Batches as a pure function of (seed, step).

`packing.py` deals examples whose real positions run side by side, and sequences
for supervised fine-tuning; `rectangles.py` examples that run as padded rows. An
epoch is `ceil(examples / batch_size)` batches. Nothing about the position in
the data needs saving.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pdpo_jax.core import structs
from pdpo_jax.data import packing, rectangles

Shape = rectangles.Shape

# Of what padded lengths are multiples.
MULTIPLE = 8


def _check(
  examples: int,
  batch_size: int,
  max_shapes: int,
  pad_multiple: int,
) -> None:
  """Raises a ValueError that names the first wrong argument."""
  for name, value in (
    ("batch_size", batch_size),
    ("max_shapes", max_shapes),
    ("pad_multiple", pad_multiple),
  ):
    if value < 1:
      raise ValueError(f"{name} {value} must be 1 or more")
  if not examples:
    raise ValueError("there are no examples to make batches of; give some")


def round_up(sizes: Any, multiple: int, offset: int = 0) -> Any:
  """The least sizes at or above, such that `offset + size` is a multiple."""
  return -(-(sizes + offset) // multiple) * multiple - offset


def _sizes(
  examples: Sequence[structs.TokenizedExample], with_bare_prompt: bool
) -> tuple[
  Int[np.ndarray, " examples"],
  Int[np.ndarray, " examples"],
  Int[np.ndarray, "examples 3"],
]:
  """Positions of each example's prompt and of its responses; P, N and R."""
  prompts = [
    max(len(example.prompt), with_bare_prompt * len(example.bare_prompt))
    for example in examples
  ]
  responses = [[len(each) for each in row.responses] for row in examples]
  sizes = [
    (prompt, len(lengths), max(lengths))
    for prompt, lengths in zip(prompts, responses, strict=True)
  ]
  return np.array(prompts), np.array([*map(sum, responses)]), np.array(sizes)


def padded_length(length: int) -> int:
  """The least of 16, 24, 32, 48, 64, 96, ... that holds so many tokens.

  Two lengths an octave keep both padding and compilations few, and the same
  from call to call.
  """
  octave = 16
  while 2 * octave < length:
    octave *= 2
  for size in (octave, octave * 3 // 2):
    if length <= size:
      return size
  return 2 * octave


def make_batch(
  examples: Sequence[structs.TokenizedExample],
  reference_logps: Float[np.ndarray, "examples N"] | None,
  rows: Int[np.ndarray, " B"],
  shape: Shape,
  *,
  packed: structs.Packed | None = None,
  with_bare_prompt: bool = False,
) -> structs.PreferenceBatch:
  """Some of the examples as one batch.

  Args:
    reference_logps: as for `PreferenceBatches`.
    rows: which of them; -1 for a row that only fills the batch.
    shape: P, N and R, at least as large as theirs.
    packed: room for their real positions, where these are to run side by side.
    with_bare_prompt: as for `PreferenceBatches`.
  """
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
    packed=packed,
  )
  if with_bare_prompt:
    batch = dataclasses.replace(
      batch,
      bare_prompt=np.zeros_like(batch.prompt),
      bare_prompt_mask=np.zeros_like(batch.prompt_mask),
    )
  for place in np.flatnonzero(rows >= 0):
    example = examples[rows[place]]
    batch.user_row[place] = example.user_row
    start = prompt_size - len(example.prompt)
    batch.prompt[place, start:] = example.prompt
    batch.prompt_mask[place, start:] = True
    if with_bare_prompt:
      start = prompt_size - len(example.bare_prompt)
      batch.bare_prompt[place, start:] = example.bare_prompt
      batch.bare_prompt_mask[place, start:] = True
    for number, response in enumerate(example.responses):
      batch.responses[place, number, : len(response)] = response
      batch.response_mask[place, number, : len(response)] = True
      batch.reference_logps[place, number] = (
        np.nan
        if reference_logps is None
        else reference_logps[rows[place], number]
      )
  return batch


class PreferenceBatches:
  """Batches of comparisons, packed or as padded rows.

  Args:
    examples: at least one.
    reference_logps: in nats, the chosen response first; beyond an example's
      last response anything. Without it, batches hold NaN there, so that a
      loss that reads it is not quietly wrong.
    batch_size: B, over all devices.
    seed: of the order.
    prefix_length: T, how many user tokens will stand before a prompt.
    pad_multiple: of what `T + P`, R and a group's room are multiples.
    max_shapes: how many shapes, and so compilations, there may be.
    devices: that split a batch's rows, over all hosts.
    microbatches: that a device's rows are run in.
    with_bare_prompt: whether batches hold the prompts without user text too.
    pack: whether real positions run side by side; or else padded rows.
  """

  def __init__(
    self,
    examples: Sequence[structs.TokenizedExample],
    reference_logps: Float[np.ndarray, "examples N"] | None,
    batch_size: int,
    seed: int,
    prefix_length: int,
    *,
    with_bare_prompt: bool = False,
    pad_multiple: int = MULTIPLE,
    max_shapes: int = 4,
    devices: int = 1,
    microbatches: int = 1,
    pack: bool = True,
  ):
    _check(len(examples), batch_size, max_shapes, pad_multiple)
    prompts, responses, sizes = _sizes(examples, with_bare_prompt)
    self.layout = packing.Layout(batch_size, devices, microbatches)

    def padded(sizes):
      prompt, count, longest = sizes.T
      return (
        round_up(prompt, pad_multiple, prefix_length),
        count,
        round_up(longest, pad_multiple),
      )

    if pack:
      classes = packing.make_classes(
        prompts, responses, sizes[:, 1], self.layout, max_shapes, pad_multiple
      )
      largest = np.stack([sizes[each.examples].max(0) for each in classes])
      self._shapes = [*map(tuple, np.stack(padded(largest), 1).tolist())]
      self.rooms = [each.packed for each in classes]
      self._dealer = packing.Dealer(classes, seed)
      room = self.layout.groups * sum(
        each.strata.shape[1] * each.packed.positions for each in classes
      )
    else:
      rows = np.stack(padded(sizes), 1)
      self._dealer = rectangles.Dealer(rows, batch_size, seed, max_shapes)
      self._shapes = self._dealer.shapes
      self.rooms = [None] * len(self._shapes)
      room = self._dealer.padded_cost
    if reference_logps is not None:
      expected = (len(examples), int(sizes[:, 1].max()))
      if reference_logps.shape != expected:
        raise ValueError(
          f"reference_logps has shape {reference_logps.shape}, but the data "
          f"has (examples, responses) {expected}; compute it for this data"
        )
    self._examples = examples
    self._with_bare_prompt = with_bare_prompt
    self._reference_logps = reference_logps
    # Of an epoch's positions in linear layers, those that are padding.
    self.padding_share = 1.0 - (prompts.sum() + responses.sum()) / room

  @property
  def num_batches(self) -> int:
    """Of an epoch."""
    return self._dealer.num_batches

  @property
  def shapes(self) -> list[Shape]:
    """(P, N, R) of the batches that occur, shortest examples first."""
    return self._shapes

  def batch(self, step: int) -> structs.PreferenceBatch:
    """The batch of a step, counted from the first epoch's first."""
    number, rows = self._dealer.batch(step)
    return self._make(number, rows)

  def in_order(self) -> Iterator[structs.PreferenceBatch]:
    """Every example once, not shuffled."""
    plan = self._dealer.in_order()
    for number, rows in zip(plan.classes, plan.rows, strict=True):
      yield self._make(number, rows)

  def _make(self, number, rows):
    return make_batch(
      self._examples,
      self._reference_logps,
      rows,
      self._shapes[number],
      packed=self.rooms[number],
      with_bare_prompt=self._with_bare_prompt,
    )


class TextBatches:
  """Padded batches of prompts and responses, for supervised fine-tuning.

  Args:
    sequences: prompt and response ids; the response is to be predicted.
    batch_size: B, over all devices.
    seed: of the order.
    pad_multiple: of what S is a multiple.
    max_shapes: how many lengths S, and so compilations, there may be.
  """

  def __init__(
    self,
    sequences: Sequence[tuple[np.ndarray, np.ndarray]],
    batch_size: int,
    seed: int,
    *,
    pad_multiple: int = MULTIPLE,
    max_shapes: int = 4,
  ):
    _check(len(sequences), batch_size, max_shapes, pad_multiple)
    lengths = np.array(
      [len(prompt) + len(answer) for prompt, answer in sequences]
    )
    # Rows are not packed: each is a group of its own, with room for its class's
    # longest.
    layout = packing.Layout(batch_size, microbatches=batch_size)
    self._classes = packing.make_classes(
      lengths,
      np.zeros_like(lengths),
      np.zeros_like(lengths),
      layout,
      max_shapes,
      pad_multiple,
    )
    self._dealer = packing.Dealer(self._classes, seed)
    self._sequences = sequences
    self._real_cost = int(lengths.sum())

  @property
  def num_batches(self) -> int:
    """Of an epoch."""
    return self._dealer.num_batches

  @property
  def shapes(self) -> list[int]:
    """S of the batches that occur, smallest first."""
    return [each.packed.positions for each in self._classes]

  @property
  def padding_share(self) -> float:
    """Share of an epoch's positions that are padding."""
    padded = sum(
      each.strata.size * each.packed.positions for each in self._classes
    )
    return 1.0 - self._real_cost / padded

  def batch(self, step: int) -> structs.TextBatch:
    """The batch of a step, counted from the first epoch's first."""
    number, rows = self._dealer.batch(step)
    return self._make(number, rows)

  def in_order(self) -> Iterator[structs.TextBatch]:
    """Every sequence once, not shuffled."""
    plan = self._dealer.in_order()
    for number, rows in zip(plan.classes, plan.rows, strict=True):
      yield self._make(number, rows)

  def _make(self, number, rows):
    size = self._classes[number].packed.positions
    tokens = np.zeros((len(rows), size), np.int32)
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
