"""Attention in the layouts that training and decoding need.

A model's block computes rotated queries, keys and values and hands them to an
`Attend`; which positions see which is decided here alone. Axes: B batch, S
sequence, P prompt (prefix included), N responses, R response positions, C cache
slots, H query heads, K key/value heads (H a multiple of K), E head size.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# attend(q, k, v, past) -> (out, present): q and out [B, S, H, E], k and v
# [B, S, K, E]; `past` is this layer's cache and `present` what to keep of it.
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


def attention(
  q: Float[Array, "B Q H E"],
  k: Float[Array, "B S K E"],
  v: Float[Array, "B S K E"],
  mask: Bool[Array, "B Q S"],
) -> Float[Array, "B Q H E"]:
  """Grouped-query attention, scaled by `E ** -0.5`, softmax in float32.

  A query that may see no key gets a finite, meaningless value.
  """
  if jax.default_backend() == "cpu" and jax.device_count() == 1:
    return blocked_attention(q, k, v, mask)
  return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])


def blocked_attention(
  q: Float[Array, "B Q H E"],
  k: Float[Array, "B S K E"],
  v: Float[Array, "B S K E"],
  mask: Bool[Array, "B Q S"],
  block_bytes: int = 500_000,
) -> Float[Array, "B Q H E"]:
  """The same for a CPU: a few heads at a time, so that scores stay in cache.

  The backward pass computes them again.

  Args:
    block_bytes: what the float32 scores of a block may take, about.
  """
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


def positions_of(mask: Bool[Array, "*B S"]) -> Int[Array, "*B S"]:
  """Counts real positions from 0; padding gets some position, 0 or above.

  mask       0 0 1 1 1
  positions  0 0 0 1 2
  """
  return jnp.maximum(jnp.cumsum(mask, -1) - 1, 0).astype(jnp.int32)


def causal_mask(mask: Bool[Array, "B S"]) -> Bool[Array, "B S S"]:
  """Query i sees key j if j <= i and j is real."""
  size = mask.shape[-1]
  return jnp.tril(jnp.ones((size, size), bool)) & mask[:, None, :]


def causal(mask: Bool[Array, "B S"]) -> Attend:
  """Plain sequences, padded on either side."""
  allowed = causal_mask(mask)

  def attend(q, k, v, past):
    del past
    return attention(q, k, v, allowed), None

  return attend


def shared_prompt(
  prompt_mask: Bool[Array, "B P"], response_mask: Bool[Array, "B N R"]
) -> Attend:
  """One prompt and its N responses in a row of `P + N * R` positions.

  The prompt attends causally to itself; a response attends to the prompt and
  causally to itself, never to a sibling. Two ordinary attention calls do it,
  so that any kernel applies. With P = 2, N = 2, R = 2 (x: may see):

                 p0 p1  a0 a1  b0 b1
      prompt p0   x
             p1   x  x
      first  a0   x  x   x
             a1   x  x   x  x
      second b0   x  x          x
             b1   x  x          x  x

  Args:
    prompt_mask: true at real positions; the prompt is padded on the left.
    response_mask: true at real tokens; responses are padded on the right.
  """
  rows, length = prompt_mask.shape
  _, responses, size = response_mask.shape
  prompt_allowed = causal_mask(prompt_mask)
  flat_mask = response_mask.reshape(rows * responses, size)
  response_allowed = jnp.concatenate(
    [
      jnp.broadcast_to(
        jnp.repeat(prompt_mask, responses, 0)[:, None, :],
        (rows * responses, size, length),
      ),
      causal_mask(flat_mask),
    ],
    -1,
  )  # [B * N, R, P + R]

  def attend(q, k, v, past):
    del past
    prompt = attention(
      q[:, :length], k[:, :length], v[:, :length], prompt_allowed
    )

    def own(x):  # [B, P + N R, heads, E] -> [B N, R, heads, E]
      return x[:, length:].reshape(rows * responses, size, *x.shape[2:])

    def keys(x):  # -> [B N, P + R, heads, E]
      return jnp.concatenate(
        [jnp.repeat(x[:, :length], responses, 0), own(x)], 1
      )

    response = attention(own(q), keys(k), keys(v), response_allowed)
    response = response.reshape(rows, responses * size, *q.shape[2:])
    return jnp.concatenate([prompt, response], 1), None

  return attend


def prefill(mask: Bool[Array, "B P"]) -> Attend:
  """Causal, and hands back keys and values for a cache."""
  allowed = causal_mask(mask)

  def attend(q, k, v, past):
    del past
    return attention(q, k, v, allowed), (k, v)

  return attend


def decode(cache_mask: Bool[Array, "B C"]) -> Attend:
  """One new position a row, which sees its row's cache and itself.

  The cache is only read. The new key and value are handed back, for the caller
  to write once for all layers: no layer copies its cache.

  Products are summed elementwise: with one query a key head (GPT-J, 64 rows,
  137 slots) a batch took half the time on CPU that it took with `einsum`;
  with four, the same time.

  Args:
    cache_mask: true at slots that hold a real position.
  """

  def attend(q, k, v, past):
    past_k, past_v = past  # [B, C, K, E]
    rows, _, heads, size = q.shape
    groups = k.shape[2]
    query = q.reshape(rows, groups, heads // groups, size)
    query = query * jnp.asarray(size**-0.5, q.dtype)

    query = query[:, None].astype(jnp.float32)

    def scores(keys):  # [B, C, K, G, E] is never in memory
      products = query * keys[:, :, :, None].astype(jnp.float32)
      return products.sum(-1).transpose(0, 2, 3, 1)

    def mix(weights, values):
      weights = weights.transpose(0, 3, 1, 2)[..., None]
      return (weights * values[:, :, :, None].astype(jnp.float32)).sum(1)

    old = jnp.where(cache_mask[:, None, None, :], scores(past_k), -jnp.inf)
    both = jnp.concatenate([old, scores(k)], -1)  # [B, K, G, C + 1]
    weights = jax.nn.softmax(both, -1)
    out = mix(weights[..., :-1], past_v) + mix(weights[..., -1:], v)
    out = out.astype(v.dtype)
    return out.reshape(rows, 1, heads, size), (k, v)

  return attend
