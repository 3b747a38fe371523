"""What people have met in the files of bases: read on purpose, or refused."""

import dataclasses
import json
import math
import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
import transformers

from pdpo_jax.core import kept
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import (
  hf_safetensors,
  hf_tokenizer,
  tensor_files,
  vocabulary,
)
from tests.weights import models, odd_bases

LLAMA_FIELDS = (
  "model_type",
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "hidden_act",
  "attention_bias",
  "mlp_bias",
  "max_position_embeddings",
  "rms_norm_eps",
  "tie_word_embeddings",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
  "quantization_config",
)
GPTJ_FIELDS = (
  "model_type",
  "vocab_size",
  "n_embd",
  "n_layer",
  "n_head",
  "n_inner",
  "rotary_dim",
  "n_positions",
  "activation_function",
  "layer_norm_epsilon",
  "tie_word_embeddings",
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  return odd_bases.write(tmp_path_factory.mktemp("odd") / "llama")


@pytest.fixture
def folder(llama, tmp_path):
  return shutil.copytree(llama, tmp_path / "base")


def read(folder):
  return base_lib.read_base(str(folder), base_lib.BaseConfig())


def _is_odd(value) -> bool:
  """Whether no field of any config can be that."""
  if isinstance(value, bool) or value is None:
    return False
  if isinstance(value, float):
    return not math.isfinite(value)
  return value in ("1", "64", "x" * 300, [], [64], [[]], -1, 10**40)


@pytest.mark.parametrize(
  ("arch", "field"),
  [("llama", name) for name in LLAMA_FIELDS]
  + [("gptj", name) for name in GPTJ_FIELDS],
)
def test_odd_values_of_config_json_are_errors_that_name_field_and_value(
  arch, field, tmp_path
):
  fields = models.ARCHITECTURES[arch].to_hf()
  file = tmp_path / "config.json"
  for value in odd_bases.ODD:
    file.write_text(json.dumps(fields | {field: value}))
    try:
      found = hf_safetensors.read_architecture(tmp_path)
    except ValueError as error:
      assert str(error).startswith(f"{file}: "), error
      assert len(str(error)) < 500
      # A size that does not go with another has our name.
      ours = {"hidden_size": "head", "head_dim": "head_size", "n_embd": "width"}
      names = (field, ours.get(field, field), field.replace("_attention", ""))
      names += (field.replace("key_value", "kv"), field.replace("n_", "num_"))
      assert any(name in str(error) for name in names), error
      continue
    falsy = field in ("quantization_config",) and not value
    assert falsy or not _is_odd(value), (value, found)
    assert field != "num_hidden_layers" or found.num_layers <= 10_000


def _published(**changed):
  arch = dataclasses.replace(models.ARCHITECTURES["llama"], rope_scaling=None)
  return arch.to_hf() | {"hidden_size": 32} | changed


_LLAMA_3 = {
  "rope_type": "llama3",
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
}


@pytest.mark.parametrize(
  "changed",
  [
    {"rope_scaling": _LLAMA_3, "max_position_embeddings": 64},
    {
      "rope_scaling": _LLAMA_3 | {"original_max_position_embeddings": 32},
      "original_max_position_embeddings": 16,
    },
    {"rope_parameters": _LLAMA_3 | {"rope_theta": 5e5}, "rope_theta": 1e4},
    {"rope_parameters": {"type": "default", "rope_theta": 77}},
    {"rope_scaling": {}, "rope_theta": 3e4},
    {"head_dim": None, "num_key_value_heads": None},
    {},
  ],
)
@pytest.mark.parametrize("without", [(), ("max_position_embeddings",), "all"])
def test_what_config_json_lacks_is_what_transformers_takes(
  changed, without, tmp_path
):
  fields = _published(**changed)
  if without == "all":
    without = [
      name
      for name in fields
      if name not in changed and name not in ("model_type", "hidden_size")
    ]
    changed = {"hidden_size": 4096, **changed}
    fields["hidden_size"] = 4096
  fields = {
    name: value for name, value in fields.items() if name not in without
  }
  (tmp_path / "config.json").write_text(json.dumps(fields))
  found = hf_safetensors.read_architecture(tmp_path)
  theirs = transformers.LlamaConfig(**json.loads(json.dumps(fields)))
  theirs.standardize_rope_params()  # as the model does
  rope = theirs.rope_parameters
  assert found.max_positions == theirs.max_position_embeddings
  assert found.num_kv_heads == theirs.num_key_value_heads
  assert found.head_size == theirs.head_dim
  assert found.vocab_size == theirs.vocab_size
  assert found.num_layers == theirs.num_hidden_layers
  assert found.mlp_width == theirs.intermediate_size
  assert found.epsilon == theirs.rms_norm_eps
  assert found.tied_head == theirs.tie_word_embeddings
  assert found.rope_base == rope["rope_theta"]
  if rope["rope_type"] == "llama3":
    original = rope["original_max_position_embeddings"]
    assert found.rope_scaling.original_positions == original
    assert found.rope_scaling.factor == 8.0
  else:
    assert found.rope_scaling is None


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"model_type": "mistral"}, "model_type 'mistral'.*'gptj' and 'llama' are"),
    ({"quantization_config": {"bits": 4}}, "use the model as it was before"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.type 'yarn'"),
    ({"rope_scaling": {"rope_type": "llama3"}}, "lacks factor"),
    ({"rope_scaling": _LLAMA_3 | {"high_freq_factor": 1}}, "above low_freq"),
    (
      {"rope_scaling": _LLAMA_3, "rope_parameters": {"rope_theta": 1e4}},
      "rope_scaling and rope_parameters.* differ",
    ),
    (
      {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
      "full_attention",
    ),
    ({"sliding_window": 128}, "sliding_window 128"),
    ({"hidden_size": 30, "head_dim": None}, "hidden_size 30 is not divisible"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
  ],
)
def test_what_is_not_supported_is_refused_by_name(changed, message, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(_published(**changed)))
  with pytest.raises(ValueError, match=message) as error:
    hf_safetensors.read_architecture(tmp_path)
  assert str(tmp_path / "config.json") in str(error.value)


def _with_head(folder, head):
  file = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  tensors["lm_head.weight"] = head(tensors["model.embed_tokens.weight"])
  safetensors.numpy.save_file(tensors, file)
  return tensors


def test_a_head_that_differs_from_a_tied_table_is_kept(folder, caplog):
  tensors = _with_head(folder, lambda table: table + np.float32(0.25))
  found = hf_safetensors.read_model(folder)
  assert not found.arch.tied_head
  assert "both are kept" in caplog.text
  again = {
    name: np.asarray(tensor.make())
    for name, tensor in hf_safetensors.to_tensors(found).items()
  }
  np.testing.assert_array_equal(
    again["lm_head.weight"], tensors["lm_head.weight"]
  )
  hf_safetensors.write_model(folder / "out", found)
  written = hf_safetensors.read_architecture(folder / "out")
  assert written == found.arch


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_copy_of_a_tied_table_is_one(dtype, folder, caplog):
  before = hf_safetensors.read_places(folder)
  _with_head(folder, lambda table: table.astype(dtype))
  arch, places = hf_safetensors.read_places(folder)
  assert arch == before[0] and places.keys() == before[1].keys()
  assert not caplog.text


def test_a_tied_table_may_be_there_as_the_head_alone(folder):
  _, before = hf_safetensors.read_places(folder)
  tensors = _with_head(folder, lambda table: table)
  del tensors["model.embed_tokens.weight"]
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  arch, places = hf_safetensors.read_places(folder)
  assert arch.tied_head and places.keys() == before.keys()


@pytest.mark.parametrize(
  "name",
  [
    "../x.safetensors",
    "/etc/passwd",
    "a/b",
    "..",
    "",
    "a\0b",
    "c:\\x",
    "sub/",
    "x" * 300,
  ],
)
def test_an_index_that_names_files_elsewhere_is_refused(name, tmp_path):
  folder = odd_bases.write(tmp_path / "base", sharded=True)
  file = folder / "model.safetensors.index.json"
  place = odd_bases.fields(file)["weight_map"]
  place[next(iter(place))] = name
  odd_bases.change(file, weight_map=place)
  with pytest.raises(ValueError, match="is no plain file name"):
    hf_safetensors.read_headers(folder)


@pytest.mark.parametrize(
  "content",
  [
    [],
    {},
    {"weight_map": []},
    {"weight_map": {}},
    {"weight_map": None},
    {"weight_map": {"a": 1}},
    {"weight_map": {"a": ["b"]}},
    {"weight_map": {"a": None}},
    "[" * 100_000,
  ],
)
def test_an_index_that_is_none_is_named(content, tmp_path):
  folder = odd_bases.write(tmp_path / "base", sharded=True)
  file = folder / "model.safetensors.index.json"
  text = content if isinstance(content, str) else json.dumps(content)
  file.write_text(text)
  with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
    hf_safetensors.read_headers(folder)


def test_links_as_in_the_hubs_cache_are_followed(tmp_path):
  folder = odd_bases.write(tmp_path / "snapshot", sharded=True)
  (tmp_path / "blobs").mkdir()
  for file in list(folder.iterdir()):
    blob = tmp_path / "blobs" / file.name
    file.rename(blob)
    file.symlink_to(os.path.relpath(blob, folder))
  assert base_lib.read_tokenizer(str(folder)).eos_token_id == 0


def test_a_tensor_of_a_shard_that_the_index_forgets_is_not_dropped(tmp_path):
  folder = odd_bases.write(tmp_path / "base", "llama_untied", sharded=True)
  file = folder / "model.safetensors.index.json"
  place = odd_bases.fields(file)["weight_map"]
  shards = list(place.values())
  name = next(name for name in place if shards.count(place[name]) > 1)
  before = hf_safetensors.read_headers(folder)
  odd_bases.change(
    file, weight_map={key: place[key] for key in place if key != name}
  )
  assert hf_safetensors.read_headers(folder) == before


def test_a_tensor_that_two_shards_have_is_named(tmp_path):
  folder = odd_bases.write(tmp_path / "base", sharded=True)
  first, second, *_ = sorted(folder.glob("*.safetensors"))
  tensors = safetensors.numpy.load_file(first)
  name = next(iter(tensors))
  others = safetensors.numpy.load_file(second)
  safetensors.numpy.save_file(others | {name: tensors[name]}, second)
  with pytest.raises(ValueError, match=f"has {name} in more than one of"):
    hf_safetensors.read_headers(folder)


def _evil(folder, marker):
  """A tokenizer class of the folder's own, which leaves a mark when run."""
  (folder / "evil.py").write_text(
    f"open({str(marker)!r}, 'w').close()\n"
    "from transformers import PreTrainedTokenizerFast as Evil\n"
  )
  code = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
  odd_bases.change(folder / "tokenizer_config.json", auto_map=code)
  code |= {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
  odd_bases.change(folder / "config.json", auto_map=code)


@pytest.mark.parametrize("name", ["Evil", "PreTrainedTokenizerFast", None])
def test_a_base_never_runs_its_own_code_and_never_asks(
  name, folder, tmp_path, monkeypatch
):
  def ask(*_):
    raise AssertionError("asked")

  monkeypatch.setattr("builtins.input", ask)
  _evil(folder, tmp_path / "ran")
  odd_bases.change(folder / "tokenizer_config.json", tokenizer_class=name)
  try:
    base_lib.read_tokenizer(str(folder))
  except ValueError as error:
    assert str(folder) in str(error)
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  ("file", "changed"),
  [
    ("tokenizer_config.json", {"chat_template": 3}),
    ("tokenizer_config.json", {"chat_template": [{"name": "a"}]}),
    ("tokenizer_config.json", {"eos_token": ["</s>"]}),
    ("tokenizer_config.json", {"tokenizer_class": {}}),
    ("tokenizer_config.json", {"add_bos_token": "yes"}),
    ("generation_config.json", {"eos_token_id": "0"}),
    ("generation_config.json", {"eos_token_id": [0, None]}),
    ("generation_config.json", {"eos_token_id": -1}),
    ("generation_config.json", {"eos_token_id": True}),
    ("generation_config.json", {"eos_token_id": {"a": 1}}),
  ],
)
def test_odd_values_of_a_tokenizers_files_are_named(file, changed, folder):
  odd_bases.change(folder / file, **changed)
  with pytest.raises(ValueError, match=f"{file}: {next(iter(changed))}"):
    base_lib.read_tokenizer(str(folder))


def test_an_end_token_past_the_table_is_an_error(folder):
  odd_bases.change(folder / "generation_config.json", eos_token_id=[0, 5_000])
  with pytest.raises(ValueError, match="token 5000 is to end an answer"):
    base_lib.read_tokenizer(str(folder))


def _add_tokens(folder, *tokens, **special):
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokenizer.add_tokens(list(tokens))
  tokenizer.add_special_tokens(special)
  tokenizer.save_pretrained(folder)
  return tokenizer


def test_a_padding_token_past_the_table_is_text_like_any_other(folder, caplog):
  before = base_lib.read_tokenizer(str(folder))
  _add_tokens(folder, pad_token="[PAD]")
  tokenizer = base_lib.read_tokenizer(str(folder))
  assert "'[PAD]'" in caplog.text
  assert len(tokenizer) == len(before)
  assert tokenizer.pad_token_id is None
  for text in ("a [PAD] b", "words"):
    assert tokenizer(text).input_ids == before(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
  # And `transformers` reads what is written then.
  base = read(folder)
  base_lib.write_base(folder / "out", base)
  assert (
    odd_bases.fields(folder / "out" / "config.json")["pad_token_id"] is None
  )
  assert read(folder / "out").tokenizer_fingerprint == (
    base.tokenizer_fingerprint
  )


@pytest.mark.parametrize("case", ["word", "end", "in the template"])
def test_a_token_past_the_table_that_a_text_can_have_is_an_error(case, folder):
  if case == "word":
    _add_tokens(folder, "padding")
  elif case == "end":
    _add_tokens(folder, eos_token="<pad>")
  else:
    (folder / "chat_template.jinja").write_text("[PAD]" + odd_bases.CHAT)
    _add_tokens(folder, pad_token="[PAD]")
  with pytest.raises(ValueError, match="A text can have"):
    base_lib.read_tokenizer(str(folder))


def test_a_tokenizer_that_loses_spaces_is_an_error_with_the_remedy(folder):
  file = folder / "tokenizer.json"
  # What transformers from 5.1 to 5.21 makes of byte-level files.
  odd_bases.change(
    file,
    pre_tokenizer={
      "type": "Metaspace",
      "replacement": "▁",
      "prepend_scheme": "always",
      "split": False,
    },
  )
  with pytest.raises(ValueError, match=r"loses? .*5\.22 or later"):
    base_lib.read_tokenizer(str(folder))


def test_byte_level_files_of_llamas_class_keep_their_spaces(folder):
  name = {"tokenizer_class": "LlamaTokenizerFast"}
  odd_bases.change(folder / "tokenizer_config.json", **name)
  tokenizer = base_lib.read_tokenizer(str(folder))
  assert tokenizer.decode(tokenizer("a few words").input_ids) == "a few words"


def test_a_tokenizer_that_lacks_characters_is_warned_of(folder, caplog):
  tokenizer = hf_tokenizer.read(folder)
  vocabulary.check_spaces(tokenizer, folder)
  assert not caplog.text
  odd_bases.change(
    folder / "tokenizer.json",
    normalizer={"type": "Replace", "pattern": {"String": "\n"}, "content": " "},
  )
  vocabulary.check_spaces(hf_tokenizer.read(folder), folder)
  assert "does not give back lines" in caplog.text


def _changes(folder):
  """Each makes another tokenizer of a folder."""

  def edit(name, before, after):
    file = folder / name
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))

  yield lambda: edit("chat_template.jinja", "role }}: ", "role }}; ")
  yield lambda: edit(
    "tokenizer.json", '"add_prefix_space": false', ('"add_prefix_space": true')
  )
  yield lambda: odd_bases.change(
    folder / "generation_config.json", eos_token_id=[0, 7]
  )
  merges = odd_bases.fields(folder / "tokenizer.json")["model"]
  merges["merges"].reverse()
  yield lambda: odd_bases.change(folder / "tokenizer.json", model=merges)


