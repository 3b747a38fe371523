import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import sharding as jax_sharding

from pdpo_jax.training import sums

SHAPES = [(), (1,), (7,), (3, 5), (11, 2, 13), (5, 40_003), (70_001, 3)]


def sum_of(values):
  return sums.of_tree({"x": jnp.asarray(values)})["['x']"]


def draw(shape, kind=np.float32):
  return np.random.default_rng(0).standard_normal(shape).astype(kind)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sum_in_blocks_is_that_of_the_whole(shape):
  values = draw(shape)
  assert sum_of(values) == f"{int(sums._sum(jnp.asarray(values))):08x}"


@pytest.mark.parametrize("kind", [np.float32, np.int32, jnp.bfloat16, np.int8])
def test_a_sum_tells_any_change_of_values(kind):
  values = np.arange(1, 36).astype(kind).reshape(5, 7)
  variants = [values, values.T.reshape(5, 7), values[::-1], 0 * values]
  signs = values.copy()
  signs[:2, :3] *= -1  # Of an even number, whose changes must not cancel.
  swapped = values.copy()
  swapped[0, 0], swapped[4, 6] = values[4, 6], values[0, 0]
  found = [sum_of(each) for each in (*variants, signs, swapped)]
  for bit in range(8 * values.dtype.itemsize):
    flipped = values.copy()
    flat = flipped.view(np.uint8).reshape(-1)
    flat[bit // 8] ^= 1 << bit % 8
    found.append(sum_of(flipped))
  assert len(set(found)) == len(found)


@pytest.mark.parametrize("shape", [(8, 6), (16, 3, 5)])
def test_a_sum_is_the_same_on_any_mesh(shape):
  values = draw(shape)
  count = min(len(jax.devices()), 2)
  mesh = jax_sharding.Mesh(np.array(jax.devices()[:count]), "data")
  for spec in (("data",), ()):
    place = jax_sharding.NamedSharding(mesh, jax_sharding.PartitionSpec(*spec))
    assert sum_of(values) == sum_of(jax.device_put(values, place))
