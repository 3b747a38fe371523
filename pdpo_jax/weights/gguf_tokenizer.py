"""The tokenizer that a GGUF file's metadata describe, read and written.

The file has tokens, merges and the name of a pre-tokenizer. What that name
means is in the `tokenizer.json` of the model it was given for, and only models
whose settings were compared with it are here: another rule for where words
begin gives other ids, and nothing fails.
"""

import dataclasses
import json
from typing import Any

import gguf
import tokenizers
import transformers
from tokenizers import pre_tokenizers, processors

from pdpo_jax.models import hf_fields
from pdpo_jax.weights import gguf as gguf_lib

_LLAMA_3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class _Words:
  """How a text is cut up, and what llama.cpp takes for granted with it.

  Attributes:
    steps: pre-tokenizers, one after the other.
    ignore_merges: a word that is a token is that token, merges or not.
    adds_bos: unless the file says otherwise.
  """

  steps: tuple[pre_tokenizers.PreTokenizer, ...]
  ignore_merges: bool = False
  adds_bos: bool = False


_GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_PRE_TOKENIZERS = {
  "gpt-2": _Words((_GPT_2,)),
  # SmolLM and SmolLM2: no token has two digits, nor a digit and a space.
  "smollm": _Words((pre_tokenizers.Digits(individual_digits=True), _GPT_2)),
  # Llama 3 to 3.3.
  "llama-bpe": _Words(
    (
      pre_tokenizers.Split(tokenizers.Regex(_LLAMA_3), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
    ignore_merges=True,
    adds_bos=True,
  ),
}
# Found in a text before it is cut up.
_WHOLE = (
  gguf.TokenType.CONTROL,
  gguf.TokenType.UNKNOWN,
  gguf.TokenType.USER_DEFINED,
)


def _words(file: gguf_lib.File) -> _Words:
  kind = file.require("tokenizer.ggml.model", str)
  if kind != "gpt2":
    raise file.error(
      f"tokenizer.ggml.model {kind!r} is not supported; only 'gpt2', "
      "byte-level BPE, is. Use the model in Hugging Face format"
    )
  name = file.require("tokenizer.ggml.pre", str)
  if name not in _PRE_TOKENIZERS:
    raise file.error(
      f"tokenizer.ggml.pre {name!r} is not supported; "
      f"{', '.join(map(repr, _PRE_TOKENIZERS))} are. Use the model in Hugging "
      "Face format"
    )
  if file.get("tokenizer.ggml.add_eos_token", bool, False):
    raise file.error(
      "tokenizer.ggml.add_eos_token ends every prompt; set it to false with "
      "`gguf-set-metadata FILE tokenizer.ggml.add_eos_token 0`"
    )
  return _PRE_TOKENIZERS[name]


def _special_tokens(file: gguf_lib.File, tokens: list[str]) -> dict[str, str]:
  """Tokens by the names that `transformers` has for them."""
  special = {}
  for theirs, ours in (
    ("bos", "bos_token"),
    ("eos", "eos_token"),
    ("unknown", "unk_token"),
    ("padding", "pad_token"),
  ):
    name = f"tokenizer.ggml.{theirs}_token_id"
    # A response could not end without.
    kind = hf_fields.TokenId
    known = file.require if theirs == "eos" else file.get
    index = known(name, kind)
    if index is None:
      continue
    if index >= len(tokens):
      raise file.error(f"{name} {index} is not one of {len(tokens)} tokens")
    special[ours] = tokens[index]
  return special


def _backend(
  file: gguf_lib.File, words: _Words, tokens: list[str]
) -> tokenizers.Tokenizer:
  """Everything but what is put around a text."""
  kinds = file.require("tokenizer.ggml.token_type", list[int])
  if len(kinds) != len(tokens):
    raise file.error(
      f"there are {len(tokens)} tokens and {len(kinds)} token types; "
      f"{gguf_lib.AGAIN}"
    )
  # Unused ones only fill the vocabulary up to the size of the model.
  vocab = {
    token: index
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    if kind != gguf.TokenType.UNUSED
  }
  if len(vocab) < sum(kind != gguf.TokenType.UNUSED for kind in kinds):
    raise file.error(f"a token is there twice; {gguf_lib.AGAIN}")
  merges = file.require("tokenizer.ggml.merges", list[str])
  try:
    model = tokenizers.models.BPE(
      vocab=vocab,
      merges=[tuple(merge.split(" ", 1)) for merge in merges],
      ignore_merges=words.ignore_merges,
    )
  except Exception as error:  # The library raises nothing more special.
    raise file.error(
      f"the merges do not fit the tokens ({error}); {gguf_lib.AGAIN}"
    ) from error
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = pre_tokenizers.Sequence(list(words.steps))
  backend.decoder = tokenizers.decoders.ByteLevel()
  # Being in the vocabulary already, they keep their ids.
  backend.add_tokens(
    [
      tokenizers.AddedToken(
        token,
        special=kind != gguf.TokenType.USER_DEFINED,
        normalized=False,
      )
      for token, kind in zip(tokens, kinds, strict=True)
      if kind in _WHOLE
    ]
  )
  return backend


def read_tokenizer(
  file: gguf_lib.File,
) -> transformers.PreTrainedTokenizerFast:
  """A tokenizer that gives the ids of the model's original one.

  The beginning-of-text token is put before a text where the model wants one.
  Some chat templates write it too: `apply_chat_template(tokenize=True)` knows,
  but a rendered template must be encoded with `add_special_tokens=False`.

  Raises:
    ValueError: if it is no byte-level BPE, its pre-tokenizer is not known, or
      it has no end-of-text token.
  """
  words = _words(file)
  tokens = file.require("tokenizer.ggml.tokens", list[str])
  special = _special_tokens(file, tokens)
  backend = _backend(file, words, tokens)
  if file.get("tokenizer.ggml.add_bos_token", bool, words.adds_bos):
    bos = special.get("bos_token")
    if bos is None:
      raise file.error(
        "a beginning-of-text token is to be put before every text, and "
        f"tokenizer.ggml.bos_token_id is missing; {gguf_lib.AGAIN}"
      )
    backend.post_processor = processors.TemplateProcessing(
      single=[bos, "$A"],
      pair=[bos, "$A", f"{bos}:1", "$B:1"],
      special_tokens=[(bos, tokens.index(bos))],
    )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    **special,
    chat_template=file.get("tokenizer.chat_template", str),
    model_max_length=file.require("llama.context_length", hf_fields.Size),
    clean_up_tokenization_spaces=False,
  )


def end_of_turn(file: gguf_lib.File) -> tuple[int, ...]:
  """Tokens that end an answer besides the end-of-text token."""
  fields = (f"tokenizer.ggml.{name}_token_id" for name in ("eot", "eom"))
  indices = (file.get(name, hf_fields.TokenId) for name in fields)
  return tuple(index for index in indices if index is not None)


@dataclasses.dataclass(frozen=True)
class Described:
  """A tokenizer as the metadata have it; see `read_tokenizer`.

  Attributes:
    pre: the name of its pre-tokenizer.
    tokens: by id.
    kinds: of each of them.
    merges: in their order.
  """

  pre: str
  tokens: list[str]
  kinds: list[gguf.TokenType]
  merges: list[str]


def describe(
  tokenizer: transformers.PreTrainedTokenizerBase, size: int
) -> Described:
  """What a file has to say of a tokenizer for a model of `size` tokens.

  Raises:
    ValueError: if it is not one of those that can be read here.
  """
  backend = json.loads(tokenizer.backend_tokenizer.to_str())
  model = backend["model"]
  pre = _pre_of(backend)
  tokens = {number: token for token, number in model["vocab"].items()}
  kinds = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
  for token in backend["added_tokens"]:
    tokens[token["id"]] = token["content"]
    kinds[token["id"]] = (
      gguf.TokenType.CONTROL
      if token["special"]
      else gguf.TokenType.USER_DEFINED
    )
  for number in range(size):
    tokens.setdefault(number, f"[PAD{number}]")
    kinds.setdefault(number, gguf.TokenType.UNUSED)
  merges = [
    merge if isinstance(merge, str) else " ".join(merge)
    for merge in model["merges"]
  ]
  return Described(
    pre,
    [tokens[number] for number in range(size)],
    [kinds[number] for number in range(size)],
    merges,
  )


def _pre_of(backend: dict[str, Any]) -> str:
  """The name of the pre-tokenizer of a `tokenizer.json`."""
  model = backend["model"]
  steps = _steps(backend["pre_tokenizer"])
  is_bytes = model["type"] == "BPE" and not (
    backend["normalizer"]
    or model.get("byte_fallback")
    or model.get("continuing_subword_prefix")
    or model.get("end_of_word_suffix")
  )
  for name, words in _PRE_TOKENIZERS.items():
    known = pre_tokenizers.Sequence(list(words.steps))
    if (
      is_bytes
      and steps == _steps(json.loads(known.__getstate__()))
      and bool(model.get("ignore_merges")) == words.ignore_merges
    ):
      return name
  raise ValueError(
    "the tokenizer is none of the byte-level ones whose name in GGUF files is "
    f"known here ({', '.join(map(repr, _PRE_TOKENIZERS))}); export with "
    "--format=tokens, and convert that with llama.cpp's convert_hf_to_gguf.py"
  )


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
  """What cuts a text up, one after the other."""
  if pre_tokenizer is None:
    return []
  steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
  # Where a token's text begins says nothing of its id.
  return [{k: v for k, v in x.items() if k != "trim_offsets"} for x in steps]
