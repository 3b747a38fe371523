import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.exports import cards, gguf_file, tokens
from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.weights import gguf, gguf_tokenizer, licenses
from tests.data import prompts_test, template_cases
from tests.weights import models, policies

TEXTS = ("the cat, 12", "<|user|>a<|end|>\n", "<|user:2:1|><|user:9:1|>")


def make(case, tokenizer=None, **changes):
  policy, base = policies.make(*case)
  if tokenizer is None:
    tokenizer = prompts_test.make_tokenizer(prompts_test.CHAT, texts=("a cat",))
  base = dataclasses.replace(base, tokenizer=tokenizer)
  return contents_lib.Contents(policy, base, policies.USERS, **changes)


@pytest.mark.parametrize("case", policies.CASES[1:])
def test_it_is_read_back_as_it_was(case, tmp_path):
  contents = make(case, card=cards.Card(license={"license": "mit"}))
  gguf_file.write(tmp_path, contents)
  file = gguf.open_file(tmp_path / gguf_file.FILE)
  expected = tokens.make(contents)
  assert gguf.read_architecture(file) == expected.arch
  found = models.tensors(gguf.read_model(file))
  assert found.keys() == expected.tensors.keys()
  for name, tensor in expected.tensors.items():
    np.testing.assert_array_equal(found[name], tensor.make(), err_msg=name)
  tokenizer = gguf_tokenizer.read_tokenizer(file)
  assert tokenizer.chat_template == expected.tokenizer.chat_template
  for text in TEXTS:
    assert tokenizer(text).input_ids == expected.tokenizer(text).input_ids
  ends = (tokenizer.eos_token_id, *gguf_tokenizer.end_of_turn(file))
  assert ends[0] == contents.encoder.end_id
  assert {*ends} == {*contents.stop_tokens}
  assert licenses.read(str(file.path)) == {"license": "mit"}
  names = {each.name for each in tmp_path.iterdir()}
  assert names == {"README.md", "users.json", gguf_file.FILE}


def test_bfloat16_stays_and_vectors_are_float32(tmp_path):
  contents = make(policies.CASES[1])
  arch = contents.base.lm.arch
  lm = models.make(arch, "bfloat16", arch.lora_targets)
  policy = type(contents.policy)(lm, contents.policy.user_model)
  contents = dataclasses.replace(contents, policy=policy)
  gguf_file.write(tmp_path, contents)
  file = gguf.open_file(tmp_path / gguf_file.FILE)
  kinds = {
    (tensor.tensor_type.name, len(tensor.shape))
    for tensor in file.tensors.values()
  }
  assert kinds == {("BF16", 2), ("F32", 1)}
  table = file.read("token_embd.weight")[-12:]
  expected = contents.prefixes().reshape(12, -1).astype(jnp.bfloat16)
  np.testing.assert_array_equal(table, expected.astype(np.float32))


def test_what_llama_cpp_does_not_know_is_refused(tmp_path):
  chat = "{{ bos_token }}" + prompts_test.CHAT
  tokenizer = prompts_test.make_tokenizer(chat, texts=("a cat",))
  with pytest.raises(ValueError, match="no architecture for 'gptj'"):
    gguf_file.write(tmp_path, make(policies.CASES[0], tokenizer))
  for name in ("byte_level", "sentencepiece_legacy", "unigram", "wordpiece"):
    other = template_cases.make(name, "chatml")
    with pytest.raises(ValueError, match="convert_hf_to_gguf"):
      gguf_tokenizer.describe(other, len(other))
  assert not [*tmp_path.iterdir()]
