"""Tiny policies that speak varied text, and a decoder without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdpo_jax.inference import sampling
from pdpo_jax.models import attention, layers, policy, user_model

NUM_ROWS = 5
SPACE = 64  # positions that the decoder without a cache always runs


def make_policy(preset, kind="individual", prefix_position="front", seed=0):
  """A random policy with weights so large that texts vary."""
  lm = policy.make_language_model(
    policy.PRESETS[preset],
    lora=layers.LoraSpec(("q_proj", "v_proj"), rank=3),
    rngs=nnx.Rngs(params=seed, lora=seed + 1),
  )
  graphdef, state = nnx.split(lm)
  leaves, tree = jax.tree.flatten(state)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  # Also what starts as zero (biases, LoRA's B) or one (norms).
  leaves = [
    10 * x + 0.2 * jax.random.normal(key, x.shape)
    for key, x in zip(keys, leaves, strict=True)
  ]
  lm = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
  users = user_model.make_user_model(
    user_model.UserSpec(kind, num_tokens=3, num_clusters=2, init_std=1.0),
    NUM_ROWS,
    lm.embed(jnp.arange(lm.arch.vocab_size)),
    nnx.Rngs(params=seed + 2),
  )
  return policy.Policy(lm, users, prefix_position)


@functools.partial(jax.jit, static_argnums=0)
def _next_logits(graphdef, state, embeddings, length):
  """Logits after the first `length` positions, by a full forward pass."""
  model = nnx.merge(graphdef, state)
  mask = (jnp.arange(SPACE) < length)[None]
  hidden, _ = model.lm.hidden(
    embeddings, jnp.arange(SPACE)[None], attention.causal(mask)
  )
  return model.lm.logits(hidden[:, length - 1])


def answer_without_cache(model, request, spec, stop_tokens):
  """What `generate` should say to one request, the long way round.

  One row, no padding on the left, no cache: the prefix is put into the prompt
  by hand, and every token costs a pass over all there is.
  """
  graphdef, state = nnx.split(model)
  prompt = model.lm.embed(jnp.asarray(request.prompt))
  prefix = model.user_model(jnp.asarray([request.user_row]))[0]
  place = 0 if model.prefix_position == "front" else 1
  sequence = np.concatenate([prompt[:place], prefix, prompt[place:]])
  stops = jnp.asarray(np.asarray(stop_tokens, np.int32))
  answer = []
  while len(answer) < spec.max_new_tokens:
    count = len(answer)
    padded = np.zeros((1, SPACE, sequence.shape[1]), np.float32)
    padded[0, : len(sequence)] = sequence
    logits = _next_logits(graphdef, state, jnp.asarray(padded), len(sequence))
    so_far = jnp.asarray([[*answer, 0]], jnp.int32)
    logits = sampling.filter_logits(logits, so_far, count, stops, spec)
    if spec.temperature:
      key = jax.random.fold_in(jax.random.key(request.seed), count)
      logits = logits + jax.random.gumbel(key, logits.shape[1:])
    token = int(jnp.argmax(logits[0]))
    if token in stop_tokens:
      break
    answer.append(token)
    new = np.asarray(model.lm.embed(jnp.asarray([token])))
    sequence = np.concatenate([sequence, new])
  return answer
