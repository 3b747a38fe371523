"""Sums of what a checkpoint holds, by which it is known again when read.

They are of values, not of files, and made on the devices where arrays lie: the
same on any mesh, and without a copy of a table of users, which may be as large
as memory allows.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import sharding as jax_sharding

# Of what is in `meta` and how it is computed.
_VERSION = 2
# Values that are summed at a time, since a CPU keeps what it computes of each.
_BLOCK = 2**16


def add(step: int, items: Mapping[str, Any]) -> dict[str, Any]:
  """Items of a step, with sums of them in `meta`."""
  meta = items["meta"]
  sums = {name: of_tree(item) for name, item in items.items() if name != "meta"}
  sums |= {"step": step, "meta": of_json(meta)}
  # Two entries, lest a sum that was lost passes for one that never was.
  return {
    **items,
    "meta": {**meta, "sums": json.dumps(sums), "version": _VERSION},
  }


def take(step: int, meta: Mapping[str, Any]) -> tuple[dict, dict[str, Any]]:
  """`meta` as it was before `add`, and the sums of the other items.

  A step of an earlier version has none.

  Raises:
    ValueError: if it is not what was saved, or of another step.
  """
  meta = dict(meta)
  sums, version = meta.pop("sums", None), meta.pop("version", None)
  if sums is None and version is None:
    return meta, {}
  if sums is None or version != _VERSION:
    raise ValueError(f"'meta' has no sums of version {_VERSION}")
  sums = json.loads(sums)
  if sums["step"] != step:
    raise ValueError(f"it is step {sums['step']} under another name")
  if sums["meta"] != of_json(meta):
    raise ValueError("'meta' is not what was saved")
  return meta, sums


def check(items: Mapping[str, Any], sums: Mapping[str, Any]) -> None:
  """Compares items, or parts of them, with the sums of their step.

  Raises:
    ValueError: naming the array that is not what was saved.
  """
  for name, item in items.items() if sums else ():
    for path, value in of_tree(item).items():
      if sums[name].get(path) != value:
        raise ValueError(f"{name}{path} is not what was saved")


def of_tree(tree: Any) -> dict[str, str]:
  """A sum of each array and string of a tree, by its path in it.

  Leaves of other kinds are left out: places of what was not read.
  """
  leaves = {
    jax.tree_util.keystr(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  sums = {
    name: _make_sum(leaf.sharding)(leaf)
    for name, leaf in leaves.items()
    if isinstance(leaf, jax.Array)
  }
  # All are begun before the first is awaited.
  texts = {name: f"{int(value):08x}" for name, value in sums.items()}
  return texts | {
    name: of_text(leaf)
    for name, leaf in leaves.items()
    if isinstance(leaf, str)
  }


def of_text(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_json(value: Mapping[str, Any]) -> str:
  return of_text(json.dumps(value, sort_keys=True))


@functools.cache
def _make_sum(place: jax_sharding.Sharding) -> Callable:
  """`_sum_blocks`, or `_sum` where the array is split over devices."""
  if not isinstance(place, jax_sharding.NamedSharding):
    return jax.jit(_sum_blocks)
  everywhere = jax_sharding.NamedSharding(
    place.mesh, jax_sharding.PartitionSpec()
  )
  of_array = _sum_blocks if place.is_fully_replicated else _sum
  return jax.jit(of_array, out_shardings=everywhere)


def _sum(array: jax.Array, start: int | jax.Array = 0) -> jax.Array:
  """Of the bits of each value, mixed with its place, modulo 2^32.

  The same in any order, so that it may be computed in parts. The mixing is that
  of MurmurHash3's end: without it, changes of two values could cancel, as those
  of two signs do.

  Args:
    start: place of the first value.
  """
  kind = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
  bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
  place = jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(array.shape):
    step = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    place = place * jnp.uint32(size % 2**32) + step
  x = bits ^ ((place + jnp.uint32(start)) * jnp.uint32(0x9E3779B1))
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return jnp.sum(x ^ (x >> 16), dtype=jnp.uint32)


def _sum_blocks(array: jax.Array) -> jax.Array:
  """As `_sum`, some rows at a time."""
  if not array.size:
    return jnp.uint32(0)
  table = array.reshape(array.shape[0] if array.ndim else 1, -1)
  count, width = table.shape
  rows = min(count, max(1, _BLOCK // width))
  blocks = count // rows

  def add(block, total):
    values = jax.lax.dynamic_slice_in_dim(table, block * rows, rows)
    start = block.astype(jnp.uint32) * jnp.uint32(rows * width % 2**32)
    return total + _sum(values, start)

  first = blocks * rows
  rest = jax.lax.slice_in_dim(table, first, count)
  total = _sum(rest, first * width % 2**32)
  return jax.lax.fori_loop(0, blocks, add, total)
