"""Adapters as PEFT has them: LoRA, and a prompt for each person.

The base stays as it is. Merging rounds each weight to the base's type, which
changes a third of the greedy answers of a base in bfloat16; an adapter beside
it changes none.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float

from pdpo_jax.core import kept
from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.exports import prompt_code
from pdpo_jax.models import layers
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import loading, tensor_files

# A layer with a low-rank update, by its path.
_Layers = Mapping[tuple[str, ...], Any]

# In the folder of an export.
BASE, LORA, USERS = "base", "lora", "users"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Each has a folder.
_MOST_PEOPLE = 10_000

_README = """\
Adapters for PEFT, on {base}:

{parts}
```python
import json

import peft
import torch
import transformers
from safetensors import torch as safetensors_torch

model = transformers.AutoModelForCausalLM.from_pretrained({load})
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
{code}```
"""
_LORA = "- `lora`: the LoRA weights, for everybody.\n"
_USERS = """\
- `users/ROW`: a prompt (prompt tuning) for each row of `users.json`. Row 0,
  null, is the generic user, who stands for anyone unknown. Prompts go with the
  LoRA weights and are nothing without.
"""
_LOAD_LORA = 'model = peft.PeftModel.from_pretrained(model, "lora")\n'
_LOAD_USERS = """\
with open("users.json") as file:
  users = json.load(file)["users"]


{encode}


def answer(prompt, user=None, user_text="", **kwargs):
  row = 0 if user is None else users.index(str(user))
  file = f"users/{{row}}/adapter_model.safetensors"
  prefix = safetensors_torch.load_file(file)["prompt_embeddings"][None]
  tokens = model.get_input_embeddings()(
    torch.tensor([encode(prompt, user_text)])
  )
  # PEFT's own `generate` loses a prompt that stands on top of LoRA.
  inputs = torch.cat([prefix.to(tokens.dtype), tokens], 1)
  mask = torch.ones(inputs.shape[:2], dtype=torch.long)
  output = model.generate(inputs_embeds=inputs, attention_mask=mask, **kwargs)
  return tokenizer.decode(output[0], skip_special_tokens=True)
"""


def write(folder: pathlib.Path, contents: contents_lib.Contents) -> None:
  """Writes adapters, tokenizer and a card, and the base if it is not the hub's.

  Raises:
    ValueError: if PEFT has no place for these prefixes, there are too many
      people for a folder each, or nothing was trained that PEFT has.
  """
  lora = _lora_layers(contents.policy.lm)
  _check(contents, lora)
  contents.card.write(
    folder, _readme(contents, bool(lora)), "peft", people=contents.has_users
  )
  base_lib.write_tokenizer(folder, contents.tokenizer, contents.stop_tokens)
  if contents.has_users:
    contents.write_users(folder)
    for row, prefix in enumerate(contents.prefixes()):
      _write_prompt(folder / USERS / str(row), contents, prefix)
  if lora:
    _write_lora(folder / LORA, contents, lora)
  if not contents.card.base_model:
    base_lib.write_base(folder / BASE, contents.base_with(contents.base.lm))


def _check(contents: contents_lib.Contents, lora: _Layers) -> None:
  if not lora and not contents.has_users:
    raise ValueError(
      "the run has neither LoRA weights nor users, and PEFT nothing to load; "
      "use --format=merged"
    )
  place = contents.policy.prefix_position
  if contents.has_users and place != "front":
    raise ValueError(
      f"user.prefix_position is {place!r}, and PEFT puts prompts in front of "
      "everything; use --format=merged or --format=tokens"
    )
  count = len(contents.ids)
  if contents.has_users and count > _MOST_PEOPLE:
    raise ValueError(
      f"{count:,} people would have a folder each, and {_MOST_PEOPLE:,} are "
      "the most; name those whom you need by --user, or use --format=merged"
    )


def _readme(contents: contents_lib.Contents, has_lora: bool) -> str:
  name, _, revision = contents.card.base_model.partition("@")
  load = repr(name or BASE)
  if revision:
    load += f", revision={revision!r}"
  users = contents.has_users
  code = _LOAD_LORA * has_lora
  if users:
    code += _LOAD_USERS.format(encode=prompt_code.encode(contents.encoder))
  return _README.format(
    base=name or f"the base as it is, in `{BASE}`",
    parts=_LORA * has_lora + _USERS * users,
    load=load.replace("'", '"'),
    code=code,
  )


def _lora_layers(lm: nnx.Module) -> _Layers:
  found = {}
  for path, _ in nnx.to_flat_state(nnx.state(lm, layers.LoraParam)):
    layer = lm
    for name in path[:-1]:
      layer = getattr(layer, name)
    found[path[:-1]] = layer
  return found


def lora_tensors(
  contents: contents_lib.Contents, lora: _Layers
) -> dict[str, Float[np.ndarray, "..."]]:
  """Low-rank weights under PEFT's names and in its layout."""
  arch = contents.policy.lm.arch
  tensors = {}
  for path, layer in lora.items():
    is_table = isinstance(layer, layers.Embedding)
    names = loading.tensor_names(arch, (*path, "weight"))
    down, up = (np.asarray(x[...]) for x in (layer.lora_a, layer.lora_b))
    stacked = loading.is_stacked(arch, path)
    for number, name in enumerate(names):
      stem = _PREFIX + name.removesuffix(".weight")
      a, b = (x[number] if stacked else x for x in (down, up))
      kind = ("embedding_A", "embedding_B") if is_table else (
        "A.weight", "B.weight",
      )  # fmt: skip
      tensors[f"{stem}.lora_{kind[0]}"] = np.ascontiguousarray(a.T)
      tensors[f"{stem}.lora_{kind[1]}"] = np.ascontiguousarray(b.T)
  return tensors


def _write_lora(folder, contents, lora) -> None:
  ranks = {layer.lora_a.shape[-1] for layer in lora.values()}
  scales = {layer.lora_scale for layer in lora.values()}
  (rank,), (scale,) = ranks, scales
  described = {
    "peft_type": "LORA",
    "r": rank,
    "lora_alpha": rank * scale,
    "target_modules": sorted({path[-1] for path in lora}),
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
  }
  _write(folder, contents, described, lora_tensors(contents, lora))


def _write_prompt(folder, contents, prefix: Float[np.ndarray, "T D"]) -> None:
  arch = contents.policy.lm.arch
  described = {
    "peft_type": "PROMPT_TUNING",
    "num_virtual_tokens": prefix.shape[0],
    "token_dim": prefix.shape[1],
    "num_transformer_submodules": 1,
    "num_attention_heads": arch.num_heads,
    "num_layers": arch.num_layers,
    "prompt_tuning_init": "RANDOM",
  }
  _write(folder, contents, described, {"prompt_embeddings": prefix})


def _write(
  folder: pathlib.Path,
  contents: contents_lib.Contents,
  described: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
) -> None:
  """Writes an adapter; weights last."""
  name, _, revision = contents.card.base_model.partition("@")
  described = {
    "base_model_name_or_path": name or BASE,
    "revision": revision or None,
    "task_type": "CAUSAL_LM",
    "inference_mode": True,
    **described,
  }
  with kept.writing(folder / _CONFIG, summed=False) as out:
    out.write((json.dumps(described, indent=2) + "\n").encode())
  tensor_files.write_file(
    folder / _WEIGHTS,
    {name: contents_lib.lazy(array) for name, array in tensors.items()},
  )
