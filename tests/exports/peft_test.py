import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from pdpo_jax.exports import cards, peft
from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import hf_safetensors
from tests.weights import policies


def make(case=policies.CASES[2], **changes):
  policy, base = policies.make(*case)
  return contents_lib.Contents(policy, base, policies.USERS, **changes)


def read(folder):
  config = json.loads((folder / "adapter_config.json").read_text())
  file = folder / "adapter_model.safetensors"
  return config, safetensors.numpy.load_file(file)


@pytest.mark.parametrize("case", policies.CASES[1:])
def test_the_base_and_lora_are_what_is_merged(case, tmp_path):
  contents = make(case)
  peft.write(tmp_path, contents)
  config, tensors = read(tmp_path / "lora")
  assert config["lora_alpha"] == pytest.approx(7.0) and config["r"] == 3
  assert config["target_modules"] == sorted(
    contents.policy.lm.arch.lora_targets
  )
  plain = hf_safetensors.read_model(tmp_path / "base")
  assert base_lib.fingerprint(plain) == contents.base.fingerprint
  weights = hf_safetensors.to_tensors(plain)
  merged = hf_safetensors.to_tensors(contents.policy.lm)
  scale = config["lora_alpha"] / config["r"]
  for name, tensor in weights.items():
    stem = "base_model.model." + name.removesuffix(".weight")
    expected = np.asarray(tensor.make(), np.float32)
    down = tensors.pop(f"{stem}.lora_A.weight", None)
    up = tensors.pop(f"{stem}.lora_B.weight", None)
    if f"{stem}.lora_embedding_A" in tensors:
      down = tensors.pop(f"{stem}.lora_embedding_A")
      up = tensors.pop(f"{stem}.lora_embedding_B")
      expected = expected + scale * (up @ down).T
    elif down is not None:
      expected = expected + scale * (up @ down)
    np.testing.assert_allclose(merged[name].make(), expected, atol=1e-5)
  assert not tensors


def test_each_person_has_a_prompt(tmp_path):
  contents = make(people=("ada", "4"))
  peft.write(tmp_path, contents)
  described = json.loads((tmp_path / "users.json").read_text())
  assert described["users"] == [None, "ada", "4"]
  for row, prefix in enumerate(contents.prefixes()):
    config, tensors = read(tmp_path / "users" / str(row))
    np.testing.assert_array_equal(tensors["prompt_embeddings"], prefix)
    assert (config["num_virtual_tokens"], config["token_dim"]) == (3, 20)
    assert config["base_model_name_or_path"] == "base"
  assert len([*(tmp_path / "users").iterdir()]) == 3


def test_a_base_of_the_hub_is_named_and_not_written(tmp_path):
  card = cards.Card(base_model="owner/name@main")
  peft.write(tmp_path, make(card=card))
  assert not (tmp_path / "base").exists()
  config, _ = read(tmp_path / "lora")
  assert config["base_model_name_or_path"] == "owner/name"
  assert config["revision"] == "main"
  readme = (tmp_path / "README.md").read_text()
  assert 'from_pretrained("owner/name", revision="main")' in readme


def test_without_users_there_is_lora_alone(tmp_path):
  contents = make()
  lm = contents.policy.lm
  nobody = policy_lib.base_policy(contents.base.lm)
  policy = policy_lib.Policy(lm, nobody.user_model)
  peft.write(tmp_path, dataclasses.replace(contents, policy=policy))
  assert (tmp_path / "lora").is_dir() and not (tmp_path / "users").exists()
  with pytest.raises(ValueError, match="neither LoRA weights nor users"):
    peft.write(tmp_path / "b", dataclasses.replace(contents, policy=nobody))


def test_a_prefix_behind_a_token_is_refused(tmp_path):
  with pytest.raises(ValueError, match="PEFT puts prompts in front"):
    peft.write(tmp_path, make(policies.CASES[0]))
  assert not [*tmp_path.iterdir()]
