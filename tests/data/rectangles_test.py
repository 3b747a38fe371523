import itertools
import time

import numpy as np
import pytest

from pdpo_jax.data import rectangles
from tests.data import random_batches


def test_at_most_one_batch_of_an_epoch_is_filled_up():
  filled = [
    b
    for b in random_batches.epoch(
      random_batches.make_batches(
        random_batches.make_examples(100), pack=False
      ),
      0,
    )
    if -1 in b.index
  ]
  assert len(filled) == 1
  fill = filled[0].index < 0
  assert fill.sum() == 5  # 15 batches of 7
  np.testing.assert_array_equal(filled[0].weight, np.where(fill, 0.0, 1.0))
  assert not filled[0].prompt_mask[fill].any()
  assert not filled[0].response_mask[fill].any()
  assert not filled[0].user_row[fill].any()


def test_shapes_are_few_nested_and_multiples_with_the_prefix():
  batches = random_batches.make_batches(
    random_batches.make_examples(200), pack=False
  )
  assert 1 < len(batches.shapes) <= 4
  for small, large in itertools.pairwise(batches.shapes):
    assert all(np.array(small) <= np.array(large))
  for prompt_size, _, response_size in batches.shapes:
    assert (random_batches.PREFIX + prompt_size) % random_batches.MULTIPLE == 0
    assert response_size % random_batches.MULTIPLE == 0
  seen = {
    (b.prompt.shape[1], *b.responses.shape[1:])
    for b in random_batches.epoch(batches, 0)
  }
  assert seen == set(batches.shapes)


def test_shapes_have_the_least_cost_of_all_cuts():
  rng = np.random.default_rng(0)
  for _ in range(20):
    sizes = rng.integers(1, 12, (9, 3))
    cost = sizes[:, 0] + sizes[:, 1] * sizes[:, 2]
    largest = np.maximum.accumulate(sizes[np.argsort(cost, kind="stable")])

    def padded(ends, largest=largest):
      total = 0
      for begin, end in itertools.pairwise((0, *ends, 9)):
        p, n, r = largest[end - 1]
        total += (end - begin) * (p + n * r)
      return total

    best = min(padded(ends) for ends in itertools.combinations(range(1, 9), 2))
    shapes = rectangles.choose_shapes(sizes, 3)
    assert len(shapes) <= 3
    ends = [np.flatnonzero((largest == s).all(1))[-1] + 1 for s in shapes]
    assert ends[-1] == 9
    assert padded(ends[:-1]) == best


def test_padding_share_is_that_of_the_batches():
  batches = random_batches.make_batches(
    random_batches.make_examples(100), pack=False
  )
  real = padded = 0
  for batch in random_batches.epoch(batches, 2):
    real += batch.prompt_mask.sum() + batch.response_mask.sum()
    padded += batch.prompt_mask.size + batch.response_mask.size
  assert batches.padding_share == pytest.approx(1 - real / padded)


def test_a_million_examples_are_planned_quickly():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, [100, 5, 60], (1_000_000, 3)) * [8, 1, 8]
  start = time.perf_counter()
  dealer = rectangles.Dealer(sizes, 32, 0, 4)
  dealer.batch(0)
  # About 0.5 s on a laptop core; the bound is wide for shared machines.
  assert time.perf_counter() - start < 10
  start = time.perf_counter()
  dealer.batch(1)
  assert time.perf_counter() - start < 0.05
