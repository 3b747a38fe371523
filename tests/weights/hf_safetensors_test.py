import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from pdpo_jax.models import policy
from pdpo_jax.weights import hf_safetensors, loading, tensor_files
from tests.weights import models


def write(folder, arch=models.TIED, shard_bytes=tensor_files.SHARD_BYTES):
  lm = models.make(arch)
  hf_safetensors.write_model(folder, lm, shard_bytes=shard_bytes)
  return models.tensors(lm)


def assert_same(folder, tensors):
  back = models.tensors(hf_safetensors.read_model(folder))
  assert back.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_written_model_reads_back_bitwise(name, dtype, tmp_path):
  lm = models.make(models.ARCHITECTURES[name], dtype)
  hf_safetensors.write_model(tmp_path / "new", lm)
  back = hf_safetensors.read_model(tmp_path / "new", param_dtype=dtype)
  assert back.arch == lm.arch
  before, after = loading.base_params(lm), loading.base_params(back)
  assert before.keys() == after.keys()
  for path, value in before.items():
    assert after[path].dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(after[path], value, err_msg=str(path))
  names = sorted(file.name for file in (tmp_path / "new").iterdir())
  assert names == ["config.json", "model.safetensors"]


def test_shards_and_their_index_read_back(tmp_path):
  tensors = write(tmp_path, shard_bytes=1_000)
  index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
  files = sorted(tmp_path.glob("*.safetensors"))
  assert set(index["weight_map"].values()) == {file.name for file in files}
  assert len(files) > 3
  for file in files:
    found = safetensors.numpy.load_file(file)
    assert sum(value.nbytes for value in found.values()) <= 1_000
  total = sum(value.nbytes for value in tensors.values())
  assert index["metadata"]["total_size"] == total
  assert_same(tmp_path, tensors)


def test_shards_without_an_index_read_back(tmp_path):
  tensors = write(tmp_path, shard_bytes=1_000)
  (tmp_path / "model.safetensors.index.json").unlink()
  assert_same(tmp_path, tensors)


_LLAMA_3 = {
  "architectures": ["LlamaForCausalLM"],
  "attention_bias": False,
  "attention_dropout": 0.0,
  "bos_token_id": 128000,
  "hidden_act": "silu",
  "initializer_range": 0.02,
  "model_type": "llama",
  "pretraining_tp": 1,
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "torch_dtype": "bfloat16",
  "use_cache": True,
  "vocab_size": 128256,
}
_LLAMA_3_ROPE = {
  "high_freq_factor": 4.0,
  "low_freq_factor": 1.0,
  "original_max_position_embeddings": 8192,
  "rope_type": "llama3",
}
_8B = {
  "hidden_size": 4096,
  "intermediate_size": 14336,
  "num_attention_heads": 32,
  "num_hidden_layers": 32,
  "num_key_value_heads": 8,
  "tie_word_embeddings": False,
}
# As the models' authors published them.
PUBLISHED = {
  "llama-3-8b": {
    **_LLAMA_3,
    **_8B,
    "eos_token_id": 128009,
    "max_position_embeddings": 8192,
    "rope_scaling": None,
  },
  "llama-3.1-8b": {
    **_LLAMA_3,
    **_8B,
    "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "rope_scaling": {"factor": 8.0, **_LLAMA_3_ROPE},
  },
  "llama-3.2-1b": {
    **_LLAMA_3,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": {"factor": 32.0, **_LLAMA_3_ROPE},
    "tie_word_embeddings": True,
  },
  "smollm2-135m": {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_interleaved": False,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
  },
  "gptj-6b": {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "rotary": True,
    "rotary_dim": 64,
    "tie_word_embeddings": False,
    "vocab_size": 50400,
  },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_the_preset(name, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
  found = hf_safetensors.read_architecture(tmp_path)
  assert found == policy.PRESETS[name]


def test_files_that_the_index_does_not_name_are_not_read(tmp_path):
  tensors = write(tmp_path, shard_bytes=1_000)
  stray = {"consolidated": np.zeros(3), "model.norm.weight": np.zeros(3)}
  safetensors.numpy.save_file(stray, tmp_path / "consolidated.safetensors")
  assert_same(tmp_path, tensors)


def test_a_tensor_in_two_files_is_an_error(tmp_path):
  tensors = write(tmp_path)
  (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
  name = "model.norm.weight"
  safetensors.numpy.save_file({name: tensors[name]}, tmp_path / "b.safetensors")
  with pytest.raises(ValueError, match=rf"has {name} in more than one of a\."):
    hf_safetensors.read_model(tmp_path)


def test_missing_shards_are_all_named(tmp_path):
  write(tmp_path, shard_bytes=1_000)
  first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
  first.unlink()
  second.unlink()
  with pytest.raises(ValueError, match=f"lacks {first.name}, {second.name}"):
    hf_safetensors.read_model(tmp_path)


def test_a_tensor_that_is_in_no_file_is_named(tmp_path):
  write(tmp_path, shard_bytes=1_000)
  file = tmp_path / "model.safetensors.index.json"
  index = json.loads(file.read_text())
  index["weight_map"]["more"] = next(iter(index["weight_map"].values()))
  file.write_text(json.dumps(index))
  with pytest.raises(ValueError, match="not in their files: more; download"):
    hf_safetensors.read_model(tmp_path)


def test_a_damaged_index_is_named(tmp_path):
  write(tmp_path, shard_bytes=1_000)
  (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ')
  with pytest.raises(ValueError, match=r"index\.json is no JSON .* again"):
    hf_safetensors.read_model(tmp_path)


def test_misshapen_tensors_are_all_named_before_any_is_read(
  tmp_path, monkeypatch
):
  tensors = write(tmp_path)
  tensors["model.norm.weight"] = np.zeros(11, np.float32)
  name = "model.layers.1.self_attn.k_proj.weight"
  tensors[name] = np.ascontiguousarray(tensors[name].T)
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  monkeypatch.delattr(tensor_files.TensorPlace, "read")
  with pytest.raises(ValueError) as error:
    hf_safetensors.read_model(tmp_path)
  assert "model.norm.weight is (11,), not (10,)" in str(error.value)
  assert f"{name} is (10, 6), not (6, 10)" in str(error.value)


def test_quantized_weights_are_named(tmp_path):
  tensors = write(tmp_path)
  tensors["model.norm.weight"] = np.zeros(10, np.int8)
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match=r"model\.norm\.weight is I8; use"):
    hf_safetensors.read_model(tmp_path)


def test_weights_are_not_mixed_with_others(tmp_path):
  write(tmp_path, shard_bytes=1_000)
  with pytest.raises(ValueError, match=r"has weights already .* another"):
    write(tmp_path)


def test_folders_that_hold_no_model_are_named(tmp_path):
  with pytest.raises(ValueError, match=r"has no config\.json"):
    hf_safetensors.read_model(tmp_path)
  file = tmp_path / "config.json"
  file.write_text("{")
  with pytest.raises(ValueError, match=r"config\.json is no JSON"):
    hf_safetensors.read_model(tmp_path)
  file.write_text(json.dumps({"model_type": "bert"}))
  with pytest.raises(ValueError, match=r"'bert' is not supported"):
    hf_safetensors.read_model(tmp_path)
  file.write_text(json.dumps(models.TIED.to_hf()))
  with pytest.raises(ValueError, match=r"no \*\.safetensors file$"):
    hf_safetensors.read_model(tmp_path)
  (tmp_path / "pytorch_model.bin").touch()
  with pytest.raises(ValueError, match=f"pdpo_jax.convert {tmp_path} OUTPUT"):
    hf_safetensors.read_model(tmp_path)
