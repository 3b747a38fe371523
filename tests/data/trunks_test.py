import collections
import dataclasses
import itertools

import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import trunks
from tests.data import random_batches

BATCH = random_batches.BATCH


def example(prompt, *responses, user=1, bare=None):
  ids = [np.array(each, np.int32) for each in (prompt, *responses)]
  bare = ids[0] if bare is None else np.array(bare, np.int32)
  return structs.TokenizedExample(user, ids[0], bare, tuple(ids[1:]))


FIRST = example([1, 2], [3, 9], [4, 9])


@pytest.mark.parametrize(
  ("later", "joined"),
  [
    (example([1, 2, 3, 9, 5], [6], [7]), True),
    # The end token is predicted; what stands in its place does not matter.
    (example([1, 2, 3, 8, 5], [6], [7]), True),
    (example([1, 2, 3, 5], [6], [7]), True),
    # Nothing is asked after the chosen response.
    (example([1, 2, 3], [6], [7]), False),
    # Another answer, as of a history that was not chosen.
    (example([1, 2, 4, 9, 5], [6], [7]), False),
    # The beginning was cut, or written in another way.
    (example([2, 3, 9, 5], [6], [7]), False),
    (example([1, 1, 2, 3, 9, 5], [6], [7]), False),
    # The same prompt once more.
    (example([1, 2], [3, 9], [5, 9]), False),
    # Somebody else, whose prefix is another.
    (example([1, 2, 3, 9, 5], [6], [7], user=2), False),
  ],
)
def test_tokens_and_users_alone_decide_what_shares_a_trunk(later, joined):
  expected = [[1, 0]] if joined else [[0], [1]]
  # Examples come in any order.
  assert trunks.join([later, FIRST], 8) == expected


@pytest.mark.parametrize(
  ("bare", "joined"),
  [
    ([2, 3, 9, 5], True),
    ([2, 4, 9, 5], False),  # goes on otherwise
    ([2, 3, 9, 7, 5], False),  # by more tokens
  ],
)
def test_prompts_without_text_have_to_go_on_likewise_where_they_are_read(
  bare, joined
):
  first = example([1, 2], [3, 9], [4, 9], bare=[2])
  later = example([1, 2, 3, 9, 5], [6], [7], bare=bare)
  assert trunks.join([first, later], 8) == [[0, 1]]
  found = trunks.join([first, later], 8, with_bare_prompt=True)
  assert found == ([[0, 1]] if joined else [[0], [1]])


def test_a_turn_goes_on_from_the_longest_and_is_continued_once():
  second = example([1, 2, 3, 9, 5], [6, 9], [7])
  third = example([1, 2, 3, 9, 5, 6, 9, 8], [6], [7])
  # One example for each rejected response, and one of them is continued.
  again = example([1, 2, 3, 9, 5], [6, 9], [8])
  found = trunks.join([third, again, FIRST, second], 8)
  chains = sorted(map(tuple, found), key=len)
  assert sorted(itertools.chain(*found)) == [0, 1, 2, 3]
  assert [len(chain) for chain in chains] == [1, 3]
  assert chains[1][0] == 2
  assert chains[1][-1] == 0


def test_long_dialogues_are_divided():
  turns = [FIRST]
  for number in range(6):
    history = np.concatenate([turns[-1].prompt, turns[-1].responses[0]])
    turns.append(example([*history, number], [3, 9], [4, 9]))
  assert trunks.join(turns, 3) == [[0, 1, 2], [3, 4, 5], [6]]
  assert trunks.join(turns, 1) == [[n] for n in range(7)]


def test_many_alike_are_joined_quickly():
  alike = [example([1] * 50, [1], [2]) for _ in range(20_000)]
  found = trunks.join([*alike, *(example([1] * 51, [1], [2]),) * 5], 8)
  sizes = collections.Counter(map(len, found))
  assert sizes == {1: 20_000 - 5, 2: 5}


def turn(prompt, chosen):
  return structs.PreferenceExample(prompt, chosen, ("no",), "ann")


def test_turns_that_begin_a_trunk_are_counted_by_reason():
  asked = structs.Message("user", "a?")
  later = structs.Message("user", "b?")

  def second(answer):
    return turn((asked, structs.Message("assistant", answer), later), "y")

  examples = [turn("a?", "yes"), second(" yes"), second("maybe"), second("yes")]
  assert trunks.not_joined(examples, [[0, 1], [2], [3]]) == {
    trunks.OTHER_ANSWER: 1,
    trunks.OTHERWISE: 1,
  }
  # Their first turn is not there.
  assert not trunks.not_joined(examples[1:], [[0], [1], [2]])
  # It is there, and somebody else's.
  others = [dataclasses.replace(examples[0], user_id="bob"), *examples[1:3]]
  assert trunks.not_joined(others, [[0], [1], [2]]) == {trunks.OTHER_USER: 1}