def test_a_tokenizers_fingerprint_names_all_that_decides_ids(folder, llama):
  found = {odd_bases.state(llama)[-1]}
  for place, _ in enumerate(_changes(folder)):
    shutil.rmtree(folder)
    shutil.copytree(llama, folder)
    list(_changes(folder))[place]()
    found.add(odd_bases.state(folder)[-1])
  assert len(found) == 1 + 4


def test_a_tokenizers_fingerprint_is_not_that_of_its_files(folder):
  before = odd_bases.state(folder)[-1]
  file = folder / "tokenizer.json"
  fields = odd_bases.fields(file)
  fields["padding"] = None
  fields["model"]["merges"] = [
    " ".join(merge) for merge in fields["model"]["merges"]
  ]
  file.write_text(json.dumps(fields, sort_keys=True))
  assert odd_bases.state(folder)[-1] == before


def test_any_changed_file_of_a_summed_base_is_noticed(tmp_path):
  base = odd_bases._base("llama")
  folder = tmp_path / "base"
  base_lib.write_base(folder, base, summed=True)
  assert base_lib.read_tokenizer(str(folder)).chat_template == odd_bases.CHAT
  names = {file.name for file in folder.iterdir()} - {kept.CHECKSUMS}
  assert names >= {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
  }
  for name in names:
    content = (folder / name).read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    for changed in (bytes(flipped), content[:-1], b""):
      (folder / name).write_bytes(changed)
      with pytest.raises(kept.Damaged, match=f"{name} is not what was written"):
        read(folder)
    (folder / name).unlink()
    with pytest.raises(kept.Damaged, match=f"{name} is missing"):
      read(folder)
    (folder / name).write_bytes(content)


