import dataclasses
import functools
import pathlib

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.models import attention, llama, llama_fields, policy
from pdpo_jax.weights import gguf as gguf_lib
from pdpo_jax.weights import hf_safetensors, loading
from tests import golden_cases, tiny_gguf
from tests.weights import models

Kind = gguf.GGMLQuantizationType
# Rows as long as the blocks of quantised ones: 32, and 256 for K-quants.
ARCH = llama.Architecture(37, 64, 2, 4, 2, 24, 256, rope_base=5_000.0)
TIED = dataclasses.replace(ARCH, tied_head=True, epsilon=1e-6)
SCALED = dataclasses.replace(
  ARCH,
  rope_scaling=llama_fields.RopeScaling(8.0, 1.0, 4.0, 64),
  max_positions=128,
)


@functools.cache
def make(arch=ARCH):
  return policy.make_language_model(arch, rngs=nnx.Rngs(0))


def read(file: pathlib.Path, **kwargs):
  return gguf_lib.read_model(gguf_lib.open_file(file), **kwargs)


def assert_equal_weights(found, expected):
  found = loading.base_params(found)
  expected = loading.base_params(expected)
  assert found.keys() == expected.keys()
  for path, value in expected.items():
    assert found[path].dtype == value.dtype
    np.testing.assert_array_equal(found[path], value, err_msg=str(path))


@pytest.mark.parametrize("arch", [ARCH, TIED, SCALED])
def test_float32_model_is_bitwise_that_of_a_safetensors_file(arch, tmp_path):
  lm = make(arch)
  file = tiny_gguf.write(tmp_path / "x.gguf", *tiny_gguf.model(lm))
  hf_safetensors.write_model(tmp_path / "folder", lm)
  found = read(file)
  assert found.arch == arch
  assert_equal_weights(found, hf_safetensors.read_model(tmp_path / "folder"))


@pytest.mark.parametrize("name", ["llama", "llama_tied"])
def test_logits_of_permuted_rows_are_those_of_torch(name, tmp_path):
  arrays = golden_cases.read(name)
  arch = golden_cases.architecture(arrays)
  file = tiny_gguf.write(
    tmp_path / "x.gguf",
    tiny_gguf.architecture(arch),
    tiny_gguf.weights(arch, golden_cases.section(arrays, "weights")),
  )
  lm = read(file)
  mask = jnp.asarray(arrays["logits/mask"])
  hidden, _ = jax.jit(
    lambda embeddings: lm.hidden(
      embeddings, attention.positions_of(mask), attention.causal(mask)
    )
  )(jnp.asarray(arrays["logits/embeddings"]))
  found = np.where(mask[..., None], lm.logits(hidden), 0.0)
  # As the same weights from a folder; rows in the file's order miss by 3.
  assert np.abs(found - arrays["logits/out"]).max() < 1e-4


@pytest.mark.parametrize(
  ("kind", "error"),
  [
    (Kind.F16, 1e-3),
    (Kind.BF16, 1e-2),
    (Kind.Q4_0, 0.2),
    (Kind.Q4_1, 0.2),
    (Kind.Q5_0, 0.1),
    (Kind.Q5_1, 0.1),
    (Kind.Q8_0, 1e-2),
  ],
)
def test_quantised_weights_are_dequantised(kind, error, tmp_path):
  lm = make()
  tensors = models.tensors(lm)
  file = tiny_gguf.write(tmp_path / "x.gguf", *tiny_gguf.model(lm, kind))
  found = models.tensors(read(file))
  for name, value in tensors.items():
    # Blocks lie within a row, so that the order of rows makes no difference.
    own = Kind.F32 if value.ndim == 1 else kind
    expected = gguf.quants.dequantize(gguf.quants.quantize(value, own), own)
    np.testing.assert_array_equal(found[name], expected, err_msg=name)
    worst = np.abs(found[name] - value).max()
    assert worst < error * np.abs(value).max(), name


