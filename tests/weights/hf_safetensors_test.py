import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from pdpo_jax.models import gptj, llama, policy
from pdpo_jax.weights import hf_safetensors
from tests import golden_cases

TIED = llama.Architecture(17, 10, 2, 2, 1, 6, 13, tied_head=True)
ARCHITECTURES = {
  "gptj": gptj.PRESETS["gptj-tiny"],
  "llama": llama.PRESETS["llama-tiny"],
  "llama_tied": TIED,
}


@functools.cache
def make(arch, dtype=jnp.float32):
  return policy.make_language_model(arch, param_dtype=dtype, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_written_model_reads_back_bitwise(name, dtype, tmp_path):
  lm = make(ARCHITECTURES[name], jnp.dtype(dtype))
  hf_safetensors.write_model(tmp_path / "new", lm)
  back = hf_safetensors.read_model(tmp_path / "new", param_dtype=dtype)
  assert back.arch == lm.arch
  before = hf_safetensors.base_params(lm)
  after = hf_safetensors.base_params(back)
  assert before.keys() == after.keys()
  for path, value in before.items():
    assert after[path].dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(after[path], value, err_msg=str(path))
  names = sorted(file.name for file in (tmp_path / "new").iterdir())
  assert names == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", golden_cases.MODELS)
def test_tensors_have_the_names_and_layout_of_transformers(name):
  arrays = golden_cases.read(name)
  lm = golden_cases.language_model(arrays)
  expected = golden_cases.section(arrays, "weights")
  found = hf_safetensors.to_tensors(lm)
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_weights_may_be_spread_over_files(tmp_path):
  lm = make(TIED)
  hf_safetensors.write_model(tmp_path, lm)
  whole = tmp_path / "model.safetensors"
  tensors = safetensors.numpy.load_file(whole)
  whole.unlink()
  names = sorted(tensors)
  for number, part in enumerate((names[::2], names[1::2])):
    safetensors.numpy.save_file(
      {name: tensors[name] for name in part},
      tmp_path / f"model-{number}.safetensors",
    )
  back = hf_safetensors.to_tensors(hf_safetensors.read_model(tmp_path))
  for name, value in tensors.items():
    np.testing.assert_array_equal(back[name], value)


def load(arch, tensors):
  lm = hf_safetensors.abstract_model(arch)
  hf_safetensors.load_tensors(lm, set(tensors), tensors.__getitem__)
  return lm


def test_missing_and_unused_tensors_are_all_named():
  tensors = hf_safetensors.to_tensors(make(TIED))
  for name in (
    "model.norm.weight",
    "model.layers.1.mlp.up_proj.weight",
  ):
    del tensors[name]
  tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((13, 10))
  tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(12)
  with pytest.raises(ValueError) as error:
    load(TIED, tensors)
  assert (
    "missing: model.layers.1.mlp.up_proj.weight, model.norm.weight; "
    "unused: model.layers.0.self_attn.q_proj.bias, "
    "model.layers.2.mlp.up_proj.weight"
  ) in str(error.value)


def test_misshapen_tensors_are_all_named_with_both_shapes():
  tensors = hf_safetensors.to_tensors(make(TIED))
  tensors["model.norm.weight"] = np.zeros(11, np.float32)
  name = "model.layers.1.self_attn.k_proj.weight"
  tensors[name] = tensors[name].T
  with pytest.raises(ValueError) as error:
    load(TIED, tensors)
  assert "model.norm.weight is (11,), not (10,)" in str(error.value)
  assert f"{name} is (6, 10), not (10, 6)" in str(error.value)


def test_buffers_of_old_checkpoints_and_a_copy_of_the_tied_table_are_ignored():
  tensors = hf_safetensors.to_tensors(make(TIED))
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3)
  load(TIED, tensors)
  arch = gptj.PRESETS["gptj-tiny"]
  tensors = hf_safetensors.to_tensors(make(arch))
  tensors["transformer.h.0.attn.bias"] = np.zeros((1, 1, 7, 7), bool)
  tensors["transformer.h.0.attn.masked_bias"] = np.zeros(())
  load(arch, tensors)


def test_an_untied_head_is_not_ignored():
  arch = llama.PRESETS["llama-tiny"]
  tensors = hf_safetensors.to_tensors(make(arch))
  del tensors["lm_head.weight"]
  with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
    load(arch, tensors)


def test_weights_take_the_dtype_of_the_model():
  tensors = hf_safetensors.to_tensors(make(TIED))
  lm = hf_safetensors.abstract_model(TIED, param_dtype=jnp.bfloat16)
  hf_safetensors.load_tensors(lm, set(tensors), tensors.__getitem__)
  kinds = {x.dtype for x in hf_safetensors.base_params(lm).values()}
  assert kinds == {jnp.dtype("bfloat16")}


def test_one_layer_is_stacked_too():
  arch = llama.Architecture(17, 10, 1, 2, 1, 6, 13, tied_head=True)
  lm = make(arch)
  back = load(arch, hf_safetensors.to_tensors(lm))
  for path, value in hf_safetensors.base_params(lm).items():
    found = hf_safetensors.base_params(back)[path]
    np.testing.assert_array_equal(found, value)


def test_folders_that_hold_no_model_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"base\.path.*no config\.json"):
    hf_safetensors.read_model(tmp_path)
  file = tmp_path / "config.json"
  file.write_text(json.dumps({"model_type": "bert"}))
  with pytest.raises(ValueError, match=r"'bert' is not supported"):
    hf_safetensors.read_model(tmp_path)
  file.write_text(json.dumps(TIED.to_hf()))
  with pytest.raises(ValueError, match=r"no \*\.safetensors"):
    hf_safetensors.read_model(tmp_path)
