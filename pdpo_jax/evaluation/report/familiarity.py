"""Accuracy apart for pairs whose texts training had, and for new texts."""

from collections.abc import Mapping

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import familiarity
from pdpo_jax.evaluation import strata as strata_lib
from pdpo_jax.evaluation.report import accuracy, page, strata

_WHO = {familiarity.PERSON: "the person", familiarity.ANYBODY: "somebody"}
_TEXTS = {"none": "neither text", "one": "one text", "both": "both texts"}


def find(
  scores: strata_lib.Scores,
  dataset: dataset_lib.Dataset,
  baseline: str | None,
) -> strata.Findings:
  """Compares policies on each stratum; there is none where no text comes twice.

  Args:
    scores: of the same examples.
    dataset: that they were trained on and are evaluated on.
    baseline: the policy that others are compared with, if there is one.
  """
  divided = familiarity.divide(scores, dataset)
  return strata.find(scores, divided, baseline)


def new_texts(
  findings: strata.Findings, split: str
) -> Mapping[str, accuracy.Scored] | None:
  """By policy, on pairs of texts that their person did not compare before.

  Returns:
    None where all pairs are such; empty where those that are are too few.
  """
  of_split = {
    each.kind: each
    for each in findings.compared
    if (each.split, each.by) == (split, familiarity.PERSON)
  }
  if of_split.keys() <= {"none"}:
    return None
  scored = of_split["none"].scored if "none" in of_split else ()
  return {each.name: each for each in scored}


def section(findings: strata.Findings) -> page.Section:
  text = (
    "Some responses of held-out choices were compared in training too, in "
    "other pairs. There, a policy can be right because it learnt that this "
    "very text is liked, or that this person likes it. What it learnt of a "
    "person's taste shows on pairs of texts that are new to them. A response "
    "is the same text under whatever prompt."
  )
  names = {
    (by, kind): f"{texts} {who} compared in training"
    for by, who in _WHO.items()
    for kind, texts in _TEXTS.items()
  }
  return page.Section(
    "Known and new texts",
    [text],
    findings.tables(names, familiarity.PERSON),
    numbers={"familiarity": findings.to_json()},
  )
