"""What a policy's margin tells of choices beyond lengths."""

import collections
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from sklearn import linear_model

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy
from pdpo_jax.runs import scores as scores_lib

# People are predicted by what holds of others, in so many parts.
_PARTS = 5


def tastes(
  train: Iterable[structs.PreferenceExample],
) -> dict[str | None, float]:
  """How far each person went for the longer text in training, -1 to 1."""
  signs = collections.defaultdict(list)
  for example in train:
    signs[example.user_id] += map(np.sign, _longer(example))
  return {
    user_id: float(np.mean(of_user)) for user_id, of_user in signs.items()
  }


def predict(
  scores: scores_lib.Scores, dataset: dataset_lib.Dataset, split: str
) -> tuple[accuracy.Accuracy, accuracy.Accuracy] | None:
  """Accuracy of lengths alone, and of lengths and the policy's margin.

  Both are logistic regressions of the choice: on the difference of lengths (of
  their logarithms), on the same times the person's own taste in training, and
  one on the margin besides. Weights are fitted to other people than those whose
  choices they predict. A margin that only repeats a taste in length adds
  nothing.

  Args:
    scores: of a policy on the split.

  Returns:
    None for fewer than two people. Without pairs that cannot be told apart
    (rejected responses were dropped).
  """
  examples = {
    scores_lib.example_key(each): each for each in getattr(dataset, split)
  }
  own = tastes(dataset.train)
  rows, places = [], []
  for place, key in enumerate(scores.examples):
    example = examples.get(key)
    margins = scores.ratios[place][~np.isnan(scores.ratios[place])]
    if example is None or len(margins) != len(example.rejected):
      continue
    if example.user_id is None:
      continue
    taste = own.get(example.user_id, 0.0)
    for pair, (longer, margin) in enumerate(
      zip(_longer(example), margins, strict=True)
    ):
      rows.append((longer, taste * longer, margin))
      places.append((place, pair))
  users = [scores.user_ids[place] for place, _ in places]
  ids = sorted(set(users))
  if len(ids) < 2:
    return None
  features = np.array(rows, np.float64)
  part = {user_id: number % _PARTS for number, user_id in enumerate(ids)}
  parts = np.array([part[user_id] for user_id in users])
  found = []
  for count in (2, 3):
    ratios = np.full(scores.ratios.shape, np.nan, np.float32)
    predicted = _cross_fitted(features[:, :count], parts)
    ratios[tuple(np.array(places).T)] = predicted
    found.append(accuracy.reward_accuracy(ratios, scores.user_ids))
  return found[0], found[1]


def _cross_fitted(
  features: Float[np.ndarray, "pairs features"], parts: np.ndarray
) -> Float[np.ndarray, " pairs"]:
  """Of each pair, how far its chosen response is ahead by what others chose."""
  scale = np.sqrt(np.mean(features**2, 0))
  features = features / np.where(scale > 0, scale, 1.0)
  predicted = np.zeros(len(features))
  for part in np.unique(parts):
    others = features[parts != part]
    # Each pair both ways round, since which response comes first says nothing.
    both = np.concatenate([others, -others])
    model = linear_model.LogisticRegression(fit_intercept=False)
    model.fit(both, np.repeat([1, 0], len(others)))
    predicted[parts == part] = features[parts == part] @ model.coef_[0]
  return predicted


def _longer(example: structs.PreferenceExample) -> list[float]:
  """By how much the chosen response is longer than each rejected one."""
  chosen = math.log1p(len(example.chosen))
  return [chosen - math.log1p(len(text)) for text in example.rejected]
