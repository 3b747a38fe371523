"""Log-probabilities of responses, with gradients made in the forward pass.

The output head is frozen and the loss reads each response's log-probability
only as a sum over its tokens, so the gradient of that sum with respect to the
hidden states,

    d logp / d h_t = W[y_t] - sum_v p(v) W[v],

needs nothing that the forward pass does not already have. It is computed there,
a few positions at a time, and only scaled in the backward pass: two products
with the vocabulary in place of three, and never logits for all positions.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pdpo_jax.core import structs
from pdpo_jax.models import layers, placement
from pdpo_jax.models import packing as packing_lib


def response_logps(
  hidden: Float[Array, "B N R D"],
  tokens: Int[Array, "B N R"],
  mask: Bool[Array, "B N R"],
  weight: Float[Array, "V D"],
  bias: Float[Array, " V"] | None,
  chunk: int = 128,
  packed: structs.Packed | None = None,
) -> Float[Array, "B N"]:
  """`sum_t log p(y_t | ...)` of each response, in nats and float32.

  Args:
    hidden: `hidden[..., t, :]` predicts `tokens[..., t]`.
    tokens: the responses.
    mask: true at tokens that count.
    weight: of the output head; it gets no gradient.
    bias: of the output head; it gets no gradient.
    chunk: about how many positions have logits in memory at a time.
    packed: room for a group's responses, so that their padding has no logits.
  """
  weight = jax.lax.stop_gradient(weight)
  bias = None if bias is None else jax.lax.stop_gradient(bias)
  rows, responses, size, width = hidden.shape
  if packed is None:
    logps = _token_logps(
      hidden.reshape(rows * responses, size, width),
      *(x.reshape(rows * responses, size) for x in (tokens, mask)),
      weight,
      bias,
      chunk,
    )
    return logps.reshape(mask.shape).sum(-1)
  flat = mask.reshape(rows, responses * size)
  packing = packing_lib.Packing.of(flat, packed.rows, packed.response_positions)
  logps = _token_logps(
    packing.pack(hidden.reshape(*flat.shape, width)),
    packing.pack(tokens.reshape(flat.shape)),
    packing.filled,
    weight,
    bias,
    chunk,
  )
  logps = packing.checked(packing.unpack(logps))
  return logps.reshape(mask.shape).sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _token_logps(hidden, tokens, mask, weight, bias, chunk):
  """`log p(y_t)` at `[rows, positions]`, 0 where masked."""
  return _compute(hidden, tokens, mask, weight, bias, chunk, gradient=False)[0]


def _forward(hidden, tokens, mask, weight, bias, chunk):
  return _compute(hidden, tokens, mask, weight, bias, chunk, gradient=True)


def _backward(chunk, gradient, cotangent):
  del chunk
  scaled = gradient * cotangent[..., None].astype(gradient.dtype)
  return scaled, None, None, None, None


_token_logps.defvjp(_forward, _backward)


def _compute(hidden, tokens, mask, weight, bias, chunk, gradient):
  """Values, and `d value / d hidden` if asked for, by chunks of positions."""
  rows, size, _ = hidden.shape
  width = min(size, max(1, chunk // rows))
  pieces = -(-size // width)

  def split(x):  # [rows, size, ...] -> [pieces, rows, width, ...]
    pad = [(0, 0)] * x.ndim
    pad[1] = (0, pieces * width - size)
    x = jnp.pad(x, pad)
    return x.reshape(rows, pieces, width, *x.shape[2:]).swapaxes(0, 1)

  def join(x):  # `split` undone
    return x.swapaxes(0, 1).reshape(rows, -1, *x.shape[3:])[:, :size]

  def one(inputs):
    states, targets, counted = inputs
    states = placement.by_rows(states)
    logits = layers.head_logits(states, weight, bias)
    log_normalizer = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    logps = jnp.where(counted, chosen - log_normalizer, 0.0)
    if not gradient:
      return logps, None
    probabilities = jnp.exp(logits - log_normalizer[..., None])
    expected = jax.lax.dot_general(
      probabilities.astype(states.dtype),
      weight.astype(states.dtype),
      (((2,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    slope = weight[targets].astype(jnp.float32) - expected
    slope = jnp.where(counted[..., None], slope, 0.0)
    return logps, placement.by_rows(slope.astype(states.dtype))

  weight = placement.gathered(weight)
  pieced = (split(hidden), split(tokens), split(mask))
  logps, slopes = jax.lax.map(one, pieced)
  return join(logps), join(slopes) if gradient else None
