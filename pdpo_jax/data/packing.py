"""Which rows make up which batch, so that packed rows are full.

A row is an example, or a dialogue of several that share a trunk. Linear layers
do not care which row a position is of. So a group of rows is run on its real
positions alone, side by side, and padding is what a group lacks to the room it
is given. The room is one number for all groups of a class, so that a class is
one compiled program, and it has to do in every epoch. Therefore batches are
dealt like hands of cards: a class's rows are sorted by length and cut into as
many strata as a batch has rows, and every batch gets one of each. Whatever is
dealt, no row is longer than its stratum's longest, and long and short strata
are shared out evenly among a batch's groups.

Where a group has few rows, strata are wide, and their longest rows rarely meet.
So a class is cut into blocks, which are dealt each for itself: a block with the
longest rows of one stratum has the shortest of others.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from pdpo_jax.core import structs
from pdpo_jax.data import dealing

# Cuts between classes are sought at so many places, evenly spread, and at a few
# more near the ends, where the longest rows are.
_CUTS = 64
# So many batches of a class say what room it would need.
_SAMPLED = 128
# Batches of a block, at least, so that rows meet many others.
_LEAST_BATCHES = 8
# Runs that a class's strata are cut into for its blocks, at most: what more of
# them save is little where a batch has many rows.
_RUNS = 256


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a batch is divided when it is run.

  Attributes:
    batch_size: comparisons, over all devices.
    devices: which have a run of the batch's rows each.
    microbatches: that a device's rows are run in; of m, number j has its rows
      j, m + j, 2 m + j and so on.
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
    """Of rows that are run together, on one device."""
    return self.devices * self.microbatches

  def share_out(
    self, lengths: Int[np.ndarray, " strata"]
  ) -> tuple[Int[np.ndarray, "groups group"], int]:
    """Which strata each group gets, so that their lengths add up alike.

    The longest goes first, to the group that has least so far and still has a
    place. Where groups do not divide the strata, -1 fills up.

    Returns:
      The strata of each group, and the largest sum of a group's lengths.
    """
    size = -(-len(lengths) // self.groups)
    got = [[] for _ in range(self.groups)]
    with_place = [(0, group) for group in range(self.groups)]
    room = 0
    for stratum in np.argsort(-lengths, kind="stable"):
      total, group = heapq.heappop(with_place)
      total += int(lengths[stratum])
      room = max(room, total)
      got[group].append(int(stratum))
      if len(got[group]) < size:
        heapq.heappush(with_place, (total, group))
    filled = [group + [-1] * (size - len(group)) for group in got]
    return np.array(filled), room


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What each row takes: an example, or the dialogue of several.

  Attributes:
    positions: that are run.
    response_positions: those of responses that are to be predicted.
    responses: how many are run.
    comparisons: how many it has.
  """

  positions: Int[np.ndarray, " rows"]
  response_positions: Int[np.ndarray, " rows"]
  responses: Int[np.ndarray, " rows"]
  comparisons: Int[np.ndarray, " rows"]


@dataclasses.dataclass(frozen=True)
class Block:
  """Batches that rows of a stratum change places between.

  Attributes:
    strata: rows, stratum by stratum; -1 where there is none to fill a batch.
    comparisons: of each of the rows.
    order: the stratum of each row of a batch; -1 for none.
  """

  strata: Int[np.ndarray, "strata batches"]
  comparisons: Int[np.ndarray, "strata batches"]
  order: Int[np.ndarray, " B"]

  def deal(
    self, rng: np.random.Generator | None
  ) -> Int[np.ndarray, "batches B"]:
    """All batches; without `rng`, rows of a stratum stay in their order."""
    places = np.broadcast_to(np.arange(self.strata.shape[1]), self.strata.shape)
    if rng is not None:
      places = rng.permuted(places, axis=1)
    places = self._evened_out(places)
    strata = np.take_along_axis(self.strata, places, 1)
    fill = np.full((1, strata.shape[1]), -1)
    return np.concatenate([strata, fill])[self.order].T

  def _evened_out(self, places):
    """Changed such that no batch has more than `most_comparisons`.

    Two batches change a row of one stratum. There is one that helps: who has
    too many has more in some stratum than who has the least, which thereby gets
    no more than it may have.
    """
    compared = np.take_along_axis(self.comparisons, places, 1)
    totals, most = compared.sum(0), most_comparisons(compared)
    if totals.max() <= most:
      return places
    places = places.copy()
    while totals.max() > most:
      full, empty = int(totals.argmax()), int(totals.argmin())
      more = compared[:, full] - compared[:, empty]
      stratum = int(more.argmax())
      totals[full] -= more[stratum]
      totals[empty] += more[stratum]
      for changed in (places, compared):
        changed[stratum, [full, empty]] = changed[stratum, [empty, full]]
    return places


