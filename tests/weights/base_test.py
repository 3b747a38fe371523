import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.data import tokenize
from pdpo_jax.models import gptj
from pdpo_jax.training import checkpoint_meta
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import hf_safetensors, loading
from tests.weights import models


@pytest.fixture(scope="module")
def tokenizer():
  made = tokenize.train_tokenizer(["a few words"] * 3, 300)
  made.add_special_tokens({"additional_special_tokens": ["<|end_of_turn|>"]})
  return made


@pytest.fixture(scope="module")
def base(tokenizer):
  arch = gptj.Architecture(len(tokenizer), 10, 2, 2, 14, 4, max_positions=64)
  lm = models.make(arch)
  return base_lib.Base(lm, tokenizer, base_lib.fingerprint(lm))


def read(folder, **fields):
  return base_lib.read_base(str(folder), base_lib.BaseConfig(**fields))


def test_a_written_base_reads_back(base, tmp_path):
  end = base.tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
  base = dataclasses.replace(base, end_of_turn=(end,))
  folder = tmp_path / "base"
  assert not base_lib.is_whole(folder)
  base_lib.write_base(folder, base)
  assert base_lib.is_whole(folder)
  back = read(folder)
  assert back.fingerprint == base.fingerprint
  assert back.stop_tokens == base.stop_tokens == (0, end)
  assert back.tokenizer("few words").input_ids == (
    base.tokenizer("few words").input_ids
  )


def test_a_folder_without_a_tokenizer_and_a_damaged_one_are_named(
  base, tmp_path
):
  base_lib.write_base(tmp_path, base)
  file = tmp_path / "tokenizer.json"
  file.write_text(file.read_text()[:99])
  for reader in (read, lambda folder: base_lib.read_tokenizer(str(folder))):
    with pytest.raises(ValueError, match=r"tokenizer\.json is no JSON"):
      reader(tmp_path)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (tmp_path / name).unlink()
  with pytest.raises(ValueError, match=f"{tmp_path}.*copy the tokenizer"):
    read(tmp_path)


@pytest.mark.parametrize(
  ("generation", "expected"),
  [
    (None, (0,)),
    ({}, (0,)),
    ({"eos_token_id": 0}, (0,)),
    ({"eos_token_id": 7}, (0, 7)),
    ({"eos_token_id": [7, 0, 3]}, (0, 7, 3)),
  ],
)
def test_stop_tokens_are_the_tokenizers_and_the_generation_configs(
  generation, expected, base, tmp_path
):
  base_lib.write_base(tmp_path, base)
  file = tmp_path / "generation_config.json"
  file.unlink()
  if generation is not None:
    file.write_text(json.dumps(generation))
  assert base.tokenizer.eos_token_id == 0
  assert read(tmp_path).stop_tokens == expected


def test_weights_are_not_written_beside_others(base, tmp_path):
  base_lib.write_base(tmp_path, base)
  before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
  with pytest.raises(ValueError, match="has weights already"):
    base_lib.write_base(tmp_path, base)
  assert before == {f: f.stat().st_mtime_ns for f in tmp_path.iterdir()}


def test_a_model_with_fewer_tokens_than_the_tokenizer_is_an_error(
  tokenizer, tmp_path
):
  arch = gptj.Architecture(len(tokenizer) - 1, 10, 2, 2, 14, 4)
  base_lib.write_base(tmp_path, base_lib.Base(models.make(arch), tokenizer, ""))
  with pytest.raises(ValueError, match="has 266 tokens and the model 265"):
    read(tmp_path)


def test_fingerprint_depends_on_values_names_and_types():
  names = ("gptj", "llama", "llama_tied")
  found = [
    base_lib.fingerprint(models.make(models.ARCHITECTURES[name], dtype))
    for name in names
    for dtype in ("float32", "bfloat16")
  ]
  assert len(set(found)) == len(found)
  tensors = models.tensors(models.make(models.TIED))
  name = "model.layers.1.mlp.up_proj.weight"
  tensors[name] = np.nextafter(tensors[name], np.float32(9))
  lm = loading.abstract_model(models.TIED)
  loading.load_tensors(lm, set(tensors), tensors.__getitem__)
  assert base_lib.fingerprint(lm) != found[names.index("llama_tied") * 2]


def test_a_checkpoint_of_another_tokenizer_or_architecture_is_refused(base):
  arch = dataclasses.replace(base.lm.arch, epsilon=1e-4)
  other = models.make(arch)
  nnx.update(other, nnx.state(base.lm))
  changed = {
    "architecture": dataclasses.replace(base, lm=other),
    "tokenizer": dataclasses.replace(base, end_of_turn=(7,)),
  }
  for name, another in changed.items():
    with pytest.raises(ValueError, match=f"another run: {name} is"):
      checkpoint_meta.check(base.names, another.names, pathlib.Path("x"))
  # Of before there were names but that of the weights.
  before = {"base": base.fingerprint}
  checkpoint_meta.check(before, base.names, pathlib.Path("x"))


def test_fingerprint_does_not_depend_on_how_the_weights_were_loaded(tmp_path):
  lm = models.make(models.TIED)
  hf_safetensors.write_model(tmp_path / "one", lm)
  hf_safetensors.write_model(tmp_path / "many", lm, shard_bytes=1_000)
  for folder in ("one", "many"):
    back = hf_safetensors.read_model(tmp_path / folder)
    assert base_lib.fingerprint(back) == base_lib.fingerprint(lm)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_checksum_hangs_on_every_value_and_its_place(dtype):
  values = np.arange(2 * 7 * 16).reshape(2, 7, 16) % 100
  array = jnp.asarray(values, dtype)
  found = {int(base_lib._checksum(array))}
  # As whoever writes it in a loop has it.
  width = 8 * array.dtype.itemsize
  bits = np.asarray(array).view(f"uint{width}").ravel().tolist()
  expected = sum(bit * (2 * i + 1) for i, bit in enumerate(bits)) % 2**32
  assert found == {expected}
  for blocks in (2, 64):
    assert int(base_lib._checksum(array, blocks)) == expected
  for place in np.ndindex(2, 7, 16):
    found.add(int(base_lib._checksum(array.at[place].add(1))))
  found.add(int(base_lib._checksum(array.at[0, 0].set(array[0, 1]))))
  found.add(int(base_lib._checksum(array[::-1])))
  assert len(found) == 1 + 2 * 7 * 16 + 2
