"""What a judge is told of the user it plays, and what it must not see.

The judge sees the user's other choices as examples. The turn being judged is
never among them, nor is anything that gives it away: a later turn of the same
dialogue holds the answer that the user chose in its history.
"""

import dataclasses
import re
from collections.abc import Sequence

from pdpo_jax.core import structs


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Of one user, for one example.

  Attributes:
    persona: what the user said of themselves.
    feedback: what they said of the dialogue afterwards; may be empty.
    examples: other choices of theirs.
  """

  persona: structs.Persona
  feedback: str
  examples: tuple[structs.PreferenceExample, ...]


def gather(
  judged: structs.PreferenceExample,
  candidates: Sequence[structs.PreferenceExample],
  persona: structs.Persona,
  num_examples: int,
  later_turns: bool,
) -> Evidence:
  """Evidence for an example: first turns of its dialogue, then other choices.

  Args:
    judged: the example.
    candidates: the user's choices, in the order in which they were made.
    num_examples: at most so many examples.
    later_turns: whether turns of the same dialogue after the judged one may be
      among them.
  """
  length = _length(judged.prompt)
  same, others = [], []
  for example in _joined_turns(candidates):
    if example.user_id != judged.user_id or example.prompt == judged.prompt:
      continue
    if judged.dialogue_id and example.dialogue_id == judged.dialogue_id:
      if later_turns or _length(example.prompt) < length:
        same.append(example)
    elif not _gives_away(example, judged):
      others.append(example)
  # The turns nearest to the judged one, in their order.
  same.sort(key=lambda example: abs(_length(example.prompt) - length))
  shown = sorted(
    same[:num_examples], key=lambda example: _length(example.prompt)
  )
  shown += others[: num_examples - len(shown)]
  return Evidence(persona, judged.feedback, tuple(shown))


def _joined_turns(
  candidates: Sequence[structs.PreferenceExample],
) -> list[structs.PreferenceExample]:
  """One example a turn, also where its rejected responses are examples each."""
  turns: dict[tuple, structs.PreferenceExample] = {}
  for example in candidates:
    key = (example.user_id, example.dialogue_id, example.prompt, example.chosen)
    if key in turns:
      rejected = dict.fromkeys((*turns[key].rejected, *example.rejected))
      example = dataclasses.replace(turns[key], rejected=tuple(rejected))
    turns[key] = example
  return list(turns.values())


def _length(prompt: structs.Prompt) -> int:
  return 1 if isinstance(prompt, str) else len(prompt)


def _gives_away(
  example: structs.PreferenceExample, judged: structs.PreferenceExample
) -> bool:
  """Whether it holds the response that was chosen in the judged turn."""
  texts = [example.chosen, *example.rejected]
  chosen = judged.chosen.strip()
  if isinstance(example.prompt, str):
    # A dialogue as a plain text: lines of its own, or after "Assistant:".
    line = rf"(?:^|:)\s*{re.escape(chosen)}\s*$"
    if chosen and re.search(line, example.prompt, re.MULTILINE):
      return True
  else:
    texts += [turn.content for turn in example.prompt]
  return chosen in {text.strip() for text in texts}
