"""PRISM as the paper's released code feeds it in: its text about a user, and
what it cuts and leaves out, all in characters.

There a prompt is one text: what is here, a line break, and the turns of the
dialogue with Llama 3's tokens around them. Of that the code keeps the end.
"""

from collections.abc import Sequence

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import records

# Of an utterance and a response together.
EXAMPLE_LIMIT = 2300
# Of all that stands before a response but its header; and what stands before
# the user's text there, a name that is no part of the prompt here. Users'
# numbers have one to four digits.
_PROMPT_LIMIT = 1400 - len("USER: 123 " + 10 * "<|end_of_text|>" + "||")
_HEADERS = {
  role: len(f"<|start_header_id|>{role}<|end_header_id|>\n\n")
  for role in ("user", "assistant")
}
_END = len("<|eot_id|>\n")

_FACTS = (
  ("age", "age"),
  ("gender", "gender"),
  ("education", "education"),
  ("employment", "employment_status"),
  ("marital", "marital_status"),
  ("english_proficiency", "english_proficiency"),
)


def user_text(
  record: records.Record,
  aspects: Sequence[str],
  config: data_config.PrismConfig,
) -> str:
  """What a record of the survey says of a user, word for word.

    User textual information: preference: values, safety, other;
    self_description: I like to read; age: 25-34 years old; …

  on one line, with a space at its end. What is not said is empty, or however
  the survey says so.

  Args:
    aspects: names of those that matter most, in the order of the columns.
    config: which parts there are.

  Raises:
    records.BrokenRecord: if a field is of the wrong type.
  """
  parts = []
  if config.stated_preferences:
    parts.append(("preference", ", ".join(aspects)))
  if config.self_description:
    parts.append(("self_description", _raw(record, "self_description")))
  if config.demographics:
    parts += [(name, _raw(record, column)) for name, column in _FACTS]
  if config.system_string:
    parts.append(("system_string", _raw(record, "system_string")))
  if not parts:
    return ""
  listed = "".join(f"{name}: {said}; " for name, said in parts)
  return f"User textual information: {listed}"


def _raw(record: records.Record, name: str) -> str:
  return records.optional(record, name, str) or ""


def cut(
  turns: Sequence[structs.Message], text: str
) -> tuple[structs.Message, ...]:
  """The end of a dialogue, as much as the limit leaves beside a user's text.

  The first turn may lose its beginning; here it keeps its header, which the
  released code cuts off too. Where the text alone is over the limit, that code
  takes as many characters from the dialogue's beginning as there are too many;
  so it is here.
  """
  lengths = [_HEADERS[turn.role] + len(turn.content) + _END for turn in turns]
  total, room = sum(lengths), _PROMPT_LIMIT - len(text)
  # Python's `dialogue[-room:]`, which says nothing of the end below 1.
  start = max(total - room, 0) if room > 0 else -room
  kept = []
  for turn, length in zip(turns, lengths, strict=True):
    missing = max(start - _HEADERS[turn.role], 0)
    if start < length - _END or turn is turns[-1]:
      # Of the question something is left.
      missing = min(missing, max(len(turn.content) - 1, 0))
      kept.append(structs.Message(turn.role, turn.content[missing:]))
    start = max(start - length, 0)
  return tuple(kept)


def fitting(
  asked: str, chosen: str, rejected: Sequence[str]
) -> tuple[str, ...]:
  """The rejected responses of a turn within the limit of an example."""
  if len(asked) + len(chosen) >= EXAMPLE_LIMIT:
    return ()
  return tuple(
    text for text in rejected if len(asked) + len(text) <= EXAMPLE_LIMIT
  )
