import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.models import packing

ROWS, SIZE = 2, 5
REAL = jnp.array(
  [[1, 1, 0, 1, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool
)


@pytest.mark.parametrize("positions", [6, 8, 10, 13])
def test_packed_are_the_real_positions_in_their_order(positions):
  made = packing.Packing.of(REAL, ROWS, positions)
  x = jnp.arange(REAL.size * 3.0).reshape(*REAL.shape, 3)
  packed = made.pack(x)
  assert packed.shape == (2, positions, 3)
  for group, filled, whole in zip(packed, made.filled, (0, 1), strict=True):
    rows = slice(whole * ROWS, (whole + 1) * ROWS)
    np.testing.assert_array_equal(group[filled], x[rows][REAL[rows]])
    assert not group[~filled].any()
  back = made.unpack(packed)
  np.testing.assert_array_equal(back, jnp.where(REAL[..., None], x, 0.0))
  np.testing.assert_array_equal(made.checked(back), back)


def test_gradients_are_those_of_moving_each_position():
  made = packing.Packing.of(REAL, ROWS, 7)
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (*REAL.shape, 3))
  slope = jax.random.normal(keys[1], (2, 7, 3))
  _, back = jax.vjp(made.pack, x)
  np.testing.assert_array_equal(back(slope)[0], made.unpack(slope))
  _, back = jax.vjp(made.unpack, slope)
  np.testing.assert_array_equal(back(x)[0], made.pack(x))


def test_a_group_that_does_not_fit_becomes_nan_and_the_others_stay():
  made = packing.Packing.of(REAL, ROWS, 5)
  x = made.checked(made.unpack(made.pack(jnp.ones(REAL.shape))))
  assert jnp.isnan(x[:2]).all()
  np.testing.assert_array_equal(x[2:], REAL[2:])
