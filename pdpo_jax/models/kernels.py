"""Scores, softmax and mix of attention, by platform.

All kernels compute the same: query i sees key j if `j <= i + offset` and key j
is real. `Kernel` chooses. Axes: B batch, Q queries, S keys, H query heads, K
key/value heads (H a multiple of K), E head size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from pdpo_jax.models import layers, placement, ragged

KERNELS = ("auto", "xla", "blocked", "ragged", "cudnn", "splash")

# Splash attention works on tiles of this many positions and features.
_LANES = 128
# Positions of a splash block, at most.
_SPLASH_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Kernel:
  """Grouped-query attention, scaled by `E ** -0.5`, softmax in float32.

  Attributes:
    name: "xla" keeps all scores in memory and runs everywhere. "blocked" and
      "ragged" are for one CPU: scores of a few heads at a time stay in cache,
      or of a few positions, where padding is left out (`ragged`). "cudnn" is
      flash attention of NVIDIA's GPUs, for 16-bit activations. "splash" is
      flash attention of TPUs. "auto" takes the one of the platform, and "xla"
      where that cannot be.
    mostly_padding: whether "auto" is to mind it.
  """

  name: str = "auto"
  mostly_padding: bool = False

  def __post_init__(self):
    if self.name not in KERNELS:
      raise ValueError(f"attention {self.name!r} is not one of {KERNELS}")

  def __call__(
    self,
    q: Float[Array, "B Q H E"],
    k: Float[Array, "B S K E"],
    v: Float[Array, "B S K E"],
    real: Bool[Array, "B S"],
    offset: int,
  ) -> Float[Array, "B Q H E"]:
    """A query that may see no key gets a finite, meaningless value.

    Args:
      real: which keys may be seen at all.
      offset: how many keys lie before the first query's own.

    Raises:
      ValueError: if a kernel asked for by name cannot do it, saying why.
    """
    platform = placement.platform(q)
    name = self._fitting(platform, q) if self.name == "auto" else self.name
    if name == "blocked":
      return blocked(q, k, v, real, offset)
    if name == "ragged":
      return ragged.attention(q, k, v, real, offset)
    if name == "cudnn":
      problem = _against_cudnn(platform, q)
      if problem:
        raise ValueError(f"base.attention 'cudnn' {problem}; use 'auto'")
      return _cudnn(q, k, v, real, offset)
    if name == "splash":
      if platform != "tpu":
        raise ValueError(
          f"base.attention 'splash' is for TPUs, and this is a {platform}; use "
          "'auto'"
        )
      return _by_device(_splash)(q, k, v, real, offset)
    mask = visible(real, q.shape[1], offset)
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])

  def _fitting(self, platform: str, q: Float[Array, "B Q H E"]) -> str:
    """The kernel of a platform."""
    if platform == "tpu" and q.shape[1] >= _LANES:
      return "splash"
    if platform == "gpu" and not _against_cudnn("gpu", q):
      return "cudnn"
    if platform == "cpu" and jax.typeof(q).sharding.mesh.empty:
      return "ragged" if self.mostly_padding else "blocked"
    return "xla"


def _by_device(kernel):
  """`kernel` on each device's own rows and heads, which need no others."""

  def split(q, k, v, real, offset):
    mesh = jax.typeof(q).sharding.mesh
    if mesh.empty:
      return kernel(q, k, v, real, offset)
    batch = placement.BATCH_AXES if placement.divides(mesh, q) else None
    heads = None if k.shape[2] % mesh.shape["tensor"] else "tensor"
    spec = jax.sharding.PartitionSpec(batch, None, heads, None)
    return jax.shard_map(
      lambda *inputs: kernel(*inputs, offset),
      mesh=mesh,
      in_specs=(spec, spec, spec, jax.sharding.PartitionSpec(batch, None)),
      out_specs=spec,
      check_vma=False,
    )(q, k, v, real)

  return split


def visible(
  real: Bool[Array, "B S"], queries: int, offset: int
) -> Bool[Array, "B Q S"]:
  """Which keys each query sees. With S = 3, Q = 2 and offset 1, x sees:

  query 0   x x .
  query 1   x x x
  """
  earlier = jnp.tri(queries, real.shape[1], offset, dtype=bool)
  return earlier & real[:, None, :]


