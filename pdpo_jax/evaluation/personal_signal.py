"""How much of a data set's choices is personal, without a language model.

Two measures bound what a personal model can gain:

- how often two users who compared the same pair agree, and how often a user
  agrees with the majority of the others;
- held-out accuracy of a logistic regression on ten surface features of the two
  responses, with weights common to all users, and with weights of each user's
  own added. Cross-validation on the training examples chooses how far a user's
  own weights may be from the common ones.
"""

import collections
import dataclasses
import itertools
import string
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import sparse
from sklearn import linear_model, model_selection, preprocessing

from pdpo_jax.core import structs
from pdpo_jax.evaluation import accuracy

# How much a user's own weights may differ, relative to the common ones.
_FREEDOMS = (0.01, 0.03, 0.1, 0.3, 1.0)
_FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Chosen and rejected responses, a pair for each rejected one.

  Attributes:
    features: `features` of the chosen response less those of the rejected one.
    owners: who chose; None for an unknown user.
  """

  features: Float[np.ndarray, "pairs 10"]
  owners: Sequence[str | None]

  @classmethod
  def of(cls, examples: Sequence[structs.PreferenceExample]) -> "Pairs":
    rows, owners = [], []
    for example in examples:
      for rejected in example.rejected:
        rows.append(np.subtract(features(example.chosen), features(rejected)))
        owners.append(example.user_id)
    return cls(np.array(rows).reshape(-1, 10), owners)


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How often users who compared the same two responses agree.

  Attributes:
    couples: of each two users on a pair, whether they chose the same.
    majorities: of each user on a pair that others compared as well, whether
      they chose what most of the others did; ties are left out.
  """

  couples: Sequence[bool]
  majorities: Sequence[bool]


def features(text: str) -> list[float]:
  """Ten numbers that need no understanding."""
  words = text.split()
  count, size = max(len(words), 1), max(len(text), 1)
  bare = [word.strip(string.punctuation).casefold() for word in words]
  return [
    np.log1p(len(words)),
    np.log1p(len(text)),
    sum(map(len, bare)) / count,
    len(set(bare)) / count,
    np.log1p(sum(text.count(mark) for mark in ".!?")),
    sum(letter.isupper() for letter in text) / size,
    sum(letter in string.punctuation for letter in text) / size,
    float("?" in text),
    float("!" in text),
    sum(word in ("i", "me", "my", "we", "our") for word in bare) / count,
  ]


def agreement(examples: Sequence[structs.PreferenceExample]) -> Agreement:
  """Compares what different examples chose of the same two responses."""
  votes = collections.defaultdict(list)
  for example in examples:
    for rejected in example.rejected:
      responses = frozenset((example.chosen, rejected))
      votes[example.prompt, responses].append(example.chosen)
  couples, majorities = [], []
  for choices in votes.values():
    couples += [a == b for a, b in itertools.combinations(choices, 2)]
    for place, choice in enumerate(choices):
      others = collections.Counter(choices[:place] + choices[place + 1 :])
      ranked = others.most_common()
      if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
        majorities.append(ranked[0][0] == choice)
  return Agreement(couples, majorities)


def accuracies(
  train: Pairs, heldout: Pairs
) -> tuple[accuracy.Accuracy, accuracy.Accuracy]:
  """Held-out accuracy with common weights, and with users' own added."""
  scale = preprocessing.StandardScaler(with_mean=False)
  train = dataclasses.replace(
    train, features=scale.fit_transform(train.features)
  )
  heldout = dataclasses.replace(
    heldout, features=scale.transform(heldout.features)
  )
  common, personal = (
    accuracy.reward_accuracy(
      _margins(train, heldout, freedom)[:, None], heldout.owners
    )
    for freedom in (0.0, _best_freedom(train))
  )
  return common, personal


def _design(pairs: Pairs, users: Sequence[str], freedom: float):
  """Common features and, times `freedom`, each user's own."""
  places = {user: place for place, user in enumerate(users)}
  width = pairs.features.shape[1]
  personal = sparse.lil_matrix((len(pairs.owners), width * len(users)))
  for row, owner in enumerate(pairs.owners):
    if owner in places:
      start = width * places[owner]
      personal[row, start : start + width] = freedom * pairs.features[row]
  return sparse.hstack(
    [sparse.csr_matrix(pairs.features), personal.tocsr()]
  ).tocsr()


def _margins(
  train: Pairs, heldout: Pairs, freedom: float
) -> Float[np.ndarray, " pairs"]:
  """By how much the chosen response is ahead, after a fit to `train`."""
  users = sorted({owner for owner in train.owners if owner is not None})
  matrix = _design(train, users, freedom)
  model = linear_model.LogisticRegression(
    fit_intercept=False, C=1.0, max_iter=2000
  )
  # Both directions of each pair.
  both = sparse.vstack([matrix, -matrix])
  model.fit(both, np.repeat([1, 0], len(train.owners)))
  return model.decision_function(_design(heldout, users, freedom))


def _best_freedom(train: Pairs) -> float:
  """By cross-validation."""
  folds = model_selection.KFold(_FOLDS, shuffle=True, random_state=0)
  hits = collections.Counter()
  for parts in folds.split(train.features):
    fitted, tested = (
      Pairs(train.features[rows], [train.owners[row] for row in rows])
      for rows in parts
    )
    for freedom in _FREEDOMS:
      hits[freedom] += int((_margins(fitted, tested, freedom) > 0).sum())
  return max(_FREEDOMS, key=lambda freedom: hits[freedom])


def describe(
  train: Sequence[structs.PreferenceExample],
  heldout: Sequence[structs.PreferenceExample],
  unseen: Sequence[structs.PreferenceExample] = (),
) -> str:
  """Both measures as text; says so where examples do not allow one."""
  lines = ["how much is personal, without a language model:"]
  agreements = agreement([*train, *heldout, *unseen])
  for title, values in (
    ("two users agree on the same pair", agreements.couples),
    ("a user agrees with most of the others", agreements.majorities),
  ):
    shown = f"{np.mean(values):.1%} of {len(values):,}" if values else "none"
    lines.append(f"  {title}: {shown}")
  users = {example.user_id for example in train if example.user_id is not None}
  known = [example for example in heldout if example.user_id in users]
  pairs, heldout_pairs = Pairs.of(train), Pairs.of(known)
  if len(users) < 2 or not known or len(pairs.owners) < _FOLDS:
    lines.append(
      "  weights of users' own: not measured, which takes two users with "
      f"held-out examples, and {_FOLDS} pairs to learn from"
    )
    return "\n".join(lines)
  common, personal = accuracies(pairs, heldout_pairs)
  for name, measured in (("common to all", common), ("users' own", personal)):
    low, high = measured.interval()
    lines.append(
      f"  held-out accuracy with weights {name}: "
      f"{100 * measured.users:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
    )
  gain = accuracy.gain(personal, common)
  low, high = gain.interval
  lines.append(
    f"  gain: {100 * gain.mean:+.1f} points "
    f"[{100 * low:+.1f}, {100 * high:+.1f}], "
    f"mean over {len(personal.by_user):,} users"
  )
  return "\n".join(lines)
