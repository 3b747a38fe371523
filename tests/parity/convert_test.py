"""pytorch_model.bin to safetensors; needs torch, as the parity tests do."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from pdpo_jax import convert
from pdpo_jax.weights import hf_safetensors, tensor_files
from tests.parity import torch_models
from tests.weights import models

pytestmark = pytest.mark.filterwarnings(
  "ignore:.*is_gradient_checkpointing:FutureWarning"
)


@pytest.fixture(params=torch_models.MODELS)
def model(request):
  rng = np.random.default_rng(0)
  return torch_models.make_model(request.param, rng)


@pytest.fixture
def tied():
  return torch_models.make_model("llama_tied", np.random.default_rng(0))


def save(model, folder, num_files=1, zipped=True):
  """As `transformers` saved models before safetensors."""
  folder.mkdir()
  model.config.to_json_file(folder / "config.json")
  (folder / "tokenizer.json").write_text("{}")
  (folder / "flax_model.msgpack").touch()
  tensors = dict(model.state_dict())
  if model.config.model_type == "gptj":
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8).bool()
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e9)
  else:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
  names = list(tensors)
  place = {}
  for number in range(num_files):
    name = "pytorch_model.bin"
    if num_files > 1:
      name = f"pytorch_model-{number + 1:05d}-of-{num_files:05d}.bin"
    part = {each: tensors[each] for each in names[number::num_files]}
    torch.save(part, folder / name, _use_new_zipfile_serialization=zipped)
    place |= dict.fromkeys(part, name)
  if num_files > 1:
    index = {"metadata": {}, "weight_map": place}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def assert_holds(folder, model, dtype=torch.float32):
  """Reads as this package does, and as `transformers` does."""
  back = models.tensors(
    hf_safetensors.read_model(folder, param_dtype=np.dtype("float32"))
  )
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
  assert theirs.dtype == dtype
  again = dict(theirs.named_parameters())
  for name, value in model.named_parameters():
    expected = value.detach().to(dtype)
    assert torch.equal(again[name], expected), name
    np.testing.assert_array_equal(back[name], expected.float(), err_msg=name)
  assert back.keys() == again.keys()


@pytest.mark.parametrize("num_files", [1, 3])
def test_converted_tensors_are_bitwise_the_same(model, num_files, tmp_path):
  save(model, tmp_path / "in", num_files)
  convert.convert(tmp_path / "in", tmp_path / "out")
  names = sorted(file.name for file in (tmp_path / "out").iterdir())
  assert names == ["config.json", "model.safetensors", "tokenizer.json"]
  assert_holds(tmp_path / "out", model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_and_config_get_the_dtype(model, dtype, tmp_path):
  save(model, tmp_path / "in")
  convert.convert(tmp_path / "in", tmp_path / "out", dtype)
  assert_holds(tmp_path / "out", model, getattr(torch, dtype))


def test_bfloat16_is_kept(model, tmp_path):
  model = model.to(torch.bfloat16)
  save(model, tmp_path / "in")
  convert.convert(tmp_path / "in", tmp_path / "out", shard_bytes=9_000)
  assert (tmp_path / "out" / tensor_files.INDEX).is_file()
  assert_holds(tmp_path / "out", model, torch.bfloat16)


def test_files_from_before_torch_1_6_are_read(tied, tmp_path):
  save(tied, tmp_path / "in", zipped=False)
  convert.convert(tmp_path / "in", tmp_path / "out")
  assert_holds(tmp_path / "out", tied)


def test_a_tied_table_is_written_once(tied, tmp_path):
  assert "lm_head.weight" in tied.state_dict()
  save(tied, tmp_path / "in")
  convert.convert(tmp_path / "in", tmp_path / "out")
  found = tensor_files.read_header(tmp_path / "out" / tensor_files.WHOLE)
  assert "model.embed_tokens.weight" in found
  assert "lm_head.weight" not in found


def test_a_head_that_differs_from_a_tied_table_is_converted(tied, tmp_path):
  # As a merged adapter leaves it.
  tied.lm_head.weight = torch.nn.Parameter(tied.lm_head.weight + 0.25)
  save(tied, tmp_path / "in")
  convert.convert(tmp_path / "in", tmp_path / "out")
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["tie_word_embeddings"] is False
  assert_holds(tmp_path / "out", tied)


class Payload:
  def __reduce__(self):
    return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_could_run_code_is_not_loaded(
  tied, zipped, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  save(tied, tmp_path / "in")
  file = tmp_path / "in" / "pytorch_model.bin"
  torch.save({"weight": Payload()}, file, _use_new_zipfile_serialization=zipped)
  with pytest.raises(ValueError, match=r"could run code, or is damaged"):
    convert.convert(tmp_path / "in", tmp_path / "out")
  assert not (tmp_path / "ran").exists()
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 3_000])
def test_a_damaged_file_is_named(tied, size, tmp_path):
  save(tied, tmp_path / "in")
  file = tmp_path / "in" / "pytorch_model.bin"
  file.write_bytes(file.read_bytes()[:size])
  with pytest.raises(ValueError, match=r"model\.bin is .* damaged"):
    convert.convert(tmp_path / "in", tmp_path / "out")


def test_missing_files_are_named(tied, tmp_path):
  save(tied, tmp_path / "in", num_files=3)
  (tmp_path / "in" / "pytorch_model-00002-of-00003.bin").unlink()
  with pytest.raises(ValueError, match=r"lacks pytorch_model-00002-of-00003\."):
    convert.convert(tmp_path / "in", tmp_path / "out")


def test_something_else_than_a_state_dict_is_named(tied, tmp_path):
  save(tied, tmp_path / "in")
  file = tmp_path / "in" / "pytorch_model.bin"
  torch.save({"state_dict": dict(tied.state_dict())}, file)
  with pytest.raises(ValueError, match=r"'state_dict', which is no tensor"):
    convert.convert(tmp_path / "in", tmp_path / "out")


def run(*arguments, torch_is_there=True):
  code = "import sys; sys.modules['torch'] = None" if not torch_is_there else ""
  module = "pdpo_jax.convert"
  script = (
    f"{code}\nimport runpy; runpy.run_module('{module}', None, '__main__')"
  )
  return subprocess.run(
    [sys.executable, "-c", script, *map(str, arguments)],
    capture_output=True,
    text=True,
  )


def test_the_command_ends_with_one_line(tied, tmp_path):
  save(tied, tmp_path / "in")
  arguments = (tmp_path / "in", tmp_path / "out", "--dtype=bfloat16")
  done = run(*arguments)
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"base.path may now be '{tmp_path}/out'\n"
  again = run(*arguments)
  assert again.returncode == 1
  (line,) = again.stderr.splitlines()
  assert line.startswith("error: ") and "has weights already" in line


def test_without_torch_the_command_says_how_to_install_it(tmp_path):
  done = run(tmp_path / "in", tmp_path / "out", torch_is_there=False)
  assert done.returncode == 1
  assert "error: this command needs torch: pip install torch" in done.stderr
