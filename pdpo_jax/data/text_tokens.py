"""Token ids of texts that follow one another, as the whole text has them.

Tokens do not end where a text does: " Ten" is one token, and "Ten" alone may
begin with a space that nobody wrote. So a response's ids are those that follow
its prompt's in the ids of both together.
"""

import functools
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers
import transformers
from jaxtyping import Int

Ids = Int[np.ndarray, " _"]  # of any number of tokens

# Texts that are Python lists of ids at a time; arrays are far smaller.
_BATCH = 8192
# Characters that Unicode keeps for use inside of programs. The first breaks
# what looks like a control token in people's words, the others stand around
# those that are meant.
_BREAK, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
# A word that follows a prompt: one token, whatever the vocabulary.
_WORD = "a"
# Characters before a response that decide how it begins, and the responses for
# which this is compared with all that stands before them.
_CONTEXT = 48
_COMPARED = 16


class TextTokens:
  """A tokenizer, for texts in which people's words are marked.

  Args:
    tokenizer: a fast one.
    written: by a chat template around people's words. The added tokens in it
      are control tokens, like all special ones.

  Attributes:
    front: ids that the tokenizer puts before a text, BOS most often.
    control: ids by control token.
  """

  def __init__(
    self, tokenizer: transformers.PreTrainedTokenizerBase, written: str = ""
  ):
    if not tokenizer.is_fast:
      raise ValueError(
        f"the tokenizer {type(tokenizer).__name__} is none of the library "
        "`tokenizers`; save it with a tokenizer.json"
      )
    self.tokenizer = tokenizer
    self.control = {
      token.content: number
      for number, token in tokenizer.added_tokens_decoder.items()
      if token.special
      or (token.content in written and not token.content.isspace())
    }
    longest_first = sorted(self.control, key=len, reverse=True)
    self._pattern = re.compile(
      "|".join(map(re.escape, longest_first)) or "(?!)"
    )
    self.control_ids = np.array(sorted(self.control.values()), np.int32)
    self.front = self._front()
    self._uncompared = _COMPARED
    self._context = True

  def _front(self) -> Ids:
    alone = self.ids(_WORD)
    around = np.array(self.tokenizer(_WORD)["input_ids"], np.int32)
    for start in range(len(around) - len(alone) + 1):
      if np.array_equal(around[start : start + len(alone)], alone):
        return around[:start]
    return around[:0]

  def words(self, text: str) -> str:
    """People's words, marked where they spell out a control token."""
    for mark in (_BREAK, _OPEN, _CLOSE):
      text = text.replace(mark, "")
    return self._pattern.sub(lambda m: m[0][0] + _BREAK + m[0][1:], text)

  def ids(self, text: str) -> Ids:
    return next(self.encode([text]))

  def encode(self, texts: Sequence[str]) -> Iterator[Ids]:
    """Ids of the texts alone: nothing in front, nothing after."""
    for start in range(0, len(texts), _BATCH):
      batch = texts[start : start + _BATCH]
      ordinary = [text for text in batch if _BREAK not in text]
      plain = iter(self._plain(ordinary))
      for text in batch:
        ids = self._marked(text) if _BREAK in text else next(plain)
        yield np.array(ids, np.int32)

  def _plain(self, texts: list[str]) -> list[list[int]]:
    if not texts:
      return []
    return self.tokenizer(
      texts,
      add_special_tokens=False,
      return_attention_mask=False,
      return_token_type_ids=False,
      verbose=False,
    )["input_ids"]

  def _marked(self, text: str) -> list[int]:
    meant = self._pattern.sub(lambda m: _OPEN + m[0] + _CLOSE, text)
    meant = meant.replace(_BREAK, "")
    return self._renamed.encode(meant, add_special_tokens=False).ids

  @functools.cached_property
  def _renamed(self) -> tokenizers.Tokenizer:
    """The tokenizer with other names for control tokens: what spells out one of
    the old names is text to it."""
    spec = json.loads(self.tokenizer.backend_tokenizer.to_str())
    names = {name: _OPEN + name + _CLOSE for name in self.control}
    for token in spec["added_tokens"]:
      token["content"] = names.get(token["content"], token["content"])
    model = spec["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
      model["vocab"] = {names.get(k, k): v for k, v in vocab.items()}
    else:
      model["vocab"] = [[names.get(k, k), score] for k, score in vocab]
    if model.get("unk_token"):
      model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
      model["merges"] = [
        merge
        for merge in model["merges"]
        if names.keys().isdisjoint(_of(merge))
      ]
    spec |= {"post_processor": None, "padding": None, "truncation": None}
    return tokenizers.Tokenizer.from_str(json.dumps(spec))

  def prompts(self, texts: Sequence[str]) -> list[Ids]:
    """Ids of texts that are followed by others.

    The space at a text's end is often one token with the word after it, and
    more of it is split where a word follows. So these are the tokens that would
    stand before a word; what is not in them is the following text's.
    """
    spaced = [text[-1:].isspace() for text in texts]
    followed = [
      text + _WORD * space for text, space in zip(texts, spaced, strict=True)
    ]
    result = []
    for text, ids, space in zip(
      texts, self.encode(followed), spaced, strict=True
    ):
      # Nothing but space is no prompt without it.
      result.append(
        (ids[:-1] if len(ids) > 1 else self.ids(text)) if space else ids
      )
    return result

  def following(
    self, texts: Sequence[tuple[str, Ids, str]]
  ) -> list[tuple[Ids, bool]]:
    """Ids of texts that follow others.

    Args:
      texts: a text, its ids by `prompts`, and the text that follows.

    Returns:
      The ids of each last one, and whether they are those of the whole text.
      They are not where a token spans the seam: then they are those that the
      text has after a line's end.
    """
    near = self._by_context(texts)
    compared = self._whole(texts[: self._uncompared])
    self._uncompared -= len(compared)
    for ids, whole in zip(near, compared, strict=False):
      if ids is not None and (whole is None or not np.array_equal(ids, whole)):
        self._context = False  # Its tokens hang on what is far away.
    if not self._context:
      near = [None] * len(texts)
    rest = iter(
      self._whole(
        [entry for entry, ids in zip(texts, near, strict=True) if ids is None]
      )
    )
    following = []
    for entry, ids in zip(texts, near, strict=True):
      ids = next(rest) if ids is None else ids
      joined = ids is not None
      following.append((ids if joined else self._apart(*entry), joined))
    return following

  def _by_context(self, texts) -> list[Ids | None]:
    """By what stands shortly before, where its last tokens are the prompt's."""
    ends = [before[-_CONTEXT:] for before, _, _ in texts]
    distinct = list(dict.fromkeys(ends))
    heads = dict(zip(distinct, self.prompts(distinct), strict=True))
    joined = self.encode(
      [end + after for end, (_, _, after) in zip(ends, texts, strict=True)]
    )
    result = []
    for end, (_, ids, _), both in zip(ends, texts, joined, strict=True):
      head = heads[end]
      size = max(1, len(head) // 2)
      same = _starts_with(both, head) and np.array_equal(
        ids[-size:], head[-size:]
      )
      result.append(both[len(head) :] if same else None)
    return result

  def _whole(self, texts) -> list[Ids | None]:
    """By all that stands before; None where a token spans the seam."""
    joined = self.encode([before + after for before, _, after in texts])
    return [
      both[len(ids) :] if _starts_with(both, ids) else None
      for both, (_, ids, _) in zip(joined, texts, strict=True)
    ]

  def _apart(self, before: str, ids: Ids, after: str) -> Ids:
    shorter = before.rstrip()
    if np.array_equal(self.ids(shorter), ids):
      after = before[len(shorter) :] + after
    # Behind a line's end, where no space is put in front.
    line = self.ids("\n")
    both = self.ids("\n" + after)
    return both[len(line) :] if _starts_with(both, line) else self.ids(after)

  def starts(self, text: str) -> list[int]:
    """Where each token of a text without marks begins, in characters."""
    encoding = self.tokenizer(
      text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return [start for start, _ in encoding["offset_mapping"]]


def _of(merge: str | list[str]) -> set[str]:
  left, right = merge.split(" ") if isinstance(merge, str) else merge
  return {left, right, left + right}


def _starts_with(ids: Ids, head: Ids) -> bool:
  return np.array_equal(ids[: len(head)], head)
