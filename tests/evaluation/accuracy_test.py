import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.evaluation import accuracy, statistics


def test_accuracy_counts_pairs_and_skips_missing_ones():
  ratios = np.array([[1.0, -1.0], [2.0, np.nan], [-1.0, -2.0]], np.float32)
  found = accuracy.reward_accuracy(ratios, ["a", "b", None])
  assert found.pairs == 2 / 5
  assert found.by_user == {"a": 0.5, "b": 1.0}
  assert found.users == 0.75
  assert found.margin_by_user == {"a": 0.0, "b": 2.0}
  assert found.margin == 1.0
  assert found.to_json()["by_user"] == {"a": 0.5, "b": 1.0}


def test_an_interval_of_a_user_counts_choices_and_not_pairs():
  ratios = np.full((4, 3), -1, np.float32)
  ratios[:3] = 1
  ratios[2, 1:] = np.nan
  found = accuracy.reward_accuracy(ratios, ["a", "a", "a", None])
  assert found.examples_by_user == {"a": 3}
  assert found.user_interval("a") == statistics.wilson_interval(1.0, 3)
  interval = list(found.user_interval("a"))
  assert found.to_json()["interval_by_user"] == {"a": interval}


def test_differences_are_paired_by_user():
  users = {str(user): user / 100 for user in range(50)}
  ours = accuracy.Accuracy(0.9, {u: v + 0.125 for u, v in users.items()}, {})
  theirs = accuracy.Accuracy(0.9, dict(reversed(users.items())), {})
  gain = accuracy.gain(ours, theirs)
  low, high = gain.interval
  assert gain.mean == pytest.approx(0.125)
  # Users differ widely; the gain of each is the same.
  assert high - low < 1e-12


def test_accuracies_of_different_users_have_no_difference():
  one, other = (accuracy.Accuracy(1.0, {user: 1.0}, {}) for user in "ab")
  with pytest.raises(ValueError, match="not of the same users"):
    accuracy.gain(one, other)


def test_the_worst_decile_is_a_tenth_of_the_users_and_one_at_least():
  by_user = {str(user): user / 100 for user in range(30)}
  found = accuracy.Accuracy(0.5, by_user, by_user)
  assert found.worst_decile == pytest.approx((0.00 + 0.01 + 0.02) / 3)
  assert accuracy.Accuracy(0.5, {"a": 0.5, "b": 0.25}, {}).worst_decile == 0.25


def test_a_group_is_the_mean_of_those_of_its_users_that_are_there():
  found = accuracy.Accuracy(0.5, {"a": 0.5, "b": 1.0, "c": 0.0}, {})
  assert found.of(["a", "b", "stranger"]) == 0.75
  assert found.of(["stranger"]) is None


def example(user, chosen, *rejected):
  return structs.PreferenceExample("?", chosen, rejected, user)


def test_the_oracle_knows_who_prefers_short():
  examples = [
    example("s", "one", "one two", "one"),  # right, and equal
    example("l", "one two", "one"),
    example("l", "one", "one two"),  # wrong
    example("unknown", "one", "one two"),
  ]
  assert accuracy.oracle(examples, ["s"], ["l"]) == pytest.approx(
    (0.75 + 0.5) / 2
  )
  assert accuracy.oracle(examples, [], []) is None
