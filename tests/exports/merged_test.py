import collections
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers

from pdpo_jax import export
from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts
from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.exports import merged
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import hf_safetensors, tensor_files
from tests import tiny
from tests.data import prompts_test
from tests.weights import models, policies

PROMPT = [5, 260, 3, 3, 99, 14, 1]


def write(folder, policy, base):
  merged.write(folder, contents_lib.Contents(policy, base, policies.USERS))


@pytest.mark.parametrize(("name", "kind", "place"), policies.CASES)
def test_merged_weights_give_the_logits_of_lora(name, kind, place, tmp_path):
  policy, base = policies.make(name, kind, place)
  write(tmp_path, policy, base)
  merged = hf_safetensors.read_model(tmp_path)
  merged = policy_lib.Policy(merged, policy.user_model, place)
  plain = policy_lib.Policy(base.lm, policy.user_model, place)
  expected = policies.logits(policy, PROMPT)
  found = policies.logits(merged, PROMPT)
  # float32's rounding, of weights and of sums of some tens.
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
  unmerged = policies.logits(plain, PROMPT)
  assert np.abs(unmerged - expected).max() > 0.1


def test_a_tied_head_is_untied_only_where_the_table_has_lora(tmp_path):
  arch = policies.ARCHITECTURES["llama_tied"]
  table = np.asarray(models.make(arch).embed_tokens.weight)
  for targets, tied in ((arch.linears, True), (arch.lora_targets, False)):
    lm = models.make(arch, targets=targets)
    folder = tmp_path / str(tied)
    hf_safetensors.write_model(folder, lm)
    found = safetensors.numpy.load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in found) is not tied
    assert hf_safetensors.read_architecture(folder).tied_head is tied
    same = np.array_equal(found["model.embed_tokens.weight"], table)
    assert same is tied
    # What the head reads is the table without its update.
    head = found.get("lm_head.weight", found["model.embed_tokens.weight"])
    np.testing.assert_array_equal(head, table)


def test_bfloat16_weights_are_merged_in_float32():
  arch = policies.ARCHITECTURES["llama"]
  lm = models.make(arch, "bfloat16", arch.linears)
  layer = lm.layers.mlp.down_proj
  update = np.einsum("lir,lro->lio", layer.lora_a[...], layer.lora_b[...])
  wide = np.asarray(layer.kernel[...], np.float64) + 7.0 / 3 * update
  found = models.tensors(lm)
  for number in range(arch.num_layers):
    tensor = found[f"model.layers.{number}.mlp.down_proj.weight"]
    assert tensor.dtype == jnp.bfloat16
    # Half a unit in the last of bfloat16's 8 places, and nothing besides.
    error = np.abs(tensor.astype(np.float64) - wide[number].T)
    assert (error <= np.abs(wide[number].T) * 2.0**-8 * 1.001).all()


