"""Dialogues and texts before they are token ids: their parts, and cuts."""

import unicodedata
from collections.abc import Sequence

from pdpo_jax.core import structs

_SPEAKERS = {"user": "User: ", "assistant": "Assistant: ", "system": ""}

Asked = structs.PromptExample | structs.PreferenceExample


def inside_character(text: str, place: int) -> bool:
  """Whether a cut there would be inside of what is read as one character.

  That is before an accent, inside of an emoji or between "\\r" and "\\n".
  """
  before, after = text[place - 1 : place], text[place : place + 1]
  return bool(before and after) and (
    unicodedata.category(after).startswith("M")
    or "\u200d" in (before, after)
    or "\U0001f3fb" <= after <= "\U0001f3ff"
    or before + after == "\r\n"
  )


def turns_of(prompt: structs.Prompt) -> tuple[structs.Message, ...]:
  if isinstance(prompt, str):
    return (structs.Message("user", prompt),)
  return prompt


def as_text(prompt: structs.Prompt) -> str:
  if isinstance(prompt, str):
    return prompt
  turns = [_SPEAKERS[turn.role] + turn.content for turn in prompt]
  return "\n\n".join([*turns, _SPEAKERS["assistant"].rstrip()])


def without_oldest(
  turns: tuple[structs.Message, ...],
) -> tuple[structs.Message, ...]:
  """Without the oldest user turn and what answered it; the last one stays.

  A system message is no turn and stays too.
  """
  first = int(turns[0].role == "system")
  for place in range(first + 1, len(turns)):
    if turns[place].role == "user":
      return turns[:first] + turns[place:]
  return turns


def check(prompts: Sequence[Asked]) -> None:
  """Checks that each prompt is a text, or a dialogue that a user ends.

  Raises:
    ValueError: with the number of the first that is neither.
  """
  for place, example in enumerate(prompts):
    prompt, name = example.prompt, f"prompt {place} of {len(prompts)}"
    if not prompt:
      raise ValueError(
        f"{name} is empty; a response needs at least one token before it"
      )
    if isinstance(prompt, str):
      continue
    if any(turn.role not in _SPEAKERS for turn in prompt):
      raise ValueError(
        f"{name} has the roles {[turn.role for turn in prompt]}; "
        f"{list(_SPEAKERS)} are known"
      )
    if prompt[-1].role != "user":
      raise ValueError(
        f"{name} ends with a turn of {prompt[-1].role!r}; the last turn must "
        "be the user's"
      )
