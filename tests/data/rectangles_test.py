import itertools
import time

import jax
import numpy as np
import pytest

from pdpo_jax import structs
from pdpo_jax.data import batching, rectangles

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
  options = {
    "batch_size": BATCH,
    "seed": 1,
    "prefix_length": PREFIX,
    "pack": False,
  }
  options |= {"pad_multiple": MULTIPLE} | kwargs
  return batching.PreferenceBatches(examples, logps, **options)


def assert_same(batch, other):
  jax.tree.map(np.testing.assert_array_equal, batch, other)


def epoch(batches, number):
  start = number * batches.num_batches
  return [batches.batch(start + i) for i in range(batches.num_batches)]


@pytest.mark.parametrize("count", [1, 6, 7, 8, 100])
def test_every_example_comes_once_an_epoch_in_as_few_batches_as_possible(count):
  batches = make_batches(make_examples(count))
  assert batches.num_batches == -(-count // BATCH)
  for number in (0, 3):
    rows = np.concatenate([b.index for b in epoch(batches, number)])
    assert sorted(rows[rows >= 0]) == list(range(count))
  rows = np.concatenate([b.index for b in batches.in_order()])
  assert sorted(rows[rows >= 0]) == list(range(count))


def test_at_most_one_batch_of_an_epoch_is_filled_up():
  filled = [
    b for b in epoch(make_batches(make_examples(100)), 0) if -1 in b.index
  ]
  assert len(filled) == 1
  fill = filled[0].index < 0
  assert fill.sum() == 5  # 15 batches of 7
  np.testing.assert_array_equal(filled[0].weight, np.where(fill, 0.0, 1.0))
  assert not filled[0].prompt_mask[fill].any()
  assert not filled[0].response_mask[fill].any()
  assert not filled[0].user_row[fill].any()


def test_a_batch_depends_on_seed_and_step_alone():
  examples = make_examples(100)
  steps = [40, 3, 17, 3, 0]
  first = make_batches(examples)
  for step in steps:
    assert_same(first.batch(step), make_batches(examples).batch(step))


def test_epochs_and_seeds_differ_in_samples_and_in_the_order_of_shapes():
  examples = make_examples(100)
  batches = make_batches(examples)
  orders = [
    epoch(batches, 0),
    epoch(batches, 1),
    epoch(make_batches(examples, seed=2), 0),
  ]
  for one, other in itertools.combinations(orders, 2):
    assert [b.index.tolist() for b in one] != [b.index.tolist() for b in other]
    assert [b.prompt.shape for b in one] != [b.prompt.shape for b in other]


def test_shapes_are_few_nested_and_multiples_with_the_prefix():
  batches = make_batches(make_examples(200))
  assert 1 < len(batches.shapes) <= 4
  for small, large in itertools.pairwise(batches.shapes):
    assert all(np.array(small) <= np.array(large))
  for prompt_size, _, response_size in batches.shapes:
    assert (PREFIX + prompt_size) % MULTIPLE == 0
    assert response_size % MULTIPLE == 0
  seen = {
    (b.prompt.shape[1], *b.responses.shape[1:]) for b in epoch(batches, 0)
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
  batches = make_batches(make_examples(100))
  real = padded = 0
  for batch in epoch(batches, 2):
    real += batch.prompt_mask.sum() + batch.response_mask.sum()
    padded += batch.prompt_mask.size + batch.response_mask.size
  assert batches.padding_share == pytest.approx(1 - real / padded)


def test_more_shapes_pad_less():
  examples = make_examples(300)
  shares = [
    make_batches(examples, max_shapes=k).padding_share for k in (1, 2, 4)
  ]
  assert shares[2] < shares[1] < shares[0]


def test_a_million_samples_are_planned_quickly():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, [100, 5, 60], (1_000_000, 3)) * [8, 1, 8]
  start = time.perf_counter()
  planner = rectangles.Planner(sizes, 32, 0, 4)
  planner.batch(0)
  # About 0.5 s on a laptop core; the bound is wide for shared machines.
  assert time.perf_counter() - start < 10
  start = time.perf_counter()
  planner.batch(1)
  assert time.perf_counter() - start < 0.05


def make_sequences(count):
  examples = make_examples(count)
  return [(example.prompt, example.responses[0]) for example in examples]
