import itertools
import time

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import dialogues, padding
from pdpo_jax.data import batching, packing
from pdpo_jax.training import objective as objective_lib
from tests.data import random_batches


def test_padded_lengths_hold_the_prompt_and_are_few():
  sizes = [batching.padded_length(length) for length in range(1, 1025)]
  assert all(size >= i + 1 for i, size in enumerate(sizes))
  assert all(2 * (i + 1) > size for i, size in enumerate(sizes) if i >= 8)
  assert sorted(set(sizes)) == (
    [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
  )


def test_bare_prompts_are_padded_left_like_prompts():
  examples = random_batches.make_examples(20)
  plain, both = (
    random_batches.make_batches(examples, with_bare_prompt=wanted)
    for wanted in (False, True)
  )
  assert next(plain.in_order()).bare_prompt is None
  for batch in both.in_order():
    assert batch.bare_prompt.shape == batch.prompt.shape
    for row, index in enumerate(batch.index):
      real = batch.bare_prompt[row][batch.bare_prompt_mask[row]]
      expected = examples[index].bare_prompt if index >= 0 else []
      np.testing.assert_array_equal(real, expected)
      if index >= 0:
        assert batch.bare_prompt_mask[row, -len(real) :].all()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("count", [1, 6, 7, 8, 100])
def test_every_example_comes_once_an_epoch_in_as_few_batches_as_possible(
  count, pack
):
  batches = random_batches.make_batches(
    random_batches.make_examples(count), pack=pack
  )
  assert batches.num_batches == -(-count // random_batches.BATCH)
  for number in (0, 3):
    rows = np.concatenate(
      [b.index for b in random_batches.epoch(batches, number)]
    )
    assert sorted(rows[rows >= 0]) == list(range(count))
  rows = np.concatenate([b.index for b in batches.in_order()])
  assert sorted(rows[rows >= 0]) == list(range(count))


def test_an_epoch_is_filled_up_by_less_than_a_batch():
  batches = random_batches.make_batches(random_batches.make_examples(100))
  index = np.concatenate(
    [batch.index for batch in random_batches.epoch(batches, 0)]
  )
  assert (index < 0).sum() == 5  # 15 batches of 7
  for batch in random_batches.epoch(batches, 0):
    fill = batch.index < 0
    np.testing.assert_array_equal(batch.weight, np.where(fill, 0.0, 1.0))
    assert not batch.prompt_mask[fill].any()
    assert not batch.response_mask[fill].any()
    assert not batch.user_row[fill].any()


@pytest.mark.parametrize("pack", [True, False])
def test_a_batch_depends_on_seed_and_step_alone(pack):
  examples = random_batches.make_examples(100)
  steps = [40, 3, 17, 3, 0]
  first = random_batches.make_batches(examples, pack=pack)
  for step in steps:
    random_batches.assert_same(
      first.batch(step),
      random_batches.make_batches(examples, pack=pack).batch(step),
    )


@pytest.mark.parametrize("pack", [True, False])
def test_epochs_and_seeds_differ_in_examples_and_in_the_order_of_shapes(pack):
  examples = random_batches.make_examples(100)
  batches = random_batches.make_batches(examples, pack=pack)
  orders = [
    random_batches.epoch(batches, 0),
    random_batches.epoch(batches, 1),
    random_batches.epoch(
      random_batches.make_batches(examples, seed=2, pack=pack), 0
    ),
  ]
  for one, other in itertools.combinations(orders, 2):
    assert [b.index.tolist() for b in one] != [b.index.tolist() for b in other]
    assert [b.prompt.shape for b in one] != [b.prompt.shape for b in other]


def test_examples_are_whole_prompts_padded_left_and_responses_right():
  examples = random_batches.make_examples(50)
  logps = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
  for batch in random_batches.epoch(
    random_batches.make_batches(examples, logps), 0
  ):
    for row, index in enumerate(batch.index):
      if index < 0:
        continue
      example = examples[index]
      assert batch.user_row[row] == example.user_row
      mask = batch.prompt_mask[row]
      np.testing.assert_array_equal(batch.prompt[row][mask], example.prompt)
      assert mask[-len(example.prompt) :].all()
      for number, mask in enumerate(batch.response_mask[row]):
        if number >= len(example.responses):
          assert not mask.any()
          continue
        response = example.responses[number]
        assert mask.sum() == len(response)
        np.testing.assert_array_equal(
          batch.responses[row, number, : len(response)], response
        )
        assert batch.reference_logps[row, number] == logps[index, number]


def test_shapes_are_few_and_multiples_with_the_prefix():
  batches = random_batches.make_batches(random_batches.make_examples(200))
  assert 1 < len(batches.shapes) <= 4
  for prompt_size, _, response_size in batches.shapes:
    assert (random_batches.PREFIX + prompt_size) % random_batches.MULTIPLE == 0
    assert response_size % random_batches.MULTIPLE == 0
  for room in batches.rooms:
    assert (
      room.positions % random_batches.MULTIPLE
      == room.response_positions % random_batches.MULTIPLE
      == 0
    )
  seen = {
    (b.prompt.shape[1], *b.responses.shape[1:])
    for b in random_batches.epoch(batches, 0)
  }
  assert seen == set(batches.shapes)


def groups(batch, layout):
  """Examples that are run together, as the step takes a batch apart."""
  rows = jnp.arange(layout.batch_size).reshape(layout.devices, -1)
  for device in rows:
    yield from np.asarray(
      objective_lib.split_in_microbatches(device, layout.microbatches)
    )


def lengths(batch, rows):
  """Positions of some examples' prompts and responses, and of the latter."""
  responses = batch.response_mask[rows].sum()
  return batch.prompt_mask[rows].sum() + responses, responses


@pytest.mark.parametrize(
  ("devices", "microbatches"), [(1, 1), (1, 4), (4, 1), (2, 3), (1, 12)]
)
def test_every_group_has_room_whatever_is_dealt(devices, microbatches):
  batches = random_batches.make_batches(
    random_batches.make_examples(300),
    batch_size=12,
    devices=devices,
    microbatches=microbatches,
  )
  real = room = 0
  for number in range(3):
    for batch in random_batches.epoch(batches, number):
      assert batch.packed in batches.rooms
      for rows in groups(batch, batches.layout):
        assert len(rows) == batch.packed.rows
        both, responses = lengths(batch, rows)
        assert both <= batch.packed.positions
        assert responses <= batch.packed.response_positions
        real += both
        room += batch.packed.positions
  assert batches.padding_share == pytest.approx(1 - real / room)


def test_batches_are_the_same_on_any_number_of_devices():
  examples = random_batches.make_examples(100)
  one, four = (
    random_batches.make_batches(
      examples, batch_size=8, devices=devices, microbatches=2
    )
    for devices in (1, 4)
  )
  for step in range(one.num_batches):
    assert sorted(one.batch(step).index) == sorted(four.batch(step).index)


@pytest.mark.parametrize("together", [2, 32])
@pytest.mark.parametrize("kind", padding.KINDS)
def test_at_most_a_tenth_of_the_positions_is_padding(kind, together):
  batches = padding.batches_of(padding.draw(kind, 1000), 32, together)
  assert len(batches.shapes) <= 4
  assert batches.padding_share <= 0.1


def test_a_tenth_is_padding_where_two_dialogues_run_together():
  examples = dialogues.draw(2000, padding.PROMPTS)
  batches = padding.batches_of(examples, 32, 8, share_trunks=True)
  assert 2 < len(batches.trunks) / (4 * batches.num_batches) < 2.5
  assert len(batches.shapes) <= 4
  assert batches.padding_share <= 0.1


def test_classes_need_the_least_room_of_all_cuts():
  rng = np.random.default_rng(0)
  layout = packing.Layout(2, microbatches=2)  # a room is what the longest needs
  for _ in range(20):
    sizes = rng.integers(1, 90, 17)
    none = np.zeros_like(sizes)
    rows = packing.Sizes(sizes, none, none, np.ones_like(sizes))
    made = packing.make_classes(rows, layout, 3, 1)
    ordered = np.append(np.sort(sizes), sizes.max()).reshape(-1, 2).max(1)

    def room(ends, longest=ordered):
      return sum(
        (end - begin) * longest[end - 1]
        for begin, end in itertools.pairwise((0, *ends, 9))
      )

    best = min(room(ends) for ends in itertools.combinations(range(1, 9), 2))
    assert len(made) <= 3
    assert best == sum(c.num_batches * c.packed.positions for c in made)


@pytest.mark.parametrize("pack", [True, False])
def test_more_shapes_pad_less(pack):
  examples = random_batches.make_examples(300)
  shares = [
    random_batches.make_batches(examples, max_shapes=k, pack=pack).padding_share
    for k in (1, 2, 4)
  ]
  assert shares[2] < shares[1] < shares[0]


def test_without_reference_logps_their_place_is_not_a_number():
  examples = random_batches.make_examples(8, max_responses=2)
  for batch in random_batches.make_batches(examples).in_order():
    real = batch.weight > 0
    assert np.isnan(batch.reference_logps[real]).all()
    assert not batch.reference_logps[~real].any()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"batch_size": 0}, "batch_size 0"),
    ({"max_shapes": 0}, "max_shapes 0"),
    ({"pad_multiple": 0}, "pad_multiple 0"),
    ({"devices": 2}, "7 is not divisible by 2 devices times 1 microbatches"),
  ],
)
def test_impossible_batches_are_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    random_batches.make_batches(random_batches.make_examples(3), **options)


