"""From tokens that come one by one to text, and where it stops.

What is given out is never taken back: half a character waits for its other
half, and what may be the beginning of a stop string for its end.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import transformers

# Stands for bytes that are no character, or none yet.
_HALF = "�"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# More bytes than this are no half of a character.
_MOST_HALVES = 4


class Detokenizer:
  """The text of an answer, piece by piece.

  All pieces together are what the tokenizer makes of all tokens.
  """

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
    self._tokenizer = tokenizer
    self._ids: list[int] = []
    # Tokens before `_read` are given out; those from `_start` on say how the
    # next ones are written, for instance with a space before them.
    self._start = self._read = 0

  def add(self, token: int) -> str:
    """What is sure once this token is there; "" where that is nothing."""
    self._ids.append(token)
    before, whole = self._texts()
    halves = len(whole) - len(whole.rstrip(_HALF))
    if not 0 < halves < _MOST_HALVES and len(whole) > len(before):
      self._start, self._read = self._read, len(self._ids)
      return whole[len(before) :]
    return ""

  def end(self) -> str:
    """What is left, with a mark for bytes that are no character."""
    before, whole = self._texts()
    self._start = self._read = len(self._ids)
    return whole[len(before) :]

  def _texts(self) -> tuple[str, str]:
    return (
      self._decode(self._ids[self._start : self._read]),
      self._decode(self._ids[self._start :]),
    )

  def _decode(self, ids: Sequence[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=True)


class Stopper:
  """Gives a text out up to the first of the strings that end it.

  Attributes:
    stopped: whether one came.
    length: of what was given out.
  """

  def __init__(self, stops: Sequence[str]):
    self._stops = stops
    self._held = ""
    self.stopped = False
    self.length = 0

  def add(self, text: str) -> str:
    """What is sure not to be of a stop string."""
    self._held += text
    places = [p for stop in self._stops if (p := self._held.find(stop)) >= 0]
    if places:
      self.stopped = True
      return self._give(min(places))
    longest = max(map(len, self._stops), default=1) - 1
    for start in range(max(0, len(self._held) - longest), len(self._held)):
      if any(stop.startswith(self._held[start:]) for stop in self._stops):
        return self._give(start)
    return self._give(len(self._held))

  def end(self) -> str:
    return "" if self.stopped else self._give(len(self._held))

  def _give(self, end: int) -> str:
    given, self._held = self._held[:end], self._held[end:]
    self.length += len(given)
    return given


class TokenNames:
  """How single tokens are shown, which may be parts of characters."""

  def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase):
    self._tokenizer = tokenizer
    self._byte_of = _byte_letters()

  def bytes_of(self, token: int) -> list[int]:
    """A token's bytes, as far as they can be told."""
    piece = self._tokenizer.convert_ids_to_tokens(int(token)) or ""
    text = self._tokenizer.decode([token])
    if _HALF in text:
      match = _BYTE.fullmatch(piece)
      if match:
        return [int(match[1], 16)]
      if all(letter in self._byte_of for letter in piece):
        return [self._byte_of[letter] for letter in piece]
    return [*text.encode()]

  def text_of(self, token: int) -> str:
    return bytes(self.bytes_of(token)).decode(errors="replace")


@functools.cache
def _byte_letters() -> Mapping[str, int]:
  """The letters that byte-level tokenizers write bytes with (GPT-2's)."""
  shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
  letters, more = {}, 0
  for byte in range(256):
    if byte in shown:
      letters[chr(byte)] = byte
    else:
      letters[chr(256 + more)] = byte
      more += 1
  return letters
