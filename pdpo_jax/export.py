r"""Writes a run's policy so that `transformers` can serve it.

  python -m pdpo_jax.export --workdir=runs/quickstart --output=exported

The folder has the base with the run's LoRA merged in, the tokenizer, each
user's prefix, and a README.md that shows how to answer as a user.
"""

import copy
import dataclasses
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
from absl import flags

from pdpo_jax import command_line
from pdpo_jax.core import display
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.data import template_worker, templates
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import host_users
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import tensor_files

_WORKDIR = command_line.workdir_flag()
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; a new one.")
_PLAIN = flags.DEFINE_bool(
  "plain", False, "Write the base as it is, without the run's LoRA."
)

_README = """\
# {name}

{weights}
`users.json` has the user ids in the order of the rows of `prefixes [U, T, D]`
in `user_prefixes.safetensors`. The first, null, is the generic user, who stands
for anyone unknown. A prompt has to look as in training, which `encode` sees to.

```python
import json

import torch
import transformers
from safetensors import torch as safetensors_torch

model = transformers.AutoModelForCausalLM.from_pretrained(".")
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
prefixes = safetensors_torch.load_file("user_prefixes.safetensors")["prefixes"]
with open("users.json") as file:
  users = json.load(file)["users"]


{encode}


def answer(prompt, user=None, user_text="", **kwargs):
  ids = torch.tensor([encode(prompt, user_text)])
  tokens = model.get_input_embeddings()(ids)
  row = 0 if user is None else users.index(str(user))
  prefix = prefixes[row][None].to(tokens.dtype)
  inputs = torch.cat([{parts}], 1)
  mask = torch.ones(inputs.shape[:2], dtype=torch.long)
  output = model.generate(inputs_embeds=inputs, attention_mask=mask, **kwargs)
  return tokenizer.decode(output[0], skip_special_tokens=True)
```
"""
_ENCODE_PLAIN = """\
def encode(prompt, user_text=""):
  check_words(prompt + user_text)
  return token_ids(f"{{user_text}}\\n\\n{{prompt}}" if user_text else prompt)


{functions}"""
_ENCODE_CHAT = """\
def encode(prompt, user_text=""):
  check_words(prompt + user_text)
  turns = [{{"role": "user", "content": prompt}}]
  if user_text:
    {tell}
  # What the template writes before an answer, whatever that is.
  turns.append({{"role": "assistant", "content": "{answer}"}})
  text = tokenizer.apply_chat_template(
    turns, {template}tokenize=False, date_string="{date:%d %b %Y}"
  )
  return token_ids(text.rpartition("{answer}")[0])


{functions}"""
_TELL_SYSTEM = 'turns.insert(0, {"role": "system", "content": user_text})'
_TELL_USER = 'turns[0]["content"] = f"{user_text}\\n\\n{prompt}"'
# As `text_tokens.TextTokens.prompts`.
_FUNCTIONS = """\
def check_words(text):
  # In training they were text, which takes more than the tokenizer to say.
  for token in tokenizer.added_tokens_decoder.values():
    if token.special and token.content in text:
      raise ValueError(f"the text has the control token {{token.content}}")


def token_ids(text):
  # The tokens that stand before a word; the space before it belongs to it.
  spaced = text[-1:].isspace()
  ids = tokenizer(text + "a" * spaced, add_special_tokens=False).input_ids
  return {front} + ids[: len(ids) - spaced]"""
_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_PARTS = {
  "front": "prefix, tokens",
  "after_bos": "tokens[:, :1], prefix, tokens[:, 1:]",
}
_MERGED = "The base with LoRA merged in, for `transformers`."
_AS_IT_IS = """\
The base as it is, for `transformers`, without the LoRA weights with which the
prefixes were trained."""


