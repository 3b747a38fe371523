"""Policies side by side on pairs that are alike in something."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pdpo_jax.evaluation import accuracy, strata
from pdpo_jax.evaluation.report import accuracy as accuracy_report
from pdpo_jax.evaluation.report import page

# Fewer pairs, or of fewer people, show nothing of a policy.
ENOUGH_PAIRS, ENOUGH_USERS = 20, 2


@dataclasses.dataclass(frozen=True)
class Compared:
  """Policies on the pairs of a stratum.

  Attributes:
    split, by, kind: of the stratum.
    pairs: how many it has.
    scored: of each policy, in their order; empty where pairs or people are too
      few to say anything.
  """

  split: str
  by: str
  kind: str
  pairs: int
  scored: Sequence[accuracy_report.Scored]

  def to_json(self) -> dict[str, Any]:
    policies = {}
    for scored in self.scored:
      fields = scored.to_json()
      names = ("num_users", "users", "users_interval", "gain")
      policies[scored.name] = {n: fields[n] for n in names if n in fields}
    return {"num_pairs": self.pairs, "policies": policies}


@dataclasses.dataclass(frozen=True)
class Findings:
  """What was found out of the strata of all splits.

  Attributes:
    compared: each stratum that has a pair.
    baseline: the policy that others are compared with, if there is one.
    total_pairs: by split.
  """

  compared: Sequence[Compared]
  baseline: str | None
  total_pairs: Mapping[str, int]

  def to_json(self) -> dict[str, Any]:
    """By split, by what pairs are alike in, and by how they are."""
    numbers: dict[str, Any] = {}
    for each in self.compared:
      of_split = numbers.setdefault(each.split, {})
      of_split.setdefault(each.by, {})[each.kind] = each.to_json()
    return numbers

  def tables(
    self, names: Mapping[tuple[str, str], str], every: str
  ) -> list[page.Table]:
    """A table for each split, with a line for each stratum and policy.

    Args:
      names: of strata, by what they are alike in and how they are.
      every: what all pairs that can be told apart are told apart by.
    """
    tables = []
    for split, title in accuracy.USERS_OF.items():
      of_split = [each for each in self.compared if each.split == split]
      if of_split:
        told = sum(each.pairs for each in of_split if each.by == every)
        untold = self.total_pairs[split] - told
        tables.append(self._table(of_split, title, names, untold))
    return tables

  def _table(
    self,
    of_split: Sequence[Compared],
    title: str,
    names: Mapping[tuple[str, str], str],
    untold: int,
  ) -> page.Table:
    note = (
      f"A line needs {ENOUGH_PAIRS} pairs of {ENOUGH_USERS} people; means are "
      "over people who have such pairs."
    )
    if untold:
      note += (
        f" {untold:,} pairs are in no line: of their choices, rejected "
        "responses were dropped, so that it cannot be told which are left."
      )
    columns = (
      f"{title}, pairs of which",
      "policy",
      "pairs",
      "users",
      "accuracy, mean over users",
    )
    columns += (f"beyond {self.baseline or 'vanilla'}, points", "p")
    lines = page.Table(columns, note)
    for each in of_split:
      name = names[each.by, each.kind]
      if not each.scored:
        lines.add(name, "–", f"{each.pairs:,}", *("–",) * 4)
      for scored in each.scored:
        of_policy, gain = scored.accuracy, scored.gain
        lines.add(
          name,
          scored.name,
          f"{scored.pairs:,}",
          f"{scored.users:,}",
          page.with_interval(of_policy.users, of_policy.interval()),
          page.points(gain),
          f"{gain.p_value:.2g}" if gain else "–",
        )
    return lines


def find(
  scores: strata.Scores,
  divided: Iterable[strata.Stratum],
  baseline: str | None,
) -> Findings:
  """Compares policies on each stratum of their scores.

  Args:
    baseline: the policy that others are compared with, if there is one.
  """
  compared = []
  for stratum in divided:
    scored = accuracy_report.compare(
      {name: {stratum.split: kept} for name, kept in stratum.scores.items()},
      {},
      baseline,
    )
    few = stratum.pairs < ENOUGH_PAIRS or scored[0].users < ENOUGH_USERS
    compared.append(
      Compared(
        stratum.split,
        stratum.by,
        stratum.kind,
        stratum.pairs,
        () if few else scored,
      )
    )
  first = next(iter(scores.values()), {})
  total = {split: strata.count(of_split) for split, of_split in first.items()}
  return Findings(compared, baseline, total)
