"""What `transformers` makes of an export; needs torch."""

import functools
import re

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from pdpo_jax.exports import contents, merged
from pdpo_jax.inference import generate, sampling
from pdpo_jax.weights import hf_safetensors, tensor_files
from tests.weights import policies

pytestmark = pytest.mark.filterwarnings(
  "ignore:.*is_gradient_checkpointing:FutureWarning"
)
PROMPT = "a few more words"

cases = pytest.mark.parametrize(
  "case", policies.CASES, ids=lambda case: case[0]
)


@cases
@pytest.mark.parametrize("sharded", [False, True])
def test_transformers_gives_the_same_logits(
  case, sharded, tmp_path, monkeypatch
):
  if sharded:
    write = functools.partial(hf_safetensors.write_model, shard_bytes=20_000)
    monkeypatch.setattr(hf_safetensors, "write_model", write)
  policy, base = policies.make(*case)
  merged.write(tmp_path, contents.Contents(policy, base, policies.USERS))
  assert (tmp_path / tensor_files.INDEX).is_file() == sharded
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
  assert model.dtype == torch.float32
  ids = base.tokenizer(PROMPT).input_ids
  file = tmp_path / "users" / "prefixes.safetensors"
  prefixes = torch.tensor(safetensors.numpy.load_file(file)["prefixes"])
  with torch.no_grad():
    tokens = model.get_input_embeddings()(torch.tensor([ids] * len(prefixes)))
    at = 0 if case[2] == "front" else 1
    inputs = torch.cat([tokens[:, :at], prefixes, tokens[:, at:]], 1)
    theirs = model(inputs_embeds=inputs).logits.numpy()
  # float32's rounding, as where both run the unmerged weights.
  np.testing.assert_allclose(
    policies.logits(policy, ids), theirs, rtol=0, atol=1e-4
  )


@cases
def test_the_code_of_the_readme_gives_the_same_answers(
  case, tmp_path, monkeypatch
):
  policy, base = policies.make(*case)
  merged.write(tmp_path, contents.Contents(policy, base, policies.USERS))
  monkeypatch.chdir(tmp_path)
  readme = (tmp_path / "README.md").read_text()
  (code,) = re.findall("```python\n(.*?)```", readme, re.DOTALL)
  scope = {}
  exec(code, scope)
  ids = base.tokenizer(PROMPT).input_ids
  requests = [
    generate.Request(prompt=np.array(ids, np.int32), user_row=row, seed=0)
    for row in range(policies.USERS.num_rows)
  ]
  tokens = generate.generate(
    policy,
    requests,
    sampling.AnswersConfig(temperature=0.0, max_new_tokens=12),
    stop_tokens=base.stop_tokens,
    pad_id=0,
    batch_size=4,
  )
  ours = base.tokenizer.batch_decode(tokens, skip_special_tokens=True)
  theirs = [
    scope["answer"](PROMPT, user, max_new_tokens=12, do_sample=False)
    for user in (None, *policies.USERS.ids)
  ]
  assert theirs == ours
  assert len(set(ours)) > 1
