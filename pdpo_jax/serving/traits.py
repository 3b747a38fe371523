"""What somebody's choices have in common, for the person to read."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pdpo_jax.core import structs

_ITEM = re.compile(r"(?m)^\s*(?:[-*•]|\d+[.)])\s+\S")


def _signs_of_warmth(text: str) -> int:
  emoji = sum(unicodedata.category(letter) == "So" for letter in text)
  return text.count("!") + emoji


# What is counted in a text, and what more and less of it is called.
_MEASURES: Mapping[str, tuple[Callable[[str], int], str]] = {
  "longer": (lambda text: len(text.split()), "shorter"),
  "more lists": (lambda text: len(_ITEM.findall(text)), "fewer lists"),
  "warmer": (_signs_of_warmth, "cooler"),
  "more questions": (lambda text: text.count("?"), "fewer questions"),
}


def of_choices(
  choices: Iterable[structs.Feedback],
) -> list[dict[str, Any]]:
  """In how many of the choices that had it to choose they took more of what.

  Most telling first; what was as often taken as left is left out.
  """
  pairs = [
    (choice.chosen, other)
    for choice in choices
    if isinstance(choice, structs.PreferenceExample)
    for other in choice.rejected
  ]
  found = []
  for more, (measure, less) in _MEASURES.items():
    differences = [measure(chosen) - measure(other) for chosen, other in pairs]
    up = sum(difference > 0 for difference in differences)
    down = sum(difference < 0 for difference in differences)
    if up != down:
      name, times = (more, up) if up > down else (less, down)
      found.append({"took": name, "times": times, "of": up + down})
  return sorted(found, key=lambda x: x["of"] - 2 * x["times"])
