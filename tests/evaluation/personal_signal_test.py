import pytest

from pdpo_jax.core import structs
from pdpo_jax.data.sources import synthetic
from pdpo_jax.evaluation import personal_signal

USERS = tuple(f"user{place}" for place in range(6))


def example(user, chosen, rejected):
  return structs.PreferenceExample("prompt", chosen, (rejected,), user)


def comparisons(short_users):
  posts = synthetic.make_posts(360, 0)
  return (
    synthetic.comparisons(posts[:240], USERS, short_users, 0),
    synthetic.comparisons(posts[240:], USERS, short_users, 1),
  )


def test_agreement_counts_couples_and_majorities():
  found = personal_signal.agreement(
    [
      example("ann", "a", "b"),
      example("bob", "a", "b"),
      example("eve", "b", "a"),
      example("ann", "a", "c"),  # Another pair, which nobody else compared.
    ]
  )
  assert sorted(found.couples) == [False, False, True]
  # Ann's and Bob's others are one for each response, which is a tie.
  assert found.majorities == [False]


def test_users_who_differ_gain_by_weights_of_their_own():
  train, heldout = comparisons(short_users=USERS[:3])
  common, personal = personal_signal.accuracies(
    personal_signal.Pairs.of(train), personal_signal.Pairs.of(heldout)
  )
  assert personal.users > 0.9
  assert common.users < 0.75


def test_users_who_are_alike_gain_nothing():
  train, heldout = comparisons(short_users=())
  common, personal = personal_signal.accuracies(
    personal_signal.Pairs.of(train), personal_signal.Pairs.of(heldout)
  )
  assert common.users > 0.9
  assert abs(personal.users - common.users) < 0.03


def test_the_description_has_both_measures():
  text = personal_signal.describe(*comparisons(short_users=USERS[:3]))
  assert "two users agree on the same pair: none" in text
  assert "held-out accuracy with weights common to all: " in text
  assert "gain: +" in text and "mean over 6 users" in text


@pytest.mark.parametrize("heldout", [[], [example("eve", "a", "b")]])
def test_what_cannot_be_measured_is_said(heldout):
  train = [example(user, "a", "b!") for user in ("ann", "bob")] * 5
  text = personal_signal.describe(train, heldout)
  assert "users' own: not measured" in text and "gain" not in text
