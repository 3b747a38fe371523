"""Held-out pairs apart by whether training had their texts.

Pairs are held out, and their texts need not be: who compares films has compared
most of them with another one before. On such pairs a policy can be right by
having learnt that a person likes this very text, which says nothing of texts
that are new to them.
"""

import collections
import itertools
import unicodedata
from collections.abc import Callable, Collection, Iterable

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import strata

# Who compared a text in training: the same person, or whoever.
PERSON, ANYBODY = "person", "anybody"
# How many of a pair's two texts are known.
KINDS = ("none", "one", "both")


def divide(
  scores: strata.Scores, dataset: dataset_lib.Dataset
) -> list[strata.Stratum]:
  """Strata by who knows how many texts; none where training has none of them.

  A response is the same text whatever its prompt and however it is spaced.

  Args:
    dataset: that policies were trained on and are evaluated on.
  """
  splits = {
    split: getattr(dataset, split) for split in next(iter(scores.values()), {})
  }
  trained = _Trained(dataset.train, itertools.chain(*splits.values()))
  if not trained.texts:
    return []
  divided = [
    stratum
    for split, examples in splits.items()
    for known_to in (PERSON, ANYBODY)
    for stratum in strata.divide(
      scores, split, examples, known_to, KINDS, trained.count_by(known_to)
    )
  ]
  # Pairs that have them may not have been scored.
  return divided if any(each.kind != "none" for each in divided) else []


class _Trained:
  """Which texts were compared in training, and by whom.

  Of those alone that are held out as well: training has far more.

  Attributes:
    texts: whoever compared them.
  """

  def __init__(
    self,
    train: Iterable[structs.PreferenceExample],
    heldout: Iterable[structs.PreferenceExample],
  ):
    wanted = {text for each in heldout for text in _texts(each)}
    self._by_user = collections.defaultdict(set)
    self.texts = set()
    for example in train:
      texts = wanted.intersection(_texts(example))
      self.texts |= texts
      if example.user_id is not None:
        self._by_user[example.user_id] |= texts

  def count_by(
    self, known_to: str
  ) -> Callable[[structs.PreferenceExample], list[int]]:
    """How many of the two texts of each of an example's pairs are known."""

    def count(example: structs.PreferenceExample) -> list[int]:
      known: Collection[str] = self.texts
      if known_to == PERSON:
        known = self._by_user.get(example.user_id, ())
      chosen, *rejected = (text in known for text in _texts(example))
      return [chosen + each for each in rejected]

    return count


def _texts(example: structs.PreferenceExample) -> list[str]:
  """The chosen response, and then the rejected ones."""
  return [
    " ".join(unicodedata.normalize("NFC", text).split())
    for text in (example.chosen, *example.rejected)
  ]