@pytest.mark.parametrize(
  "kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]
)
def test_k_quants_are_dequantised(kind, tmp_path):
  # The library cannot make them. Bytes below 60 are finite as any float16.
  row = gguf.quants.quant_shape_to_byte_shape((ARCH.mlp_width,), kind)
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 60, (ARCH.width, *row), np.uint8)
  tensors = models.tensors(make())
  name = "model.layers.1.mlp.down_proj.weight"
  del tensors[name]
  file = tiny_gguf.write(
    tmp_path / "x.gguf",
    tiny_gguf.architecture(ARCH),
    tiny_gguf.weights(ARCH, tensors),
    lambda writer: writer.add_tensor(
      "blk.1.ffn_down.weight", blocks, raw_dtype=kind
    ),
  )
  found = models.tensors(read(file))[name]
  assert found.std() > 0
  np.testing.assert_array_equal(found, gguf.quants.dequantize(blocks, kind))


def test_weights_take_the_dtype_of_the_model(tmp_path):
  lm = make()
  file = tiny_gguf.write(tmp_path / "x.gguf", *tiny_gguf.model(lm, Kind.F16))
  found = read(file, param_dtype=jnp.bfloat16)
  kinds = {x.dtype for x in loading.base_params(found).values()}
  assert kinds == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b"])
def test_rope_scaling_of_llama_3_is_found_from_its_divisors(name, tmp_path):
  arch = policy.PRESETS[name]
  # The architecture alone: the table's size is all that is read of tensors.
  table = np.zeros((arch.vocab_size, 1), np.float16)
  names = ("token_embd.weight",) if arch.tied_head else (
    "token_embd.weight", "output.weight"
  )  # fmt: skip
  file = tiny_gguf.write(
    tmp_path / "x.gguf",
    tiny_gguf.architecture(arch),
    *[
      lambda writer, name=name: writer.add_tensor(name, table) for name in names
    ],
  )
  assert gguf_lib.read_architecture(gguf_lib.open_file(file)) == arch


def test_fields_that_the_converter_may_leave_out_have_llama_cpps_defaults(
  tmp_path,
):
  arch = llama.Architecture(37, 64, 1, 4, 4, 16, 32, rope_base=10_000.0)
  left_out = (
    "vocab_size",
    "head_count_kv",
    "key_length",
    "rope_dimension_count",
    "rope_freq_base",
  )
  file = tiny_gguf.write(
    tmp_path / "x.gguf",
    tiny_gguf.architecture(arch, **dict.fromkeys(left_out)),
    tiny_gguf.model(make(arch))[1],
  )
  assert read(file).arch == arch


def error_of(file: pathlib.Path) -> str:
  with pytest.raises(ValueError) as error:
    read(file)
  assert str(file) in str(error.value)
  return str(error.value)


def test_files_that_are_no_gguf_are_named(tmp_path):
  assert "is no file" in error_of(tmp_path / "x.gguf")
  file = tmp_path / "y.gguf"
  for content in (b"", b"GG", b"PK\3\4 something else"):
    file.write_bytes(content)
    assert "not a GGUF file" in error_of(file)


def test_a_file_cut_anywhere_is_truncated(tmp_path):
  file = tiny_gguf.write(tmp_path / "x.gguf", *tiny_gguf.model(make(TIED)))
  whole = file.read_bytes()
  short = tmp_path / "short.gguf"
  rng = np.random.default_rng(0)
  for size in (4, 7, 8, 23, 24, len(whole) - 1, *rng.integers(9, 9_000, 40)):
    short.write_bytes(whole[:size])
    assert "truncated or damaged" in error_of(short), size


def test_files_for_other_machines_and_parts_are_named(tmp_path):
  parts = tiny_gguf.model(make(TIED))
  file = tiny_gguf.write(
    tmp_path / "x.gguf", *parts, endianess=gguf.GGUFEndian.BIG
  )
  assert "gguf-convert-endian" in error_of(file)
  tiny_gguf.write(
    file, *parts, lambda writer: writer.add_uint16("split.count", 3)
  )
  assert "one of 3 parts" in error_of(file)


