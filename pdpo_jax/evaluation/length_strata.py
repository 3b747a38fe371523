"""Held-out pairs apart by which response is longer."""

import math

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy, strata

BY = "length"
# Of the chosen response; within a tenth, both are as long.
SHORTER, ALIKE, LONGER = KINDS = ("shorter", "alike", "longer")
_ALIKE = math.log(1.1)


def divide(
  scores: strata.Scores, dataset: dataset_lib.Dataset
) -> list[strata.Stratum]:
  """Strata by the length of the chosen response beside the rejected one."""
  return [
    stratum
    for split in next(iter(scores.values()), {})
    for stratum in strata.divide(
      scores, split, getattr(dataset, split), BY, KINDS, _kinds
    )
  ]


def _kinds(example: structs.PreferenceExample) -> list[int]:
  """In characters, which all languages have; they have no spaces in some."""
  kinds = []
  for rejected in example.rejected:
    more = math.log1p(len(example.chosen)) - math.log1p(len(rejected))
    kind = ALIKE
    if abs(more) > _ALIKE:
      kind = LONGER if more > 0 else SHORTER
    kinds.append(KINDS.index(kind))
  return kinds


def balanced(
  shorter: accuracy.Accuracy, longer: accuracy.Accuracy
) -> accuracy.Accuracy:
  """The mean of two accuracies: of shorter chosen responses and of longer ones.

  Whoever only goes by which response is longer is right in all pairs of one
  kind and in none of the other, which makes half, whatever a person likes.
  (Taking from a margin what length predicts of it does not do that: a rest
  however small has a sign.) Of users who have pairs of both kinds.
  """

  users = [user for user in shorter.by_user if user in longer.by_user]

  def sums(of_shorter, of_longer):
    return {user: of_shorter[user] + of_longer[user] for user in users}

  def means(*of_both):
    return {user: total / 2 for user, total in sums(*of_both).items()}

  return accuracy.Accuracy(
    (shorter.pairs + longer.pairs) / 2,
    means(shorter.by_user, longer.by_user),
    means(shorter.margin_by_user, longer.margin_by_user),
    sums(shorter.examples_by_user, longer.examples_by_user),
  )
