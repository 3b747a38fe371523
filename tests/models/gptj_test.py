import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.models import gptj
from pdpo_jax.weights import loading
from tests import golden_cases


def test_logits_equal_those_of_transformers():
  # With prefix embeddings and padding on either side; 1e-4 is what float32
  # leaves of three layers' sums in another order.
  arrays = golden_cases.read("gptj")
  difference = np.abs(golden_cases.logits(arrays) - arrays["logits/out"])
  assert difference.max() < 1e-4


def test_preset_has_the_published_number_of_parameters():
  lm = loading.abstract_model(gptj.PRESETS["gptj-6b"])
  leaves = jax.tree.leaves(nnx.state(lm))
  assert sum(leaf.size for leaf in leaves) == 6_050_882_784


@pytest.mark.parametrize("name", gptj.PRESETS)
def test_config_json_reads_back_as_it_was_written(name):
  arch = gptj.PRESETS[name]
  assert gptj.Architecture.from_hf(arch.to_hf()) == arch


def test_config_without_optional_fields_gets_the_defaults_of_transformers():
  fields = gptj.PRESETS["gptj-6b"].to_hf()
  for name in ("n_inner", "layer_norm_epsilon", "activation_function"):
    del fields[name]
  assert gptj.Architecture.from_hf(fields) == gptj.PRESETS["gptj-6b"]


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("activation_function", "relu"),
    ("tie_word_embeddings", True),
    ("rotary_dim", None),
  ],
)
def test_unsupported_config_values_are_named(field, value):
  fields = gptj.PRESETS["gptj-tiny"].to_hf() | {field: value}
  with pytest.raises(ValueError, match=field):
    gptj.Architecture.from_hf(fields)


@pytest.mark.parametrize(
  ("field", "value"), [("width", 29), ("rotary_dim", 5), ("rotary_dim", 16)]
)
def test_impossible_sizes_are_named(field, value):
  with pytest.raises(ValueError, match=f"{field} {value}"):
    dataclasses.replace(gptj.PRESETS["gptj-tiny"], **{field: value})


def test_features_beyond_rotary_dim_do_not_turn():
  arch = gptj.PRESETS["gptj-tiny"]
  attention = gptj.Attention(arch, lambda *_, **__: nnx.Module())
  x = jax.random.normal(jax.random.key(0), (1, 5, 2, arch.head_size))
  positions = jnp.arange(5)[None] + 3
  rotary = gptj.layers.Rotary.at(
    positions, gptj.layers.rotary_frequencies(arch.rotary_dim, 10_000.0)
  )
  turned = attention.rotate(x, rotary)
  same = np.asarray(turned == x)
  assert same[..., arch.rotary_dim :].all()
  assert not same[..., : arch.rotary_dim].any()
