"""Accuracy controlled for length: is a gain more than a taste in length?"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy, length_regression, length_strata
from pdpo_jax.evaluation import strata as strata_lib
from pdpo_jax.evaluation.report import accuracy as accuracy_report
from pdpo_jax.evaluation.report import page, strata

_BALANCED = "balanced", "shorter and longer"
_NAMES = {
  (length_strata.BY, length_strata.SHORTER): "the chosen response is shorter",
  (length_strata.BY, length_strata.ALIKE): "both are as long, within a tenth",
  (length_strata.BY, length_strata.LONGER): "the chosen response is longer",
  _BALANCED: "shorter and longer, which count the same",
}


def find(
  scores: strata_lib.Scores,
  dataset: dataset_lib.Dataset,
  baseline: str | None,
) -> strata.Findings:
  """Compares policies on each stratum, and balanced over shorter and longer.

  Args:
    scores: of the same examples.
    dataset: that they are evaluated on.
    baseline: the policy that others are compared with, if there is one.
  """
  divided = length_strata.divide(scores, dataset)
  findings = strata.find(scores, divided, baseline)
  balanced = []
  for split in findings.total_pairs:
    kinds = {e.kind: e for e in findings.compared if e.split == split}
    if {length_strata.SHORTER, length_strata.LONGER} <= kinds.keys():
      shorter = kinds[length_strata.SHORTER]
      longer = kinds[length_strata.LONGER]
      scored = _balanced(shorter.scored, longer.scored, baseline)
      pairs = shorter.pairs + longer.pairs
      balanced.append(strata.Compared(split, *_BALANCED, pairs, scored))
  return dataclasses.replace(findings, compared=[*findings.compared, *balanced])


def _balanced(
  shorter: Sequence[accuracy_report.Scored],
  longer: Sequence[accuracy_report.Scored],
  baseline: str | None,
) -> list[accuracy_report.Scored]:
  """Policies by `length_strata.balanced`; none where too few have both."""
  if not (shorter and longer):
    return []
  means = {
    one.name: length_strata.balanced(one.accuracy, other.accuracy)
    for one, other in zip(shorter, longer, strict=True)
  }
  if len(means[shorter[0].name].by_user) < strata.ENOUGH_USERS:
    return []
  return [
    dataclasses.replace(
      one,
      pairs=one.pairs + other.pairs,
      accuracy=means[one.name],
      gain=one.gain and accuracy.gain(means[one.name], means[baseline]),
    )
    for one, other in zip(shorter, longer, strict=True)
  ]


def section(
  findings: strata.Findings,
  scores: strata_lib.Scores,
  dataset: dataset_lib.Dataset,
) -> page.Section:
  """Strata, and what margins add to lengths; arguments as for `find`."""
  text = (
    "A taste in length is the easiest to learn. Where pairs with a shorter and "
    "with a longer chosen response count the same, whoever only goes by which "
    "one is longer is right in half of them, whatever a person likes; more "
    "than half is more than that. It needs people who chose both. Lengths are "
    "in characters."
  )
  tables, numbers = _regressions(scores, dataset)
  return page.Section(
    "Controlled for length",
    [text],
    [*findings.tables(_NAMES, length_strata.BY), *tables],
    numbers={"length_control": findings.to_json(), "beyond_length": numbers},
  )


def _regressions(
  scores: strata_lib.Scores, dataset: dataset_lib.Dataset
) -> tuple[list[page.Table], list[dict[str, Any]]]:
  tables, numbers = [], []
  for split, title in accuracy.USERS_OF.items():
    table = page.Table(
      (title, "by lengths, %", "by lengths and margin, %", "adds, points", "p"),
      "Logistic regressions of the choice, mean over users: on lengths and "
      "each person's own taste in them (of their training choices), and on the "
      "policy's margin besides; fitted to other people than those they "
      "predict. What a margin adds is more than a taste in length.",
    )
    for name, by_split in scores.items():
      if split not in by_split or not len(by_split[split].examples):
        continue
      found = length_regression.predict(by_split[split], dataset, split)
      if found is None:
        continue
      lengths, both = found
      gain = accuracy.gain(both, lengths)
      table.add(
        name,
        page.with_interval(lengths.users, lengths.interval()),
        page.with_interval(both.users, both.interval()),
        page.points(gain),
        f"{gain.p_value:.2g}",
      )
      numbers.append({
        "name": name,
        "part": split,
        "lengths": lengths.users,
        "lengths_and_margin": both.users,
        "gain": dataclasses.asdict(gain),
      })  # fmt: skip
    if table.lines:
      tables.append(table)
  return tables, numbers
