"""From named tensors in Hugging Face's layout to a model, one at a time.

Parameter paths follow Hugging Face's names, so one rule names them all:
`("h", "attn", "q_proj", "kernel")`, stacked over layers, is
`transformer.h.{layer}.attn.q_proj.weight`, transposed.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import sharding as jax_sharding

from pdpo_jax.models import layers
from pdpo_jax.models import policy as policy_lib

# Where a parameter goes, by its path and shape: None is the default device, a
# mesh has automatic axes.
ShardingOf = Callable[
  [tuple[str, ...], tuple[int, ...]], jax_sharding.Sharding | None
]

# The parameter that int8 kernels are times, which no file has.
SCALE = "kernel_scale"

_PREFIX = {"gptj": "transformer.", "llama": "model."}
_STACKS = {"gptj": "h", "llama": "layers"}
# Buffers that old checkpoints carry and no model needs.
BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")
# What goes to the device at once. Small blocks stay in cache where they are
# transposed: three times faster on a CPU than a whole matrix at once.
_BLOCK_BYTES = 4_000_000
# Names in an error.
_MOST_LISTED = 8


def is_stacked(arch: policy_lib.Architecture, path: tuple[str, ...]) -> bool:
  """Whether a parameter has a leading layer axis."""
  return path[0] == _STACKS[arch.model_type]


def tensor_names(
  arch: policy_lib.Architecture, path: tuple[str, ...]
) -> list[str]:
  """Hugging Face's names of a parameter: one, or one for each layer.

  A scale has the name of the kernel that it was taken from.
  """
  *parts, leaf = path
  leaf = "weight" if leaf in ("kernel", SCALE) else leaf
  if parts[0] == "lm_head":
    return [".".join((*parts, leaf))]
  prefix = _PREFIX[arch.model_type]
  if not is_stacked(arch, path):
    return [prefix + ".".join((*parts, leaf))]
  return [
    prefix + ".".join((parts[0], str(layer), *parts[1:], leaf))
    for layer in range(arch.num_layers)
  ]


def variables(lm: nnx.Module) -> Iterator[tuple[tuple[str, ...], nnx.Param]]:
  """The base weights of a language model by path; LoRA is left out."""
  yield from nnx.to_flat_state(nnx.state(lm, nnx.Param))


def scale_of(lm: nnx.Module, path: tuple[str, ...]) -> jax.Array | None:
  """What the int8 kernel at `path` is times, `[L, O]`; None for others."""
  layer = functools.reduce(getattr, path[:-1], lm)
  scale = getattr(layer, SCALE, None)
  return None if path[-1] != "kernel" or scale is None else scale[...]


def base_params(lm: nnx.Module) -> Mapping[tuple[str, ...], jax.Array]:
  """The arrays of `variables`."""
  return {path: variable[...] for path, variable in variables(lm)}


def abstract_model(arch: policy_lib.Architecture, **kwargs: Any) -> nnx.Module:
  """A language model whose weights are shapes only."""
  return nnx.eval_shape(
    lambda: policy_lib.make_language_model(arch, rngs=nnx.Rngs(0), **kwargs)
  )


def tensor_shapes(lm: nnx.Module) -> dict[str, tuple[int, ...]]:
  """Name and shape, as they are in files, of each tensor that `lm` needs."""
  shapes = {}
  for path, variable in variables(lm):
    if path[-1] == SCALE:
      continue
    shape = variable.get_value().shape
    if is_stacked(lm.arch, path):
      shape = shape[1:]
    if path[-1] == "kernel":
      shape = shape[::-1]
    shapes |= dict.fromkeys(tensor_names(lm.arch, path), shape)
  return shapes


def listed(names: Iterable[str], separator: str = ", ") -> str:
  """Names for an error: all, or the first of a great many."""
  names = sorted(names)
  more = len(names) - _MOST_LISTED
  text = separator.join(names[:_MOST_LISTED])
  return f"{text} and {more} more" if more > 0 else text


def check_names(lm: nnx.Module, names: set[str]) -> None:
  """Compares the tensors that there are with those that `lm` needs.

  Buffers of old checkpoints and a copy of a tied table may be there unused.

  Raises:
    ValueError: naming each tensor that is missing or unused.
  """
  needed = tensor_shapes(lm).keys()
  unused = {name for name in names - needed if not name.endswith(BUFFERS)}
  if getattr(lm.arch, "tied_head", False):
    unused.discard("lm_head.weight")
  problems = [
    f"{problem}: {listed(which)}"
    for problem, which in (("missing", needed - names), ("unused", unused))
    if which
  ]
  if problems:
    raise ValueError(
      f"weights do not fit {lm.arch.model_type!r} of config.json; "
      + "; ".join(problems)
    )


def check_shapes(lm: nnx.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Compares shapes of tensors with those that `lm` needs.

  Args:
    shapes: of all tensors, and perhaps of others.

  Raises:
    ValueError: naming each misshapen tensor with both shapes.
  """
  misshapen = [
    f"{name} is {tuple(shapes[name])}, not {shape}"
    for name, shape in tensor_shapes(lm).items()
    if tuple(shapes[name]) != shape
  ]
  if misshapen:
    raise ValueError(
      f"weights do not fit config.json; {listed(misshapen, '; ')}"
    )


