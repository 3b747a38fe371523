import subprocess
import sys
import textwrap
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.models import gptj, llama
from pdpo_jax.weights import loading
from tests import golden_cases
from tests.weights import models


def load(arch, tensors, **kwargs):
  lm = loading.abstract_model(arch, **kwargs)
  loading.load_tensors(lm, set(tensors), tensors.__getitem__)
  return lm


def assert_same(lm, other):
  before, after = loading.base_params(lm), loading.base_params(other)
  assert before.keys() == after.keys()
  for path, value in before.items():
    assert after[path].dtype == value.dtype, path
    np.testing.assert_array_equal(after[path], value, err_msg=str(path))


@pytest.mark.parametrize("name", golden_cases.MODELS)
def test_tensors_have_the_names_and_layout_of_transformers(name):
  arrays = golden_cases.read(name)
  lm = golden_cases.language_model(arrays)
  expected = golden_cases.section(arrays, "weights")
  found = models.tensors(lm)
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_missing_and_unused_tensors_are_all_named():
  tensors = models.tensors(models.make(models.TIED))
  for name in (
    "model.norm.weight",
    "model.layers.1.mlp.up_proj.weight",
  ):
    del tensors[name]
  tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((13, 10))
  tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(12)
  with pytest.raises(ValueError) as error:
    load(models.TIED, tensors)
  assert (
    "missing: model.layers.1.mlp.up_proj.weight, model.norm.weight; "
    "unused: model.layers.0.self_attn.q_proj.bias, "
    "model.layers.2.mlp.up_proj.weight"
  ) in str(error.value)


def test_a_misshapen_tensor_is_named_with_both_shapes():
  tensors = models.tensors(models.make(models.TIED))
  name = "model.layers.1.self_attn.k_proj.weight"
  tensors[name] = tensors[name].T
  with pytest.raises(ValueError) as error:
    load(models.TIED, tensors)
  assert f"{name} is (10, 6), not (6, 10)" in str(error.value)


def test_buffers_of_old_checkpoints_and_a_copy_of_the_tied_table_are_ignored():
  tensors = models.tensors(models.make(models.TIED))
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(3)
  load(models.TIED, tensors)
  arch = gptj.PRESETS["gptj-tiny"]
  tensors = models.tensors(models.make(arch))
  tensors["transformer.h.0.attn.bias"] = np.zeros((1, 1, 7, 7), bool)
  tensors["transformer.h.0.attn.masked_bias"] = np.zeros(())
  load(arch, tensors)


def test_an_untied_head_is_not_ignored():
  arch = llama.PRESETS["llama-tiny"]
  tensors = models.tensors(models.make(arch))
  del tensors["lm_head.weight"]
  with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
    load(arch, tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", ["float16", "bfloat16", "float32", "float64"])
def test_weights_take_the_dtype_of_the_model_rounded_once(given, dtype):
  tensors = {
    name: value.astype(given)
    for name, value in models.tensors(models.make(models.TIED)).items()
  }
  lm = load(models.TIED, tensors, param_dtype=jnp.dtype(dtype))
  for name, value in models.tensors(lm).items():
    assert value.dtype == dtype
    # A float64 is a float32 first, which decides no weight of these.
    np.testing.assert_array_equal(value, tensors[name].astype(dtype))


@pytest.mark.parametrize("arch", [models.TIED, gptj.PRESETS["gptj-tiny"]])
def test_int8_kernels_come_back_within_half_a_step_and_all_else_as_it_was(arch):
  tensors = models.tensors(models.make(arch))
  lm = load(arch, tensors, param_dtype=jnp.dtype(jnp.int8))
  kernels = 0
  for name, value in models.tensors(lm).items():
    difference = np.abs(value - tensors[name])
    if name.endswith("proj.weight") or (".fc_" in name and value.ndim == 2):
      step = np.abs(tensors[name]).max(1, keepdims=True) / 127
      assert (difference <= step * 0.5001).all() and difference.any(), name
      kernels += 1
    else:
      assert not difference.any(), name
  assert kernels == arch.num_layers * len(arch.linears)


def test_one_layer_is_stacked_too():
  arch = llama.Architecture(17, 10, 1, 2, 1, 6, 13, tied_head=True)
  lm = models.make(arch)
  assert_same(lm, load(arch, models.tensors(lm)))


# Blocks of one row, of rows that do and do not divide a tensor's, and of all.
@pytest.mark.parametrize("block_bytes", [1, 80, 240, 10_000])
def test_blocks_of_any_size_give_the_same(block_bytes, monkeypatch):
  monkeypatch.setattr(loading, "_BLOCK_BYTES", block_bytes)
  lm = models.make(models.TIED)
  assert_same(lm, load(models.TIED, models.tensors(lm)))


def test_the_host_holds_one_tensor_at_a_time():
  tensors = models.tensors(models.make(models.TIED))
  last = []

  def read(name):
    assert all(reference() is None for reference in last), name
    array = tensors[name].copy()
    last[:] = [weakref.ref(array)]
    return array

  lm = loading.abstract_model(models.TIED)
  loading.load_tensors(lm, set(tensors), read)


def test_a_layer_is_written_into_the_array_in_place():
  fill = loading._make_fill(None)
  array = jnp.zeros((3, 512, 512))
  place = array.unsafe_buffer_pointer()
  block = np.ones((64, 512), np.float32)
  filled = fill(array, block, 1, 128, transposed=True)
  assert filled.unsafe_buffer_pointer() == place
  assert array.is_deleted()
  np.testing.assert_array_equal(
    np.asarray(filled).sum((0, 1)) != 0, np.arange(512) // 64 == 2
  )


def test_parameters_go_where_the_sharding_says():
  # In a process of its own, which has four devices.
  script = """
    import jax, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from pdpo_jax.models import llama
    from pdpo_jax.weights import base, loading
    from tests.weights import models

    arch = llama.Architecture(24, 8, 2, 2, 2, 4, 12)
    whole = models.make(arch)
    tensors = models.tensors(whole)
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)
    axes = {"kernel": (None, "data", "fsdp"), "weight": ("fsdp",)}

    def sharding(path, shape):
      if path[-1] == "weight" and path[0] == "layers":
        return None
      return NamedSharding(mesh, PartitionSpec(*axes[path[-1]]))

    lm = loading.abstract_model(arch)
    loading.load_tensors(lm, set(tensors), tensors.__getitem__, sharding)
    for path, array in loading.base_params(lm).items():
      place = sharding(path, array.shape)
      if place is None:
        assert len(array.devices()) == 1, path
      else:
        assert array.sharding == place, path
        assert len(array.devices()) == 4, path
      np.testing.assert_array_equal(array, loading.base_params(whole)[path])
    assert base.fingerprint(lm) == base.fingerprint(whole)
  """
  subprocess.run(
    [sys.executable, "-c", textwrap.dedent(script)],
    check=True,
    env={
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4 "
      "--xla_backend_optimization_level=0",
      "JAX_PLATFORMS": "cpu",
      "PATH": "",
    },
  )


def test_every_bit_pattern_survives():
  arch = llama.Architecture(256, 256, 1, 2, 2, 2, 2, tied_head=True)
  lm = models.make(arch, "bfloat16")
  tensors = models.tensors(lm)
  patterns = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
  tensors["model.embed_tokens.weight"] = patterns.view(jnp.bfloat16)
  found = load(arch, tensors, param_dtype=jnp.bfloat16)
  table = np.asarray(loading.base_params(found)["embed_tokens", "weight"])
  np.testing.assert_array_equal(table.view(np.uint16), patterns)
  assert isinstance(table, np.ndarray) and jax.device_count() == 1