def blocked(
  q: Float[Array, "B Q H E"],
  k: Float[Array, "B S K E"],
  v: Float[Array, "B S K E"],
  real: Bool[Array, "B S"],
  offset: int,
  block_bytes: int = 500_000,
  run: int = 150,
) -> Float[Array, "B Q H E"]:
  """For a CPU: a few heads at a time, so that scores stay in cache.

  The backward pass computes them again. Queries go in runs, each with the keys
  up to its last one's: what no query may see is then mostly left out, which
  took a third off a prompt of 480 and a tenth off responses of 300 behind it.

  Args:
    block_bytes: what the float32 scores of a block may take, about.
    run: queries of a run, about.
  """
  queries = q.shape[1]
  runs = max(1, round(queries / run))
  ends = [queries * (place + 1) // runs for place in range(runs)]
  out = []
  for start, end in zip([0, *ends], ends, strict=False):
    seen = slice(0, offset + end)
    out.append(
      _blocked_run(
        q[:, start:end],
        k[:, seen],
        v[:, seen],
        visible(real[:, seen], end - start, offset + start),
        block_bytes,
      )
    )
  # Whoever recomputes a layer need not compute this again for its gradient.
  return layers.keep(jnp.concatenate(out, 1))


def _blocked_run(q, k, v, mask, block_bytes):
  rows, queries, heads, size = q.shape
  keys, groups = k.shape[1:3]
  shared = heads // groups  # query heads of one key head
  pairs = rows * groups
  block = max(1, min(pairs, block_bytes // (4 * shared * queries * keys)))
  while pairs % block:
    block -= 1

  def split(x):  # [B * K, ...] -> [blocks, block, ...]
    return x.reshape(pairs // block, block, *x.shape[1:])

  q = (q * jnp.asarray(size**-0.5, q.dtype)).reshape(
    rows, queries, groups, shared, size
  )
  q = q.transpose(0, 2, 3, 1, 4).reshape(pairs, shared * queries, size)
  k, v = (x.transpose(0, 2, 1, 3).reshape(pairs, keys, size) for x in (k, v))

  @jax.checkpoint
  def attend_block(inputs):
    q, k, v, row = inputs
    scores = jnp.einsum(
      "bqe,bse->bqs", q, k, preferred_element_type=jnp.float32
    ).reshape(block, shared, queries, keys)
    scores = jnp.where(mask[row][:, None], scores, -1e30)
    weights = jax.nn.softmax(scores, -1).astype(v.dtype)
    weights = weights.reshape(block, shared * queries, keys)
    return jnp.einsum("bqs,bse->bqe", weights, v)

  row = jnp.arange(pairs) // groups
  out = jax.lax.map(attend_block, tuple(map(split, (q, k, v, row))))
  out = out.reshape(rows, groups, shared, queries, size)
  return out.transpose(0, 3, 1, 2, 4).reshape(rows, queries, heads, size)


def _against_cudnn(platform: str, q: Float[Array, "B Q H E"]) -> str:
  """Why cuDNN's flash attention cannot be; empty where it can."""
  if platform != "gpu":
    return f"is for NVIDIA GPUs, and this is a {platform}"
  if jax.default_backend() != "gpu":
    return ""  # Only planned, by somebody who knows for which GPU.
  capability = getattr(jax.devices("gpu")[0], "compute_capability", "0")
  major = int(str(capability).split(".")[0])
  return against_cudnn(major, q.dtype, q.shape[-1])


def against_cudnn(capability: int, dtype: DTypeLike, head_size: int) -> str:
  """Why an NVIDIA GPU cannot do flash attention with cuDNN; empty if it can.

  Args:
    capability: compute capability of the GPU, its first number.
    dtype: of activations.
    head_size: E.
  """
  dtype = jnp.dtype(dtype)
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f"needs base.dtype 'bfloat16', not {dtype.name!r}"
  if capability < 8:
    return f"needs compute capability 8, and this GPU has {capability}"
  most = 256 if capability >= 9 else 128
  if head_size > most or head_size % 8:
    return (
      f"takes heads of multiples of 8 up to {most} on this GPU, not of "
      f"{head_size}"
    )
  return ""


def _cudnn(q, k, v, real, offset):
  """Gradients under a mask need even numbers of queries and keys."""
  queries = q.shape[1]
  q = _pad(q, 1, 2)
  k, v, real = _pad(k, 1, 2), _pad(v, 1, 2), _pad(real, 1, 2)
  mask = visible(real, q.shape[1], offset)
  out = jax.nn.dot_product_attention(
    q, k, v, mask=mask[:, None], implementation="cudnn"
  )
  return out[:, :queries]


def _splash(q, k, v, real, offset, interpret=False):
  """Splash attention on whole tiles; padded keys are of a segment of their own.

  Softmax over no key at all would not be finite. So queries whose own key is
  padding are of the padding's segment, and those that only fill a tile of the
  real one.
  """
  # Here, as it takes a quarter of a second and is for TPUs alone.
  from jax.experimental.pallas.ops.tpu import splash_attention

  _, queries, heads, size = q.shape
  query_real = real[:, offset : offset + queries]
  q = q * jnp.asarray(size**-0.5, q.dtype)
  q, k, v = (
    _pad(_pad(x, 1, _LANES), 3, _LANES).swapaxes(1, 2) for x in (q, k, v)
  )  # [B, H, Q, E]
  segments = splash_attention.SegmentIds(
    q=_pad(query_real, 1, _LANES, True).astype(jnp.int32),
    kv=_pad(real, 1, _LANES).astype(jnp.int32),
  )
  mask = splash_attention.CausalMask((q.shape[2], k.shape[2]), offset)
  block_q, block_kv = _splash_block(q.shape[2]), _splash_block(k.shape[2])
  kernel = splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([mask] * heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=splash_attention.BlockSizes(
      block_q=block_q,
      block_kv=block_kv,
      block_q_dkv=block_q,
      block_kv_dkv=block_kv,
      block_q_dq=block_q,
      block_kv_dq=block_kv,
    ),
    residual_checkpoint_name=layers.KEPT,
    interpret=interpret,
  )
  out = jax.vmap(kernel)(q, k, v, segments)
  return out[:, :, :queries, :size].swapaxes(1, 2)


def _splash_block(length: int) -> int:
  """The largest whole number of tiles that divides a padded length."""
  sizes = range(_SPLASH_BLOCK, 0, -_LANES)
  return next(size for size in sizes if length % size == 0)


def _pad(x, axis, multiple, value=0):
  """Pads an axis at its end to a multiple."""
  width = [(0, 0)] * x.ndim
  width[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, width, constant_values=value)
