"""Random examples in batches, for tests of how they are dealt."""

import jax
import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.data import batching

PREFIX, MULTIPLE, BATCH = 3, 5, 7


def make_examples(count, seed=0, max_responses=4):
  rng = np.random.default_rng(seed)

  def ids(low, high):
    return rng.integers(1, 100, rng.integers(low, high)).astype(np.int32)

  return [
    structs.TokenizedExample(
      user_row=int(rng.integers(0, 11)),
      prompt=ids(1, 40),
      bare_prompt=ids(1, 40),
      responses=tuple(
        ids(1, 30) for _ in range(rng.integers(2, max_responses + 1))
      ),
    )
    for _ in range(count)
  ]


def make_batches(examples, logps=None, **kwargs):
  options = {"batch_size": BATCH, "seed": 1, "prefix_length": PREFIX}
  options |= {"pad_multiple": MULTIPLE} | kwargs
  return batching.PreferenceBatches(examples, logps, **options)


def assert_same(batch, other):
  jax.tree.map(np.testing.assert_array_equal, batch, other)


def epoch(batches, number):
  start = number * batches.num_batches
  return [batches.batch(start + i) for i in range(batches.num_batches)]
