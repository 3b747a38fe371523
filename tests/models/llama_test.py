import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx

from pdpo_jax.models import layers, llama, llama_fields
from pdpo_jax.weights import loading
from tests import golden_cases


# Grouped queries with scaled frequencies; one shared key head and a tied head.
@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_logits_equal_those_of_transformers(name):
  # 1e-4 is what float32 leaves of three layers' sums in another order.
  arrays = golden_cases.read(name)
  difference = np.abs(golden_cases.logits(arrays) - arrays["logits/out"])
  assert difference.max() < 1e-4


@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("llama-3-8b", 8_030_261_248),
    ("llama-3.1-8b", 8_030_261_248),
    ("llama-3.2-1b", 1_235_814_400),
    ("smollm2-135m", 134_515_008),
  ],
)
def test_preset_has_the_published_number_of_parameters(name, count):
  lm = loading.abstract_model(llama.PRESETS[name])
  leaves = jax.tree.leaves(nnx.state(lm))
  assert sum(leaf.size for leaf in leaves) == count


@pytest.mark.parametrize("name", llama.PRESETS)
def test_config_json_reads_back_as_it_was_written(name):
  arch = llama.PRESETS[name]
  assert llama.Architecture.from_hf(arch.to_hf()) == arch


def test_old_and_new_style_of_rope_fields_are_the_same():
  old = llama.PRESETS["llama-3.2-1b"].to_hf()
  new = dict(old)
  new["rope_parameters"] = new.pop("rope_scaling") | {
    "rope_theta": new.pop("rope_theta")
  }
  assert llama.Architecture.from_hf(old) == llama.Architecture.from_hf(new)
  plain = llama.PRESETS["smollm2-135m"].to_hf()
  del plain["rope_theta"], plain["rope_scaling"]
  plain["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e5}
  assert llama.Architecture.from_hf(plain) == llama.PRESETS["smollm2-135m"]


def test_type_is_another_name_of_rope_type():
  fields = llama.PRESETS["llama-3.1-8b"].to_hf()
  scaling = fields["rope_scaling"]
  scaling["type"] = scaling.pop("rope_type")
  assert llama.Architecture.from_hf(fields) == llama.PRESETS["llama-3.1-8b"]


def test_config_of_transformers_5_is_read():
  arch = golden_cases.architecture(golden_cases.read("llama"))
  assert arch.rope_base == 5_000.0
  assert arch.rope_scaling == llama_fields.RopeScaling(8.0, 1.0, 4.0, 64)
  assert (arch.num_heads, arch.num_kv_heads, arch.head_size) == (6, 2, 10)
  tied = golden_cases.architecture(golden_cases.read("llama_tied"))
  assert tied.rope_scaling is None
  assert tied.tied_head


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
    ("rope_scaling", {"type": "linear", "factor": 2.0}),
    ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
  ],
)
def test_unsupported_config_values_are_named(field, value):
  fields = llama.PRESETS["llama-tiny"].to_hf() | {field: value}
  with pytest.raises(ValueError, match=f"{field}.* is not supported"):
    llama.Architecture.from_hf(fields)


@pytest.mark.parametrize(
  ("field", "value"), [("num_kv_heads", 3), ("head_size", 7)]
)
def test_impossible_sizes_are_named(field, value):
  with pytest.raises(ValueError, match=f"{field} {value}"):
    dataclasses.replace(llama.PRESETS["llama-tiny"], **{field: value})


def test_a_config_that_transformers_refuses_is_not_written():
  arch = dataclasses.replace(llama.PRESETS["llama-tiny"], width=30)
  fields = llama.PRESETS["llama-tiny"].to_hf() | {"hidden_size": 30}
  assert llama.Architecture.from_hf(fields) == arch
  # Although `head_dim` is given.
  with pytest.raises(Exception, match="not a multiple"):
    transformers.LlamaConfig(**fields)
  with pytest.raises(
    ValueError, match="width 30 is not divisible by num_heads"
  ):
    arch.to_hf()


def test_rope_scaling_keeps_high_blends_middle_divides_low_frequencies():
  scaling = llama_fields.RopeScaling(8.0, 1.0, 4.0, 64)
  per_period = 2 * np.pi / 64  # the frequency of one period in the context
  frequencies = jnp.array([5.0, 4.0, 2.5, 1.0, 0.5]) * per_period
  # Half way between 1 and 4 periods: half kept, half divided by 8.
  expected = np.array([5.0, 4.0, 2.5 * (0.5 + 0.5 / 8), 1 / 8, 0.5 / 8])
  np.testing.assert_allclose(
    scaling(frequencies), expected * per_period, rtol=1e-6
  )


def test_rope_base_reaches_the_angles():
  frequencies = layers.rotary_frequencies(6, 1_000.0)
  np.testing.assert_allclose(frequencies, [1.0, 0.1, 0.01], rtol=1e-6)