@pytest.mark.parametrize(("name", "kind", "place"), policies.CASES)
def test_each_row_has_its_users_prefix(name, kind, place, tmp_path):
  policy, base = policies.make(name, kind, place)
  write(tmp_path, policy, base)
  described = json.loads((tmp_path / "users" / "users.json").read_text())
  assert described["users"] == [None, "4", "ada", "böhm"]
  assert described["prefix_position"] == place
  file = tmp_path / "users" / "prefixes.safetensors"
  prefixes = safetensors.numpy.load_file(file)["prefixes"]
  assert prefixes.shape == (4, 3, 20) and prefixes.dtype == np.float32
  # One row at a time, cluster weights are multiplied in another order.
  np.testing.assert_allclose(
    prefixes[0], policy.user_model.generic(), rtol=0, atol=1e-6
  )
  for user in policies.USERS.ids:
    row = policies.USERS.row_of(user)
    expected = policy.user_model(jnp.array([row]))[0]
    np.testing.assert_allclose(
      prefixes[described["users"].index(user)], expected, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(
  "template",
  [
    None,
    prompts_test.CHAT,
    prompts_test.WITHOUT_SYSTEM,
    "{{ bos_token }}" + prompts_test.CHAT,
  ],
)
def test_the_readme_makes_the_prompts_of_training(tmp_path, template, bos):
  policy, base = policies.make(*policies.CASES[0])
  # Of words behind blank lines, as a user's text stands before a prompt.
  texts = (*prompts_test.TEXTS, "I am old.\n\nthe cat", "a\n\n", "the\n\n")
  tokenizer = prompts_test.make_tokenizer(template, bos, texts)
  base = dataclasses.replace(base, tokenizer=tokenizer)
  write(tmp_path, policy, base)
  readme = (tmp_path / "README.md").read_text()
  code = readme[readme.index("def encode(") : readme.index("def answer(")]
  scope = {"tokenizer": tokenizer}
  exec(code, scope)
  encoder = prompts.PromptEncoder(tokenizer, "auto", 100)
  for text in ("", "I am old."):
    (expected,) = encoder.encode(
      [structs.PromptExample("the cat", text)], collections.Counter()
    )
    assert list(scope["encode"]("the cat", text)) == list(expected)


def test_a_template_and_a_bos_of_the_runs_own_are_exported(tmp_path):
  policy, base = policies.make(*policies.CASES[0])
  tokenizer = prompts_test.make_tokenizer(prompts_test.WITHOUT_SYSTEM)
  base = dataclasses.replace(base, tokenizer=tokenizer)
  own = prompts_test.CHAT.replace("<|end|>", "!<|end|>")
  data = data_config.DataConfig(template=own, add_bos=True)
  contents = contents_lib.Contents(policy, base, policies.USERS, data=data)
  merged.write(tmp_path, contents)
  assert tokenizer.chat_template == prompts_test.WITHOUT_SYSTEM
  back = transformers.AutoTokenizer.from_pretrained(tmp_path)
  readme = (tmp_path / "README.md").read_text()
  code = readme[readme.index("def encode(") : readme.index("def answer(")]
  scope = {"tokenizer": back}
  exec(code, scope)
  encoder = prompts.PromptEncoder(tokenizer, own, 100, add_bos=True)
  (expected,) = encoder.encode(
    [structs.PromptExample("the cat", "I am")], collections.Counter()
  )
  assert list(scope["encode"]("the cat", "I am")) == list(expected)
  assert expected[0] == tokenizer.bos_token_id


def test_what_is_exported_ends_where_the_template_does(tmp_path):
  policy, base = policies.make(*policies.CASES[0])
  tokenizer = prompts_test.make_tokenizer(prompts_test.CHAT)
  base = dataclasses.replace(base, tokenizer=tokenizer)
  end = tokenizer.convert_tokens_to_ids("<|end|>")
  assert end not in base.stop_tokens
  write(tmp_path, policy, base)
  generation = json.loads((tmp_path / "generation_config.json").read_text())
  assert generation["eos_token_id"] == [*base.stop_tokens, end]


def test_without_a_user_model_there_are_no_prefixes(tmp_path):
  _, base = policies.make(*policies.CASES[0])
  nobody = policy_lib.base_policy(base.lm)
  write(tmp_path, nobody, base)
  names = {file.name for file in tmp_path.iterdir()}
  assert {"model.safetensors", "tokenizer.json"} <= names
  assert "users" not in names


def test_an_export_is_a_base(tmp_path):
  policy, base = policies.make(*policies.CASES[0])
  write(tmp_path, policy, base)
  config = tiny.tiny_config(tmp_path).base
  assert base_lib.read_base(str(tmp_path), config).stop_tokens == (0, 7)


def test_nothing_is_written_beside_other_weights(tmp_path):
  policy, base = policies.make(*policies.CASES[0])
  (tmp_path / tensor_files.WHOLE).touch()
  with pytest.raises(ValueError, match="has weights already"):
    write(tmp_path, policy, base)
  assert [file.name for file in tmp_path.iterdir()] == [tensor_files.WHOLE]


@pytest.mark.slow
def test_a_run_is_exported_with_its_newest_checkpoint(tmp_path):
  config = tiny.tiny_config(tmp_path / "run")
  config.train.epochs = 1
  config.lora.targets = ("q_proj", "wte")
  run_folder.begin_or_continue(config)
  parts = tiny.tiny_parts(config)
  base_lib.write_base(config.folder / "base", parts[0])
  policy = tiny.train(config, parts)
  export.export_run(config.folder, tmp_path / "out")
  back = models.tensors(hf_safetensors.read_model(tmp_path / "out"))
  expected = models.tensors(policy.merge().lm)
  assert back.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)
  users = tmp_path / "out" / "users" / "users.json"
  described = json.loads(users.read_text())
  assert described["users"] == [None, "1", "2", "3"]


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="is no run folder"):
    export.export_run(tmp_path, tmp_path / "out")