def test_what_needs_no_weights_is_checked_before_they_are_read(
  folder, monkeypatch
):
  monkeypatch.delattr(tensor_files.TensorPlace, "read")
  (folder / "tokenizer.json").unlink()
  (folder / "tokenizer_config.json").unlink()
  with pytest.raises(ValueError, match="tokenizer"):
    read(folder)


@pytest.mark.parametrize("failing", ["tokenizer", "config.json", "model"])
def test_a_full_disk_is_told_with_file_and_advice(
  failing, tmp_path, monkeypatch
):
  base = odd_bases._base("llama")
  if failing == "tokenizer":

    def save(*_):
      # As the library's Rust code tells it.
      raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(base.tokenizer, "save_pretrained", save)
  else:
    write = kept._Part.sum if failing == "model" else None
    del write
    real = kept._Part.rename

    def rename(part):
      if part.target.name.startswith(failing):
        raise OSError(28, "No space left on device")
      real(part)

    monkeypatch.setattr(kept._Part, "rename", rename)
  folder = tmp_path / "base"
  with pytest.raises(ValueError, match="free some space") as error:
    base_lib.write_base(folder, base)
  assert str(folder) in str(error.value)
  assert not base_lib.is_whole(folder)
  assert not list(folder.glob(f".*{kept.UNFINISHED}"))
  monkeypatch.undo()
  # What is there of it does not stand in the way.
  base_lib.write_base(folder, base)
  assert base_lib.is_whole(folder)
