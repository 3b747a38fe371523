import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from pdpo_jax.training import logprobs

B, N, R, D, V = 2, 3, 7, 13, 101
KEYS = jax.random.split(jax.random.key(0), 6)
HIDDEN = jax.random.normal(KEYS[0], (B, N, R, D))
TOKENS = jax.random.randint(KEYS[1], (B, N, R), 0, V)
LENGTHS = jnp.array([[7, 1, 4], [3, 6, 0]])
MASK = jnp.arange(R) < LENGTHS[..., None]
WEIGHT = jax.random.normal(KEYS[2], (V, D))
BIAS = jax.random.normal(KEYS[3], (V,))
COTANGENT = jax.random.normal(KEYS[4], (B, N))


def plain(hidden, bias=BIAS):
  """The definition: logits for all positions, and their log-softmax."""
  logits = jnp.einsum("bnrd,vd->bnrv", hidden, WEIGHT)
  logits = logits if bias is None else logits + bias
  each = jax.nn.log_softmax(logits)
  each = jnp.take_along_axis(each, TOKENS[..., None], -1)[..., 0]
  return jnp.where(MASK, each, 0.0).sum(-1)


def ours(hidden, bias=BIAS, chunk=128):
  hidden = jnp.asarray(hidden)
  return logprobs.response_logps(hidden, TOKENS, MASK, WEIGHT, bias, chunk)


def gradient(function):
  return jax.grad(lambda x: jnp.sum(function(x) * COTANGENT))(HIDDEN)


# One position at a time, pieces that do not divide R, and all at once.
@pytest.mark.parametrize("chunk", [1, 12, 24, 128])
@pytest.mark.parametrize("bias", [BIAS, None])
def test_values_and_gradients_equal_those_of_log_softmax(chunk, bias):
  # Sums of seven nats of about 8, in float32.
  np.testing.assert_allclose(
    ours(HIDDEN, bias, chunk), plain(HIDDEN, bias), rtol=1e-5
  )
  np.testing.assert_allclose(
    gradient(lambda x: ours(x, bias, chunk)),
    gradient(lambda x: plain(x, bias)),
    rtol=1e-4,
    atol=1e-5,
  )


def test_gradients_equal_finite_differences():
  # Steps of 1e-2 in float32 leave about three digits.
  test_util.check_grads(
    ours, (HIDDEN,), order=1, modes=["rev"], eps=1e-2, rtol=1e-2, atol=1e-2
  )


def test_masked_tokens_get_and_give_nothing():
  slope = gradient(ours)
  np.testing.assert_array_equal(slope[~np.asarray(MASK)], 0.0)
  assert (np.abs(slope[np.asarray(MASK)]).max(-1) > 0).all()
  poisoned = jnp.where(MASK[..., None], HIDDEN, jnp.nan)
  np.testing.assert_array_equal(ours(poisoned), ours(HIDDEN))


def test_output_head_gets_no_gradient():
  def total(weight, bias):
    return logprobs.response_logps(HIDDEN, TOKENS, MASK, weight, bias).sum()

  for leaf in jax.grad(total, (0, 1))(WEIGHT, BIAS):
    np.testing.assert_array_equal(leaf, 0.0)


def test_bfloat16_states_give_float32_sums_and_bfloat16_gradients():
  hidden = HIDDEN.astype(jnp.bfloat16)
  value, back = jax.vjp(ours, hidden)
  assert value.dtype == jnp.float32
  assert back(COTANGENT)[0].dtype == jnp.bfloat16
  exact = plain(hidden.astype(jnp.float32))
  # Products are summed in float32; only weights are rounded to 8 bits.
  np.testing.assert_allclose(value, exact, atol=0.01 * np.abs(exact).max())


def vocabulary_rows(function):
  """The most positions that have an array over the vocabulary in any step."""
  most = 0

  def look(jaxpr):
    nonlocal most
    for equation in jaxpr.eqns:
      for variable in equation.outvars:
        shape = variable.aval.shape
        if V in shape and D not in shape:
          most = max(most, int(np.prod(shape)) // V)
      for inner in jax.tree.leaves(
        list(equation.params.values()),
        is_leaf=lambda leaf: hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr"),
      ):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          look(inner)

  look(jax.make_jaxpr(function)(HIDDEN).jaxpr)
  return most


def test_logits_of_all_positions_are_never_in_memory():
  assert vocabulary_rows(plain) == B * N * R
  assert vocabulary_rows(lambda x: gradient(lambda y: plain(y + x))) >= B * N
  for width in (1, 2):
    chunk = width * B * N

    def run(x, chunk=chunk):
      return ours(x, chunk=chunk)

    def slope(x, run=run):
      return jax.vjp(run, x)[1](COTANGENT)

    assert vocabulary_rows(run) == chunk
    assert vocabulary_rows(slope) == chunk
