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
from jaxtyping import Array, Bool, Int

from pdpo_jax.models import kernels

# attend(q, k, v, past) -> (out, present): q and out [B, S, H, E], k and v
# [B, S, K, E]; `past` is this layer's cache and `present` what to keep of it.
Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]


def positions_of(mask: Bool[Array, "*B S"]) -> Int[Array, "*B S"]:
  """Counts real positions from 0; padding gets some position, 0 or above.

  mask       0 0 1 1 1
  positions  0 0 0 1 2
  """
  return jnp.maximum(jnp.cumsum(mask, -1) - 1, 0).astype(jnp.int32)


def causal(
  mask: Bool[Array, "B S"], kernel: kernels.Kernel = kernels.Kernel()
) -> Attend:
  """Plain sequences, padded on either side."""

  def attend(q, k, v, past):
    del past
    return kernel(q, k, v, mask, 0), None

  return attend


def shared_prompt(
  prompt_mask: Bool[Array, "B P"],
  response_mask: Bool[Array, "B N R"],
  kernel: kernels.Kernel = kernels.Kernel(),
  remaining: Int[Array, "B N"] | None = None,
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
    remaining: how many of the prompt's last positions a response does not see;
      none without.
  """
  rows, length = prompt_mask.shape
  _, responses, size = response_mask.shape
  seen = jnp.repeat(prompt_mask, responses, 0)  # [B * N, P]
  if remaining is not None:
    ends = length - remaining.reshape(rows * responses, 1)
    seen &= jnp.arange(length) < ends
  response_real = jnp.concatenate(
    [seen, response_mask.reshape(rows * responses, size)], 1
  )  # [B * N, P + R]

  def attend(q, k, v, past):
    del past
    prompt = kernel(q[:, :length], k[:, :length], v[:, :length], prompt_mask, 0)

    def own(x):  # [B, P + N R, heads, E] -> [B N, R, heads, E]
      return x[:, length:].reshape(rows * responses, size, *x.shape[2:])

    def keys(x):  # -> [B N, P + R, heads, E]
      return jnp.concatenate(
        [jnp.repeat(x[:, :length], responses, 0), own(x)], 1
      )

    response = kernel(own(q), keys(k), keys(v), response_real, length)
    response = response.reshape(rows, responses * size, *q.shape[2:])
    return jnp.concatenate([prompt, response], 1), None

  return attend


def prefill(
  mask: Bool[Array, "B P"], kernel: kernels.Kernel = kernels.Kernel()
) -> Attend:
  """Causal, and hands back keys and values for a cache."""

  def attend(q, k, v, past):
    del past
    return kernel(q, k, v, mask, 0), (k, v)

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
