"""Whose choices a run may read, since somebody was erased from it.

A run's data lies outside of its folder and may have, long after, the choices of
somebody who was erased. What the run keeps of that names nobody who is gone,
but everyone who is not.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Set

from typing_extensions import TypedDict

from pdpo_jax.core import kept, structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.runs import run_folder

_REMEDY = (
  "put it back from a copy: without it, those who were erased would be read "
  "again"
)


class Roster(TypedDict):
  """Of a run from which somebody was erased."""

  people: list[str]
  erased: int


def read(folder: pathlib.Path) -> Roster | None:
  """The roster of a run; None where nobody was erased.

  Raises:
    kept.Damaged: if it cannot be read.
  """
  file = folder / run_folder.ROSTER
  if not kept.was_written(file):
    return None
  return kept.read_json(file, Roster, _REMEDY)


def check_whole(folder: pathlib.Path) -> None:
  """Checks that a training may go on in a folder.

  Raises:
    ValueError: if somebody was erased, whose choices it would read again.
  """
  if read(folder) is not None:
    raise ValueError(
      f"people were erased from {folder}, whose choices its training would "
      "read again; take them out of the data, and train anew in another "
      f"--config.workdir, with --config={folder / run_folder.CONFIG}"
    )


def without_erased(
  dataset: dataset_lib.Dataset, folder: pathlib.Path
) -> dataset_lib.Dataset:
  """What a run's data has of people who were not erased from it."""
  roster = read(folder)
  if roster is None:
    return dataset
  return of_people(dataset, {*roster["people"]})


def ids_of(dataset: dataset_lib.Dataset) -> set[str]:
  """Everyone whose choices there are, or of whom something is known."""
  examples = [*dataset.train, *dataset.heldout, *dataset.unseen]
  ids = {example.user_id for example in examples} | {*dataset.personas}
  return ids - {None}


def own_texts(
  dataset: dataset_lib.Dataset, ids: Set[str]
) -> tuple[set[structs.Prompt], set[str]]:
  """Prompts and user texts that these people share with nobody else."""
  own, others = (set(), set()), (set(), set())
  for example in (*dataset.train, *dataset.heldout, *dataset.unseen):
    prompts, texts = own if example.user_id in ids else others
    prompts.add(example.prompt)
    texts.add(example.user_text)
  return own[0] - others[0], own[1] - others[1] - {""}


def of_people(
  dataset: dataset_lib.Dataset, people: Set[str]
) -> dataset_lib.Dataset:
  """The same without anybody else, but for choices of nobody in particular.

  The order is the same, and so are the splits.
  """
  gone = ids_of(dataset) - people
  if not gone:
    return dataset
  prompts, texts = own_texts(dataset, gone)

  def left(examples: Iterable[structs.PreferenceExample]):
    return [example for example in examples if example.user_id not in gone]

  splits = {
    name: left(getattr(dataset, name))
    for name in ("train", "heldout", "unseen")
  }
  # Of a tally's remarks, some name people.
  for counts in (dataset.tally.noted, dataset.tally.dropped):
    for reason in list(counts):
      if any(repr(user_id) in reason for user_id in gone):
        del counts[reason]
  before = sum(len(getattr(dataset, name)) for name in splits)
  dataset.tally.drop(
    "comparisons of people who were erased",
    before - sum(map(len, splits.values())),
  )
  return dataclasses.replace(
    dataset,
    **splits,
    prompts=[
      each
      for each in dataset.prompts
      if each.prompt not in prompts and each.user_text not in texts
    ],
    short_users=tuple(x for x in dataset.short_users if x not in gone),
    long_users=tuple(x for x in dataset.long_users if x not in gone),
    personas={k: v for k, v in dataset.personas.items() if k not in gone},
  )