def most_comparisons(compared: Int[np.ndarray, "strata batches"]) -> int:
  """What no batch of a block has more of.

  That is the mean, and by how much rows of a stratum differ besides.
  """
  return int(compared.sum(0).mean()) + int(np.ptp(compared, 1).max())


@dataclasses.dataclass(frozen=True)
class Class:
  """Batches of one compiled shape.

  Attributes:
    blocks: dealt each for itself.
    packed: room for any group.
  """

  blocks: Sequence[Block]
  packed: structs.Packed

  @property
  def num_batches(self) -> int:
    return sum(block.strata.shape[1] for block in self.blocks)

  @property
  def rows(self) -> Int[np.ndarray, " rows"]:
    strata = np.concatenate([block.strata.ravel() for block in self.blocks])
    return strata[strata >= 0]

  def deal(
    self, rng: np.random.Generator | None
  ) -> Int[np.ndarray, "batches B"]:
    """All batches; see `Block.deal`."""
    return np.concatenate([block.deal(rng) for block in self.blocks])


class Dealer(dealing.Dealer):
  """Deals the batches of classes.

  Args:
    classes: what `make_classes` made.
    seed: of the order; each epoch has its own.
  """

  def __init__(self, classes: Sequence[Class], seed: int):
    super().__init__(sum(each.num_batches for each in classes), seed)
    self._classes = classes

  def in_order(self, rng: np.random.Generator | None = None) -> dealing.Plan:
    rows = [each.deal(rng) for each in self._classes]
    numbers = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    return dealing.Plan(numbers, [*itertools.chain(*rows)])