def test_reference_logps_of_other_data_are_an_error():
  examples = random_batches.make_examples(3, max_responses=2)
  with pytest.raises(ValueError, match=r"\(4, 2\).*\(3, 2\)"):
    random_batches.make_batches(examples, np.zeros((4, 2), np.float32))


def test_no_examples_are_an_error():
  with pytest.raises(ValueError, match="no examples"):
    random_batches.make_batches([])


def test_a_million_examples_are_dealt_quickly():
  rng = np.random.default_rng(0)
  prompts, responses = rng.integers(1, 900, (2, 1_000_000))
  start = time.process_time()
  counts = rng.integers(2, 5, 1_000_000)
  sizes = packing.Sizes(
    prompts + responses, responses, counts, np.ones_like(counts)
  )
  classes = packing.make_classes(
    sizes, packing.Layout(32, microbatches=8), 4, 8
  )
  dealer = packing.Dealer(classes, 0)
  dealer.batch(0)
  # About 3 s of a core; the bound is wide for slow ones.
  assert time.process_time() - start < 20
  start = time.process_time()
  dealer.batch(1)
  assert time.process_time() - start < 0.05


def make_sequences(count):
  examples = random_batches.make_examples(count)
  return [(example.prompt, example.responses[0]) for example in examples]


def test_text_batches_hold_every_sequence_once_and_aim_at_responses():
  sequences = make_sequences(50)
  batches = batching.TextBatches(
    sequences, random_batches.BATCH, 0, pad_multiple=random_batches.MULTIPLE
  )
  expected = sorted(
    (prompt.tolist(), response.tolist()) for prompt, response in sequences
  )
  for batch_list in (
    random_batches.epoch(batches, 1),
    list(batches.in_order()),
  ):
    assert len(batch_list) == batches.num_batches == 8
    seen = []
    for batch in batch_list:
      assert batch.tokens.shape[1] in batches.shapes
      assert not (batch.target_mask & ~batch.mask).any()
      for tokens, mask, target in zip(
        batch.tokens, batch.mask, batch.target_mask, strict=True
      ):
        if mask.any():
          seen.append(
            (tokens[mask & ~target].tolist(), tokens[target].tolist())
          )
          assert mask[: mask.sum()].all()
          assert target[mask.sum() - target.sum() : mask.sum()].all()
    assert sorted(seen) == expected


def test_text_batches_are_pure_and_differ_between_epochs():
  sequences = make_sequences(50)
  batches = batching.TextBatches(sequences, random_batches.BATCH, 0)
  again = batching.TextBatches(sequences, random_batches.BATCH, 0)
  for step in (9, 0, 4):
    random_batches.assert_same(again.batch(step), batches.batch(step))
  one, other = (
    np.concatenate([b.tokens.ravel() for b in random_batches.epoch(batches, i)])
    for i in (0, 1)
  )
  assert one.tolist() != other.tolist()
