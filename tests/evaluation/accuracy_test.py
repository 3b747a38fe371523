import numpy as np
import pytest

from pdpo_jax.evaluation import accuracy


def test_accuracy_counts_pairs_and_skips_missing_ones():
  ratios = np.array([[1.0, -1.0], [2.0, np.nan], [-1.0, -2.0]], np.float32)
  found = accuracy.reward_accuracy(ratios, ["a", "b", None])
  assert found.pairs == 2 / 5
  assert found.by_user == {"a": 0.5, "b": 1.0}
  assert found.users == 0.75
  assert found.margin_by_user == {"a": 0.0, "b": 2.0}
  assert found.margin == 1.0
  assert found.to_json()["by_user"] == {"a": 0.5, "b": 1.0}


def test_the_interval_is_that_of_a_mean_of_users():
  values = np.random.default_rng(1).normal(0.6, 0.1, 400)
  low, high = accuracy.bootstrap_interval(values)
  error = values.std() / np.sqrt(values.size)
  assert low == pytest.approx(values.mean() - 1.96 * error, abs=error / 10)
  assert high == pytest.approx(values.mean() + 1.96 * error, abs=error / 10)
  assert accuracy.bootstrap_interval(values) == (low, high)


def test_differences_are_paired_by_user():
  users = {str(user): user / 100 for user in range(50)}
  ours = accuracy.Accuracy(0.9, {u: v + 0.125 for u, v in users.items()}, {})
  theirs = accuracy.Accuracy(0.9, dict(reversed(users.items())), {})
  gain, (low, high) = accuracy.difference(ours, theirs)
  assert gain == pytest.approx(0.125)
  # Users differ widely; the gain of each is the same.
  assert high - low < 1e-12


def test_accuracies_of_different_users_have_no_difference():
  one, other = (accuracy.Accuracy(1.0, {user: 1.0}, {}) for user in "ab")
  with pytest.raises(ValueError, match="not of the same users"):
    accuracy.difference(one, other)


def test_the_worst_decile_is_a_tenth_of_the_users_and_one_at_least():
  by_user = {str(user): user / 100 for user in range(30)}
  found = accuracy.Accuracy(0.5, by_user, by_user)
  assert found.worst_decile == pytest.approx((0.00 + 0.01 + 0.02) / 3)
  assert accuracy.Accuracy(0.5, {"a": 0.5, "b": 0.25}, {}).worst_decile == 0.25


def test_a_group_is_the_mean_of_those_of_its_users_that_are_there():
  found = accuracy.Accuracy(0.5, {"a": 0.5, "b": 1.0, "c": 0.0}, {})
  assert found.of(["a", "b", "stranger"]) == 0.75
  assert found.of(["stranger"]) is None


def test_users_with_more_samples_weigh_more_in_a_mean_over_samples():
  # Ten of ten, and none of one: a resample has a mean of 1, 10/11 or 0.
  low, high = accuracy.bootstrap_interval(
    np.array([10.0, 0.0]), np.array([10, 1])
  )
  assert (low, high) == (0.0, 1.0)


def test_signs_are_turned_round_in_all_ways():
  # Of eight ways, two give a sum as large as 3 + 2 + 1, four one of 4 or more.
  assert accuracy.sign_flip_p(np.array([3.0, 2.0, 1.0])) == 2 / 8
  assert accuracy.sign_flip_p(np.array([3.0, 2.0, -1.0])) == 4 / 8
  assert accuracy.sign_flip_p(np.array([0.25])) == 1.0
  assert accuracy.sign_flip_p(np.zeros(5)) == 1.0
  assert accuracy.sign_flip_p(-np.ones(12)) == 2 / 2**12
  assert accuracy.sign_flip_p(np.ones(40)) < 0.001


@pytest.mark.parametrize("users", [3, 10, 30])
def test_where_nothing_is_gained_little_is_found(users):
  rng = np.random.default_rng(users)
  draws = rng.normal(size=(300, users))
  found = [accuracy.sign_flip_p(gains) < 0.05 for gains in draws]
  # 5%, and three standard errors of 300 draws.
  assert np.mean(found) < 0.05 + 3 * 0.0126
  # A bootstrapped interval alone says more than it may.
  low, high = np.transpose([accuracy.bootstrap_interval(x) for x in draws[:99]])
  if users == 3:
    assert np.mean((low > 0) | (high < 0)) > 0.15