def encode_code(encoder: prompts_lib.PromptEncoder) -> str:
  """Code that makes token ids of a prompt as `encoder` does."""
  functions = _FUNCTIONS.format(front=encoder.front.tolist())
  if not encoder.chat:
    return _ENCODE_PLAIN.format(functions=functions)
  # As in training, it is the same day whenever the code runs.
  today = [
    f".replace({call[0]!r}, {repr(template_worker.DATE.strftime(call[2]))!r})"
    for call in _TODAY.finditer(encoder.chat.template.source)
  ]
  template = "chat_template=tokenizer.get_chat_template()" + "".join(today)
  return _ENCODE_CHAT.format(
    template=f"{template}, " if today else "",
    tell=_TELL_SYSTEM if encoder.takes_system else _TELL_USER,
    answer=templates.ANSWER,
    date=template_worker.DATE,
    functions=functions,
  )


def write_users(
  folder: pathlib.Path, policy: policy_lib.Policy, users: users_lib.UserIndex
) -> None:
  """Writes the prefix of each row, and which row is whose."""
  rows = jnp.array([users.row_of(user_id) for user_id in (None, *users.ids)])
  model = host_users.on_one_device(policy.user_model)
  prefixes = np.asarray(model(rows), np.float32)
  tensor = tensor_files.LazyTensor(
    prefixes.shape, prefixes.dtype, lambda: prefixes
  )
  file = folder / "user_prefixes.safetensors"
  tensor_files.write_file(file, {"prefixes": tensor})
  described = {
    "prefix_position": policy.prefix_position,
    "users": [None, *users.ids],
  }
  text = json.dumps(described, indent=2, ensure_ascii=False)
  (folder / "users.json").write_text(text + "\n")


def export(
  folder: pathlib.Path,
  policy: policy_lib.Policy,
  base: base_lib.Base,
  users: users_lib.UserIndex,
  plain: bool = False,
  data: data_config.DataConfig = data_config.DataConfig(),
) -> None:
  """Writes a policy; weights last.

  Args:
    folder: has no weights yet.
    policy: of `base`.
    base: gives the tokenizer, and the weights if `plain`.
    users: of the policy; without a user model they are left out.
    plain: leaves LoRA out.
    data: how prompts are written.

  Raises:
    ValueError: if the folder has weights already.
  """
  tensor_files.refuse_weights(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer = copy.copy(base.tokenizer)
  encoder = prompts_lib.PromptEncoder(tokenizer, data.template, 1, data.add_bos)
  if encoder.chat:
    tokenizer.chat_template = encoder.chat.template.source
  if policy.user_model.num_tokens > 0:
    write_users(folder, policy, users)
    readme = _README.format(
      name=display.markdown(folder.resolve().name),
      weights=_AS_IT_IS if plain else _MERGED,
      parts=_PARTS[policy.prefix_position],
      encode=encode_code(encoder),
    )
    (folder / "README.md").write_text(readme)
  lm = base.lm if plain else policy.lm
  # Answers end as they do here, also where only the template says how.
  ends = (*base.end_of_turn, encoder.end_id)
  base_lib.write_base(
    folder,
    dataclasses.replace(base, lm=lm, tokenizer=tokenizer, end_of_turn=ends),
  )


def export_run(
  workdir: pathlib.Path, folder: pathlib.Path, plain: bool = False
) -> None:
  """Writes the newest policy of a run; see `export`."""
  run = run_lib.Run.open(workdir)
  tensor_files.refuse_weights(folder)
  export(
    folder, run.own.policy, run.base, run.own.users, plain, run.config.data
  )


def main() -> None:
  if _WORKDIR.value is None or _OUTPUT.value is None:
    raise ValueError(
      "--workdir and --output are needed, e.g. --workdir=runs/quickstart "
      "--output=exported"
    )
  folder = pathlib.Path(_OUTPUT.value).expanduser()
  export_run(pathlib.Path(_WORKDIR.value).expanduser(), folder, _PLAIN.value)
  print(f"{folder}: {', '.join(sorted(x.name for x in folder.iterdir()))}")


if __name__ == "__main__":
  command_line.run(main)
