"""What answers are like: how much they differ, and how much they repeat."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np


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
    user: [_words(text) for text in said] for user, said in answers.items()
  }
  distances, same = [], []
  for one, other in itertools.combinations(answers, 2):
    distances += map(_distance, words[one], words[other])
    same += [a == b for a, b in zip(answers[one], answers[other], strict=True)]
  chance = [
    _distance(a, b)
    for said in words.values()
    for a, b in itertools.pairwise(said)
  ]
  return Distinctness(
    float(np.mean(distances)),
    float(np.mean(same)),
    float(np.mean(chance)) if chance else None,
  )


def repetition(text: str, size: int = 3) -> float:
  """Share of a text's n-grams of words that it had before; 0 if it is short.

  One minus "distinct-n" (Li et al. 2016, arXiv:1510.03055) of a single text.
  """
  words = text.split()
  grams = [
    tuple(words[start : start + size]) for start in range(len(words) - size + 1)
  ]
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclasses.dataclass(frozen=True)
class Drift:
  """How a speaker's answers differ from the base's to the same prompts.

  Attributes:
    words: mean difference in words, and its standard error.
    repetition: mean difference of the share of repeated 3-grams of words, and
      its standard error.
  """

  words: tuple[float, float]
  repetition: tuple[float, float]


def drift(answers: Sequence[str], base: Sequence[str]) -> Drift:
  """Paired by prompt."""
  pairs = list(zip(answers, base, strict=True))
  return Drift(
    _mean([len(said.split()) - len(before.split()) for said, before in pairs]),
    _mean([repetition(said) - repetition(before) for said, before in pairs]),
  )


def _mean(values: Sequence[float | int]) -> tuple[float, float]:
  error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
  return float(np.mean(values)), float(error)


def _words(text: str) -> frozenset[str]:
  return frozenset(text.casefold().split())


def _distance(one: frozenset[str], other: frozenset[str]) -> float:
  union = one | other
  return 1 - len(one & other) / len(union) if union else 0.0
