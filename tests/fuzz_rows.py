"""Rows that are mutated at random; see `tests/fuzz_files.py`."""

import collections
import contextlib
import dataclasses
import datetime
import gzip
import json
import pathlib
import random
import re
import tempfile
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow

from pdpo_jax.data import rows
from pdpo_jax.data.sources import preference_files
from tests import fuzz_faults, fuzz_formats

Row = dict[str, Any]
OUTCOMES = ("read", "noted", "dropped", "broken", "refused")
READ, NOTED, DROPPED, BROKEN, REFUSED = OUTCOMES
_USER = "user_id"
_MESSAGES_AS_TEXT = re.compile(r"""\s*[\["(]*\s*\{['"](role|from)['"]:""")


@dataclasses.dataclass(frozen=True)
class Kind:
  """A way to mutate a row.

  Attributes:
    mutate: makes a row, or the bytes of a line, of a row.
    outcomes: those that may come of it.
    same: whether a row that is read must say what it said before.
    endings: of files that can hold it.
  """

  mutate: Callable[[Row, random.Random], Any]
  outcomes: tuple[str, ...] = OUTCOMES
  same: bool = False
  endings: tuple[str, ...] = (
    ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz",
  )  # fmt: skip


def make_row(rng: random.Random) -> Row:
  """A row as it should be, of any of the forms that are read."""
  words = iter(rng.sample(range(10**6), 9))

  def text():
    quirks = ("", "it's", 'a "b"', "\\d", "ü\n", "{x}", "[y]", "1. a\n2. b")
    return f"{rng.choice(quirks)} w{next(words)}"

  asked = [text() for _ in range(rng.choice((1, 1, 3)))]
  prompt = [
    {"role": ("user", "assistant")[place % 2], "content": content}
    for place, content in enumerate(asked)
  ]
  answers = [text() for _ in range(rng.choice((2, 2, 4)))]
  row = {"prompt": asked[0], "chosen": answers[0], "rejected": answers[1]}
  form = rng.choice(("texts", "messages", "dialogues", "several"))
  if form == "messages":
    turn = [[{"role": "assistant", "content": answer}] for answer in answers]
    row = {"prompt": prompt, "chosen": turn[0], "rejected": turn[1]}
  elif form == "dialogues":
    turn = [
      [*prompt, {"role": "assistant", "content": answer}] for answer in answers
    ]
    row = {"chosen": turn[0], "rejected": turn[1]}
  elif form == "several":
    row["rejected"] = answers[1:]
  return row | {_USER: "ann", "user_text": rng.choice(("", "I cook."))}


def _map_messages(row: Row, change: Callable[[dict], Any]) -> Row:
  """Changes each message of a row, whose texts become messages first."""

  def mapped(value, role):
    if isinstance(value, str):
      value = [{"role": role, "content": value}]
    if isinstance(value[0], str):  # several
      return [mapped(item, role) for item in value]
    return [change(dict(message)) for message in value]

  roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
  return row | {
    name: mapped(row[name], role) for name, role in roles.items() if name in row
  }


def _write_lists(row: Row, write: Callable[[Any], str]) -> Row:
  return {
    name: write(value) if isinstance(value, list) else value
    for name, value in row.items()
  }


def _numpy_text(value: list) -> str:
  array = np.empty(len(value), object)
  array[:] = [
    np.array(item, object) if isinstance(item, list) else item for item in value
  ]
  return str(array)


def _cut(row: Row, rng: random.Random) -> Row:
  row = _map_messages(row, lambda message: message)
  name = rng.choice(("chosen", "rejected"))
  text = rng.choice((json.dumps, str))(row[name])
  return row | {name: text[: rng.randint(12, len(text) - 1)]}


def _answer_with_data(row: Row, rng: random.Random) -> Row:
  answers = ('["a", "b"]', '{"a": 1}', "[1, 2, 3]", '[{"n": "x"}]', "['a']")
  chosen, rejected = rng.sample(answers, 2)
  return row | {"prompt": "As JSON?", "chosen": chosen, "rejected": rejected}


