import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.models import attention, layers, llama, policy, stack

LORA = layers.LoraConfig(("q_proj",), rank=3, alpha=7.0, dropout=0.25)


def linear(lora=LORA, name="q_proj", stream=0, use_bias=True):
  return layers.Linear(
    name,
    5,
    11,
    use_bias=use_bias,
    lora=lora,
    stream=stream,
    param_dtype=jnp.float32,
    rngs=nnx.Rngs(0),
  )


def with_lora_b(layer, seed=1):
  value = jax.random.normal(jax.random.key(seed), layer.lora_b.shape)
  layer.lora_b.set_value(value)
  return layer


def inputs(*shape, seed=2):
  return jax.random.normal(jax.random.key(seed), shape)


def test_lora_changes_nothing_at_the_start():
  x = inputs(13, 5)
  plain = linear(layers.NO_LORA)
  np.testing.assert_array_equal(linear()(x, None), plain(x, None))


def test_lora_adds_the_scaled_low_rank_product():
  x = inputs(13, 5)
  layer = with_lora_b(linear())
  update = layer.lora_a[...] @ layer.lora_b[...] * (7.0 / 3)
  expected = x @ (layer.kernel[...] + update) + layer.bias[...]
  np.testing.assert_allclose(layer(x, None), expected, rtol=1e-5, atol=1e-6)


def test_lora_sits_on_named_layers_only():
  assert linear(name="k_proj").lora_a is None
  assert linear(name="q_proj").lora_a is not None


def test_lora_a_is_uniform_up_to_one_over_root_of_inputs():
  rngs = nnx.Rngs(0)
  layer = layers.Linear(
    "q_proj",
    1_009,
    11,
    use_bias=False,
    lora=LORA,
    stream=0,
    param_dtype=jnp.float32,
    rngs=rngs,
  )
  a = np.asarray(layer.lora_a[...]) * np.sqrt(1_009)
  assert 0.98 < np.abs(a).max() <= 1
  # 3,027 draws: five standard errors of a uniform's spread are 0.03.
  assert a.std() == pytest.approx(1 / np.sqrt(3), abs=0.03)


def embedding(targets):
  return layers.Embedding(
    "wte",
    17,
    5,
    lora=layers.LoraConfig(targets, 3, 7.0),
    param_dtype=jnp.float32,
    rngs=nnx.Rngs(0),
  )


def test_embedding_lora_changes_nothing_at_the_start_and_has_a_gradient():
  tokens = jnp.arange(17)
  table, plain = embedding(("wte",)), embedding(())
  np.testing.assert_array_equal(
    table(tokens, jnp.float32), plain(tokens, jnp.float32)
  )
  assert np.abs(table.lora_b[...]).min() > 0  # so A's gradient is not zero


def test_embedding_lora_adds_the_scaled_low_rank_product():
  table = embedding(("wte",))
  table.lora_a.set_value(inputs(17, 3))
  expected = table.weight[...] + table.lora_a[...] @ table.lora_b[...] * 7 / 3
  found = table(jnp.arange(17), jnp.float32)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_tied_head_uses_the_table_without_lora():
  arch = llama.Architecture(17, 5, 2, 2, 1, 6, 7, tied_head=True)
  lora = layers.LoraConfig(("embed_tokens",), 3, 7.0)
  lm = policy.make_language_model(arch, lora=lora, rngs=nnx.Rngs(0))
  lm.embed_tokens.lora_a.set_value(inputs(17, 3))
  weight, bias = lm.head()
  assert bias is None
  np.testing.assert_array_equal(weight, lm.embed_tokens.weight[...])


def test_dropout_is_off_without_a_key():
  x = inputs(13, 5)
  layer = with_lora_b(linear())
  still = layers.LoraConfig(LORA.targets, LORA.rank, LORA.alpha, 0.0)
  np.testing.assert_array_equal(
    layer(x, None), with_lora_b(linear(still))(x, jax.random.key(0))
  )


def test_dropout_is_the_same_for_the_same_key_and_not_for_another():
  x = inputs(13, 5)
  layer = with_lora_b(linear())
  first = layer(x, jax.random.key(0))
  np.testing.assert_array_equal(first, layer(x, jax.random.key(0)))
  assert not np.allclose(first, layer(x, jax.random.key(1)))


