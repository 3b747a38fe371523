import numpy as np
import pytest
from scipy import stats

from pdpo_jax.evaluation import statistics


def test_the_interval_is_that_of_a_mean_of_users():
  values = np.random.default_rng(1).normal(0.6, 0.1, 400)
  low, high = statistics.bootstrap_interval(values)
  error = values.std() / np.sqrt(values.size)
  assert low == pytest.approx(values.mean() - 1.96 * error, abs=error / 10)
  assert high == pytest.approx(values.mean() + 1.96 * error, abs=error / 10)
  assert statistics.bootstrap_interval(values) == (low, high)


def test_users_with_more_examples_weigh_more_in_a_mean_over_examples():
  # Ten of ten, and none of one: a resample has a mean of 1, 10/11 or 0.
  low, high = statistics.bootstrap_interval(
    np.array([10.0, 0.0]), np.array([10, 1])
  )
  assert (low, high) == (0.0, 1.0)


def test_signs_are_turned_round_in_all_ways():
  # Of eight ways, two give a sum as large as 3 + 2 + 1, four one of 4 or more.
  assert statistics.sign_flip_p(np.array([3.0, 2.0, 1.0])) == 2 / 8
  assert statistics.sign_flip_p(np.array([3.0, 2.0, -1.0])) == 4 / 8
  assert statistics.sign_flip_p(np.array([0.25])) == 1.0
  assert statistics.sign_flip_p(np.zeros(5)) == 1.0
  assert statistics.sign_flip_p(-np.ones(13)) == 2 / 2**13
  assert statistics.sign_flip_p(np.ones(40)) < 0.001


@pytest.mark.parametrize("users", [3, 10, 30])
def test_where_nothing_is_gained_little_is_found(users):
  rng = np.random.default_rng(users)
  draws = rng.normal(size=(300, users))
  found = [statistics.sign_flip_p(gains) < 0.05 for gains in draws]
  # 5%, and three standard errors of 300 draws.
  assert np.mean(found) < 0.05 + 3 * 0.0126
  # A bootstrapped interval alone says more than it may.
  intervals = [statistics.bootstrap_interval(gains) for gains in draws[:99]]
  low, high = np.transpose(intervals)
  if users == 3:
    assert np.mean((low > 0) | (high < 0)) > 0.15


def test_of_a_single_user_the_interval_is_a_point():
  assert statistics.bootstrap_interval(np.array([0.25])) == (0.25, 0.25)
  sums, counts = np.array([3.0]), np.array([4])
  assert statistics.bootstrap_interval(sums, counts) == (0.75, 0.75)


@pytest.mark.parametrize(("right", "count"), [(0, 3), (7, 10), (40, 40)])
def test_an_interval_of_a_share_is_wilsons(right, count):
  expected = stats.binomtest(right, count).proportion_ci(method="wilson")
  assert statistics.wilson_interval(right / count, count) == pytest.approx(
    (expected.low, expected.high), abs=1e-5
  )


def test_a_mean_of_one_has_no_error():
  assert statistics.mean_of([3]) == statistics.Mean(3.0, 0.0)
  # Sample variance of 3, 0, 1, 4 is 10 / 3.
  error = (10 / 3 / 4) ** 0.5
  assert statistics.mean_of([3, 0, 1, 4]).standard_error == pytest.approx(error)


def test_a_calibration_error_is_how_far_confidence_is_from_being_right():
  # Nine of ten are right, and 0.7 was said of each.
  said = np.array([0.7] * 9 + [0.3])
  assert statistics.calibration_error(said) == pytest.approx(0.2)
  assert statistics.calibration_error(np.full(4, 0.5)) == 0
  sure = np.array([1.0, 1.0, 0.8, 0.8, 0.8, 0.8, 0.2])
  assert statistics.calibration_error(sure) == pytest.approx(0.0)