def make_classes(
  sizes: Sizes, layout: Layout, max_classes: int, multiple: int
) -> list[Class]:
  """Sorts rows into at most `max_classes`, those that need least room.

  Which rows are of a class, and of a stratum, does not depend on the number of
  devices: a run that goes on on others is dealt the same batches.

  Args:
    sizes: of the rows. Attention runs on rectangles, so examples with few and
      with many responses are kept apart where that is possible.
    layout: of a batch.
    multiple: of what rooms are multiples.
  """
  if sizes.comparisons.max() > 1:
    # So that it is the shortest that batches are short of.
    order = np.argsort(-sizes.positions, kind="stable")
  else:
    # By count, then by length, and those alike as they come.
    order = np.lexsort((sizes.positions, sizes.responses))
  # In this order, and of none.
  sizes = Sizes(
    *(np.append(each[order], 0) for each in dataclasses.astuple(sizes))
  )
  before = np.append(0, np.cumsum(sizes.comparisons[:-1]))
  batches = math.ceil(before[-1] / layout.batch_size)
  cuts = _cuts(batches)
  ends = np.searchsorted(before, cuts * layout.batch_size, side="right") - 1

  def strata_of(i, j, most_batches):
    """Places in this order of what lies between two cuts; -1 for none.

    Of many batches, some that are spread evenly.
    """
    count = cuts[j] - cuts[i]
    # For each comparison that is missing, one that fills up, as the last.
    missing = count * layout.batch_size - (before[ends[j]] - before[ends[i]])
    strata = -(-(ends[j] - ends[i] + max(0, missing)) // count)
    batches = np.arange(0, count, max(1, count // most_batches))
    places = ends[i] + count * np.arange(strata)[:, None] + batches
    return np.where(places < ends[j], places, -1)

  cost = np.full((len(cuts), len(cuts)), np.inf)
  one_device = dataclasses.replace(layout, devices=1)
  for i, j in itertools.combinations(range(len(cuts)), 2):
    blocks = _blocks(strata_of(i, j, _SAMPLED), sizes, layout)
    room = max(
      one_device.share_out(sizes.positions[block].max(1))[1] for block in blocks
    )
    cost[i, j] = (cuts[j] - cuts[i]) * layout.microbatches * room
  order = np.append(order, -1)
  classes = []
  for i, j in dealing.cheapest_runs(cost, max_classes):
    made, rooms = [], []
    for block in _blocks(strata_of(i, j, batches), sizes, layout):
      groups, room = layout.share_out(sizes.positions[block].max(1))
      # One more stratum, of which there is nothing, fills up the groups.
      longest = np.append(sizes.response_positions[block].max(1), 0)
      rooms.append((room, longest[groups].sum(1).max()))
      rows = groups.reshape(layout.devices, layout.microbatches, -1)
      rows = rows.swapaxes(1, 2).reshape(-1)
      made.append(Block(order[block], sizes.comparisons[block], rows))
    packed = structs.Packed(
      groups.shape[1],
      *(-(-int(room) // multiple) * multiple for room in np.max(rooms, 0)),
    )
    classes.append(Class(made, packed))
  return classes


def _cuts(batches):
  even = np.linspace(0, batches, min(_CUTS, batches) + 1).round().astype(int)
  near = 4 ** np.arange(20)
  near = near[near < batches / _CUTS]
  return np.unique(np.concatenate([even, near, batches - near]))


def _blocks(places, sizes, layout):
  """Cuts the strata of a class; see the module.

  Args:
    places: of each stratum's rows, by length.
    sizes: of the rows in this order, and of none.

  Returns:
    Places of each block, stratum by stratum.
  """
  strata, batches = places.shape
  count = 1
  if strata > layout.microbatches:
    count = max(1, min(batches // _LEAST_BATCHES, _RUNS // strata))
  compared = sizes.comparisons[places]
  most = max(layout.batch_size, int(compared.sum(0).mean())) + compared.max()
  while count > 1:
    blocks = _balanced(places, sizes.positions, layout.microbatches, count)
    if all(
      most_comparisons(sizes.comparisons[block]) <= most for block in blocks
    ):
      return blocks
    count //= 2
  return [places]


def _balanced(places, lengths, groups, count):
  """So many blocks of a class, each with a run of each stratum.

  As in `Layout.share_out`, each stratum goes to the group of a block that has
  least so far and still has a place; of the blocks, the one whose group has
  least gets the longest rows. The longest stratum comes first or, where there
  is one group, the one whose rows differ most.
  """
  strata, batches = places.shape
  if lengths[places[:, 0]].sum() < lengths[places[:, -1]].sum():
    places = places[:, ::-1]  # The longest first.
  ends = np.linspace(0, batches, count + 1).round().astype(int)
  widths, blocks = np.diff(ends), np.arange(count)
  begins = np.zeros((strata, count), int)
  sums, free = (
    np.zeros((count, groups)),
    np.full((count, groups), -(-strata // groups)),
  )
  first = lengths[places[:, 0]]
  if groups == 1:
    first = first - lengths[places[:, -1]]
  for stratum in np.argsort(-first, kind="stable"):
    sums[free == 0] = np.inf
    least = sums.argmin(1)
    order = np.argsort(sums[blocks, least], kind="stable")
    begins[stratum, order] = np.cumsum(widths[order]) - widths[order]
    sums[blocks, least] += lengths[places[stratum, begins[stratum]]]
    free[blocks, least] -= 1
  return [
    np.take_along_axis(places, begin[:, None] + np.arange(width), 1)
    for begin, width in zip(begins.T, widths, strict=True)
  ]