def make_dialogues(count, most_turns=6, seed=0):
  rng = np.random.default_rng(seed)

  def ids(low, high):
    return rng.integers(1, 100, rng.integers(low, high)).astype(np.int32)

  examples = []
  for number in range(count):
    prompt = np.array([number % 89, number // 89], np.int32)
    for _ in range(rng.integers(1, most_turns + 1)):
      prompt = np.concatenate([prompt, ids(1, 9)])
      responses = tuple(ids(2, 20) for _ in range(rng.integers(2, 5)))
      examples.append(example(prompt, *responses, user=1 + number % 5))
      prompt = np.concatenate([prompt, responses[0]])
  rng.shuffle(examples)
  return examples


@pytest.mark.parametrize(
  ("batch_size", "devices", "microbatches"),
  [(7, 1, 1), (16, 1, 4), (16, 8, 1), (24, 4, 3), (1, 1, 1)],
)
def test_batches_have_their_comparisons_on_average_and_a_dialogue_more_at_most(
  batch_size, devices, microbatches
):
  examples = make_dialogues(100)
  batches = random_batches.make_batches(
    examples,
    batch_size=batch_size,
    devices=devices,
    microbatches=microbatches,
    share_trunks=True,
  )
  longest = max(map(len, batches.trunks))
  assert longest == min(6, batch_size // microbatches)
  assert batches.num_batches == -(-len(examples) // batch_size)
  for number in range(3):
    seen = []
    for batch in random_batches.epoch(batches, number):
      assert len(batch.index) % (devices * microbatches) == 0
      found = np.unique(batch.examples[batch.examples >= 0])
      assert 1 <= len(found) <= batch_size + longest
      seen.extend(found)
    assert sorted(seen) == list(range(len(examples)))


def test_dialogues_are_dealt_alike_on_any_number_of_devices():
  examples = make_dialogues(60)
  one, four = (
    random_batches.make_batches(
      examples,
      batch_size=8,
      devices=devices,
      microbatches=2,
      share_trunks=True,
    )
    for devices in (1, 4)
  )
  for step in (0, 5, 2 * one.num_batches + 3):
    found = (np.unique(made.batch(step).examples) for made in (one, four))
    np.testing.assert_array_equal(*found)


def test_responses_of_a_dialogue_lie_where_its_decisions_say():
  examples = make_dialogues(40)
  widest = max(len(each.responses) for each in examples)
  logps = np.random.default_rng(0).normal(size=(len(examples), widest))
  batches = random_batches.make_batches(
    examples, logps.astype(np.float32), share_trunks=True
  )
  on_trunk = 0
  for batch in batches.in_order():
    decisions = batch.decisions
    for row in np.flatnonzero(batch.index >= 0):
      prompt = batch.prompt[row][batch.prompt_mask[row]]
      for index in np.unique(batch.examples[row]):
        if index < 0:
          continue
        columns = np.flatnonzero(batch.examples[row] == index)
        if decisions is None:
          columns = np.arange(len(examples[index].responses))
        for column, response, logp in zip(
          columns, examples[index].responses, logps[index], strict=False
        ):
          mask = batch.response_mask[row, column]
          np.testing.assert_array_equal(
            batch.responses[row, column, mask], response
          )
          np.testing.assert_allclose(batch.reference_logps[row, column], logp)
          if decisions is None:
            continue
          assert decisions.chosen[row, column] == columns[0]
          start = len(prompt) - decisions.remaining[row, column]
          np.testing.assert_array_equal(prompt[:start], examples[index].prompt)
          if column < decisions.on_trunk:
            on_trunk += 1
            stands = prompt[start : start + len(response) - 1]
            np.testing.assert_array_equal(stands, response[:-1])
  assert on_trunk > 20


def test_packed_dialogues_have_room_and_little_padding():
  examples = make_dialogues(3000)
  batches = random_batches.make_batches(
    examples, batch_size=32, microbatches=2, share_trunks=True, pad_multiple=8
  )
  for batch in random_batches.epoch(batches, 1):
    size = len(batch.index) // 2
    assert batch.packed.rows == size
    decisions = batch.decisions
    behind = batch.response_mask
    if decisions is not None:
      behind = behind[:, decisions.on_trunk :]
    real = batch.prompt_mask.sum(1) + behind.sum((1, 2))
    read = batch.response_mask.sum((1, 2))
    for each in range(2):
      assert real[each::2].sum() <= batch.packed.positions
      assert read[each::2].sum() <= batch.packed.response_positions
  assert batches.padding_share < 0.1


def test_separate_rows_are_batches_of_single_comparisons():
  examples = make_dialogues(30)
  alone = random_batches.make_batches(examples)
  for batch in alone.in_order():
    assert batch.decisions is None
  assert alone.positions == alone.separate_positions
  shared = random_batches.make_batches(examples, share_trunks=True)
  assert shared.separate_positions == alone.positions
  assert shared.positions < 0.8 * alone.positions
