"""Held-out pairs apart by something that is known of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.runs import scores as scores_lib

Scores = Mapping[str, Mapping[str, scores_lib.Scores]]  # by policy and split


@dataclasses.dataclass(frozen=True)
class Stratum:
  """Pairs of a split that are alike in something.

  Attributes:
    split: "heldout" or "unseen".
    by: what they are alike in.
    kind: how they are.
    scores: of the split by policy, NaN at all other pairs.
  """

  split: str
  by: str
  kind: str
  scores: Mapping[str, scores_lib.Scores]

  @property
  def pairs(self) -> int:
    return count(next(iter(self.scores.values())))


def count(scores: scores_lib.Scores) -> int:
  """How many pairs there are."""
  return int((~np.isnan(scores.ratios)).sum())


def divide(
  scores: Scores,
  split: str,
  examples: Sequence[structs.PreferenceExample],
  by: str,
  kinds: Sequence[str],
  kind_of: Callable[[structs.PreferenceExample], Sequence[int]],
) -> list[Stratum]:
  """The strata of a split that have a pair, in the order of their kinds.

  An example of which a rejected response was dropped, so that its pairs cannot
  be told apart, is in no stratum.

  Args:
    scores: all policies have the same examples.
    examples: of the split.
    by: what pairs are told apart by.
    kinds: names of what there is.
    kind_of: of an example, the place in `kinds` for each rejected response.
  """
  by_key = {scores_lib.example_key(each): each for each in examples}
  places = {}
  for name, by_split in scores.items():
    of_policy = by_split[split]
    places[name] = np.full(of_policy.ratios.shape, -1)
    for place, key in enumerate(of_policy.examples):
      pairs = int((~np.isnan(of_policy.ratios[place])).sum())
      example = by_key.get(key)
      if example is not None and pairs == len(example.rejected):
        places[name][place, :pairs] = kind_of(example)
  strata = [
    Stratum(
      split,
      by,
      kind,
      {
        name: dataclasses.replace(
          by_split[split],
          ratios=np.where(
            places[name] == number, by_split[split].ratios, np.float32(np.nan)
          ),
        )
        for name, by_split in scores.items()
      },
    )
    for number, kind in enumerate(kinds)
  ]
  return [stratum for stratum in strata if stratum.pairs]
