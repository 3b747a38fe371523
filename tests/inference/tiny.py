"""Tiny policies that speak varied text, and a decoder without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdpo_jax.inference import sampling
from pdpo_jax.models import attention, layers, policy, user_model

NUM_ROWS = 5
STOPS = (3, 7, 11, 19, 23, 29)  # of 101: some answers stop, some do not
SPACE = 64  # positions that the decoder without a cache always runs


@functools.cache
def make_policy(preset, kind="individual", prefix_position="front", seed=0):
  """A random policy with weights so large that texts vary."""
  lm = policy.make_language_model(
    policy.PRESETS[preset],
    lora=layers.LoraConfig(("q_proj", "v_proj"), rank=3),
    rngs=nnx.Rngs(params=seed, lora=seed + 1),
  )
  graphdef, state = nnx.split(lm)
  leaves, tree = jax.tree.flatten(state)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  # Noise also on what starts as zero (biases, LoRA's B) or one (norms).
  leaves = [
    x + 0.2 * jax.random.normal(key, x.shape)
    for key, x in zip(keys, leaves, strict=True)
  ]
  lm = nnx.merge(graphdef, jax.tree.unflatten(tree, leaves))
  users = user_model.make_user_model(
    user_model.UserConfig(kind, num_tokens=3, num_clusters=2, init_std=1.0),
    NUM_ROWS,
    lm.embed(jnp.arange(lm.arch.vocab_size)),
    nnx.Rngs(params=seed + 2),
  )
  return policy.Policy(lm, users, prefix_position)


@functools.partial(jax.jit, static_argnums=(0,), static_argnames="spec")
def _next_tokens(
  graphdef, state, sequences, lengths, answers, seeds, prompts, *, spec
):
  """Each row's next token, by a full forward pass over padded sequences."""
  model = nnx.merge(graphdef, state)
  places = jnp.arange(SPACE)[None]
  hidden, _ = model.lm.hidden(
    sequences,
    jnp.broadcast_to(places, sequences.shape[:2]),
    attention.causal(places < lengths[:, None]),
  )
  logits = model.lm.logits(hidden[jnp.arange(len(lengths)), lengths - 1])
  count = (answers >= 0).sum(-1)[0]
  stops = jnp.asarray(STOPS)
  logits = sampling.filter_logits(logits, answers, count, stops, spec, prompts)
  if spec.temperature:

    def noise(seed):
      key = jax.random.fold_in(jax.random.key(seed), count)
      return jax.random.gumbel(key, logits.shape[1:])

    logits = logits + jax.vmap(noise)(seeds)
  return jnp.argmax(logits, -1)


def answers_without_cache(model, requests, spec):
  """What `generate` should say, the long way round.

  No padding on the left and no cache: the prefix is put into each prompt by
  hand, and every token costs a pass over all there is.
  """
  graphdef, state = nnx.split(model)
  sequences = np.zeros((len(requests), SPACE, model.lm.arch.width), np.float32)
  lengths = np.zeros(len(requests), np.int32)
  table = np.asarray(model.lm.embed(jnp.arange(model.lm.arch.vocab_size)))
  rows = jnp.asarray([request.user_row for request in requests])
  place = 0 if model.prefix_position == "front" else 1
  for row, prefix in enumerate(np.asarray(model.user_model(rows))):
    prompt = table[requests[row].prompt]
    whole = np.concatenate([prompt[:place], prefix, prompt[place:]])
    lengths[row] = len(whole)
    sequences[row, : len(whole)] = whole
  answers = np.full((len(requests), spec.max_new_tokens), -1, np.int32)
  seeds = np.asarray([request.seed for request in requests], np.uint32)
  longest = max(len(request.prompt) for request in requests)
  prompts = np.full((len(requests), longest), len(table), np.int32)
  for row, request in enumerate(requests):
    prompts[row, longest - len(request.prompt) :] = request.prompt
  for count in range(spec.max_new_tokens):
    # Copied: the CPU's arrays may share memory with numpy's.
    arrays = (x.copy() for x in (sequences, lengths, answers, seeds, prompts))
    tokens = _next_tokens(graphdef, state, *arrays, spec=spec)
    answers[:, count] = tokens
    sequences[np.arange(len(requests)), lengths] = table[tokens]
    lengths += 1
  ends = [
    next((i for i, t in enumerate(row) if t in STOPS), len(row))
    for row in answers.tolist()
  ]
  return [row[:end].tolist() for row, end in zip(answers, ends, strict=True)]
