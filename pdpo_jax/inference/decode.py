"""Answers a batch of prompts with a key/value cache, in one jitted call.

Axes: B rows, P prompt tokens, S positions of prefix and prompt, C cache slots,
M new tokens, L layers, K key/value heads, E head size, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int, UInt

from pdpo_jax.inference import sampling
from pdpo_jax.models import attention


@functools.partial(jax.jit, static_argnames=("graphdef", "spec", "pad_id"))
def decode(
  graphdef: Any,
  state: Any,
  prompt: Int[Array, "B P"],
  prompt_mask: Bool[Array, "B P"],
  user_rows: Int[Array, " B"],
  seeds: UInt[Array, " B"],
  stop_tokens: Int[Array, " stop"],
  *,
  spec: sampling.AnswersConfig,
  pad_id: int,
) -> tuple[Int[Array, "B M"], Int[Array, " B"]]:
  """Generates until every row has met a stop token or is full.

  A row's text depends on its own prompt, user and seed. What else is in the
  batch, and how far it is padded, changes sums by rounding errors only.

  Compiles once for each graph, spec and shape. Weights are an argument
  (`nnx.split(policy)`), so other weights of the same shapes reuse the program.

  Args:
    graphdef: of a `Policy`.
    state: its weights.
    prompt: padded on the left; every row has a token.
    prompt_mask: true at real tokens.
    user_rows: rows of the user table. Not checked here: indices past the end
      would be clamped.
    seeds: one for each row.
    stop_tokens: what ends an answer; there may be none.
    spec: how tokens are chosen.
    pad_id: what follows an answer's end in the result.

  Returns:
    Tokens, and how many of a row are its answer. The stop token is not.
  """
  policy = nnx.merge(graphdef, state)
  rows = prompt.shape[0]
  size = spec.max_new_tokens
  tokens = jnp.full((rows, size), pad_id, jnp.int32)
  lengths = jnp.zeros((rows,), jnp.int32)
  if size == 0:
    return tokens, lengths

  embeddings, mask = policy.prompt_embeddings(
    prompt, prompt_mask, policy.user_model(user_rows)
  )
  positions = attention.positions_of(mask)
  hidden, cache = policy.lm.hidden(
    embeddings, positions, attention.prefill(mask, policy.lm.kernel)
  )
  start = embeddings.shape[1]
  # The last new token is not fed back, so it needs no slot.
  spare = size - 1
  cache = jax.tree.map(
    lambda x: jnp.pad(
      x, [(0, spare * (axis == x.ndim - 3)) for axis in range(x.ndim)]
    ),
    cache,
  )  # [L, B, C, K, E]; L arrays where layers are apart
  mask = jnp.pad(mask, ((0, 0), (0, spare)))
  keys = sampling.row_keys(seeds)
  vocabulary = policy.lm.arch.vocab_size
  prompt = jnp.where(prompt_mask, prompt, vocabulary)

  def add_token(hidden, count, tokens, lengths, done):
    logits = policy.lm.logits(hidden)
    logits = sampling.filter_logits(
      logits, tokens, count, stop_tokens, spec, prompt
    )
    token = sampling.choose(logits, keys, count, spec)
    done = done | sampling.is_stop(token, stop_tokens)
    token = jnp.where(done, pad_id, token)
    tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, count))
    return tokens, lengths + ~done, done

  def unfinished(carry):
    count, _, _, done, _, _ = carry
    return (count < size) & ~done.all()

  def step(carry):
    count, tokens, lengths, done, cache, mask = carry
    token = jax.lax.dynamic_slice_in_dim(tokens, count - 1, 1, 1)
    hidden, new = policy.lm.hidden(
      policy.lm.embed(token),
      positions[:, -1:] + count,
      attention.decode(mask),
      past=cache,
    )
    # All of the cache is read before any of it is written: else XLA copies it.
    hidden, new = jax.lax.optimization_barrier((hidden, new))
    slot = start + count - 1
    cache = jax.tree.map(
      lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, -3),
      cache,
      new,
    )
    mask = jax.lax.dynamic_update_slice_in_dim(
      mask, jnp.ones((rows, 1), bool), slot, 1
    )
    tokens, lengths, done = add_token(
      hidden[:, 0], count, tokens, lengths, done
    )
    return count + 1, tokens, lengths, done, cache, mask

  tokens, lengths, done = add_token(
    hidden[:, -1], 0, tokens, lengths, jnp.zeros((rows,), bool)
  )
  first = jnp.asarray(1, jnp.int32)
  carry = (first, tokens, lengths, done, cache, mask)
  _, tokens, lengths, *_ = jax.lax.while_loop(unfinished, step, carry)
  return tokens, lengths
