"""Messages of dialogues, as data sets write them.

A message has a role and content (`role`, `content`) or, as ShareGPT has it,
`from` and `value`; whatever else it has is not read. Several are a list, or one
object with a list of each. All of it may be written as text, in JSON or as
Python prints it, which is what pandas writes to CSV.
"""

import collections
import itertools
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import records
from pdpo_jax.data.sources import literals

_ROLES = {
  "system": ("system", "developer"),
  "user": ("user", "human", "prompter"),
  "assistant": ("assistant", "gpt", "model", "bot", "chatbot", "ai"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_NOTHING = {
  "nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT", "N/A", "n/a",
  "#N/A", "undefined", "\\N",
}  # fmt: skip
_KEYS = (("role", "content"), ("from", "value"))
_UNSEEN = ("Zs", "Zl", "Zp", "Cc", "Cf")  # categories of Unicode
_READ_FIELDS = {field for pair in _KEYS for field in pair}
_TEXT_PARTS = ("text", "input_text", "output_text")
# Messages that are cut off or spoilt, which is no text that anybody wrote.
_QUOTES = r"""(?:\\?["'“”‘’`]|&quot;)+"""
_LIST = r"(?:array\()?[\[(][\[(\s]*"
_FIELD = rf"\{{\s*{_QUOTES}(?:role|from|content|value){_QUOTES}\s*:"
_BARE_FIELD = r"(?:\{\s*role\s*:|\w+\(\s*(?:role|content)\s*=)"
_ONE = rf"\{{\s*{_QUOTES}(?:role|from){_QUOTES}\s*:"
_BEGINS_LIKE_MESSAGES = re.compile(
  rf"""["'“]?(?:{_LIST}(?:{_FIELD}|{_BARE_FIELD})|{_ONE})"""
)
_BEGINS_LIKE_TEXTS = re.compile(r"""(?:array\()?\[\s*["']""")
# A note of which there are many where a column of lists became text.
STAY_TEXT = "texts that are JSON or Python data and stay text"
# What a text that is a list begins and ends with, or one that is quoted again.
_OPENING = ("[", "{", "(", "array(", '"[', '"{', '"(', '"array(')
_CLOSING = ("]", "}", ")", '"')

Notes = collections.Counter[str]


def is_missing(value: Any) -> bool:
  """Null, or what pandas puts in its place."""
  return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(text: str) -> bool:
  """Whether nothing of it can be seen."""
  return all(unicodedata.category(letter) in _UNSEEN for letter in text)


def is_nothing(text: str) -> bool:
  """Whether it is what programs write where there is nothing.

  Hardly anybody has such a name, or answers so, in just this spelling.
  """
  return text in _NOTHING


def is_reply(value: Any) -> bool:
  """Whether a value is a message of the assistant's."""
  role = next((value[key] for key, _ in _KEYS if key in value), None)
  return _role(role) == "assistant"


def is_message(value: Any) -> bool:
  """Whether a value is a message, be it a broken one."""
  if not isinstance(value, dict):
    return False
  for role, content in _KEYS:
    if role in value and (content in value or _role(value[role])):
      return True
  return False


def is_dialogue(value: Any) -> bool:
  """Whether a value is a list of messages, some of which may be broken."""
  return (
    isinstance(value, list)
    and all(isinstance(item, dict) for item in value)
    and any(map(is_message, value))
  )


def read_written(text: str) -> Any:
  """The list or object that a text writes out; None where it is just text."""
  text = text.strip()
  if not text.startswith(_OPENING) or not text.endswith(_CLOSING):
    return None
  for parse in (literals.parse_json, literals.parse_printed):
    try:
      value = parse(text)
    except ValueError:
      continue
    if isinstance(value, str):  # Quoted twice.
      return read_written(value) if len(value) < len(text) else None
    return value if isinstance(value, list | dict) else None
  return None


def unpack(value: Any, notes: Notes) -> Any:
  """A text, a list of texts or messages, or whatever else the value is.

  Messages that are written as text are read, one message is a list of one, and
  an object of lists a list of objects. A text that writes anything else stays
  text.

  Raises:
    records.BrokenRecord: if a text begins as messages do and cannot be read.
  """
  if isinstance(value, str):
    return _unpack_text(value, notes)
  if isinstance(value, dict):
    return _unpack_object(value)
  if isinstance(value, list | tuple):
    if value and all(_is_pair(item) for item in value):
      return _unpack_object(dict(value))
    return [_unpack_item(item, notes) for item in value]
  return value


def _is_pair(item: Any) -> bool:
  """Whether an item is a field of an object that a table keeps as a map."""
  return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)


def _unpack_item(item: Any, notes: Notes) -> Any:
  """As `unpack`, but one message stays one message."""
  if is_message(item) and not isinstance(item.get("role"), list):
    return item
  unpacked = unpack(item, notes)
  if is_dialogue(unpacked) and len(unpacked) == 1:
    written = read_written(item) if isinstance(item, str) else item
    if isinstance(written, dict) or _is_pair(next(iter(written))):
      return unpacked[0]
  return unpacked


def _unpack_object(value: dict) -> Any:
  for role, content in _KEYS:
    roles, contents = value.get(role), value.get(content)
    if (
      isinstance(roles, list)
      and isinstance(contents, list)
      and len(roles) == len(contents)
    ):
      pairs = zip(roles, contents, strict=True)
      return [{role: first, content: second} for first, second in pairs]
  return [value] if is_message(value) else value


def _unpack_text(text: str, notes: Notes) -> Any:
  written = read_written(text)
  if written is None:
    start = text.lstrip()[:80]
    if _BEGINS_LIKE_MESSAGES.match(start):
      raise records.BrokenRecord(
        "messages written as text that cannot be read", f"{text!r:.60}"
      )
    if _BEGINS_LIKE_TEXTS.match(start):
      notes["texts that begin like a list and stay text"] += 1
    return text
  unpacked = unpack(written, collections.Counter())
  several = isinstance(unpacked, list) and unpacked
  if (
    is_message(written)
    or is_dialogue(unpacked)
    or (several and all(map(is_dialogue, unpacked)))
  ):
    notes["messages written as text, which are read"] += 1
    return unpacked
  notes[STAY_TEXT] += 1
  return text


def read_messages(value: Any, notes: Notes) -> tuple[structs.Message, ...]:
  """The messages of a list.

  Roles are mapped to system, user and assistant. A blank system message is left
  out.

  Raises:
    records.BrokenRecord: if a message has no role that is known or no text, or
      a system message is not the first.
  """
  messages: list[structs.Message] = []
  for item in value:
    name, content = _role_and_content(item)
    role = _read_role(name, notes)
    for field in item.keys() - _READ_FIELDS:
      if not is_missing(item[field]):
        notes[f"messages with {field!r:.30}, which is not read"] += 1
    if item.get("tool_calls"):
      raise records.BrokenRecord(
        "message with a call of a tool", f"{item!r:.60}"
      )
    text = _read_content(content, notes)
    if role == "system" and messages:
      raise records.BrokenRecord("system message that is not the first")
    if not is_blank(text):
      messages.append(structs.Message(role, text))
    elif role == "system":
      notes["blank system messages, which are left out"] += 1
    else:
      raise records.BrokenRecord("empty message", f"of the {role}")
  return tuple(messages)


def _role_and_content(message: Any) -> tuple[Any, Any]:
  pairs = [
    (message[role], message[content])
    for role, content in _KEYS
    if isinstance(message, dict) and role in message and content in message
  ]
  if not pairs:
    raise records.BrokenRecord(
      "message without a role or content", f"{message!r:.60}"
    )
  # A table may have columns for both ways to write one.
  return next((pair for pair in pairs if not is_missing(pair[0])), pairs[0])


def note_order(messages: Sequence[structs.Message], notes: Notes) -> None:
  """Notes an order that some chat templates refuse."""
  roles = [turn.role for turn in messages if turn.role != "system"]
  if roles[:1] == ["assistant"]:
    notes["dialogues that the assistant begins"] += 1
  if any(a == b for a, b in itertools.pairwise(roles)):
    notes["dialogues with two turns of one role in a row"] += 1


def _role(name: Any) -> str | None:
  if not isinstance(name, str):
    return None
  return _ROLE_OF.get(name.strip().casefold())


def _read_role(name: Any, notes: Notes) -> str:
  role = _role(name)
  if role is None:
    listed = ", ".join(_ROLE_OF)
    raise records.BrokenRecord(
      "unknown role", f"{name!r:.60}, which is none of {listed}"
    )
  if name != role:
    notes[f"messages of {name!r:.30}, read as {role}"] += 1
  return role


def _read_content(content: Any, notes: Notes) -> str:
  """The text of a message: given so, or as parts of type "text"."""
  if isinstance(content, str):
    return content
  parts = content if isinstance(content, list | tuple) else [content]
  texts = []
  for part in parts:
    text = part
    if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS:
      text = part.get("text")
    if not isinstance(text, str):
      kind = part.get("type") if isinstance(part, dict) else part
      raise records.BrokenRecord("content that is no text", f"{kind!r:.60}")
    texts.append(text)
  if len(texts) > 1:
    notes["messages of several texts, joined by line ends"] += 1
  return "\n".join(texts)
