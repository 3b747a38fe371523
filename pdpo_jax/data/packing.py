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
    sums, got = np.zeros(self.groups), [[] for _ in range(self.groups)]
    for stratum in np.argsort(-lengths, kind="stable"):
      places = [len(group) < size for group in got]
      group = int(np.argmin(np.where(places, sums, np.inf)))
      got[group].append(int(stratum))
      sums[group] += lengths[stratum]
    filled = [group + [-1] * (size - len(group)) for group in got]
    return np.array(filled), int(sums.max())


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
class Class:
  """Batches of one compiled shape.

  Attributes:
    strata: rows, stratum by stratum, as they are sorted; -1 where there is none
      to fill a batch.
    comparisons: of each of the rows.
    order: the stratum of each row of a batch; -1 for none.
    packed: room for any group.
  """

  strata: Int[np.ndarray, "strata batches"]
  comparisons: Int[np.ndarray, "strata batches"]
  order: Int[np.ndarray, " B"]
  packed: structs.Packed

  @property
  def rows(self) -> Int[np.ndarray, " rows"]:
    return self.strata[self.strata >= 0]

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
    """Changed such that no batch has a dialogue's comparisons too many.

    Two batches change a row of one stratum, for which both have room. There is
    one that helps: who has more than the mean and a dialogue has more in some
    stratum than who has the least, and less than a dialogue more.
    """
    compared = np.take_along_axis(self.comparisons, places, 1)
    totals = compared.sum(0)
    most = int(totals.mean()) + compared.max()
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
    # The longest first, so that it is the shortest that batches are short of.
    order = np.argsort(-sizes.positions, kind="stable")
  else:
    # By count, then by length, and those alike as they come.
    order = np.lexsort((sizes.positions, sizes.responses))
  compared = np.append(0, np.cumsum(sizes.comparisons[order]))
  batches = math.ceil(compared[-1] / layout.batch_size)
  cuts = np.linspace(0, batches, min(_CUTS, batches) + 1).round().astype(int)
  ends = np.searchsorted(compared, cuts * layout.batch_size, side="right") - 1

  def strata_of(values, i, j, fill=0):
    """Values of the rows between two cuts, by stratum and batch."""
    values, count = values[ends[i] : ends[j]], cuts[j] - cuts[i]
    # For each comparison that is missing, one that fills up, as the last.
    missing = count * layout.batch_size - (
      compared[ends[j]] - compared[ends[i]]
    )
    places = -(-(len(values) + max(0, missing)) // count) * count
    values = np.append(values, np.full(places - len(values), fill))
    return values.reshape(-1, count)

  lengths, read = sizes.positions[order], sizes.response_positions[order]
  cost = np.full((len(cuts), len(cuts)), np.inf)
  one_device = dataclasses.replace(layout, devices=1)
  for i, j in itertools.combinations(range(len(cuts)), 2):
    _, room = one_device.share_out(strata_of(lengths, i, j).max(1))
    cost[i, j] = (cuts[j] - cuts[i]) * layout.microbatches * room
  classes = []
  for i, j in dealing.cheapest_runs(cost, max_classes):
    groups, room = layout.share_out(strata_of(lengths, i, j).max(1))
    # One more stratum, of which there is nothing, fills up the groups.
    longest = np.append(strata_of(read, i, j).max(1), 0)
    rooms = room, longest[groups].sum(1).max()
    packed = structs.Packed(
      groups.shape[1], *(-(-int(each) // multiple) * multiple for each in rooms)
    )
    rows = groups.reshape(layout.devices, layout.microbatches, -1).swapaxes(
      1, 2
    )
    strata = strata_of(order, i, j, fill=-1)
    comparisons = strata_of(sizes.comparisons[order], i, j)
    classes.append(Class(strata, comparisons, rows.reshape(-1), packed))
  return classes
