"""What the engine's devices do: a cache with a slot for each running request.

A slot's entries lie in it without gaps, the first in column 0, so that a column
is a position. Whatever is fed to the model is a token's id, or -1 and a vector
of its own: a row of a soft prefix. Axes: S slots, C columns of a slot, Q inputs
of a piece, D width, L layers, K key/value heads, E head size, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from pdpo_jax.inference import sampling
from pdpo_jax.models import attention, placement

# Likeliest tokens that are told, at most.
TOP = 20

# Keys and values; a tuple with an array of each layer where they are apart.
Entries = Float[Array, "L S C K E"] | tuple[Float[Array, "S C K E"], ...]
Cache = tuple[Entries, Entries]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
  """A token for each slot, and its log-probabilities if any slot wants them."""

  tokens: Int[Any, " S"]
  logps: Float[Any, " S"]
  top: Int[Any, "S top"]
  top_logps: Float[Any, "S top"]


def make_cache(
  graphdef: Any,
  state: Any,
  slots: int,
  columns: int,
  mesh: jax.sharding.Mesh | None,
) -> Cache:
  """An empty one.

  Args:
    graphdef: of a language model.
    state: its weights.
    mesh: that they lie on.
  """

  def entries(state):
    lm = nnx.merge(graphdef, state)
    real = jnp.ones((1, 1), bool)
    return lm.hidden(
      lm.embed(jnp.zeros((1, 1), jnp.int32)),
      jnp.zeros((1, 1), jnp.int32),
      attention.prefill(real, lm.kernel),
    )[1]

  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (*x.shape[:-4], slots, columns, *x.shape[-2:]), x.dtype
    ),
    jax.eval_shape(entries, state),
  )
  places = None
  if mesh is not None:
    places = jax.tree.map(lambda x: placement.of_cache(mesh, x.shape), shapes)
  make = jax.jit(
    lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
    out_shardings=places,
  )
  return make()


def _embed(lm, tokens, vectors):
  given = lm.embed(jnp.maximum(tokens, 0))
  return jnp.where((tokens < 0)[..., None], vectors.astype(given.dtype), given)


def _columns(cache):
  return jax.tree.leaves(cache)[0].shape[-3]


def _write(cache, new, slots, columns):
  """Entries `[(L,) R, Q, K, E]` of R slots; columns C and up are left out.

  All of the cache must be read before, by a barrier: else XLA copies it.
  """
  return jax.tree.map(
    lambda old, new: placement.by_slots(
      old.at[..., slots[:, None], columns, :, :].set(new, mode="drop")
    ),
    cache,
    new,
  )


@functools.partial(
  jax.jit, static_argnames=("graphdef", "extent"), donate_argnames="cache"
)
def run_piece(
  graphdef: Any,
  state: Any,
  cache: Cache,
  tokens: Int[Array, " Q"],
  vectors: Float[Array, "Q D"],
  slot: Int[Array, ""],
  start: Int[Array, ""],
  length: Int[Array, ""],
  *,
  extent: int,
) -> Cache:
  """Runs a piece of a prompt, behind what its slot has of it already.

  Args:
    graphdef: of a language model.
    state: its weights.
    cache: is used up.
    tokens: padded at the end.
    vectors: where tokens are -1.
    slot: which one.
    start: how many entries it has.
    length: how many tokens are real.
    extent: how many columns are read; `start` at least.
  """
  lm = nnx.merge(graphdef, state)
  size = tokens.shape[0]
  places = jnp.arange(size, dtype=jnp.int32)
  real = jnp.concatenate([jnp.arange(extent) < start, places < length])[None]

  def attend(q, k, v, past):
    def before(entries):  # [S, C, K, E] -> [1, extent, K, E]
      size = (1, extent, *entries.shape[2:])
      return jax.lax.dynamic_slice(entries, (slot, 0, 0, 0), size)

    keys, values = (
      jnp.concatenate([before(old), new], 1)
      for old, new in zip(past, (k, v), strict=True)
    )
    return lm.kernel(q, keys, values, real, extent), (k, v)

  positions = (start + places)[None]
  hidden, new = lm.hidden(
    _embed(lm, tokens, vectors)[None], positions, attend, past=cache
  )
  _, new = jax.lax.optimization_barrier((hidden, new))
  columns = jnp.where(places < length, positions, _columns(cache))
  return _write(cache, new, slot[None], columns)


@functools.partial(
  jax.jit, static_argnames=("graphdef", "extent"), donate_argnames="cache"
)
def step(
  graphdef: Any,
  state: Any,
  cache: Cache,
  tokens: Int[Array, " S"],
  vectors: Float[Array, "S D"],
  positions: Int[Array, " S"],
  active: Bool[Array, " S"],
  counts: Int[Array, " S"],
  settings: sampling.RowSettings,
  wanted: Bool[Array, ""],
  *,
  extent: int,
) -> tuple[Cache, Chosen]:
  """One input more, and the next token, for each active slot.

  Args:
    graphdef: of a language model.
    state: its weights.
    cache: is used up.
    tokens: the inputs.
    vectors: where tokens are -1.
    positions: of the inputs, how many entries each slot has.
    active: which slots take part; the others stay as they are.
    counts: how many tokens each slot was given.
    settings: how they are chosen.
    wanted: whether log-probabilities are.
    extent: how many columns are read; each active position at least.
  """
  lm = nnx.merge(graphdef, state)
  slots, columns = len(positions), _columns(cache)
  visible = jnp.arange(extent) < positions[:, None]
  read = attention.decode(visible)

  def attend(q, k, v, past):
    return read(q, k, v, [entries[:, :extent] for entries in past])

  hidden, new = lm.hidden(
    _embed(lm, tokens, vectors)[:, None],
    positions[:, None],
    attend,
    past=cache,
  )
  hidden, new = jax.lax.optimization_barrier((hidden, new))
  places = jnp.where(active, positions, columns)[:, None]
  cache = _write(cache, new, jnp.arange(slots), places)
  logits = lm.logits(hidden[:, 0])
  chosen = sampling.choose_by_row(logits, counts, settings)

  def tell(logits):
    return sampling.likeliest(logits, chosen, TOP)

  shapes = jax.eval_shape(tell, logits)
  logps, top, top_logps = jax.lax.cond(
    wanted,
    tell,
    lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
    logits,
  )
  return cache, Chosen(chosen, logps, top, top_logps)


def extents(
  columns: int, least: int, factor: int, most: int | None = None
) -> list[int]:
  """How many columns programs read: few numbers, as each is a program.

  Args:
    columns: there are; the last number.
    least: the first number.
    factor: from one to the next.
    most: the largest number but for the last; any, if None.
  """
  found = []
  while least < columns and (most is None or least <= most):
    found.append(least)
    least *= factor
  return [*found, columns]
