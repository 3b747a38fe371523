"""Held-out pairs apart by whether training had their texts.

Pairs are held out, and their texts need not be: who compares films has compared
most of them with another one before. On such pairs a policy can be right by
having learnt that a person likes this very text, which says nothing of texts
that are new to them.
"""

import collections
import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Int

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.runs import scores as scores_lib

# Who compared a text in training: the same person, or whoever.
PERSON, ANYBODY = "person", "anybody"
# How many of a pair's two texts are known.
KINDS = ("none", "one", "both")


@dataclasses.dataclass(frozen=True)
class Stratum:
  """Pairs of a split that are alike in what training had of them.

  Attributes:
    split: "heldout" or "unseen".
    known_to: `PERSON` or `ANYBODY`.
    kind: one of `KINDS`.
    scores: of the split by policy, NaN at all other pairs.
  """

  split: str
  known_to: str
  kind: str
  scores: Mapping[str, scores_lib.Scores]

  @property
  def pairs(self) -> int:
    return int((~np.isnan(next(iter(self.scores.values())).ratios)).sum())


def strata(
  scores: Mapping[str, Mapping[str, scores_lib.Scores]],
  dataset: dataset_lib.Dataset,
) -> list[Stratum]:
  """The strata that have a pair; none where training has no text of any pair.

  A response is the same text whatever its prompt and however it is spaced. An
  example of which a rejected response was dropped, so that its pairs cannot be
  told apart, is in no stratum.

  Args:
    scores: by policy and split; all policies have the same examples.
    dataset: that they were trained on and are evaluated on.
  """
  found = []
  for split in next(iter(scores.values()), {}):
    examples = {
      scores_lib.example_key(each): each for each in getattr(dataset, split)
    }
    trained = _Trained(dataset.train, examples.values())
    for known_to in (PERSON, ANYBODY):
      counts = {
        name: _known(by_split[split], examples, trained.by(known_to))
        for name, by_split in scores.items()
      }
      for number, kind in enumerate(KINDS):
        stratum = Stratum(
          split,
          known_to,
          kind,
          {
            name: _only(scores[name][split], of_policy == number)
            for name, of_policy in counts.items()
          },
        )
        if stratum.pairs:
          found.append(stratum)
  return found if any(each.kind != "none" for each in found) else []


class _Trained:
  """Which texts were compared in training, and by whom.

  Of those alone that are held out as well: training has far more.
  """

  def __init__(self, train, heldout):
    wanted = {text for each in heldout for text in _texts(each)}
    self._by_user = collections.defaultdict(set)
    self._all = set()
    for example in train:
      texts = wanted.intersection(_texts(example))
      self._all |= texts
      if example.user_id is not None:
        self._by_user[example.user_id] |= texts

  def by(self, known_to: str):
    """A function from a user's id to the texts that are known."""
    if known_to == ANYBODY:
      return lambda user_id: self._all
    return lambda user_id: self._by_user.get(user_id, frozenset())


def _texts(example: structs.PreferenceExample) -> Iterator[str]:
  """The chosen response, and then the rejected ones."""
  for text in (example.chosen, *example.rejected):
    yield " ".join(unicodedata.normalize("NFC", text).split())


def _known(scores, examples, texts_of) -> Int[np.ndarray, "examples M"]:
  """How many of a pair's texts are known; -1 where that cannot be told."""
  counts = np.full(scores.ratios.shape, -1)
  for place, key in enumerate(scores.examples):
    example = examples.get(key)
    pairs = int((~np.isnan(scores.ratios[place])).sum())
    if example is None or pairs != len(example.rejected):
      continue
    known = texts_of(example.user_id)
    chosen, *rejected = (text in known for text in _texts(example))
    counts[place, :pairs] = [chosen + each for each in rejected]
  return counts


def _only(
  scores: scores_lib.Scores, kept: Bool[np.ndarray, "examples M"]
) -> scores_lib.Scores:
  return dataclasses.replace(
    scores, ratios=np.where(kept, scores.ratios, np.float32(np.nan))
  )
