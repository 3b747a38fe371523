"""What one run was trained on is not held out by the next, and the reverse.

A run keeps which comparisons it was trained on and which it held out, as
digests of pairs. A run that starts from it, with new choices alone or with old
ones among them, leaves each on its side; only what is new is dealt anew.
"""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterable, Set

from typing_extensions import TypedDict

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import splits

logger = logging.getLogger(__name__)


def digests(example: structs.PreferenceExample) -> list[str]:
  """Of each pair of a prompt's responses, whoever prefers which."""
  hashes = []
  for rejected in example.rejected:
    text = repr((example.prompt, sorted((example.chosen, rejected))))
    hashes.append(hashlib.blake2b(text.encode(), digest_size=8).hexdigest())
  return hashes


class Fields(TypedDict):
  """Of a record, as JSON has them."""

  trained: list[str]
  heldout: list[str]
  users: list[str]


@dataclasses.dataclass(frozen=True)
class Record:
  """What a run and those that it started from did with their data.

  Attributes:
    trained: digests of the pairs that were trained on.
    heldout: of those that were held out of their users' choices, and never
      trained on. What unseen users chose is not among them: they may be learnt
      next.
    users: whose choices were trained on.
  """

  trained: Set[str] = frozenset()
  heldout: Set[str] = frozenset()
  users: Set[str] = frozenset()

  def after(self, dataset: dataset_lib.Dataset) -> "Record":
    """The record once `dataset` was trained on as well."""
    heldout = _all_digests(dataset.heldout)
    trained = self.trained | _all_digests(dataset.train)
    users = {example.user_id for example in dataset.train} - {None}
    return Record(
      trained, (self.heldout | heldout) - trained, self.users | users
    )

  def to_json(self) -> Fields:
    return Fields(
      trained=sorted(self.trained),
      heldout=sorted(self.heldout),
      users=sorted(self.users),
    )

  @classmethod
  def from_json(cls, fields: Fields) -> "Record":
    return cls(**{name: frozenset(values) for name, values in fields.items()})


def _all_digests(examples: Iterable[structs.PreferenceExample]) -> set[str]:
  return set(itertools.chain.from_iterable(map(digests, examples)))


def keep_apart(
  dataset: dataset_lib.Dataset, before: Record, num_prompts: int, seed: int
) -> dataset_lib.Dataset:
  """A data set dealt so that it agrees with what was done before.

  Args:
    num_prompts, seed: of the held-out prompts that are drawn in place of those
      that are none any more.

  Raises:
    ValueError: if nothing is left to train on.
  """
  # Whom an earlier run knows is not unseen.
  known = [each for each in dataset.unseen if each.user_id in before.users]
  trained = set(before.trained)

  def is_trained(example):
    return not trained.isdisjoint(digests(example))

  def was_held_out(example):
    return not before.heldout.isdisjoint(digests(example))

  free = [
    example
    for example in dataset.train
    if was_held_out(example) and not is_trained(example)
  ]
  held = {id(each) for each in free}
  trained |= _all_digests(
    each for each in dataset.train if id(each) not in held
  )
  # What shares a pair with what is trained on is trained on too.
  free += [*dataset.heldout, *known]
  while more := [each for each in free if is_trained(each)]:
    trained |= _all_digests(more)
    moved = {id(each) for each in more}
    free = [each for each in free if id(each) not in moved]
  train = [
    example
    for example in [*dataset.train, *dataset.heldout, *known]
    if is_trained(example)
  ]
  heldout = [
    example
    for example in [*dataset.heldout, *dataset.train, *known]
    if not is_trained(example)
  ]
  # Nor is anyone seen of whom nothing is left to learn from.
  with_row = before.users | {each.user_id for each in train} | {None}
  unseen = [each for each in dataset.unseen if each.user_id not in before.users]
  unseen += [each for each in heldout if each.user_id not in with_row]
  heldout = [each for each in heldout if each.user_id in with_row]
  strangers = [each for each in unseen if not is_trained(each)]
  tally = dataset.tally
  tally.note(
    "comparisons moved to the side that an earlier run had them on",
    len({*map(id, train)} ^ {*map(id, dataset.train)}),
  )
  tally.drop(
    "comparisons of unseen users that are trained on by others",
    len(unseen) - len(strangers),
  )
  if not train:
    raise ValueError(
      f"all {len(dataset.train):,} training comparisons are of responses that "
      "an earlier run held out, so that nothing is left to learn from; add "
      "choices between other responses"
    )
  if not heldout and dataset.heldout:
    logger.warning(
      "no held-out comparison is left: an earlier run was trained on all of "
      "them. Nothing will say how good this one is, and what is generated may "
      "answer prompts that were trained on; hold out comparisons of other "
      "responses (data.files.heldout_path)"
    )
  kept = dataclasses.replace(
    dataset, train=train, heldout=heldout, unseen=strangers
  )
  prompts = _prompts(dataset, kept, num_prompts, seed)
  return dataclasses.replace(kept, prompts=prompts)


def _prompts(dataset, kept, count, seed):
  """Prompts that are still held out, or never were comparisons'."""
  once = {each.prompt for each in [*dataset.heldout, *dataset.unseen]}
  now = {each.prompt for each in [*kept.heldout, *kept.unseen]}
  still = [
    prompt
    for prompt in dataset.prompts
    if prompt.prompt in now or prompt.prompt not in once
  ]
  if len(still) < len(dataset.prompts):
    asked = {each.prompt for each in still}
    others = [each for each in kept.heldout if each.prompt not in asked]
    still += splits.draw_prompts(others, count - len(still), seed)
  return still or dataset.prompts
