"""Batches as a pure function of (seed, step).

`packing.py` deals examples whose real positions run side by side, those that
share a trunk (`trunks.py`) as one row, and sequences for supervised
fine-tuning; `rectangles.py` examples that run as padded rows. An epoch is
`ceil(examples / batch_size)` batches. Nothing about the position in the data
needs saving.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.data import packing, rectangles
from pdpo_jax.data import trunks as trunks_lib

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
  rows: Sequence[trunks_lib.Trunk],
  shape: Shape,
  *,
  on_trunk: int = 0,
  packed: structs.Packed | None = None,
  with_bare_prompt: bool = False,
) -> structs.PreferenceBatch:
  """Some of the examples as one batch.

  Args:
    reference_logps: as for `PreferenceBatches`.
    rows: of which examples each is, decision by decision; of none where it only
      fills the batch.
    shape: P, N and R, at least as large as theirs.
    on_trunk: responses of a row that are read off its trunk, at most.
    packed: room for their real positions, where these are to run side by side.
    with_bare_prompt: as for `PreferenceBatches`.
  """
  prompt_size, num_responses, response_size = shape
  sizes = len(rows), num_responses
  batch = structs.PreferenceBatch(
    index=np.array([row[-1] if row else -1 for row in rows], np.int32),
    user_row=np.zeros(len(rows), np.int32),
    prompt=np.zeros((len(rows), prompt_size), np.int32),
    prompt_mask=np.zeros((len(rows), prompt_size), bool),
    responses=np.zeros((*sizes, response_size), np.int32),
    response_mask=np.zeros((*sizes, response_size), bool),
    reference_logps=np.zeros(sizes, np.float32),
    weight=np.array([bool(row) for row in rows], np.float32),
    packed=packed,
  )
  if with_bare_prompt:
    batch = dataclasses.replace(
      batch,
      bare_prompt=np.zeros_like(batch.prompt),
      bare_prompt_mask=np.zeros_like(batch.prompt_mask),
    )
  if on_trunk:
    decisions = structs.Decisions(
      example=np.full(sizes, -1, np.int32),
      chosen=np.zeros(sizes, np.int32),
      remaining=np.zeros(sizes, np.int32),
      on_trunk=on_trunk,
    )
    batch = dataclasses.replace(batch, decisions=decisions)
  for place, row in enumerate(rows):
    if not row:
      continue
    last = examples[row[-1]]
    batch.user_row[place] = last.user_row
    start = prompt_size - len(last.prompt)
    batch.prompt[place, start:] = last.prompt
    batch.prompt_mask[place, start:] = True
    if with_bare_prompt:
      start = prompt_size - len(last.bare_prompt)
      batch.bare_prompt[place, start:] = last.bare_prompt
      batch.bare_prompt_mask[place, start:] = True
    # Where the next rejected response goes; see `structs.Decisions`.
    column = on_trunk + 1
    for turn, index in enumerate(row):
      example = examples[index]
      chosen = on_trunk if index == row[-1] else turn
      columns = [chosen, *range(column, column + len(example.responses) - 1)]
      column += len(example.responses) - 1
      for number, response in enumerate(example.responses):
        batch.responses[place, columns[number], : len(response)] = response
        batch.response_mask[place, columns[number], : len(response)] = True
      batch.reference_logps[place, columns] = (
        np.nan
        if reference_logps is None
        else reference_logps[index, : len(columns)]
      )
      if on_trunk:
        behind = len(last.prompt) - len(example.prompt)
        decisions.example[place, columns] = index
        decisions.chosen[place, columns] = chosen
        decisions.remaining[place, columns] = behind
  return batch


class PreferenceBatches:
  """Batches of comparisons, packed or as padded rows.

  Args:
    examples: at least one.
    reference_logps: in nats, the chosen response first; beyond an example's
      last response anything. Without it, batches hold NaN there, so that a
      loss that reads it is not quietly wrong.
    batch_size: comparisons of a batch, over all devices. Dialogues are not
      divided: where trunks are shared, it is met on average, and exceeded by
      one dialogue at most.
    seed: of the order.
    prefix_length: T, how many user tokens will stand before a prompt.
    pad_multiple: of what `T + P`, R and a group's room are multiples.
    max_shapes: how many shapes, and so compilations, there may be.
    devices: that split a batch's rows, over all hosts.
    microbatches: that a device's rows are run in.
    with_bare_prompt: whether batches hold the prompts without user text too.
    pack: whether real positions run side by side; or else padded rows.
    share_trunks: whether turns of a dialogue are one row, where their tokens
      allow it; that needs `pack`.

  Attributes:
    trunks: the examples of each row, decision by decision.
    positions: of all rows, without padding.
    separate_positions: the same if each example was a row.
    num_examples: of an epoch.
    num_responses: N of the examples, at most.
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
    share_trunks: bool = False,
  ):
    _check(len(examples), batch_size, max_shapes, pad_multiple)
    self.layout = packing.Layout(batch_size, devices, microbatches)
    # A microbatch has room for so many comparisons.
    most = batch_size // microbatches if pack and share_trunks else 1
    self.trunks = trunks_lib.join(examples, most, with_bare_prompt)
    rows = trunks_lib.Rows.of(examples, self.trunks, with_bare_prompt)

    def padded(prompt, count, longest):
      return (
        round_up(prompt, pad_multiple, prefix_length),
        count,
        round_up(longest, pad_multiple),
      )

    if pack:
      classes = packing.make_classes(
        rows.sizes(), self.layout, max_shapes, pad_multiple
      )
      self._shapes = [padded(*rows.shape(each.rows)) for each in classes]
      self._on_trunk = [
        int(rows.decisions[each.rows].max()) - 1 for each in classes
      ]
      self.rooms = [each.packed for each in classes]
      self._dealer = packing.Dealer(classes, seed)
      room = self.layout.groups * sum(
        each.num_batches * each.packed.positions for each in classes
      )
    else:
      sizes = padded(rows.prompts, rows.responses, rows.longest)
      self._dealer = rectangles.Dealer(
        np.stack(sizes, 1), batch_size, seed, max_shapes
      )
      self._shapes = self._dealer.shapes
      self._on_trunk = [0] * len(self._shapes)
      self.rooms = [None] * len(self._shapes)
      room = self._dealer.padded_cost
    self.num_examples = len(examples)
    self.num_responses = max(len(example.responses) for example in examples)
    if reference_logps is not None:
      expected = (self.num_examples, self.num_responses)
      if reference_logps.shape != expected:
        raise ValueError(
          f"reference_logps has shape {reference_logps.shape}, but the data "
          f"has (examples, responses) {expected}; compute it for this data"
        )
    self._examples = examples
    self._with_bare_prompt = with_bare_prompt
    self._reference_logps = reference_logps
    self.positions = int(rows.prompts.sum() + rows.behind.sum())
    self.separate_positions = sum(
      max(len(example.prompt), with_bare_prompt * len(example.bare_prompt))
      + sum(map(len, example.responses))
      for example in examples
    )
    # Of an epoch's positions in linear layers, those that are padding.
    self.padding_share = 1.0 - self.positions / room

  @property
  def num_batches(self) -> int:
    """Of an epoch."""
    return self._dealer.num_batches

  @property
  def shapes(self) -> list[Shape]:
    """(P, N, R) of the batches that occur, class by class."""
    return self._shapes

  def batch(self, step: int) -> structs.PreferenceBatch:
    """The batch of a step, counted from the first epoch's first."""
    number, rows = self._dealer.batch(step)
    return self._make(number, rows)

  def in_order(self) -> Iterator[structs.PreferenceBatch]:
    """Every example once, not shuffled but for their classes."""
    plan = self._dealer.in_order()
    for number, rows in zip(plan.classes, plan.rows, strict=True):
      yield self._make(number, rows)

  def _make(self, number, rows):
    return make_batch(
      self._examples,
      self._reference_logps,
      [self.trunks[row] if row >= 0 else [] for row in rows],
      self._shapes[number],
      on_trunk=self._on_trunk[number],
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
    none = np.zeros_like(lengths)
    self._classes = packing.make_classes(
      packing.Sizes(lengths, none, none, np.ones_like(lengths)),
      layout,
      max_shapes,
      pad_multiple,
    )
    self._dealer = packing.Dealer(self._classes, seed)
    self._batch_size = batch_size
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
    padded = self._batch_size * sum(
      each.num_batches * each.packed.positions for each in self._classes
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
