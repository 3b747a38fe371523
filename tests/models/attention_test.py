import jax
import jax.numpy as jnp
import numpy as np

from pdpo_jax.models import attention

B, P, N, R, H, K, E = 2, 5, 3, 7, 6, 2, 11


def random_heads(length, seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  return tuple(
    jax.random.normal(key, (B, length, heads, E))
    for key, heads in zip(keys, (H, K, K), strict=True)
  )


def ragged_masks():
  """Prompts of 5 and 2 positions; responses of 0 to 7 tokens."""
  prompt = np.arange(P) >= np.array([[0], [3]])
  lengths = np.array([[7, 1, 4], [3, 6, 0]])
  response = np.arange(R) < lengths[..., None]
  return jnp.asarray(prompt), jnp.asarray(response)


def by_hand(q, k, v):
  """Causal attention of one unpadded sequence, head by head."""
  out = np.zeros(q.shape, np.float64)
  for place in range(q.shape[0]):
    for head in range(H):
      group = head // (H // K)
      scores = k[: place + 1, group] @ q[place, head] / np.sqrt(E)
      weights = np.exp(scores - scores.max())
      out[place, head] = weights / weights.sum() @ v[: place + 1, group]
  return out


def test_causal_equals_head_by_head_attention_of_the_real_positions():
  mask = jnp.asarray(np.arange(P) >= np.array([[0], [2]]))
  q, k, v = random_heads(P)
  out, kept = attention.causal(mask)(q, k, v, None)
  assert kept is None
  for row, start in enumerate((0, 2)):
    one = (np.asarray(x[row, start:], np.float64) for x in (q, k, v))
    # Float32 sums of eleven products.
    np.testing.assert_allclose(out[row, start:], by_hand(*one), atol=1e-6)


def test_shared_prompt_equals_each_response_behind_its_own_prompt():
  prompt_mask, response_mask = ragged_masks()
  q, k, v = random_heads(P + N * R)
  out, _ = attention.shared_prompt(prompt_mask, response_mask)(q, k, v, None)
  for row in range(B):
    real = np.asarray(prompt_mask[row])
    for number in range(N):
      start = P + number * R
      length = int(response_mask[row, number].sum())
      places = np.concatenate([np.flatnonzero(real), start + np.arange(length)])
      one = (np.asarray(x[row, places], np.float64) for x in (q, k, v))
      np.testing.assert_allclose(out[row, places], by_hand(*one), atol=1e-6)


def test_decode_equals_the_last_position_of_causal():
  mask = jnp.asarray(np.arange(P) >= np.array([[0], [2]]))
  q, k, v = random_heads(P)
  whole, _ = attention.causal(mask)(q, k, v, None)
  # The cache has a slot more than there are old positions, and garbage there.
  spare = jnp.full((B, 1, K, E), 1e6)
  past = tuple(jnp.concatenate([x[:, :-1], spare], 1) for x in (k, v))
  slots = jnp.concatenate([mask[:, :-1], jnp.zeros((B, 1), bool)], 1)
  new = tuple(x[:, -1:] for x in (q, k, v))
  out, present = attention.decode(slots)(*new, past)
  np.testing.assert_allclose(out, whole[:, -1:], atol=1e-6)
  np.testing.assert_array_equal(present[0], k[:, -1:])
  np.testing.assert_array_equal(present[1], v[:, -1:])


def test_prefill_is_causal_and_hands_back_keys_and_values():
  mask = jnp.ones((B, P), bool)
  q, k, v = random_heads(P)
  out, present = attention.prefill(mask)(q, k, v, None)
  np.testing.assert_array_equal(out, attention.causal(mask)(q, k, v, None)[0])
  assert present == (k, v)


def test_rows_without_any_real_position_stay_finite_with_their_gradient():
  mask = jnp.zeros((B, P), bool)

  def total(inputs):
    return attention.causal(mask)(*inputs, None)[0].sum()

  value, gradient = jax.value_and_grad(total)(random_heads(P))
  leaves = [value, *jax.tree.leaves(gradient)]
  assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_positions_count_real_entries_from_zero():
  mask = jnp.array([[0, 0, 1, 1, 1], [1, 1, 0, 0, 1]], bool)
  found = attention.positions_of(mask)
  np.testing.assert_array_equal(found[0, 2:], [0, 1, 2])
  np.testing.assert_array_equal(found[1][np.asarray(mask[1])], [0, 1, 2])
  assert (found >= 0).all()
