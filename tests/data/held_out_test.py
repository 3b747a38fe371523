import dataclasses
import logging
import random

import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out, records


def choice(prompt, responses, user):
  chosen, *rejected = responses
  return structs.PreferenceExample(prompt, chosen, tuple(rejected), user)


def dataset_of(train=(), heldout=(), unseen=()):
  prompts = [structs.PromptExample(each.prompt) for each in heldout]
  return dataset_lib.Dataset(
    list(train), list(heldout), prompts, list(unseen), tally=records.Tally()
  )


def digests(examples):
  return {digest for each in examples for digest in held_out.digests(each)}


def test_a_pair_is_the_same_whoever_prefers_which():
  one, other = choice("p", "ab", "ann"), choice("p", "ba", "bob")
  assert held_out.digests(one) == held_out.digests(other)
  assert held_out.digests(one) != held_out.digests(choice("q", "ab", "ann"))
  assert len(set(held_out.digests(choice("p", "abc", "ann")))) == 2


def test_each_comparison_stays_on_its_side():
  before = held_out.Record().after(
    dataset_of([choice("p", "ab", "ann")], [choice("q", "ab", "ann")])
  )
  now = dataset_of(
    [choice("q", "ba", "bob"), choice("r", "ab", "bob")],
    [choice("p", "ba", "bob"), choice("s", "ab", "bob")],
  )
  found = held_out.keep_apart(now, before, 2, 0)
  assert [each.prompt for each in found.train] == ["r", "p"]
  assert [each.prompt for each in found.heldout] == ["s", "q"]
  assert {each.prompt for each in found.prompts} == {"s", "q"}
  assert "2 comparisons moved to the side" in str(found.tally)


def test_what_shares_a_pair_with_what_is_trained_on_is_trained_on():
  before = held_out.Record().after(dataset_of([choice("p", "ab", "ann")]))
  now = dataset_of(
    [choice("z", "ab", "bob")],
    [
      choice("p", "dc", "bob"),
      choice("p", "cbd", "bob"),
      choice("p", "bac", "bob"),
      choice("p", "xy", "bob"),
    ],
  )
  found = held_out.keep_apart(now, before, 4, 0)
  assert [each.chosen for each in found.heldout] == ["x"]
  assert len(found.train) == 4


def test_who_was_unseen_can_be_learnt_and_who_was_learnt_is_not_unseen():
  first = dataset_of(
    [choice("p", "ab", "ann")],
    [choice("q", "ab", "ann")],
    [choice("r", "ab", "bob"), choice("s", "ab", "bob")],
  )
  before = held_out.Record().after(first)
  now = dataset_of(
    [choice("r", "ab", "bob")],
    [choice("s", "ab", "bob")],
    [choice("t", "ab", "ann"), choice("u", "ab", "eve")],
  )
  found = held_out.keep_apart(now, before, 1, 0)
  assert [each.user_id for each in found.train] == ["bob"]
  assert [each.user_id for each in found.heldout] == ["bob", "ann"]
  assert [each.user_id for each in found.unseen] == ["eve"]


def test_whose_choices_are_all_held_out_is_unseen():
  before = held_out.Record().after(
    dataset_of([choice("p", "ab", "ann")], [choice("q", "ab", "ann")])
  )
  now = dataset_of([choice("q", "ab", "bob"), choice("r", "ab", "eve")])
  found = held_out.keep_apart(now, before, 1, 0)
  assert [each.user_id for each in found.train] == ["eve"]
  assert [each.user_id for each in found.unseen] == ["bob"]
  assert not found.heldout


def test_nothing_to_train_on_is_an_error_and_nothing_held_out_a_warning(caplog):
  before = held_out.Record().after(
    dataset_of([choice("p", "ab", "ann")], [choice("q", "ab", "ann")])
  )
  with pytest.raises(ValueError, match="nothing is left to learn from"):
    held_out.keep_apart(dataset_of([choice("q", "ab", "bob")]), before, 1, 0)
  now = dataset_of([choice("r", "ab", "bob")], [choice("p", "ab", "bob")])
  with caplog.at_level(logging.WARNING):
    found = held_out.keep_apart(now, before, 1, 0)
  assert not found.heldout and len(found.train) == 2
  assert "no held-out comparison is left" in caplog.text


def test_a_record_comes_back_from_json():
  record = held_out.Record().after(
    dataset_of([choice("p", "abc", "ann")], [choice("q", "ab", None)])
  )
  assert held_out.Record.from_json(record.to_json()) == record
  assert record.users == {"ann"}


def drawn(rng, users, most):
  return [
    choice(
      rng.choice("PQRS"),
      rng.sample("abcde", rng.randint(2, 4)),
      rng.choice(users),
    )
    for _ in range(rng.randint(1, most))
  ]


@pytest.mark.parametrize("seed", range(300))
def test_a_run_reads_its_data_as_it_was_trained(seed):
  """Dealt by the earlier run's record, and by one's own once one is done."""
  rng = random.Random(seed)
  first = dataset_of(
    drawn(rng, ["1", "7", None], 4),
    drawn(rng, ["1", "7"], 4),
    drawn(rng, ["8"], 3),
  )
  before = held_out.Record().after(first)
  train = drawn(rng, ["1", "2", "3", None], 6)
  seen = {each.user_id for each in train}
  strangers = [each for each in "12378" if each not in seen]
  now = dataset_of(train, drawn(rng, list(seen), 4), drawn(rng, strangers, 3))

  def dealt(record):
    fresh = dataclasses.replace(now, tally=records.Tally())
    return held_out.keep_apart(fresh, record, 3, 0)

  try:
    found = dealt(before)
  except ValueError:
    assert all(digests([each]) & before.heldout for each in train)
    return
  own = before.after(found)
  again = dealt(own)
  for name in ("train", "heldout", "unseen", "prompts"):
    assert getattr(again, name) == getattr(found, name)
  assert own.after(again) == own
  trained = before.trained | digests(found.train)
  assert not trained & digests([*found.heldout, *found.unseen])
  rowed = before.users | {each.user_id for each in found.train} | {None}
  assert {each.user_id for each in found.heldout} <= rowed
  assert not {each.user_id for each in found.unseen} & before.users
