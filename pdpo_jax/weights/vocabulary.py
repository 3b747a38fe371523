"""Whether a tokenizer fits its model, gives texts back, and is the same."""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import tokenizers
import transformers

logger = logging.getLogger(__name__)

# Any tokenizer gives this back, but for a space before it and capitals.
_WORDS = "Ten minutes, or 12 of them: that's a few words."
# And a good one this: runs of spaces, lines, other scripts, code.
_TEXTS = {
  "several spaces": "a  b   c",
  "lines": "a\nb\n\nc\n",
  "tabs": "a\tb",
  "accents": "naïve café",
  "other scripts": "十分 десять दस",
  "emoji": "🙂 👩‍💻",
}
# Of which the ids tell one tokenizer from another.
_PROBES = (
  _WORDS,
  *_TEXTS.values(),
  "",
  " x",
  "I'm we're they've you'll he'd IT'S",
  "0 12 345 6789 3.14 1,000,000 x=-1; if (a[0] != b) {return;}",
  "  indented\r\n\n\n  more  \n ",
  "http://example.org/a?b=c#d e-mail@example.org snake_case CamelCase",
)


def check_spaces(
  tokenizer: transformers.PreTrainedTokenizerBase, place: object
) -> None:
  """Checks that a text comes back from its ids; warns of what else does not.

  Raises:
    ValueError: if plain words do not.
  """
  back = _back(tokenizer, _WORDS)
  if back.strip().casefold() != _WORDS.casefold():
    raise ValueError(
      f"{place}: its tokenizer, as transformers {transformers.__version__} "
      f"reads it, makes {back!r} of {_WORDS!r}. Some of the releases 5.1 to "
      "5.21 lose the spaces of tokenizers whose tokenizer_config.json says "
      "LlamaTokenizerFast: install transformers 5.22 or later, or set "
      "tokenizer_class there to 'PreTrainedTokenizerFast'"
    )
  lost = [
    name
    for name, text in _TEXTS.items()
    if _back(tokenizer, text).strip() != text.strip()
  ]
  if lost:
    logger.warning(
      "%s: its tokenizer does not give back %s", place, ", ".join(lost)
    )


def _back(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> str:
  ids = tokenizer(text, add_special_tokens=False)["input_ids"]
  return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def fit(
  tokenizer: transformers.PreTrainedTokenizerBase,
  end_of_turn: Sequence[int],
  size: int,
  place: object,
) -> None:
  """Checks that each id that a text can have is a row of the token table.

  A padding token that somebody added past the table is taken out of the
  tokenizer: nothing is padded with it here, and its name in a text is then a
  text like any other.

  Args:
    end_of_turn: tokens that end an answer besides the tokenizer's own.
    size: rows of the table.

  Raises:
    ValueError: if a text can have an id past the table, or the tokens that end
      an answer are missing or past it.
  """
  if tokenizer.eos_token_id is None:
    raise ValueError(
      f"{place}: the tokenizer has no eos_token, which ends a response; set "
      "one in tokenizer_config.json"
    )
  remedy = "use the tokenizer the model was trained with"
  wrong = [index for index in end_of_turn if index >= size]
  if wrong:
    raise ValueError(
      f"{place}: token {wrong[0]} is to end an answer, and the model has "
      f"{size} tokens; {remedy}"
    )
  past = {
    token: index
    for token, index in tokenizer.get_vocab().items()
    if index >= size
  }
  if not past:
    return
  needed = _needed(tokenizer, past)
  if needed:
    raise ValueError(
      f"{place}: the tokenizer has {len(tokenizer)} tokens and the model "
      f"{size}; {remedy}. A text can have {needed!r}, whose id is "
      f"{past[needed]}"
    )
  _take_out(tokenizer, past)
  logger.warning(
    "%s: %s, past the model's %d tokens, cannot be used and is taken out of "
    "the tokenizer",
    place,
    ", ".join(map(repr, past)),
    size,
  )


def _needed(
  tokenizer: transformers.PreTrainedTokenizerBase, past: dict[str, int]
) -> str | None:
  """One of these tokens that a text can have, or the tokenizer's own end."""
  added = tokenizer.added_tokens_decoder
  backend = getattr(tokenizer, "backend_tokenizer", None)
  ordinary = set(backend.get_vocab(with_added_tokens=False)) if backend else ()
  ends = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
  templates = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
  probes = tokenizer(list(_PROBES))["input_ids"]
  used = {index for ids in probes for index in ids}
  for token, index in past.items():
    if (
      not (token == tokenizer.pad_token or "pad" in token.casefold())
      or not backend
      or token in ordinary
      or index not in added
      or not added[index].special
      or token in ends
      or token in templates
      or index in used
    ):
      return token
  return None


def _take_out(
  tokenizer: transformers.PreTrainedTokenizerBase, past: dict[str, int]
) -> None:
  """Makes added tokens text like any other."""
  for name, token in tokenizer.special_tokens_map.items():
    if isinstance(token, str) and token in past:
      setattr(tokenizer, name, None)
    elif isinstance(token, list):
      setattr(tokenizer, name, [each for each in token if each not in past])
  described = json.loads(tokenizer.backend_tokenizer.to_str())
  described["added_tokens"] = [
    token for token in described["added_tokens"] if token["content"] not in past
  ]
  # There is no public way to take a token out.
  tokenizer._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(described))


def fingerprint(
  tokenizer: transformers.PreTrainedTokenizerBase, stop_tokens: Sequence[int]
) -> str:
  """Sixteen hexadecimal digits that two different tokenizers do not share.

  Hashes what they are made of, chat templates, the tokens that end an answer,
  and the ids of a few texts.
  """
  backend = getattr(tokenizer, "backend_tokenizer", None)
  made_of = json.loads(backend.to_str()) if backend else {}
  # How somebody padded or cut texts last is kept there as well.
  for name in ("version", "padding", "truncation"):
    made_of.pop(name, None)
  model = made_of.get("model", {})
  if "merges" in model:  # Older files have "a b" for ["a", "b"].
    model["merges"] = [
      merge.split(" ", 1) if isinstance(merge, str) else merge
      for merge in model["merges"]
    ]
  described = {
    "made of": _without_defaults(made_of),
    "vocabulary": None if backend else tokenizer.get_vocab(),
    "special": [tokenizer.bos_token_id, tokenizer.unk_token_id, *stop_tokens],
    "template": tokenizer.chat_template,
    "ids": tokenizer(list(_PROBES))["input_ids"],
  }
  text = json.dumps(described, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_defaults(value: Any) -> Any:
  """Without fields of null and false, which other versions may not write."""
  if isinstance(value, dict):
    return {
      name: _without_defaults(setting)
      for name, setting in value.items()
      if setting is not None and setting is not False
    }
  if isinstance(value, list):
    return [_without_defaults(each) for each in value]
  return value
