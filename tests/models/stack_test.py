import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.inference import generate, sampling
from pdpo_jax.models import attention, layers, policy, stack
from tests.inference import tiny


@functools.partial(jax.jit, static_argnums=0)
def run(graphdef, state):
  lm = nnx.merge(graphdef, state)
  tokens = jnp.arange(10).reshape(2, 5)
  return lm.hidden(
    lm.embed(tokens),
    jnp.broadcast_to(jnp.arange(5), (2, 5)),
    attention.prefill(jnp.ones((2, 5), bool)),
  )


@pytest.mark.parametrize("preset", ["gptj-tiny", "llama-tiny"])
def test_layers_apart_are_the_layers(preset):
  lm = tiny.make_policy(preset).lm
  graphdef, state = nnx.split(lm)
  apart = stack.apart(state, lm.stacked)
  hidden, cache = run(graphdef, state)
  found, entries = run(graphdef, apart)
  # Sums may be taken in another order.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  close(found, hidden)
  for stacked, separate in zip(cache, entries, strict=True):
    assert isinstance(separate, tuple)
    close(np.stack(separate), stacked)
  # What lies around the layers is as it was.
  whole = {path for path, _ in nnx.to_flat_state(state)}
  assert {path for path, _ in nnx.to_flat_state(apart)} == whole
  assert run(graphdef, apart)[0].shape == (2, 5, 28)


def test_frozen_weights_are_not_copied_and_others_are():
  lm = tiny.make_policy("llama-tiny").lm
  # Of a size that keeps each layer aligned; else a copy is needed.
  kernel = np.zeros((2, 1000, 640), np.float32) + np.arange(2)[:, None, None]
  attn = lm.layers.self_attn
  state = nnx.state(attn.q_proj)
  flat = dict(nnx.to_flat_state(state))
  state = nnx.from_flat_state(
    [
      ((lm.stacked, *path), variable.replace(jnp.array(kernel)))
      for path, variable in flat.items()
    ]
  )
  apart = dict(nnx.to_flat_state(stack.apart(state, lm.stacked)))
  assert len(apart) == 3
  for path, variable in nnx.to_flat_state(state):
    separate = apart[path].get_value()
    assert [float(layer[0, 0]) for layer in separate] == [0, 1]
    shares = [
      np.shares_memory(np.asarray(layer), np.asarray(variable.get_value()))
      for layer in separate
    ]
    assert shares == [path[-1] == "kernel"] * 2


def test_generate_takes_layers_apart_where_that_pays():
  lm = tiny.make_policy("llama-tiny").lm
  layer = nnx.state(lm.layers)
  size = sum(x.nbytes for x in jax.tree.leaves(layer)) / 2
  assert not generate._pays_apart(lm, int(2.9e9 / size))
  assert generate._pays_apart(lm, int(3.1e9 / size))


def test_answers_of_layers_apart_are_the_same(monkeypatch):
  model = tiny.make_policy("llama-tiny")
  requests = [
    generate.Request(np.arange(3, 3 + row, dtype=np.int32), row, row)
    for row in (1, 2, 4)
  ]
  spec = sampling.AnswersConfig(max_new_tokens=9, top_p=0.9)
  monkeypatch.setattr(generate, "_pays_apart", lambda *_: True)
  texts = generate.generate(
    model, requests, spec, stop_tokens=tiny.STOPS, pad_id=0, batch_size=4
  )
  assert [text.tolist() for text in texts] == tiny.answers_without_cache(
    model, requests, spec
  )


@pytest.mark.parametrize("preset", ["gptj-tiny", "llama-tiny"])
def test_updates_in_the_weights_are_the_updates_beside_them(preset):
  lm = tiny.make_policy(preset).lm
  merged = stack.without_lora(lm)
  assert not jax.tree.leaves(nnx.state(merged, layers.LoraParam))
  hidden, _ = run(*nnx.split(lm))
  found, _ = run(*nnx.split(merged))
  np.testing.assert_allclose(found, hidden, rtol=1e-4, atol=1e-5)
  # Those of the model are where they were, and are felt.
  assert jax.tree.leaves(nnx.state(lm, layers.LoraParam))
  updates = nnx.state(lm, layers.LoraParam)
  without = nnx.merge(*nnx.split(lm))
  nnx.update(without, jax.tree.map(jnp.zeros_like, updates))
  assert np.abs(run(*nnx.split(without))[0] - hidden).max() > 0.1


@pytest.mark.parametrize("param_dtype", ["bfloat16", "int8"])
def test_updates_stay_beside_weights_that_would_lose_them(param_dtype):
  lm = policy.make_language_model(
    policy.PRESETS["llama-tiny"],
    lora=layers.LoraConfig(("q_proj", "v_proj"), rank=3),
    param_dtype=param_dtype,
    rngs=nnx.Rngs(0),
  )
  merged = stack.without_lora(lm)
  before, after = (
    dict(nnx.to_flat_state(nnx.state(each))) for each in (lm, merged)
  )
  assert before.keys() == after.keys()
  assert any(isinstance(x, layers.LoraParam) for x in after.values())