def _begin_like_a_list(row: Row, rng: random.Random) -> Row:
  starts = ("[1] As", "[a link](b)", "[laughs] no", "{x} y", "(a) b", "[x]")
  chosen, rejected = rng.sample(starts, 2)
  return row | {"prompt": "[INST] hm?", "chosen": chosen, "rejected": rejected}


def _parts(row: Row, rng: random.Random) -> Row:
  del rng
  return _map_messages(
    row,
    lambda message: (
      message | {"content": [{"type": "text", "text": message["content"]}]}
    ),
  )


def _image(row: Row, rng: random.Random) -> Row:
  kind = rng.choice(("image", "image_url", "input_audio", "tool_use"))
  return _map_messages(
    row, lambda message: message | {"content": [{"type": kind, "x": "y"}]}
  )


def _metadata(row: Row, rng: random.Random) -> Row:
  def change(message):
    return message | {
      "id": rng.randrange(10**9),
      "time": str(datetime.datetime(2024, 1, 1 + rng.randrange(28))),
      "tool_calls": None,
    }

  return _map_messages(row, change)


def _role_names(row: Row, rng: random.Random) -> Row:
  names = {
    "user": rng.choice(("human", "User", "prompter")),
    "assistant": rng.choice(("gpt", "model", "bot", "Assistant ")),
  }

  def change(message):
    role = names[message["role"]]
    if rng.random() < 0.5:
      return {"from": role, "value": message["content"]}
    return message | {"role": role}

  return _map_messages(row, change)


def _unknown_role(row: Row, rng: random.Random) -> Row:
  role = rng.choice(("tool", "narrator", "", None, 3, ["user"], "function"))
  return _map_messages(row, lambda message: message | {"role": role})


def _order(row: Row, rng: random.Random) -> Row:
  row = _map_messages(row, lambda message: message)
  name = "prompt" if "prompt" in row else "chosen"
  dialogue = list(row[name])
  place = rng.randint(0, len(dialogue))
  role = rng.choice(("user", "assistant", "system"))
  dialogue.insert(place, {"role": role, "content": "inserted"})
  if rng.random() < 0.3:
    rng.shuffle(dialogue)
  return row | {name: dialogue}


def _blank_message(row: Row, rng: random.Random) -> Row:
  blank = rng.choice(("", " ", "\n\t", "​", "\u00a0"))
  return _map_messages(row, lambda message: message | {"content": blank})


def _blank_text(row: Row, rng: random.Random) -> Row:
  name = rng.choice(("prompt", "chosen", "rejected"))
  return row | {name: rng.choice(("", " ", "\n", "​", "\ufeff"))}


def _missing(row: Row, rng: random.Random) -> Row:
  name = rng.choice(("prompt", "chosen", "rejected"))
  return row | {name: rng.choice((None, float("nan")))}


_ODD = (
  None, 0, -1, 1.5, True, "", " ", "a", "\ud800", "\x00", [], {}, [[]], [{}],
  [None], ["a", None], [["a"]], {"role": "user"}, {"role": [], "content": []},
  [{"role": [], "content": {}}], [{"role": "user", "content": None}],
  10**400, float("nan"), float("inf"), {"role": "user", "content": ["a", 3]},
  [{"from": "gpt", "value": "x"}, 3], "[" * 50, "{'role': ", '"[', "array(",
  {"text": "x"}, [[[{"role": "user", "content": "a"}]]], "[[[[]]]]", "[...]",
)  # fmt: skip


def _odd_value(row: Row, rng: random.Random) -> Row:
  name = rng.choice(("prompt", "chosen", "rejected", "user_text", _USER))
  return row | {name: rng.choice(_ODD)}


def _odd_id(row: Row, rng: random.Random) -> Row:
  ids = (
    "nan", "None", "null", "ann ", "Ann", "​ann", "\ufeffann", "é",
    unicodedata.normalize("NFD", "é"), 7.0, 7.5, 2.0**70, float("inf"), True,
    "a\nb", "x" * 300, "9" * 5000, "$\\frac$", "../../x", "<b>", "a\x00", "-",
  )  # fmt: skip
  return row | {_USER: rng.choice(ids)}


def _line(row: Row) -> bytes:
  return json.dumps(row).encode()