@functools.cache
def _make_fill(place: jax_sharding.Sharding | None) -> Callable:
  """The jitted function that writes a block into an array, in place."""

  def fill(array, block, layer, row, transposed):
    block = block.astype(array.dtype)
    start = [0] * block.ndim
    start[0] = row
    if transposed:
      block, start = block.T, start[::-1]
    if array.ndim > block.ndim:
      block, start = block[None], [layer, *start]
    return jax.lax.dynamic_update_slice(array, block, start)

  return jax.jit(
    fill,
    donate_argnums=0,
    static_argnames="transposed",
    out_shardings=place,
  )


def _blocks(tensor: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """First row and rows of blocks of one size; the last two may overlap."""
  size = tensor.shape[0]
  row_bytes = max(1, tensor.nbytes // size)
  count = math.ceil(size / max(1, _BLOCK_BYTES // row_bytes))
  rows = math.ceil(size / count)
  for number in range(count):
    start = min(number * rows, size - rows)
    # A copy: JAX holds what it was given until its next call, and a view would
    # hold the whole tensor while the next one is read.
    yield start, np.array(tensor[start : start + rows])


def _write(
  array: jax.Array,
  tensor: np.ndarray,
  layer: int,
  transposed: bool,
  place: jax_sharding.Sharding | None,
) -> jax.Array:
  """`array`, which is used up, with a tensor in its place."""
  fill = _make_fill(place)
  if isinstance(place, jax_sharding.NamedSharding):
    whole = _spread(tensor, array.ndim, transposed, place)
    array = fill(array, whole, layer, 0, transposed=transposed)
  else:
    for row, block in _blocks(tensor):
      array = fill(array, block, layer, row, transposed=transposed)
  return array.block_until_ready()


def _spread(
  tensor: np.ndarray,
  ndim: int,
  transposed: bool,
  place: jax_sharding.NamedSharding,
) -> jax.Array:
  """A tensor whose parts lie where they go to; only parts of ours are read.

  One that is to be quantized was read whole before: scales are of whole rows.

  Args:
    ndim: of the array it goes into, which lies at `place`.
  """
  spec = (*place.spec, *(None,) * (ndim - len(place.spec)))
  spec = spec[ndim - tensor.ndim :]
  spec = jax_sharding.PartitionSpec(*(spec[::-1] if transposed else spec))
  return jax.make_array_from_callback(
    tensor.shape,
    jax_sharding.NamedSharding(place.mesh, spec),
    # A copy, as in `_blocks`.
    lambda index: np.array(tensor[index]),
  )


_quantize = jax.jit(layers.quantize)


def load_tensors(
  lm: nnx.Module,
  names: set[str],
  read: Callable[[str], np.ndarray],
  sharding: ShardingOf | None = None,
) -> None:
  """Sets every base weight of `lm`, in the dtype it has there.

  Kernels of int8 are quantized as they are read.

  A tensor goes block by block into the array it belongs to, and is let go
  before the next one is read: the host holds one tensor at a time.

  Args:
    lm: a language model; its weights may be shapes only.
    names: the tensors that there are.
    read: gives a tensor by name; a memory map is as good as an array.
    sharding: where each parameter goes; without, to the default device.

  Raises:
    ValueError: naming each tensor that is missing or unused, or the first that
      is misshapen.
  """
  check_names(lm, names)
  shapes = tensor_shapes(lm)

  def read_checked(name):
    tensor = read(name)
    if tensor.shape != shapes[name]:
      raise ValueError(
        f"weights do not fit config.json; {name} is {tensor.shape}, not "
        f"{shapes[name]}"
      )
    return tensor

  scales = {}

  def values(path, name, dtype):
    if path[-1] == SCALE:
      return scales.pop(name)
    tensor = read_checked(name)
    if dtype != jnp.int8:
      return tensor
    kernel, scales[name] = map(np.asarray, _quantize(np.array(tensor).T))
    return kernel.T

  loaded = []
  # Scales come out of kernels.
  for path, variable in sorted(
    variables(lm), key=lambda each: each[0][-1] == SCALE
  ):
    like = variable.get_value()
    place = sharding(path, like.shape) if sharding else None
    array = jnp.zeros(like.shape, like.dtype, device=place)
    for layer, name in enumerate(tensor_names(lm.arch, path)):
      array = _write(
        array,
        values(path, name, like.dtype),
        layer,
        path[-1] == "kernel",
        place,
      )
    loaded.append((path, variable.replace(array)))
  nnx.update(lm, nnx.from_flat_state(loaded))
