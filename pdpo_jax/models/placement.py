"""Where activations lie, on a mesh.

Weights have places of their own (`training.sharding`); what is computed from
them lies where XLA infers. From a token table that is split by width it infers
that all activations are: every device would then hold all rows of a batch, and
each product would have to be summed over all devices. Here it is told.

An array that is traced knows the mesh of the arguments that it comes from, so
that nobody has to hold one. Without a mesh nothing here does anything.
"""

import math

import jax
from jaxtyping import Array

# The axes of a mesh that split a batch; see `training.sharding`.
BATCH_AXES = ("data", "fsdp")


def by_rows(x: Array) -> Array:
  """Splits the leading axis, and no other, over the devices that share a batch.

  Where these do not divide it, XLA decides.
  """
  mesh = jax.typeof(x).sharding.mesh
  if mesh.empty or not divides(mesh, x):
    return x
  return _at(x, mesh, BATCH_AXES)


def divides(mesh: jax.sharding.AbstractMesh, x: Array) -> bool:
  """Whether the devices that share a batch divide the leading axis."""
  shards = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
  return x.shape[0] % shards == 0


def of_cache(
  mesh: jax.sharding.AbstractMesh | jax.sharding.Mesh, shape: tuple[int, ...]
) -> jax.sharding.NamedSharding:
  """Where keys or values `[L, B, C, K, E]` of a cache lie.

  Rows are split over the devices that share a batch and heads over `tensor`,
  where these divide them.
  """
  shards = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
  rows = None if shape[1] % shards else BATCH_AXES
  heads = None if shape[3] % mesh.shape.get("tensor", 1) else "tensor"
  spec = jax.sharding.PartitionSpec(None, rows, None, heads)
  return jax.sharding.NamedSharding(mesh, spec)


def by_slots(cache: Array) -> Array:
  """Keeps a cache where `of_cache` says."""
  mesh = jax.typeof(cache).sharding.mesh
  if mesh.empty:
    return cache
  place = of_cache(mesh, cache.shape)
  return jax.lax.with_sharding_constraint(cache, place)


def gathered(weight: Array) -> Array:
  """A matrix `[V, D]` that is whole but for what `tensor` splits of V.

  For a weight that a loop reads: it is sent once, rather than in each round.
  """
  mesh = jax.typeof(weight).sharding.mesh
  if mesh.empty:
    return weight
  divided = weight.shape[0] % mesh.shape.get("tensor", 1) == 0
  return _at(weight, mesh, "tensor" if divided else None)


def whole(x: Array) -> Array:
  """The same on all devices.

  For small weights: where XLA would overlap sending their pieces with the
  products that read these, a product of a few columns becomes a loop.
  """
  mesh = jax.typeof(x).sharding.mesh
  return x if mesh.empty else _at(x, mesh, None)


def platform(x: Array) -> str:
  """Of the devices that a traced array is for: "cpu", "gpu" or "tpu".

  They need not be those of this process, where a step is only planned.
  """
  mesh = jax.typeof(x).sharding.mesh
  device = None if mesh.empty else mesh.abstract_device
  return jax.default_backend() if device is None else device.platform


def _at(x, mesh, axes):
  spec = jax.sharding.PartitionSpec(axes)
  place = jax.sharding.NamedSharding(mesh, spec)
  return jax.lax.with_sharding_constraint(x, place)
