import jax
import jax.numpy as jnp
import pytest

from pdpo_jax.models import placement

MESH = jax.sharding.AbstractMesh(
  (2, 3, 5),
  ("data", "fsdp", "tensor"),
  axis_types=(jax.sharding.AxisType.Auto,) * 3,
)


def constraints(function, *shape):
  """What a function says of where an array of a mesh lies."""
  place = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec())
  x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)
  equations = jax.make_jaxpr(function)(x).jaxpr.eqns
  return [equation.params["sharding"].spec for equation in equations]


def test_rows_are_split_over_the_devices_that_share_a_batch():
  (spec,) = constraints(placement.by_rows, 12, 7, 11)
  assert spec == jax.sharding.PartitionSpec(("data", "fsdp"))


def test_rows_that_do_not_divide_are_left_alone():
  assert constraints(placement.by_rows, 13, 7) == []


def test_a_gathered_weight_stays_split_by_tensor_where_it_can():
  (spec,) = constraints(placement.gathered, 10, 7)
  assert spec == jax.sharding.PartitionSpec("tensor")
  (spec,) = constraints(placement.gathered, 13, 7)
  assert spec == jax.sharding.PartitionSpec(None)
  (spec,) = constraints(placement.whole, 10, 7)
  assert spec == jax.sharding.PartitionSpec(None)


@pytest.mark.parametrize("name", ["by_rows", "gathered", "whole"])
def test_without_a_mesh_nothing_is_said(name):
  x = jnp.ones((4, 3))
  assert getattr(placement, name)(x) is x
  assert placement.platform(x) == jax.default_backend()
