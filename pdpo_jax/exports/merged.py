"""The base with LoRA merged in, and people's prefixes beside it.

`transformers` and vLLM load the folder as it is. The prefixes lie in a folder
of their own, as vLLM takes every `.safetensors` file beside a model for a part
of it.
"""

import pathlib

from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.exports import prompt_code
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import tensor_files

# Of people, beside the model.
FOLDER = "users"
PREFIXES = "prefixes.safetensors"
_README = """\
A model with LoRA merged in, for `transformers` and vLLM. `users/users.json` has
the user ids in the order of the rows of `prefixes [U, T, D]` in
`users/prefixes.safetensors`. The first, null, is the generic user, who stands
for anyone unknown. A prompt has to look as in training, which `encode` sees to.

```python
import json

import torch
import transformers
from safetensors import torch as safetensors_torch

model = transformers.AutoModelForCausalLM.from_pretrained(".")
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
file = "users/prefixes.safetensors"
prefixes = safetensors_torch.load_file(file)["prefixes"]
with open("users/users.json") as file:
  users = json.load(file)["users"]


{encode}


def embed(prompt, user=None, user_text=""):
  ids = torch.tensor([encode(prompt, user_text)])
  tokens = model.get_input_embeddings()(ids)
  row = 0 if user is None else users.index(str(user))
  prefix = prefixes[row][None].to(tokens.dtype)
  return torch.cat([{parts}], 1)


def answer(prompt, user=None, user_text="", **kwargs):
  inputs = embed(prompt, user, user_text)
  mask = torch.ones(inputs.shape[:2], dtype=torch.long)
  output = model.generate(inputs_embeds=inputs, attention_mask=mask, **kwargs)
  return tokenizer.decode(output[0], skip_special_tokens=True)
```

vLLM answers as somebody by the same embeddings:
`LLM(".", enable_prompt_embeds=True).generate({{"prompt_embeds":
embed(prompt, user)[0].detach()}})`. A chat request to its server is answered as
nobody that was ever trained; for those, export people as tokens.
"""
_NOBODY = """\
A model with LoRA merged in, for `transformers` and vLLM. It has no users.
"""
_PARTS = {
  "front": "prefix, tokens",
  "after_bos": "tokens[:, :1], prefix, tokens[:, 1:]",
}


def write(folder: pathlib.Path, contents: contents_lib.Contents) -> None:
  """Writes model, tokenizer, prefixes and a card; weights last.

  Raises:
    ValueError: if the folder has weights already, or cannot be written.
  """
  tensor_files.refuse_weights(folder)
  readme = _NOBODY
  if contents.has_users:
    contents.write_users(folder / FOLDER)
    tensor_files.write_file(
      folder / FOLDER / PREFIXES,
      {"prefixes": contents_lib.lazy(contents.prefixes())},
    )
    readme = _README.format(
      parts=_PARTS[contents.policy.prefix_position],
      encode=prompt_code.encode(contents.encoder),
    )
  contents.card.write(folder, readme, people=contents.has_users)
  base_lib.write_base(folder, contents.base_with(contents.policy.lm))
