"""Accuracy apart for pairs whose texts training had, and for new texts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy, familiarity
from pdpo_jax.evaluation.report import accuracy as accuracy_report
from pdpo_jax.evaluation.report import page
from pdpo_jax.runs import scores as scores_lib

# Fewer pairs, or of fewer people, show nothing of a policy.
_ENOUGH_PAIRS, _ENOUGH_USERS = 20, 2
_KNOWN_TO = {
  familiarity.PERSON: "the person compared in training",
  familiarity.ANYBODY: "somebody compared in training",
}
_TITLES = {"none": "neither text", "one": "one text", "both": "both texts"}


@dataclasses.dataclass(frozen=True)
class Compared:
  """Policies on the pairs of a stratum.

  Attributes:
    scored: of each policy, in their order; empty where pairs or people are too
      few to say anything.
  """

  stratum: familiarity.Stratum
  scored: Sequence[accuracy_report.Scored]

  def to_json(self) -> dict[str, Any]:
    policies = {}
    for scored in self.scored:
      fields = scored.to_json()
      names = ("num_users", "users", "users_interval", "gain")
      policies[scored.name] = {n: fields[n] for n in names if n in fields}
    return {"num_pairs": self.stratum.pairs, "policies": policies}


@dataclasses.dataclass(frozen=True)
class Findings:
  """What was found out; empty where no text comes twice.

  Attributes:
    compared: each stratum that has a pair.
    baseline: the policy that others are compared with, if there is one.
    total_pairs: by split.
  """

  compared: Sequence[Compared]
  baseline: str | None
  total_pairs: Mapping[str, int]

  def to_json(self) -> dict[str, Any]:
    """By split, who knows the texts, and how many of them are known."""
    numbers: dict[str, Any] = {}
    for each in self.compared:
      stratum = each.stratum
      of_split = numbers.setdefault(stratum.split, {})
      by_kind = of_split.setdefault(stratum.known_to, {})
      by_kind[stratum.kind] = each.to_json()
    return numbers

  def new_texts(
    self, split: str
  ) -> Mapping[str, accuracy_report.Scored] | None:
    """By policy, on pairs of texts that their person did not compare before.

    Returns:
      None where all pairs are such; empty where those that are are too few.
    """
    of_split = {
      each.stratum.kind: each
      for each in self.compared
      if each.stratum.split == split
      and each.stratum.known_to == familiarity.PERSON
    }
    if of_split.keys() <= {"none"}:
      return None
    scored = of_split["none"].scored if "none" in of_split else ()
    return {each.name: each for each in scored}

  def section(self) -> page.Section:
    text = (
      "Some responses of held-out choices were compared in training too, in "
      "other pairs. There, a policy can be right because it learnt that this "
      "very text is liked, or that this person likes it. What it learnt of a "
      "person's taste shows on pairs of texts that are new to them. A response "
      "is the same text under whatever prompt."
    )
    tables = [
      self._table(split, title)
      for split, title in accuracy.USERS_OF.items()
      if any(each.stratum.split == split for each in self.compared)
    ]
    return page.Section(
      "Known and new texts",
      [text],
      tables,
      numbers={"familiarity": self.to_json()},
    )

  def _table(self, split: str, title: str) -> page.Table:
    compared = [each for each in self.compared if each.stratum.split == split]
    person = [
      each.stratum.pairs
      for each in compared
      if each.stratum.known_to == familiarity.PERSON
    ]
    note = (
      f"A line needs {_ENOUGH_PAIRS} pairs of {_ENOUGH_USERS} people; means "
      "are over people who have such pairs."
    )
    untold = self.total_pairs[split] - sum(person)
    if untold:
      note += (
        f" {untold:,} pairs are in no line: of their choices, rejected "
        "responses were dropped, so that it cannot be told which are left."
      )
    columns = (f"{title}, pairs of which", "policy", "pairs", "users")
    columns += ("accuracy, mean over users",)
    columns += (f"beyond {self.baseline or 'vanilla'}, points", "p")
    table = page.Table(columns, note)
    for each in compared:
      stratum = each.stratum
      name = f"{_TITLES[stratum.kind]} {_KNOWN_TO[stratum.known_to]}"
      if not each.scored:
        table.add(name, "–", f"{stratum.pairs:,}", *("–",) * 4)
      for scored in each.scored:
        of_policy, gain = scored.accuracy, scored.gain
        table.add(
          name,
          scored.name,
          f"{scored.pairs:,}",
          f"{scored.users:,}",
          page.with_interval(of_policy.users, of_policy.interval()),
          page.points(gain),
          f"{gain.p_value:.2g}" if gain else "–",
        )
    return table


def find(
  scores: Mapping[str, Mapping[str, scores_lib.Scores]],
  dataset: dataset_lib.Dataset,
  baseline: str | None,
) -> Findings:
  """Compares policies on each stratum.

  Args:
    scores: by policy and split, of the same examples.
    dataset: that they were trained on and are evaluated on.
    baseline: the policy that others are compared with, if there is one.
  """
  compared = []
  for stratum in familiarity.strata(scores, dataset):
    scored = accuracy_report.compare(
      {name: {stratum.split: kept} for name, kept in stratum.scores.items()},
      {},
      baseline,
    )
    few = stratum.pairs < _ENOUGH_PAIRS or scored[0].users < _ENOUGH_USERS
    compared.append(Compared(stratum, () if few else scored))
  first = next(iter(scores.values()), {})
  total = {
    split: int((~np.isnan(of_split.ratios)).sum())
    for split, of_split in first.items()
  }
  return Findings(compared, baseline, total)
