"""Ways to predict choices between texts without a language model.

Popularity (Bradley-Terry, a value a text), regression on the words of a text
with weights of each person's own, and matrix factorisation (a value a text, and
a product of a person's and a text's coordinates).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import optimize, sparse
from sklearn import feature_extraction, linear_model

from pdpo_jax.core import structs

_PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0)
# How far a person's own weights may be from the common ones.
_FREEDOMS = (0.1, 0.3, 1.0)
_RANKS = (1, 2, 4, 8)
_KEPT_FROM_FIT = 0.2
Examples = list[structs.PreferenceExample]
# Scores of the chosen and of the rejected text of each pair: their difference.
Predict = Callable[["Choices"], Float[np.ndarray, " pairs"]]


@dataclasses.dataclass(frozen=True)
class Choices:
  """Pairs, as places among people and texts.

  Attributes:
    people: who chose.
    chosen, rejected: among texts.
  """

  people: Int[np.ndarray, " pairs"]
  chosen: Int[np.ndarray, " pairs"]
  rejected: Int[np.ndarray, " pairs"]

  def __getitem__(self, which) -> "Choices":
    return Choices(self.people[which], self.chosen[which], self.rejected[which])


def choices_of(
  examples: Iterable[structs.PreferenceExample],
  people: dict[str, int],
  texts: dict[str, int],
) -> Choices:
  """A pair for each rejected response of a known person."""
  rows = [
    (people[example.user_id], texts[example.chosen], texts[rejected])
    for example in examples
    if example.user_id in people
    for rejected in example.rejected
  ]
  return Choices(*np.array(rows, np.int64).reshape(-1, 3).T)


def logistic(
  differences: sparse.csr_matrix, penalty: float
) -> Float[np.ndarray, " features"]:
  """Weights by which differences of chosen and rejected are positive."""
  # Every second pair the other way round, since a class must not be empty.
  signs = np.where(np.arange(differences.shape[0]) % 2, -1.0, 1.0)
  model = linear_model.LogisticRegression(
    C=1 / penalty, fit_intercept=False, max_iter=500
  )
  model.fit(sparse.diags(signs) @ differences, signs > 0)
  return model.coef_[0]


def popularity(train: Choices, num_texts: int, penalty: float) -> Predict:
  """Bradley-Terry: a value a text, the same for everybody."""
  eye = sparse.identity(num_texts, format="csr")
  values = logistic(eye[train.chosen] - eye[train.rejected], penalty)
  return lambda pairs: values[pairs.chosen] - values[pairs.rejected]


def own_weights(
  train: Choices,
  words: sparse.csr_matrix,
  num_people: int,
  penalty: float,
  freedom: float,
) -> Predict:
  """Weights of words, common ones and each person's own."""

  def differences(pairs):
    common = words[pairs.chosen] - words[pairs.rejected]
    size = common.shape[1]
    rows = sparse.coo_matrix(common)
    own = sparse.csr_matrix(
      (
        freedom * rows.data,
        (rows.row, pairs.people[rows.row] * size + rows.col),
      ),
      shape=(common.shape[0], num_people * size),
    )
    return sparse.hstack([common, own], format="csr")

  weights = logistic(differences(train), penalty)
  return lambda pairs: differences(pairs) @ weights


def factorisation(
  train: Choices,
  num_people: int,
  num_texts: int,
  rank: int,
  penalty: float,
) -> Predict:
  """`b_i + p_u q_i`, by L-BFGS from small random coordinates."""
  rng = np.random.default_rng(0)
  sizes = num_texts, num_people * rank, num_texts * rank
  start = 0.1 * rng.standard_normal(sum(sizes))

  def parts(weights: Float[Array, " weights"]):
    values, people, texts = jnp.split(weights, np.cumsum(sizes[:-1]))
    return values, people.reshape(-1, rank), texts.reshape(-1, rank)

  def margins(weights, pairs):
    values, people, texts = parts(weights)
    apart = texts[pairs.chosen] - texts[pairs.rejected]
    own = (people[pairs.people] * apart).sum(-1)
    return values[pairs.chosen] - values[pairs.rejected] + own

  @jax.jit
  @jax.value_and_grad
  def objective(weights):
    losses = jax.nn.softplus(-margins(weights, train)).sum()
    return losses + penalty / 2 * jnp.sum(weights**2)

  def evaluate(weights):
    value, gradient = objective(jnp.asarray(weights, jnp.float32))
    return float(value), np.asarray(gradient, np.float64)

  found = optimize.minimize(
    evaluate, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}
  )
  weights = jnp.asarray(found.x, jnp.float32)
  return lambda pairs: np.asarray(margins(weights, pairs))