def _long_number(row: Row, rng: random.Random) -> bytes:
  name = rng.choice((_USER, "score", "prompt"))
  line = _line({key: row[key] for key in row if key != name})
  digits = str(rng.randint(1, 9)) * 1000 * rng.randint(5, 9)
  return line[:-1] + f', "{name}": {digits}}}'.encode()


def _key_twice(row: Row, rng: random.Random) -> bytes:
  name = rng.choice(tuple(row))
  return _line(row)[:-1] + f', "{name}": "z"}}'.encode()


def _deep(row: Row, rng: random.Random) -> bytes:
  name = rng.choice(("prompt", "chosen", "rejected", "x"))
  line = _line({key: row[key] for key in row if key != name})
  depth = rng.choice((1000, 100_000))
  value = "[" * depth + "]" * rng.choice((0, depth))
  return line[:-1] + f', "{name}": {value}}}'.encode()


def _flip_bytes(row: Row, rng: random.Random) -> bytes:
  line = bytearray(_line(row))
  for _ in range(rng.randint(1, 4)):
    place = rng.randrange(len(line))
    line[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
  return bytes(line)


def _flip_list_text(row: Row, rng: random.Random) -> Row:
  row = _write_lists(_map_messages(row, lambda message: message), str)
  name = rng.choice(("chosen", "rejected"))
  text = list(row[name])
  for _ in range(rng.randint(1, 3)):
    text[rng.randrange(len(text))] = rng.choice("'\"[]{},:\\ xN\n")
  return row | {name: "".join(text)}


def _control_in_text(row: Row, rng: random.Random) -> Row:
  odd = rng.choice(("\x00", "\x0b", "\x85", "\u2028", "\ufffe", "\x1a"))
  return row | {"prompt": f"a{odd}b?", "chosen": f"c{odd}", "rejected": "d"}


KINDS: dict[str, Kind] = {
  "untouched": Kind(lambda row, rng: dict(row), (READ, NOTED), same=True),
  "lists as JSON text": Kind(
    lambda row, rng: _write_lists(row, json.dumps), (READ, NOTED), same=True
  ),
  "lists as Python text": Kind(
    lambda row, rng: _write_lists(row, str), (READ, NOTED), same=True
  ),
  "lists as NumPy text": Kind(
    lambda row, rng: _write_lists(row, _numpy_text), (READ, NOTED), same=True
  ),
  "lists as text, quoted twice": Kind(
    lambda row, rng: _write_lists(
      row, lambda value: json.dumps(json.dumps(value))
    ),
    (READ, NOTED),
    same=True,
  ),
  "list as text, cut off": Kind(_cut, (BROKEN,)),
  "list as text, letters changed": Kind(
    _flip_list_text, (READ, NOTED, BROKEN, DROPPED)
  ),
  "answer that is data": Kind(_answer_with_data, (NOTED,), same=True),
  "text that begins like a list": Kind(
    _begin_like_a_list, (READ, NOTED), same=True
  ),
  "content as parts": Kind(_parts, (READ, NOTED), same=True),
  "content that is no text": Kind(_image, (BROKEN,)),
  "metadata of turns": Kind(_metadata, (READ, NOTED), same=True),
  "other names of roles": Kind(_role_names, (NOTED,), same=True),
  "unknown role": Kind(_unknown_role, (BROKEN,)),
  "turns in another order": Kind(_order, (READ, NOTED, BROKEN)),
  "blank message": Kind(_blank_message, (BROKEN,)),
  # In CSV, an empty prompt is none, and dialogues do without.
  "blank text": Kind(_blank_text, (BROKEN, NOTED, READ)),
  "missing text": Kind(_missing, (READ, NOTED, BROKEN)),
  "value of another type": Kind(_odd_value),
  "odd user id": Kind(_odd_id, (READ, NOTED, BROKEN, REFUSED)),
  "letters that control": Kind(_control_in_text, (READ, NOTED)),
  "number of many digits": Kind(_long_number, (BROKEN,), endings=(".jsonl",)),
  "key given twice": Kind(_key_twice, (BROKEN,), endings=(".jsonl",)),
  "nested deeply": Kind(_deep, (BROKEN,), endings=(".jsonl",)),
  "bytes changed": Kind(_flip_bytes, endings=(".jsonl", ".jsonl.gz")),
}


def write(file: pathlib.Path, ending: str, row: Any) -> pathlib.Path:
  """Writes a row into a file; to JSONL where the format cannot hold it."""
  if isinstance(row, bytes):
    content = row.replace(b"\n", b" ") + b"\n"
    if ending == ".jsonl.gz":
      content = gzip.compress(content)
  else:
    try:
      content = fuzz_formats.to_bytes(ending, [row])
    except (pyarrow.ArrowException, UnicodeError, OverflowError):
      ending = ".jsonl"
      content = fuzz_formats.to_bytes(ending, [row])
  file = file.with_suffix(ending)
  file.write_bytes(content)
  return file


def fuzz(
  count: int, seed: int, faults: fuzz_faults.Faults
) -> dict[str, collections.Counter[str]]:
  """Outcomes by kind of so many mutated rows, each in a file of its own."""
  table = collections.defaultdict(collections.Counter)
  with tempfile.TemporaryDirectory() as folder:
    for number in range(count):
      rng = random.Random(f"row {seed} {number}")
      name = tuple(KINDS)[number % len(KINDS)]
      kind = KINDS[name]
      row = make_row(rng)
      mutated = kind.mutate(row, rng)
      ending = rng.choice(kind.endings)
      file = write(pathlib.Path(folder) / f"{number % 50}", ending, mutated)
      with contextlib.ExitStack() as stack:
        stack.callback(file.unlink)
        outcome = _outcome(file, kind, row, mutated, name, faults)
      table[name][outcome] += 1
      if outcome not in kind.outcomes:
        faults.add(name, f"outcome {outcome}", f"{file.suffix} {mutated!r}")
  return table


def _outcome(
  file: pathlib.Path,
  kind: Kind,
  row: Row,
  mutated: Any,
  name: str,
  faults: fuzz_faults.Faults,
) -> str:
  tally = rows.Tally()
  shown = f"{file.suffix} {mutated!r}"
  try:
    examples = preference_files.read(str(file), _USER, tally)
  except ValueError as error:
    if file.name not in str(error):
      faults.add(name, "refused without a place", f"{error} {shown}")
    return REFUSED
  except Exception as error:
    faults.add(name, f"traceback {type(error).__name__}", f"{error} {shown}")
    return REFUSED
  lost = tally.broken.total() + tally.dropped.total()
  if len(examples) + lost != tally.rows:
    faults.add(name, "silent loss", f"{tally} {shown}")
  for example in examples:
    texts = (example.chosen, *example.rejected)
    if any(map(_MESSAGES_AS_TEXT.match, texts)) and not tally.noted:
      faults.add(name, "messages trained on as text, silently", shown)
    if not all(text.strip() and text.encode() for text in texts):
      faults.add(name, "empty text", shown)
  if tally.broken:
    return BROKEN
  if tally.dropped:
    return DROPPED
  if kind.same and not _says(examples[0], mutated if name in _TEXTS else row):
    faults.add(name, "says something else", f"{examples[0]} {shown}")
  return NOTED if tally.noted else READ


# Kinds whose mutated row is the one that must be read as it stands.
_TEXTS = ("answer that is data", "text that begins like a list")


def _says(example, row: Row) -> bool:
  """Whether a comparison says what a well-formed row does."""

  def last(reply):
    return reply if isinstance(reply, str) else reply[-1]["content"]

  rejected = row["rejected"]
  several = isinstance(rejected, list) and isinstance(rejected[0], str)
  dialogue = row.get("prompt", row["chosen"][:-1])
  contents = (
    [dialogue]
    if isinstance(dialogue, str)
    else [turn["content"] for turn in dialogue]
  )
  prompt = (
    [example.prompt]
    if isinstance(example.prompt, str)
    else [turn.content for turn in example.prompt]
  )
  return (
    prompt == contents
    and example.chosen == last(row["chosen"])
    and list(example.rejected)
    == [last(reply) for reply in (rejected if several else [rejected])]
    and example.user_id == row[_USER]
  )