def test_dropout_differs_between_layers_of_a_block_and_positions():
  x = jnp.broadcast_to(inputs(5), (13, 5))
  out = [
    with_lora_b(linear(stream=stream))(x, jax.random.key(0))
    for stream in (0, 1)
  ]
  assert not np.allclose(out[0], out[1])
  assert len(np.unique(np.round(out[0], 5), axis=0)) > 3


def test_dropout_keeps_the_expectation_and_the_base_output():
  x = inputs(5)
  layer = with_lora_b(linear())
  many = jnp.broadcast_to(x, (40_009, 5))
  out = np.asarray(layer(many, jax.random.key(0)))
  # The spread of one entry is below 4: five standard errors are 0.1.
  assert out.std(0).max() < 4
  np.testing.assert_allclose(out.mean(0), layer(x, None), atol=0.1)
  layer.lora_b.set_value(jnp.zeros_like(layer.lora_b[...]))
  np.testing.assert_array_equal(
    layer(many[:3], jax.random.key(0)), layer(many[:3], None)
  )


def test_dropout_drops_the_given_share_and_scales_up_the_rest():
  x = jnp.ones((101, 997))
  out = np.asarray(layers.drop(x, 0.25, jax.random.key(0)))
  np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
  # 100,697 draws: five standard errors are 0.007.
  assert (out == 0).mean() == pytest.approx(0.25, abs=0.007)


def test_layer_norm_equals_the_formula():
  norm = layers.LayerNorm(5, 1e-2, jnp.float32)
  norm.weight.set_value(inputs(5, seed=3))
  norm.bias.set_value(inputs(5, seed=4))
  x = np.asarray(inputs(13, 5), np.float64)
  expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(
    x.var(-1, keepdims=True) + 1e-2
  )
  expected = expected * norm.weight[...] + norm.bias[...]
  np.testing.assert_allclose(norm(jnp.float32(x)), expected, atol=1e-5)


def test_rms_norm_equals_the_formula():
  norm = layers.RMSNorm(5, 1e-2, jnp.float32)
  norm.weight.set_value(inputs(5, seed=3))
  x = np.asarray(inputs(13, 5), np.float64)
  expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-2)
  expected = expected * norm.weight[...]
  np.testing.assert_allclose(norm(jnp.float32(x)), expected, atol=1e-5)


L, B, S, D = 3, 2, 7, 26
TARGETS = ("q_proj", "gate_proj")


@functools.cache
def tiny(remat="none", dropout=0.0):
  """A model with LoRA that does something, split for differentiation."""
  arch = llama.Architecture(101, D, L, 2, 1, 10, 47)
  lora = layers.LoraConfig(TARGETS, 5, 7.0, dropout)
  lm = policy.make_language_model(
    arch, lora=lora, remat=remat, rngs=nnx.Rngs(0)
  )
  for layer in (lm.layers.self_attn.q_proj, lm.layers.mlp.gate_proj):
    with_lora_b(layer)
  return nnx.split(lm, layers.LoraParam, ...)


def total(graphdef, lora, frozen, key=None):
  lm = nnx.merge(graphdef, lora, frozen)
  mask = jnp.ones((B, S), bool)
  hidden, _ = lm.hidden(
    inputs(B, S, D),
    attention.positions_of(mask),
    attention.causal(mask),
    dropout_key=key,
  )
  return jnp.sum(hidden * inputs(B, S, D, seed=5))


def saved_bytes(remat):
  """What the forward pass keeps for the backward one."""
  graphdef, lora, frozen = tiny(remat)

  def backward(lora, frozen):
    return jax.vjp(lambda lora: total(graphdef, lora, frozen), lora)[1]

  kept = jax.tree.leaves(jax.eval_shape(backward, lora, frozen))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in kept)


def test_remat_policies_save_less_and_less():
  none, dots, full = map(saved_bytes, ("none", "dots", "full"))
  # 157, 120 and 80 kB.
  assert none > 1.2 * dots > 1.2 * 1.2 * full


def test_remat_policies_change_no_value_and_no_gradient():
  expected = None
  for remat in layers.REMAT_POLICIES:
    graphdef, lora, frozen = tiny(remat)
    run = jax.jit(jax.value_and_grad(functools.partial(total, graphdef)))
    found = jax.tree.leaves(run(lora, frozen))
    expected = expected or found
    for ours, theirs in zip(found, expected, strict=True):
      # Fused differently, so rounded differently.
      scale = np.abs(theirs).max()
      assert scale > 0
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * scale)


