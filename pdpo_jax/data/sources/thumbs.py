"""Thumbs up and down: how labels are read, and which make comparisons."""

import collections
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import records
from pdpo_jax.data.sources import turns

_UP = (
  "up", "thumbs_up", "upvote", "like", "liked", "good", "positive", "true",
  "yes", "1", "+1", "👍",
)  # fmt: skip
_DOWN = (
  "down", "thumbs_down", "downvote", "dislike", "disliked", "bad", "negative",
  "false", "no", "0", "-1", "👎",
)  # fmt: skip
# Of an emoji: that it is shown as a picture, and in which of five skin colours.
_LOOKS = dict.fromkeys((0xFE0E, 0xFE0F, *range(0x1F3FB, 0x1F400)))


def _name(label: Any) -> str:
  """A label without what products write differently."""
  if isinstance(label, float):
    return f"{label:g}"
  name = unicodedata.normalize("NFKC", str(label)).translate(_LOOKS)
  name = re.sub(r"(?<=\w)[\s_-]+(?=\w)", "_", name.strip().casefold())
  # So pandas writes a column of integers of which some are missing to CSV.
  return name.removesuffix(".0")


class Labels:
  """Reads the labels of one path."""

  def __init__(self):
    # Which of 0 and -1 is down: beside both, 0 would be neither.
    self._number: str | None = None

  def is_up(self, label: Any) -> bool:
    """Whether a label says that a response was liked.

    Raises:
      records.BrokenRecord: if it says neither.
    """
    if turns.is_missing(label):
      raise records.BrokenRecord("no label")
    name = _name(label)
    if name not in (*_UP, *_DOWN):
      raise records.BrokenRecord(
        "label that says neither up nor down",
        f"{label!r:.60}, which is none of {', '.join((*_UP, *_DOWN))}",
      )
    if name in ("0", "-1"):
      self._number = self._number or name
      if self._number != name:
        raise records.BrokenRecord(
          f"label {name} beside {self._number}", "leave out what is neither"
        )
    return name in _UP


def as_comparisons(
  feedback: Sequence[structs.PreferenceExample | structs.Thumb],
  tally: records.Tally,
) -> list[structs.PreferenceExample]:
  """What a training can read: comparisons, and what thumbs say like them.

  Of responses to one prompt, a user prefers each that they liked to all that
  they did not. Other thumbs are counted and left out.
  """
  thumbs = [each for each in feedback if isinstance(each, structs.Thumb)]
  groups = collections.defaultdict(list)
  for thumb in thumbs:
    groups[thumb.user_id, thumb.prompt].append(thumb)
  used = 0
  made: dict[int, list[structs.PreferenceExample]] = {}
  for (user_id, prompt), group in groups.items():
    up, down = (
      dict.fromkeys(x.response for x in group if x.is_up == is_up)
      for is_up in (True, False)
    )
    # What somebody changed their mind about says nothing.
    up, down = (
      [y for y in up if y not in down],
      [y for y in down if y not in up],
    )
    # Of unknown users, nobody knows that it was one.
    if user_id is None or not up or not down:
      continue
    used += sum(x.response in (*up, *down) for x in group)
    first = group[0]
    made[id(first)] = [
      structs.PreferenceExample(
        prompt, y, tuple(down), user_id, first.user_text, place=first.place
      )
      for y in up
    ]
  tally.note("thumbs up and down that are read as comparisons", used)
  tally.drop(
    "thumbs without an opposite one of their user at the same prompt",
    len(thumbs) - used,
  )
  comparisons = []
  for each in feedback:
    if isinstance(each, structs.Thumb):
      comparisons += made.get(id(each), [])
    else:
      comparisons.append(each)
  return comparisons
