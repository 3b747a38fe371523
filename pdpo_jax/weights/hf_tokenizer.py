"""The tokenizer in a folder in Hugging Face format, and how answers end."""

import pathlib
from typing import Any

import pydantic
import transformers

from pdpo_jax.core import kept
from pdpo_jax.models import hf_fields
from pdpo_jax.weights import json_files

_REMEDY = "copy the tokenizer's files there from where the model came"


class _AddedToken(pydantic.BaseModel):
  model_config = hf_fields.STRICT

  content: str


class _NamedTemplate(pydantic.BaseModel):
  model_config = hf_fields.STRICT

  name: str
  template: str


_Token = str | _AddedToken | None


class _TokenizerConfig(pydantic.BaseModel):
  """What of `tokenizer_config.json` decides which ids a text gets."""

  model_config = hf_fields.STRICT

  tokenizer_class: str | None = None
  chat_template: str | dict[str, str] | list[_NamedTemplate] | None = None
  bos_token: _Token = None
  eos_token: _Token = None
  unk_token: _Token = None
  pad_token: _Token = None
  add_bos_token: bool | None = None
  add_eos_token: bool | None = None
  add_prefix_space: bool | None = None
  added_tokens_decoder: dict[str, _AddedToken] | None = None


class _Generation(pydantic.BaseModel):
  model_config = hf_fields.STRICT

  eos_token_id: hf_fields.TokenId | list[hf_fields.TokenId] | None = None


_KINDS = {
  "tokenizer.json": dict[str, Any],
  "tokenizer_config.json": _TokenizerConfig,
  "special_tokens_map.json": dict[str, Any],
  "added_tokens.json": dict[str, hf_fields.TokenId],
}


def read(folder: pathlib.Path) -> transformers.PreTrainedTokenizerBase:
  """The tokenizer of a folder, by the classes that `transformers` has.

  A class of the folder's own is never run.

  Raises:
    ValueError: if there is none, or a file is damaged.
  """
  for name, kind in _KINDS.items():
    if (folder / name).is_file():
      json_files.read(folder / name, kind)
  for file in folder.glob("*.jinja"):
    kept.read_text(file, _REMEDY)
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      folder, trust_remote_code=False
    )
    ids = tokenizer("x", add_special_tokens=False)["input_ids"]
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # Rust's panics are no `Exception`.
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    remedy = _REMEDY
    if not (folder / "tokenizer.json").is_file():
      remedy += (
        "; there is no tokenizer.json, which transformers makes of "
        "tokenizer.model where sentencepiece is installed"
      )
    raise ValueError(
      f"{folder}: its tokenizer cannot be read ({reason:.300}); {remedy}"
    ) from error
  if not ids:
    raise ValueError(
      f"{folder} has no tokenizer: the one that transformers makes of it has "
      f"no token for 'x'; {_REMEDY}"
    )
  return tokenizer


def end_of_turn(folder: pathlib.Path) -> tuple[int, ...]:
  """What `generation_config.json` ends an answer with, if it is there."""
  file = folder / "generation_config.json"
  if not file.is_file():
    return ()
  tokens = json_files.read(file, _Generation).eos_token_id
  if tokens is None:
    return ()
  return tuple(tokens) if isinstance(tokens, list) else (tokens,)
