r"""How much of a data set's choices is personal, without a language model.

  python -m benchmarks.personal_signal --config=configs/smollm2.py \
    --config.data.path=choices.jsonl

Two measures that bound what a personal model can gain:

- how often two users who compared the same pair agree, and how often a user
  agrees with the majority of the others;
- held-out accuracy of a logistic regression on ten surface features of the two
  responses, with weights common to all users, and with weights of each user's
  own added. How strongly the latter are held to the former is chosen by
  cross-validation on the training part.

CPU, under a minute for some thousand comparisons.
"""

import collections
import itertools
import string

import numpy as np
from scipy import sparse
from sklearn import linear_model, model_selection, pipeline, preprocessing

from pdpo_jax import command_line
from pdpo_jax.evaluation import accuracy
from pdpo_jax.runs import experiment, run_folder
from pdpo_jax.weights import base as base_lib

_CONFIG = command_line.config_flag()
# How much a user's own weights may differ, relative to the common ones.
_FREEDOMS = (0.01, 0.03, 0.1, 0.3, 1.0)


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


def pairs(examples):
  """Features of chosen less rejected, and whose choice each pair is."""
  rows, owners = [], []
  for example in examples:
    for rejected in example.rejected:
      rows.append(
        np.subtract(features(example.chosen), features(rejected)).tolist()
      )
      owners.append(example.user_id)
  return np.array(rows), owners


def design(inputs, owners, users, freedom):
  """Common features and, times `freedom`, each user's own."""
  place = {user: number for number, user in enumerate(users)}
  width = inputs.shape[1]
  own = sparse.lil_matrix((len(inputs), width * len(users)))
  for row, owner in enumerate(owners):
    if owner in place:
      start = width * place[owner]
      own[row, start : start + width] = freedom * inputs[row]
  return sparse.hstack([sparse.csr_matrix(inputs), own.tocsr()]).tocsr()


def fit(inputs, owners, users, freedom, heldout, heldout_owners):
  """Held-out margins after a fit to both directions of each pair."""
  matrix = design(inputs, owners, users, freedom)
  model = linear_model.LogisticRegression(
    fit_intercept=False, C=1.0, max_iter=2000
  )
  both = sparse.vstack([matrix, -matrix])
  model.fit(both, np.repeat([1, 0], len(inputs)))
  return model.decision_function(
    design(heldout, heldout_owners, users, freedom)
  )


def best_freedom(inputs, owners, users) -> float:
  """By cross-validation on the training part."""
  folds = model_selection.KFold(5, shuffle=True, random_state=0)
  hits = collections.Counter()
  for train, test in folds.split(inputs):
    for freedom in _FREEDOMS:
      margins = fit(
        inputs[train],
        [owners[row] for row in train],
        users,
        freedom,
        inputs[test],
        [owners[row] for row in test],
      )
      hits[freedom] += int((margins > 0).sum())
  return max(_FREEDOMS, key=lambda freedom: hits[freedom])


def agreement(examples) -> tuple[list[float], list[float]]:
  """Whether two users agree on a pair, and a user with the others' majority."""
  votes = collections.defaultdict(list)
  for example in examples:
    for rejected in example.rejected:
      two = (example.prompt, frozenset((example.chosen, rejected)))
      votes[two].append(example.chosen)
  alike, majority = [], []
  for said in votes.values():
    alike += [float(a == b) for a, b in itertools.combinations(said, 2)]
    for place, mine in enumerate(said):
      others = collections.Counter(said[:place] + said[place + 1 :])
      ranked = others.most_common()
      if ranked and (len(ranked) == 1 or ranked[0][1] > ranked[1][1]):
        majority.append(float(ranked[0][0] == mine))
  return alike, majority


def main() -> None:
  config = _CONFIG.value
  base = base_lib.read_base(
    run_folder.base_path(config, config.folder), config.base
  )
  dataset = experiment.load_dataset(config, base.tokenizer)
  train, owners = pairs(dataset.train)
  heldout, heldout_owners = pairs(dataset.heldout)
  users = sorted({owner for owner in owners if owner})
  scale = pipeline.make_pipeline(preprocessing.StandardScaler(with_mean=False))
  train, heldout = scale.fit_transform(train), scale.transform(heldout)
  print(
    f"{len(users)} users, {len(train):,} training and {len(heldout):,} "
    "held-out pairs"
  )
  for title, found in zip(
    ("two users on the same pair", "a user with the others' majority"),
    agreement([*dataset.train, *dataset.heldout, *dataset.unseen]),
    strict=True,
  ):
    shown = f"{np.mean(found):.1%} of {len(found):,}" if found else "none"
    print(f"agree, {title}: {shown}")
  freedom = best_freedom(train, owners, users)
  results = {}
  for name, free in (("common", 0.0), ("personal", freedom)):
    margins = fit(train, owners, users, free, heldout, heldout_owners)
    results[name] = accuracy.reward_accuracy(margins[:, None], heldout_owners)
    low, high = results[name].interval()
    print(
      f"{name} weights: {results[name].users:.3f}, mean over users "
      f"[{low:.3f}, {high:.3f}]"
    )
  gain = accuracy.gain(results["personal"], results["common"])
  low, high = gain.interval
  print(
    f"gain: {100 * gain.mean:+.1f} points "
    f"[{100 * low:+.1f}, {100 * high:+.1f}] (freedom {freedom})"
  )


if __name__ == "__main__":
  command_line.run(main)
