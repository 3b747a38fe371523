"""Which examples make up which batch, so that packed rows are full.

Linear layers do not care which example a position is of. So a group of examples
is run on its real positions alone, side by side, and padding is what a group
lacks to the room it is given. The room is one number for all groups of a class,
so that a class is one compiled program, and it has to do in every epoch.
Therefore batches are dealt like hands of cards: a class's examples are sorted
by length and cut into as many strata as a batch has examples, and every batch
gets one of each. Whatever is dealt, no example is longer than its stratum's
longest, and long and short strata are shared out evenly among a batch's
groups.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from pdpo_jax.core import structs
from pdpo_jax.data import dealing

# Cuts between classes are sought at so many places, evenly spread.
_CUTS = 64


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a batch is divided when it is run.

  Attributes:
    batch_size: B, over all devices.
    devices: which have a run of the batch's examples each.
    microbatches: that a device's examples are run in; of m, number j has its
      examples j, m + j, 2 m + j and so on.
  """

  batch_size: int
  devices: int = 1
  microbatches: int = 1

  def __post_init__(self):
    if self.batch_size < 1:
      raise ValueError(f"batch_size {self.batch_size} must be 1 or more")
    if self.batch_size % self.groups:
      raise ValueError(
        f"batch_size {self.batch_size} is not divisible by {self.devices} "
        f"devices times {self.microbatches} microbatches; use a multiple of "
        f"{self.groups}"
      )

  @property
  def groups(self) -> int:
    """Of examples that are run together, on one device."""
    return self.devices * self.microbatches

  def share_out(
    self, lengths: Int[np.ndarray, " B"]
  ) -> Int[np.ndarray, "groups group"]:
    """Which strata each group gets, so that their lengths add up alike.

    The longest goes first, to the group that has least so far and still has a
    place.
    """
    size = self.batch_size // self.groups
    sums, got = np.zeros(self.groups), [[] for _ in range(self.groups)]
    for stratum in np.argsort(-lengths, kind="stable"):
      places = [len(group) < size for group in got]
      group = int(np.argmin(np.where(places, sums, np.inf)))
      got[group].append(int(stratum))
      sums[group] += lengths[stratum]
    return np.array(got)


@dataclasses.dataclass(frozen=True)
class Class:
  """Batches of one compiled shape.

  Attributes:
    strata: examples, a row for each stratum, the shortest first; -1 where there
      is none to fill a batch.
    order: the stratum of each row of a batch.
    packed: room for any group.
  """

  strata: Int[np.ndarray, "B batches"]
  order: Int[np.ndarray, " B"]
  packed: structs.Packed

  @property
  def examples(self) -> Int[np.ndarray, " examples"]:
    return self.strata[self.strata >= 0]

  def deal(
    self, rng: np.random.Generator | None
  ) -> Int[np.ndarray, "batches B"]:
    """All batches; without `rng`, examples of a stratum stay in their order."""
    strata = self.strata
    if rng is not None:
      strata = rng.permuted(strata, axis=1)
    return strata[self.order].T


class Dealer(dealing.Dealer):
  """Deals the batches of classes.

  Args:
    classes: what `make_classes` made.
    seed: of the order; each epoch has its own.
  """

  def __init__(self, classes: Sequence[Class], seed: int):
    super().__init__(sum(each.strata.shape[1] for each in classes), seed)
    self._classes = classes

  def in_order(self, rng: np.random.Generator | None = None) -> dealing.Plan:
    rows = [each.deal(rng) for each in self._classes]
    numbers = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    return dealing.Plan(numbers, np.concatenate(rows))


def make_classes(
  prompts: Int[np.ndarray, " examples"],
  responses: Int[np.ndarray, " examples"],
  counts: Int[np.ndarray, " examples"],
  layout: Layout,
  max_classes: int,
  multiple: int,
) -> list[Class]:
  """Sorts examples into at most `max_classes`, those that need least room.

  Which examples are of a class, and of a stratum, does not depend on the number
  of devices: a run that goes on on others is dealt the same batches.

  Args:
    prompts: real prompt positions of each example.
    responses: real positions of all its responses together.
    counts: of an example's responses. Attention runs on rectangles, so examples
      with few and with many are kept apart where that is possible.
    multiple: of what rooms are multiples.
  """
  size = layout.batch_size
  totals = prompts + responses
  # By count, then by length, and those alike as they come.
  order = np.lexsort((totals, counts))
  batches = math.ceil(len(order) / size)
  fill = batches * size - len(order)
  # What fills up counts as the longest, so that it comes last.
  lengths = np.append(totals[order], np.full(fill, totals.max()))
  order = np.append(order, np.full(fill, -1))
  cuts = np.linspace(0, batches, min(_CUTS, batches) + 1).round().astype(int)
  one_device = dataclasses.replace(layout, devices=1)

  cost = np.full((len(cuts), len(cuts)), np.inf)
  for i, j in itertools.combinations(range(len(cuts)), 2):
    start, end = cuts[i], cuts[j]
    longest = lengths[start * size : end * size].reshape(size, -1).max(1)
    room = longest[one_device.share_out(longest)].sum(1).max()
    cost[i, j] = (end - start) * layout.microbatches * room
  classes = []
  for i, j in dealing.cheapest_runs(cost, max_classes):
    start, end = cuts[i], cuts[j]
    examples = order[start * size : end * size].reshape(size, -1)
    longest = lengths[start * size : end * size].reshape(size, -1).max(1)
    counted = np.where(examples < 0, 0, responses[examples]).max(1)
    groups = layout.share_out(longest)
    packed = structs.Packed(
      groups.shape[1],
      *(
        -(-int(sizes[groups].sum(1).max()) // multiple) * multiple
        for sizes in (longest, counted)
      ),
    )
    rows = groups.reshape(layout.devices, layout.microbatches, -1).swapaxes(
      1, 2
    )
    classes.append(Class(examples, rows.reshape(-1), packed))
  return classes