def test_other_architectures_are_named(tmp_path):
  file = tiny_gguf.write(tmp_path / "x.gguf", kind="qwen2")
  assert "'qwen2' is not supported; only 'llama' is" in error_of(file)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"expert_count": 8}, "llama.expert_count 8 is not supported"),
    (
      {"rope_scaling_type": gguf.RopeScalingType.YARN},
      "llama.rope.scaling.type 'yarn' is not supported; only 'none' is",
    ),
    ({"rope_dimension_count": 8}, "rope.dimension_count 8 is not supported"),
    ({"value_length": 8}, "value_length 8 is not supported; only 24 is"),
    ({"head_count_kv": [2, 1]}, "head_count_kv differs between layers"),
    ({"block_count": None}, "field 'llama.block_count' is missing"),
    ({"block_count": 10**6}, "llama.block_count 1000000 is not supported"),
    ({"block_count": 0}, "llama.block_count 0 is not supported"),
    ({"head_count": 0}, "llama.attention.head_count 0 is not supported"),
    ({"layer_norm_rms_eps": float("nan")}, "rms_epsilon nan is not supported"),
    ({"rope_freq_base": -1.0}, "rope.freq_base -1.0 is not supported"),
    ({"name": "x", "key_length": 7}, "is not supported; only 7 is"),
  ],
)
def test_architectures_that_are_not_quite_llama_are_named(
  changes, message, tmp_path
):
  file = tiny_gguf.write(
    tmp_path / "x.gguf",
    tiny_gguf.architecture(ARCH, **changes),
    tiny_gguf.model(make())[1],
  )
  assert message in error_of(file)


@pytest.mark.parametrize(
  "name", ["llama.block_count", "llama.rope.freq_base", "llama.context_length"]
)
@pytest.mark.parametrize("value", ["2", True])
def test_metadata_of_another_type_is_named(name, value, tmp_path):
  def add(writer):
    writer.kv_data[0][name] = gguf.gguf_writer.GGUFValue(
      value, gguf.GGUFValueType.get_type(value)
    )

  file = tiny_gguf.write(tmp_path / "x.gguf", *tiny_gguf.model(make()), add)
  assert f"{name} {value!r} is not supported" in error_of(file)


def test_divisors_of_another_rope_scaling_are_an_error(tmp_path):
  other = llama_fields.RopeScaling(8.0, 1.0, 3.0, 64)
  arch = dataclasses.replace(ARCH, rope_scaling=other)
  file = tiny_gguf.write(tmp_path / "x.gguf", *tiny_gguf.model(make(arch)))
  assert "not the scaling of Llama 3.1" in error_of(file)


def write_tensors(file, tensors, *more):
  return tiny_gguf.write(
    file,
    tiny_gguf.architecture(ARCH),
    tiny_gguf.weights(ARCH, tensors),
    *more,
  )


def test_missing_and_unused_tensors_are_all_named(tmp_path):
  file = tmp_path / "x.gguf"
  tensors = models.tensors(make())
  gone = ("model.norm.weight", "model.layers.1.self_attn.k_proj.weight")
  write_tensors(file, {k: v for k, v in tensors.items() if k not in gone})
  message = error_of(file)
  assert "missing: blk.1.attn_k.weight, output_norm.weight;" in message
  assert "download or convert the model again" in message
  del tensors["model.embed_tokens.weight"]
  write_tensors(file, tensors)
  assert "token_embd.weight is missing" in error_of(file)
  write_tensors(
    file,
    models.tensors(make()),
    lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.zeros(96)),
  )
  assert "no place in a Llama: blk.0.attn_q.bias" in error_of(file)


def test_misshapen_tensors_are_named(tmp_path):
  tensors = models.tensors(make())
  tensors["model.norm.weight"] = np.zeros(63, np.float32)
  file = write_tensors(tmp_path / "x.gguf", tensors)
  assert "model.norm.weight is (63,), not (64,)" in error_of(file)


def test_types_that_the_library_cannot_dequantise_are_named(tmp_path):
  tensors = models.tensors(make())
  del tensors["model.norm.weight"]
  file = write_tensors(
    tmp_path / "x.gguf",
    tensors,
    lambda writer: writer.add_tensor("output_norm.weight", np.zeros(64)),
  )
  message = error_of(file)
  assert "cannot dequantise tensors of type F64" in message
  assert "llama-quantize" in message
