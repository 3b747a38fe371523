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

from pdpo_jax.models import layers, placement


def response_logps(
  hidden: Float[Array, "B N R D"],
  tokens: Int[Array, "B N R"],
  mask: Bool[Array, "B N R"],
  weight: Float[Array, "V D"],
  bias: Float[Array, " V"] | None,
  chunk: int = 128,
) -> Float[Array, "B N"]:
  """`sum_t log p(y_t | ...)` of each response, in nats and float32.

  Args:
    hidden: `hidden[..., t, :]` predicts `tokens[..., t]`.
    tokens: the responses.
    mask: true at tokens that count.
    weight: of the output head; it gets no gradient.
    bias: of the output head; it gets no gradient.
    chunk: about how many positions have logits in memory at a time.
  """
  weight = jax.lax.stop_gradient(weight)
  bias = None if bias is None else jax.lax.stop_gradient(bias)
  return _summed_logps(hidden, tokens, mask, weight, bias, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _summed_logps(hidden, tokens, mask, weight, bias, chunk):
  return _compute(hidden, tokens, mask, weight, bias, chunk, gradient=False)[0]


def _forward(hidden, tokens, mask, weight, bias, chunk):
  return _compute(hidden, tokens, mask, weight, bias, chunk, gradient=True)


def _backward(chunk, gradient, cotangent):
  del chunk
  scaled = gradient * cotangent[..., None, None].astype(gradient.dtype)
  return scaled, None, None, None, None


_summed_logps.defvjp(_forward, _backward)


def _compute(hidden, tokens, mask, weight, bias, chunk, gradient):
  """Sums, and `d sum / d hidden` if asked for, by chunks along R."""
  rows, responses, size, _ = hidden.shape
  width = min(size, max(1, chunk // (rows * responses)))
  pieces = -(-size // width)

  def split(x):  # [B, N, R, ...] -> [pieces, B, N, width, ...]
    pad = [(0, 0)] * x.ndim
    pad[2] = (0, pieces * width - size)
    x = jnp.pad(x, pad)
    x = x.reshape(rows, responses, pieces, width, *x.shape[3:])
    return jnp.moveaxis(x, 2, 0)

  def one(inputs):
    states, targets, counted = inputs
    states = placement.by_rows(states)
    logits = layers.head_logits(states, weight, bias)
    log_normalizer = jax.nn.logsumexp(logits, -1)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    logps = jnp.sum(jnp.where(counted, chosen - log_normalizer, 0.0), -1)
    if not gradient:
      return logps, None
    probabilities = jnp.exp(logits - log_normalizer[..., None])
    expected = jax.lax.dot_general(
      probabilities.astype(states.dtype),
      weight.astype(states.dtype),
      (((3,), (0,)), ((), ())),
      preferred_element_type=jnp.float32,
    )
    slope = weight[targets].astype(jnp.float32) - expected
    slope = jnp.where(counted[..., None], slope, 0.0)
    return logps, placement.by_rows(slope.astype(states.dtype))

  weight = placement.gathered(weight)
  pieced = (split(hidden), split(tokens), split(mask))
  logps, slopes = jax.lax.map(one, pieced)
  if gradient:
    slopes = jnp.moveaxis(slopes, 0, 2)  # [B, N, pieces, width, D]
    slopes = slopes.reshape(rows, responses, pieces * width, -1)[:, :, :size]
  return logps.sum(0), slopes
