import math

import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.training import losses
from tests import golden_cases


@pytest.mark.parametrize(
  ("name", "ratio", "beta", "smoothing", "expected"),
  [
    ("sigmoid", 0.0, 0.3, 0.0, math.log(2)),
    ("sigmoid", 2.0, 0.5, 0.0, math.log(1 + math.exp(-1))),
    ("sigmoid", -2.0, 0.5, 0.0, math.log(1 + math.exp(1))),
    ("sigmoid", 2.0, 0.5, 0.25, math.log(1 + math.exp(-1)) + 0.25),
    ("robust", 2.0, 0.5, 0.25, math.log(1 + math.exp(-1)) - 0.5),
    ("ipo", 2.0, 0.25, 0.0, 0.0),
    ("ipo", 5.0, 0.25, 0.0, 9.0),
    ("hinge", 3.0, 0.25, 0.0, 0.25),
    ("hinge", 5.0, 0.25, 0.0, 0.0),
  ],
)
def test_losses_equal_values_by_hand(name, ratio, beta, smoothing, expected):
  found = losses.LOSSES[name](jnp.array([ratio]), beta, smoothing)
  np.testing.assert_allclose(found, [expected], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "robust"])
def test_far_margins_stay_finite(name):
  far = losses.LOSSES[name](jnp.array([-1e4, 1e4]), 1.0, 0.0)
  np.testing.assert_allclose(far, [1e4, 0.0])


@pytest.mark.parametrize(("name", "case"), golden_cases.CASES)
def test_every_loss_equals_its_formula_in_torch(name, case):
  arrays = golden_cases.read(name)
  expected = golden_cases.section(arrays, f"{case}/loss")
  ours = golden_cases.all_losses(arrays, case)
  assert ours.keys() == expected.keys()
  for kind, value in expected.items():
    assert ours[kind] == pytest.approx(float(value), abs=1e-5, rel=1e-6), kind


def test_each_rejected_response_is_compared_with_the_chosen_one():
  policy = jnp.array([[-1.0, -4.0, -9.0], [-2.0, -3.0, -5.0]])
  reference = jnp.array([[-2.0, -3.0, -5.0], [-1.0, -1.0, -7.0]])
  # d is [1, -1, -4] and [-1, -2, 2].
  found = losses.differences(losses.log_ratios(policy, reference))
  np.testing.assert_array_equal(found, [[2.0, 5.0], [1.0, -3.0]])


def test_a_pair_without_rejected_response_has_no_weight():
  mask = np.zeros((2, 3, 5), bool)
  mask[:, 0], mask[0, 1, :2], mask[1, 2, :1] = True, True, True
  found = losses.pair_weights(jnp.asarray(mask), jnp.array([0.5, 2.0]))
  np.testing.assert_array_equal(found, [[0.5, 0.0], [0.0, 2.0]])


def test_a_length_normalized_difference_is_of_means_over_tokens():
  policy = jnp.array([[-1.0, -4.0, -9.0], [-2.0, -3.0, 0.0]])
  reference = jnp.array([[-3.0, -3.0, -5.0], [-1.0, -1.0, 0.0]])
  lengths = np.array([[4, 2, 5], [2, 4, 0]])
  mask = np.arange(5) < lengths[..., None]
  # d is [2, -1, -4] and [-1, -2, -], over these lengths.
  found = losses.differences(
    losses.log_ratios(policy, reference, jnp.asarray(mask))
  )
  np.testing.assert_allclose(found, [[1.0, 1.3], [0.0, -0.5]])
