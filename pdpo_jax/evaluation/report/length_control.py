"""Accuracy controlled for length: is a gain more than a taste in length?"""

import dataclasses
from collections.abc import Sequence

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy, length_strata
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


def section(findings: strata.Findings) -> page.Section:
  text = (
    "A taste in length is the easiest to learn. Where pairs with a shorter and "
    "with a longer chosen response count the same, whoever only goes by which "
    "one is longer is right in half of them, whatever a person likes; more "
    "than half is more than that. It needs people who chose both. Lengths are "
    "in characters."
  )
  return page.Section(
    "Controlled for length",
    [text],
    findings.tables(_NAMES, length_strata.BY),
    numbers={"length_control": findings.to_json()},
  )