def test_each_stacked_layer_has_dropout_of_its_own():
  class Spy(nnx.Module):
    def __init__(self):
      self.weight = nnx.Param(jnp.zeros((L,)))

    def __call__(self, x, rotary, attend, past, key):
      return x, jax.random.key_data(key)

  x, positions = inputs(B, S, D), jnp.zeros((B, S), jnp.int32)
  rotary = layers.Rotary.at(positions, jnp.ones((3,)))
  attend = attention.causal(jnp.ones((B, S), bool))
  key = jax.random.key(0)
  _, seen = stack.scan_layers(Spy(), x, rotary, attend, None, key, "none")
  assert len(np.unique(seen, axis=0)) == L


def test_dropout_of_a_model_needs_a_key_and_follows_it():
  graphdef, lora, frozen = tiny("none", 0.5)
  run = jax.jit(functools.partial(total, graphdef))
  first, again, other = (
    run(lora, frozen, jax.random.key(seed)) for seed in (0, 0, 1)
  )
  assert first == again
  assert first != other
  assert run(lora, frozen) != first


def test_unknown_lora_target_is_named_with_those_there_are():
  arch = llama.PRESETS["llama-tiny"]
  lora = layers.LoraConfig(("q_proj", "c_attn"))
  with pytest.raises(ValueError, match=r"'c_attn'.*'q_proj'.*head is frozen"):
    policy.make_language_model(arch, lora=lora, rngs=nnx.Rngs(0))


def test_stacked_layers_start_with_weights_of_their_own():
  _, lora, frozen = tiny()
  for state in (lora, frozen):
    for path, variable in nnx.to_flat_state(state):
      if path[-1] in ("kernel", "lora_a"):
        first, second, third = variable[...]
        assert not np.allclose(first, second)
        assert not np.allclose(second, third)


def test_quantized_weights_are_within_half_a_step_of_their_own_output():
  kernel = jax.random.normal(jax.random.key(0), (26, 11))
  kernel = kernel * jnp.geomspace(1e-3, 1e3, 11)
  integers, scale = layers.quantize(kernel.at[:, 3].set(0.0))
  assert integers.dtype == jnp.int8 and np.abs(integers).max() == 127
  error = np.abs(integers * scale - kernel.at[:, 3].set(0.0))
  assert (error <= scale * 0.5001).all()
  np.testing.assert_array_equal(integers[:, 3], 0)


def test_an_int8_linear_layer_is_that_of_its_dequantized_kernel():
  def make(dtype):
    return layers.Linear(
      "fc_in",
      26,
      11,
      use_bias=True,
      lora=layers.LoraConfig(("fc_in",), 5, 7.0),
      stream=0,
      param_dtype=dtype,
      rngs=nnx.Rngs(params=0, lora=1),
    )

  small, wide = make(jnp.int8), make(jnp.float32)
  assert small.kernel[...].dtype == jnp.int8
  assert small.bias[...].dtype == jnp.float32
  wide.kernel[...] = small.kernel[...] * small.kernel_scale[...]
  for layer in (small, wide):
    layer.lora_b[...] = inputs(5, 11)
  x = inputs(2, 3, 26)

  def run(layer):
    graphdef, lora, frozen = nnx.split(layer, layers.LoraParam, ...)

    def total(lora, x):
      out = nnx.merge(graphdef, lora, frozen)(x, None)
      return jnp.sum(out**2), out

    return jax.value_and_grad(total, (0, 1), has_aux=True)(lora, x)

  for own, other in zip(
    jax.tree.leaves(run(small)), jax.tree.leaves(run(wide)), strict=True
  ):
    np.testing.assert_allclose(own, other, rtol=2e-5, atol=1e-5)


def test_int8_leaves_all_but_kernels_in_the_type_of_activations():
  arch = llama.Architecture(101, D, L, 2, 1, 10, 47)
  lm = llama.Llama(
    arch, dtype=jnp.bfloat16, param_dtype=jnp.int8, rngs=nnx.Rngs(0)
  )
  kinds = {
    path[-1]: str(variable.get_value().dtype)
    for path, variable in nnx.to_flat_state(nnx.state(lm))
  }
  assert kinds == {
    "kernel": "int8",
    "kernel_scale": "float32",
    "weight": "bfloat16",
  }
