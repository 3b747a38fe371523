"""What answers are like: how much they differ, and how much they repeat."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from pdpo_jax.evaluation import statistics

# Thai, Lao, Burmese, Khmer, kana, and Chinese characters: written without
# spaces between words.
_UNSPACED = re.compile(
  "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
  "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_LONGEST_WORD = 24


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


def words_of(text: str) -> list[str]:
  """Words, and single letters where there are no spaces to tell words apart.

  Those are letters of Chinese, Japanese, Thai and the like, and of a word that
  is longer than words are: "nononono…", an address, a cell of a table.
  """
  words = []
  for word in _UNSPACED.sub(r" \g<0> ", text).split():
    words.extend(word if len(word) > _LONGEST_WORD else [word])
  return words


def repetition(text: str, size: int = 3) -> float:
  """Share of a text's n-grams of words that it had before; 0 if it is short.

  One minus "distinct-n" (Li et al. 2016, arXiv:1510.03055) of a single text.
  See `words_of` for texts without spaces.
  """
  words = words_of(text)
  grams = [
    tuple(words[start : start + size]) for start in range(len(words) - size + 1)
  ]
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


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
    statistics.mean_of([repetition(a) - repetition(b) for a, b in pairs]),
  )


def _words(text: str) -> frozenset[str]:
  return frozenset(words_of(text.casefold()))


def _distance(a: frozenset[str], b: frozenset[str]) -> float:
  union = a | b
  return 1 - len(a & b) / len(union) if union else 0.0
