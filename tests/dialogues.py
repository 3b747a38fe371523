"""Comparisons that are turns of random dialogues, as token ids."""

import numpy as np

from pdpo_jax.core import structs

VOCABULARY, USERS = 101, 4


def dialogue(rng, turns, user, with_text):
  """Comparisons of one dialogue, each of whose prompts goes on from the last.

  The last token of a response is left out of the history in half of them, as
  by templates that do not end earlier turns.
  """

  def ids(low, high):
    return rng.integers(1, VOCABULARY, rng.integers(low, high)).astype(np.int32)

  text = ids(2, 6) if with_text else ids(0, 1)
  history, ends, examples = ids(1, 4), bool(rng.integers(2)), []
  for _ in range(turns):
    prompt = np.concatenate([history, ids(1, 5)])
    responses = tuple(ids(1, 9) for _ in range(rng.integers(2, 5)))
    examples.append(
      structs.TokenizedExample(
        user, np.concatenate([text, prompt]), prompt, responses
      )
    )
    history = np.concatenate([prompt, responses[0][: None if ends else -1]])
  return examples


def make(seed, with_text=True, count=6):
  """Of one to six turns, with one to three rejected responses each."""
  rng = np.random.default_rng(seed)
  return [
    example
    for number in range(count)
    for example in dialogue(rng, 1 + number % 6, number % USERS, with_text)
  ]
