"""User ids as files have them."""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import records
from pdpo_jax.data.sources import turns

_LONGEST = 256  # characters; more are a wrong column
_WHOLE = "whole floats as {} ids, such as 7.0, read as 7"
# Floats tell all whole numbers apart up to here.
_EXACT = 2**53


class Reader:
  """Reads the ids of one path, which must be all texts or all integers.

  Args:
    what: they are ids of, for messages.
  """

  def __init__(self, what: str = "user"):
    self._what = what
    self._first: tuple[str, str | int] | None = None

  def read(self, place: str, value: Any, notes: turns.Notes) -> str | None:
    """The id in its one form, or None for an unknown user.

    Texts lose space around them and are normalised (NFC), so that what looks
    the same is the same; a whole float is an integer, since pandas makes floats
    of integers where some are missing.

    Raises:
      records.BrokenRecord: if it is no id.
      ValueError: if ids are of mixed type.
    """
    if turns.is_missing(value):
      return None
    if isinstance(value, float) and value.is_integer():
      if abs(value) > _EXACT:
        raise records.BrokenRecord(
          f"{self._what} id is a float that has lost digits", f"{value!r}"
        )
      notes[_WHOLE.format(self._what)] += 1
      value = int(value)
    if not isinstance(value, str | int) or isinstance(value, bool):
      raise records.BrokenRecord(
        f"{self._what} id is no text and no integer", f"{value!r:.60}"
      )
    if isinstance(value, str):
      value = self._clean(value, notes)
      if not value:
        return None
    first_place, first = self._first = self._first or (place, value)
    if type(first) is not type(value):
      raise ValueError(
        f"{self._what} ids are of mixed type: {value!r} ({place}) and "
        f"{first!r} ({first_place}); 7 and '7' must not be two {self._what}s, "
        "so make all of them text or all of them integers"
      )
    return str(value)

  def _clean(self, text: str, notes: turns.Notes) -> str:
    if turns.is_blank(text):
      return ""
    clean = unicodedata.normalize("NFC", _strip(text))
    if turns.is_nothing(clean):
      what = self._what
      notes[f"{what} ids like 'nan', 'None' and 'null', read as no {what}"] += 1
      return ""
    if any(unicodedata.category(letter) == "Cc" for letter in clean):
      raise records.BrokenRecord(
        f"{self._what} id has a control character", f"{clean!r:.60}"
      )
    if len(clean) > _LONGEST:
      raise records.BrokenRecord(
        f"{self._what} id is longer than {_LONGEST} characters",
        f"{clean!r:.60}",
      )
    if clean != text:
      notes[
        f"{self._what} ids with space around them or not in NFC, mended"
      ] += 1
    return clean


def _strip(text: str) -> str:
  """Without what cannot be seen at either end."""
  start, end = 0, len(text)
  while turns.is_blank(text[start]):
    start += 1
  while turns.is_blank(text[end - 1]):
    end -= 1
  return text[start:end]


def without_points(
  examples: list[structs.Feedback], tally: records.Tally
) -> list[structs.Feedback]:
  """What is said at a path, with ids "7" where all are like "7.0".

  So pandas writes a column of integers of which some are missing to CSV.
  """
  ids = {example.user_id for example in examples} - {None}
  if not ids or not all(re.fullmatch(r"-?\d+\.0", user_id) for user_id in ids):
    return examples
  tally.note(
    _WHOLE.format("user"),
    sum(example.user_id is not None for example in examples),
  )
  return [
    example
    if example.user_id is None
    else dataclasses.replace(
      example, user_id=example.user_id.removesuffix(".0")
    )
    for example in examples
  ]


def note_alike(ids: Iterable[str | None], tally: records.Tally) -> None:
  """Notes users whom only case, space, form or invisible letters tell apart."""
  groups = collections.defaultdict(list)
  for user_id in sorted(set(ids) - {None}):
    groups[_looks(user_id)].append(user_id)
  alike = [group for group in groups.values() if len(group) > 1]
  if alike:
    listed = " and ".join(map(repr, alike[0][:2]))
    tally.note(
      f"users whose ids look alike, such as {listed}", sum(map(len, alike))
    )


def near(user_id: str, ids: Iterable[str]) -> list[str]:
  """Those of `ids` that only case, space, form or invisible letters tell."""
  looks = _looks(user_id)
  return [each for each in ids if each != user_id and _looks(each) == looks]


def _looks(user_id: str) -> str:
  text = unicodedata.normalize("NFKC", user_id).casefold()
  seen = (c for c in text if unicodedata.category(c) != "Cf")
  text = " ".join("".join(seen).split())
  return re.sub(r"(?<=\d)\.0+$", "", text)  # 7.0 of 7
