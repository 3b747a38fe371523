"""Penalties that count the prompt, as transformers has them given its ids."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from pdpo_jax.inference import sampling

VOCABULARY = 11


@pytest.mark.parametrize("length", [1, 2, 9])
def test_penalties_with_the_prompt_are_those_of_transformers(length):
  rng = np.random.default_rng(length)
  prompt = rng.integers(0, 4, (6, length))
  tokens = rng.integers(0, 4, (6, 8))
  logits = rng.normal(size=(6, VOCABULARY)).astype(np.float32)
  spec = sampling.AnswersConfig(
    repetition_penalty=1.15,
    no_repeat_ngram=3,
    penalize_prompt=True,
    temperature=0.0,
  )
  padded = np.concatenate([np.full((6, 3), VOCABULARY), prompt], 1)
  penalty = logits_process.RepetitionPenaltyLogitsProcessor(1.15)
  ngrams = logits_process.NoRepeatNGramLogitsProcessor(3)
  banned = 0
  for count in range(9):
    ids = torch.tensor(np.concatenate([prompt, tokens[:, :count]], 1))
    expected = ngrams(ids, penalty(ids, torch.tensor(logits))).numpy()
    found = sampling.filter_logits(
      jnp.asarray(logits),
      jnp.asarray(tokens),
      count,
      jnp.zeros((0,), jnp.int32),
      spec,
      jnp.asarray(padded),
    )
    # A division and a multiplication in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    banned += np.isinf(expected).sum()
  assert banned > 5