def best(fit: Callable[..., Predict], train: Choices, grid: Sequence[tuple]):
  """What is fitted to all choices, with the settings that predict best.

  Returns:
    The prediction, and the settings.
  """
  order = np.random.default_rng(0).permutation(train.people.size)
  cut = round(_KEPT_FROM_FIT * order.size)
  kept, fitted = train[order[:cut]], train[order[cut:]]

  def loss(settings):
    margins = fit(fitted, *settings)(kept)
    return np.logaddexp(0, -margins).mean()

  settings = min(grid, key=loss)
  return fit(train, *settings), settings


def known_texts(
  examples: Iterable[structs.PreferenceExample],
) -> dict[str | None, set[str]]:
  """The texts that each person compared."""
  texts: dict[str | None, set[str]] = {}
  for example in examples:
    texts.setdefault(example.user_id, set()).update(
      (example.chosen, *example.rejected)
    )
  return texts


@dataclasses.dataclass(frozen=True)
class Methods:
  """Ways to predict choices without a language model.

  Attributes:
    people, texts: places by id and by text.
    by_name: what fits, and the settings to try, by name.
  """

  people: dict[str, int]
  texts: dict[str, int]
  by_name: dict[str, tuple[Callable[..., Predict], Sequence[tuple]]]

  @classmethod
  def of(
    cls, examples: Sequence[structs.PreferenceExample], people: Iterable[str]
  ) -> "Methods":
    """For the texts of examples."""
    places = {user_id: place for place, user_id in enumerate(people)}
    every = dict.fromkeys(
      text
      for example in examples
      for text in (example.chosen, *example.rejected)
    )
    texts = {text: place for place, text in enumerate(every)}
    counter = feature_extraction.text.CountVectorizer(
      binary=True, min_df=2, max_features=300
    )
    words = counter.fit_transform(texts).astype(np.float64)
    num_people, num_texts = len(places), len(texts)
    by_name = {
      "popularity": (
        lambda pairs, penalty: popularity(pairs, num_texts, penalty),
        [(penalty,) for penalty in _PENALTIES],
      ),
      "own weights of words": (
        lambda pairs, *settings: own_weights(
          pairs, words, num_people, *settings
        ),
        [(10 * p, freedom) for p in _PENALTIES for freedom in _FREEDOMS],
      ),
      "matrix factorisation": (
        lambda pairs, *settings: factorisation(
          pairs, num_people, num_texts, *settings
        ),
        [(rank, penalty) for rank in _RANKS for penalty in _PENALTIES],
      ),
    }
    return cls(places, texts, by_name)

  def choices(self, examples: Iterable[structs.PreferenceExample]) -> Choices:
    return choices_of(examples, self.people, self.texts)


def of_strangers(
  unseen: Sequence[structs.PreferenceExample], most: int
) -> tuple[dict[str, Examples], Examples]:
  """Choices to learn from by person, and held-out ones.

  The ratings' source gives a person's choices that training would have had
  first, and those that it would have held out after them.

  Args:
    most: choices for training a person.
  """
  by_person: dict[str, Examples] = {}
  for example in unseen:
    by_person.setdefault(str(example.user_id), []).append(example)
  own = {person: examples[:most] for person, examples in by_person.items()}
  held = [x for examples in by_person.values() for x in examples[most:]]
  return own, held


def draw(own: Mapping[str, Examples], number: int) -> dict[str, Examples]:
  """The same choices of each person in another order."""
  return {
    person: [examples[place] for place in order]
    for person, examples in own.items()
    for order in [
      np.random.default_rng([number, *person.encode()]).permutation(
        len(examples)
      )
    ]
  }
