import numpy as np
import pytest

from pdpo_jax.training import calibration, posterior


@pytest.mark.parametrize("scale, lapse", [(3.0, 0.0), (0.3, 0.0), (2.0, 0.1)])
def test_a_calibration_is_found_again_from_what_was_chosen(scale, lapse):
  rng = np.random.default_rng(0)
  margins = rng.normal(size=4000) * 3
  chosen = rng.random(4000) < posterior.probability(scale * margins, lapse)
  found = calibration.fit(np.where(chosen, margins, -margins))
  assert found.scale == pytest.approx(scale, rel=0.15)
  assert found.lapse == pytest.approx(lapse, abs=0.02)
  assert found.pairs == 4000


def test_without_pairs_margins_are_log_odds():
  assert calibration.fit(np.zeros(0)) == calibration.Calibration(1.0, 0.0, 0)


def test_few_pairs_that_were_all_right_make_nothing_certain():
  few = calibration.fit(np.full(3, 0.5))
  many = calibration.fit(np.full(300, 0.5))
  assert 1 < few.scale < many.scale < 50


def test_a_policy_that_is_right_by_chance_is_not_listened_to():
  found = calibration.fit(np.tile([4.0, -4.0], 200))
  margin = np.array([found.scale * 4.0])
  assert posterior.probability(margin, found.lapse) < 0.55
