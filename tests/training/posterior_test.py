import numpy as np
import pytest
from scipy import optimize, special

from pdpo_jax.training import posterior

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(12, 3)) * 2
OFFSETS = RNG.normal(size=12)
OWNER = np.repeat([0, 2], 6)  # the second person has no choice


def margins_of(places, z):
  """Bent, so that a Gauss-Newton step is not the last."""
  linear = OFFSETS[places] + np.sum(GRADIENTS[places] * z, -1)
  bend = 1 + np.square(linear)[:, None]
  return np.arcsinh(linear), GRADIENTS[places] / np.sqrt(bend)


def objective(z, person, lapse):
  mine = np.flatnonzero(np.equal(OWNER, person))
  margins, _ = margins_of(mine, np.tile(z, (len(mine), 1)))
  return 0.5 * z @ z + posterior.negative_log(margins, lapse).sum()


def solve(lapse):
  found = posterior.start(3, 3, margins_of, OWNER, lapse)
  posterior.minimize(found, np.arange(3), margins_of, OWNER, lapse)
  return found


@pytest.mark.parametrize("lapse", [0.0, 0.1])
def test_the_search_ends_where_a_general_one_does(lapse):
  found = solve(lapse)
  for person in (0, 2):
    best = optimize.minimize(objective, np.zeros(3), (person, lapse))
    assert found.objective[person] < best.fun + 2 * posterior.TOLERANCE
    np.testing.assert_allclose(found.z[person], best.x, atol=0.1)
    slope = optimize.approx_fprime(
      found.z[person], objective, 1e-7, person, lapse
    )
    np.testing.assert_allclose(found.slope[person], slope, atol=1e-5)
  assert found.converged.all()
  np.testing.assert_array_equal(found.z[1], 0.0)
  assert found.iterations[1] == 0


def test_another_lapse_makes_another_objective_where_people_are():
  found = solve(0.0)
  z = found.z.copy()
  posterior.set_lapse(found, OWNER, 0.1)
  np.testing.assert_array_equal(found.z, z)
  for person in (0, 1, 2):
    expected = objective(z[person], person, 0.1)
    np.testing.assert_allclose(found.objective[person], expected)
  slope = optimize.approx_fprime(z[2], objective, 1e-7, 2, 0.1)
  np.testing.assert_allclose(found.slope[2], slope, atol=1e-5)


def test_the_curvature_is_the_hessian_where_margins_are_linear():
  def linear(places, z):
    return np.sum(GRADIENTS[places] * z, -1), GRADIENTS[places]

  found = posterior.start(1, 3, linear, np.zeros(12, int), 0.0)
  posterior.minimize(found, np.arange(1), linear, np.zeros(12, int), 0.0)

  def slope(z):
    margins, gradients = linear(np.arange(12), z)
    return z - posterior.rise(margins, 0.0) @ gradients

  hessian = np.stack(
    [
      (slope(found.z[0] + step) - slope(found.z[0] - step)) / 2e-5
      for step in 1e-5 * np.eye(3)
    ]
  )
  np.testing.assert_allclose(found.curvature[0], hessian, atol=1e-6)
  # Of a single direction, against the integral itself.
  one = np.array([[1.3]])

  def alone(places, z):
    return 1.3 * z[:, 0], np.repeat(one, len(places), 0)

  owner = np.zeros(3, int)
  found = posterior.start(1, 1, alone, owner, 0.0)
  posterior.minimize(found, np.arange(1), alone, owner, 0.0)
  grid = np.linspace(-12, 12, 20_001)
  density = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
  whole = np.trapezoid(density * special.expit(1.3 * grid) ** 3, grid)
  assert abs(found.log_evidence[0] - np.log(whole)) < 0.05


def test_the_objective_never_rises():
  seen = []

  def watched(places, z):
    margins, gradients = margins_of(places, z)
    # A wild one: its slope is far from what the curvature makes of it.
    return 30 * np.sin(margins), 30 * np.cos(margins)[:, None] * gradients

  found = posterior.start(3, 3, watched, OWNER, 0.0)
  before = found.objective.copy()
  for _ in range(5):
    posterior.minimize(found, np.arange(3), watched, OWNER, 0.0)
    seen.append(found.objective.copy())
  assert np.all(np.diff([before, *seen], axis=0) <= 0)
  assert seen[0][0] < before[0]


def test_a_step_that_is_not_taken_leaves_the_margins_of_where_people_are():
  owner = np.zeros(1, int)

  def cliff(places, z):
    return np.where(z[:, 0] == 0, 1.0, -9.0), np.full(z.shape, 5.0)

  found = posterior.start(1, 1, cliff, owner, 0.0)
  posterior.minimize(found, np.arange(1), cliff, owner, 0.0)
  assert (found.z[0, 0], found.margins[0]) == (0.0, 1.0)
  assert found.iterations > 1


@pytest.mark.parametrize("lapse", [0.0, 0.2])
def test_slope_and_information_are_those_of_the_probability(lapse):
  margin = np.linspace(-8, 8, 33)
  step = 1e-5
  rise = -(
    posterior.negative_log(margin + step, lapse)
    - posterior.negative_log(margin - step, lapse)
  ) / (2 * step)
  np.testing.assert_allclose(
    posterior.rise(margin, lapse), rise, rtol=1e-5, atol=1e-8
  )
  chosen = posterior.probability(margin, lapse)
  expected = chosen * rise**2 + (1 - chosen) * (
    posterior.rise(-margin, lapse) ** 2
  )
  np.testing.assert_allclose(
    posterior.information(margin, lapse), expected, rtol=1e-4, atol=1e-8
  )
  assert np.all(chosen >= lapse / 2)
  # Far out, nothing overflows.
  assert np.isfinite(posterior.negative_log(np.array([-1e4]), lapse)).all()


def test_what_is_expected_is_an_average_over_the_margin():
  draws = np.random.default_rng(1).normal(2.0, 3.0, 200_000)
  found = posterior.expected(special.expit, np.array([2.0]), np.array([3.0]))
  np.testing.assert_allclose(found, special.expit(draws).mean(), atol=3e-3)
