"""What answers are like: how much they differ, and drift from the base's."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from pdpo_jax.evaluation import statistics
from pdpo_jax.inference import text_health


@dataclasses.dataclass(frozen=True)
class Distinctness:
  """How much answers to one prompt differ between users.

  Attributes:
    distance: mean Jaccard distance of the sets of words of two users' answers,
      0 (the same words) to 1 (none in common).
    identical: share of pairs of users with the very same answer.
    chance: the same distance between two answers of one user to two prompts,
      as a measure to read `distance` by; None with a single prompt.
  """

  distance: float
  identical: float
  chance: float | None


def distinctness(
  answers: Mapping[str, Sequence[str]],
) -> Distinctness | None:
  """Between users, over all prompts.

  Args:
    answers: by user, in the order of the prompts.

  Returns:
    None for fewer than two users.
  """
  if len(answers) < 2:
    return None
  words = {
    user: [_words(text) for text in of_user]
    for user, of_user in answers.items()
  }
  distances, same = [], []
  for ann, bob in itertools.combinations(answers, 2):
    distances += map(_distance, words[ann], words[bob])
    same += [a == b for a, b in zip(answers[ann], answers[bob], strict=True)]
  chance = [
    _distance(a, b)
    for of_user in words.values()
    for a, b in itertools.pairwise(of_user)
  ]
  return Distinctness(
    float(np.mean(distances)),
    float(np.mean(same)),
    float(np.mean(chance)) if chance else None,
  )


@dataclasses.dataclass(frozen=True)
class Drift:
  """How a speaker's answers differ from the base's to the same prompts.

  Attributes:
    words: difference in words.
    repetition: difference of the share of repeated 3-grams of words.
  """

  words: statistics.Mean
  repetition: statistics.Mean


def drift(answers: Sequence[str], base: Sequence[str]) -> Drift:
  """Paired by prompt."""
  pairs = list(zip(answers, base, strict=True))
  return Drift(
    statistics.mean_of([len(a.split()) - len(b.split()) for a, b in pairs]),
    statistics.mean_of(
      [text_health.repetition(a) - text_health.repetition(b) for a, b in pairs]
    ),
  )


def _words(text: str) -> frozenset[str]:
  return frozenset(text_health.words_of(text.casefold()))


def _distance(a: frozenset[str], b: frozenset[str]) -> float:
  union = a | b
  return 1 - len(a & b) / len(union) if union else 0.0
