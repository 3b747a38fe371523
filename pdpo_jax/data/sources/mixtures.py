"""People of the little language whose tastes are mixtures of five.

Summaries of the same posts (`synthetic.py`) differ in five ways:

  length      how many of the facts they tell
  tone        whether sentences begin with "sadly"
  order       whether facts come in the post's order, or from the last one told
  names       whether it says who did it, or "someone"
  repetition  whether the first sentence is said again at the end

A person weighs these by a draw of a Dirichlet distribution, and likes either
end of each. They prefer whichever summary suits them more, and never err, so
that what is to be known of a person is five numbers.
"""

import random
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.data.sources import synthetic

TASTES = ("length", "tone", "order", "names", "repetition")
# Of the Dirichlet distribution: most people care for two or three.
_CONCENTRATION = 0.5
# Summaries that suit somebody to less difference are not compared.
_LEAST_DIFFERENCE = 0.1
_SAD, _SOMEONE = "sadly", "someone"

Taste = Float[np.ndarray, " 5"]


def taste_of(user_id: str, seed: int) -> Taste:
  """A person's weights of the five ways; their sizes sum to 1."""
  rng = random.Random(f"taste {seed} {user_id}")
  sizes = np.array([rng.gammavariate(_CONCENTRATION, 1.0) for _ in TASTES])
  ends = np.array([rng.choice((-1.0, 1.0)) for _ in TASTES])
  return ends * sizes / sizes.sum()


def summarize(post: synthetic.Post, rng: random.Random) -> str:
  """Tells one to all of a post's facts, in any of the ways."""
  count = rng.randint(1, len(post.facts))
  is_sad, backwards, nameless, again = (rng.random() < 0.5 for _ in range(4))
  told = [fact.split()[:3] for fact in post.facts[:count]]
  if nameless:
    told = [[_SOMEONE, *fact[1:]] for fact in told]
  if is_sad:
    told = [[_SAD, *fact] for fact in told]
  if backwards:
    told.reverse()
  if again:
    told.append(told[0])
  return "".join(f" {' '.join(fact)}." for fact in told)


def ways(text: str, facts: Sequence[str]) -> Taste:
  """How a summary of these facts is in each way, from -1 to 1.

  A single fact has no order: 0.
  """
  told = [phrase.split() for phrase in synthetic.phrases(text)]
  is_sad = told[0][0] == _SAD
  told = [fact[is_sad:] for fact in told]
  again = len(told) > 1 and told[-1] == told[0]
  count = len(told) - again
  order = 0.0
  if count > 1:
    order = 1.0 if told[0][1:] == facts[0].split()[1:3] else -1.0
  return np.array(
    [
      2 * (count - 1) / (synthetic.MAX_FACTS - 1) - 1,
      2.0 * is_sad - 1,
      order,
      -1.0 if told[0][0] == _SOMEONE else 1.0,
      2.0 * again - 1,
    ]
  )


def sft_pairs(
  posts: Sequence[synthetic.Post], seed: int
) -> list[tuple[str, str]]:
  """(prompt, summary) of each post."""
  rng = random.Random(f"summaries {seed}")
  return [(post.prompt, summarize(post, rng)) for post in posts]


def comparisons(
  posts: Sequence[synthetic.Post], tastes: Mapping[str, Taste], seed: int
) -> list[structs.PreferenceExample]:
  """One comparison a post; people take turns, and posts left over are not used.

  Args:
    tastes: of each person, by id.
  """
  rng = random.Random(f"comparisons {seed}")
  ids = list(tastes)
  used = len(posts) // len(ids) * len(ids)
  examples = []
  for place, post in enumerate(posts[:used]):
    user_id = ids[place % len(ids)]
    gain = 0.0
    while abs(gain) < _LEAST_DIFFERENCE:
      one, other = (summarize(post, rng) for _ in range(2))
      more = ways(one, post.facts) - ways(other, post.facts)
      gain = float(tastes[user_id] @ more)
    if gain < 0:
      one, other = other, one
    examples.append(
      structs.PreferenceExample(post.prompt, one, (other,), user_id)
    )
  return examples
