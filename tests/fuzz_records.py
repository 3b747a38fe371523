"""Records that are mutated at random; see `tests/fuzz_files.py`."""

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

from pdpo_jax.data import records
from pdpo_jax.data.sources import preference_files
from tests import fuzz_faults, fuzz_formats

Record = dict[str, Any]
OUTCOMES = ("read", "noted", "dropped", "broken", "refused")
READ, NOTED, DROPPED, BROKEN, REFUSED = OUTCOMES
_USER = "user_id"
_MESSAGES_AS_TEXT = re.compile(r"""\s*[\["(]*\s*\{['"](role|from)['"]:""")


@dataclasses.dataclass(frozen=True)
class Kind:
  """A way to mutate a record.

  Attributes:
    mutate: makes a record, or the bytes of a line, of a record.
    outcomes: those that may come of it.
    same: whether a record that is read must say what it said before.
    endings: of files that can hold it.
  """

  mutate: Callable[[Record, random.Random], Any]
  outcomes: tuple[str, ...] = OUTCOMES
  same: bool = False
  endings: tuple[str, ...] = (
    ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz",
  )  # fmt: skip


def make_record(rng: random.Random) -> Record:
  """A record as it should be, of any of the forms that are read."""
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
  record = {"prompt": asked[0], "chosen": answers[0], "rejected": answers[1]}
  form = rng.choice(("texts", "messages", "dialogues", "several"))
  if form == "messages":
    turn = [[{"role": "assistant", "content": answer}] for answer in answers]
    record = {"prompt": prompt, "chosen": turn[0], "rejected": turn[1]}
  elif form == "dialogues":
    turn = [
      [*prompt, {"role": "assistant", "content": answer}] for answer in answers
    ]
    record = {"chosen": turn[0], "rejected": turn[1]}
  elif form == "several":
    record["rejected"] = answers[1:]
  return record | {_USER: "ann", "user_text": rng.choice(("", "I cook."))}


def _map_messages(record: Record, change: Callable[[dict], Any]) -> Record:
  """Changes each message of a record, whose texts become messages first."""

  def mapped(value, role):
    if isinstance(value, str):
      value = [{"role": role, "content": value}]
    if isinstance(value[0], str):  # several
      return [mapped(item, role) for item in value]
    return [change(dict(message)) for message in value]

  roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
  return record | {
    name: mapped(record[name], role)
    for name, role in roles.items()
    if name in record
  }


def _write_lists(record: Record, write: Callable[[Any], str]) -> Record:
  return {
    name: write(value) if isinstance(value, list) else value
    for name, value in record.items()
  }


def _numpy_text(value: list) -> str:
  array = np.empty(len(value), object)
  array[:] = [
    np.array(item, object) if isinstance(item, list) else item for item in value
  ]
  return str(array)


def _cut(record: Record, rng: random.Random) -> Record:
  record = _map_messages(record, lambda message: message)
  name = rng.choice(("chosen", "rejected"))
  text = rng.choice((json.dumps, str))(record[name])
  return record | {name: text[: rng.randint(12, len(text) - 1)]}


def _answer_with_data(record: Record, rng: random.Random) -> Record:
  answers = ('["a", "b"]', '{"a": 1}', "[1, 2, 3]", '[{"n": "x"}]', "['a']")
  chosen, rejected = rng.sample(answers, 2)
  return record | {"prompt": "As JSON?", "chosen": chosen, "rejected": rejected}


def _begin_like_a_list(record: Record, rng: random.Random) -> Record:
  starts = ("[1] As", "[a link](b)", "[laughs] no", "{x} y", "(a) b", "[x]")
  chosen, rejected = rng.sample(starts, 2)
  return record | {
    "prompt": "[INST] hm?",
    "chosen": chosen,
    "rejected": rejected,
  }


def _parts(record: Record, rng: random.Random) -> Record:
  del rng
  return _map_messages(
    record,
    lambda message: (
      message | {"content": [{"type": "text", "text": message["content"]}]}
    ),
  )


def _image(record: Record, rng: random.Random) -> Record:
  kind = rng.choice(("image", "image_url", "input_audio", "tool_use"))
  return _map_messages(
    record, lambda message: message | {"content": [{"type": kind, "x": "y"}]}
  )


def _metadata(record: Record, rng: random.Random) -> Record:
  def change(message):
    return message | {
      "id": rng.randrange(10**9),
      "time": str(datetime.datetime(2024, 1, 1 + rng.randrange(28))),
      "tool_calls": None,
    }

  return _map_messages(record, change)


def _role_names(record: Record, rng: random.Random) -> Record:
  names = {
    "user": rng.choice(("human", "User", "prompter")),
    "assistant": rng.choice(("gpt", "model", "bot", "Assistant ")),
  }

  def change(message):
    role = names[message["role"]]
    if rng.random() < 0.5:
      return {"from": role, "value": message["content"]}
    return message | {"role": role}

  return _map_messages(record, change)


def _unknown_role(record: Record, rng: random.Random) -> Record:
  role = rng.choice(("tool", "narrator", "", None, 3, ["user"], "function"))
  return _map_messages(record, lambda message: message | {"role": role})


def _order(record: Record, rng: random.Random) -> Record:
  record = _map_messages(record, lambda message: message)
  name = "prompt" if "prompt" in record else "chosen"
  dialogue = list(record[name])
  place = rng.randint(0, len(dialogue))
  role = rng.choice(("user", "assistant", "system"))
  dialogue.insert(place, {"role": role, "content": "inserted"})
  if rng.random() < 0.3:
    rng.shuffle(dialogue)
  return record | {name: dialogue}


def _blank_message(record: Record, rng: random.Random) -> Record:
  blank = rng.choice(("", " ", "\n\t", "​", "\u00a0"))
  return _map_messages(record, lambda message: message | {"content": blank})


def _blank_text(record: Record, rng: random.Random) -> Record:
  name = rng.choice(("prompt", "chosen", "rejected"))
  return record | {name: rng.choice(("", " ", "\n", "​", "\ufeff"))}


def _missing(record: Record, rng: random.Random) -> Record:
  name = rng.choice(("prompt", "chosen", "rejected"))
  return record | {name: rng.choice((None, float("nan")))}


_ODD = (
  None, 0, -1, 1.5, True, "", " ", "a", "\ud800", "\x00", [], {}, [[]], [{}],
  [None], ["a", None], [["a"]], {"role": "user"}, {"role": [], "content": []},
  [{"role": [], "content": {}}], [{"role": "user", "content": None}],
  10**400, float("nan"), float("inf"), {"role": "user", "content": ["a", 3]},
  [{"from": "gpt", "value": "x"}, 3], "[" * 50, "{'role': ", '"[', "array(",
  {"text": "x"}, [[[{"role": "user", "content": "a"}]]], "[[[[]]]]", "[...]",
)  # fmt: skip


def _odd_value(record: Record, rng: random.Random) -> Record:
  name = rng.choice(("prompt", "chosen", "rejected", "user_text", _USER))
  return record | {name: rng.choice(_ODD)}


def _odd_id(record: Record, rng: random.Random) -> Record:
  ids = (
    "nan", "None", "null", "ann ", "Ann", "​ann", "\ufeffann", "é",
    unicodedata.normalize("NFD", "é"), 7.0, 7.5, 2.0**70, float("inf"), True,
    "a\nb", "x" * 300, "9" * 5000, "$\\frac$", "../../x", "<b>", "a\x00", "-",
  )  # fmt: skip
  return record | {_USER: rng.choice(ids)}


def _line(record: Record) -> bytes:
  return json.dumps(record).encode()


def _long_number(record: Record, rng: random.Random) -> bytes:
  name = rng.choice((_USER, "score", "prompt"))
  line = _line({key: record[key] for key in record if key != name})
  digits = str(rng.randint(1, 9)) * 1000 * rng.randint(5, 9)
  return line[:-1] + f', "{name}": {digits}}}'.encode()


def _key_twice(record: Record, rng: random.Random) -> bytes:
  name = rng.choice(tuple(record))
  return _line(record)[:-1] + f', "{name}": "z"}}'.encode()


def _deep(record: Record, rng: random.Random) -> bytes:
  name = rng.choice(("prompt", "chosen", "rejected", "x"))
  line = _line({key: record[key] for key in record if key != name})
  depth = rng.choice((1000, 100_000))
  value = "[" * depth + "]" * rng.choice((0, depth))
  return line[:-1] + f', "{name}": {value}}}'.encode()


def _flip_bytes(record: Record, rng: random.Random) -> bytes:
  line = bytearray(_line(record))
  for _ in range(rng.randint(1, 4)):
    place = rng.randrange(len(line))
    line[place : place + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
  return bytes(line)


def _flip_list_text(record: Record, rng: random.Random) -> Record:
  record = _write_lists(_map_messages(record, lambda message: message), str)
  name = rng.choice(("chosen", "rejected"))
  text = list(record[name])
  for _ in range(rng.randint(1, 3)):
    text[rng.randrange(len(text))] = rng.choice("'\"[]{},:\\ xN\n")
  return record | {name: "".join(text)}


def _control_in_text(record: Record, rng: random.Random) -> Record:
  odd = rng.choice(("\x00", "\x0b", "\x85", "\u2028", "\ufffe", "\x1a"))
  return record | {"prompt": f"a{odd}b?", "chosen": f"c{odd}", "rejected": "d"}


KINDS: dict[str, Kind] = {
  "untouched": Kind(lambda record, rng: dict(record), (READ, NOTED), same=True),
  "lists as JSON text": Kind(
    lambda record, rng: _write_lists(record, json.dumps),
    (READ, NOTED),
    same=True,
  ),
  "lists as Python text": Kind(
    lambda record, rng: _write_lists(record, str), (READ, NOTED), same=True
  ),
  "lists as NumPy text": Kind(
    lambda record, rng: _write_lists(record, _numpy_text),
    (READ, NOTED),
    same=True,
  ),
  "lists as text, quoted twice": Kind(
    lambda record, rng: _write_lists(
      record, lambda value: json.dumps(json.dumps(value))
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


def write(file: pathlib.Path, ending: str, record: Any) -> pathlib.Path:
  """Writes a record into a file; to JSONL where the format cannot hold it."""
  if isinstance(record, bytes):
    content = record.replace(b"\n", b" ") + b"\n"
    if ending == ".jsonl.gz":
      content = gzip.compress(content)
  else:
    try:
      content = fuzz_formats.to_bytes(ending, [record])
    except (pyarrow.ArrowException, UnicodeError, OverflowError):
      ending = ".jsonl"
      content = fuzz_formats.to_bytes(ending, [record])
  file = file.with_suffix(ending)
  file.write_bytes(content)
  return file


def fuzz(
  count: int, seed: int, faults: fuzz_faults.Faults
) -> dict[str, collections.Counter[str]]:
  """Outcomes by kind of so many mutated records, each in a file of its own."""
  table = collections.defaultdict(collections.Counter)
  with tempfile.TemporaryDirectory() as folder:
    for number in range(count):
      rng = random.Random(f"row {seed} {number}")
      name = tuple(KINDS)[number % len(KINDS)]
      kind = KINDS[name]
      record = make_record(rng)
      mutated = kind.mutate(record, rng)
      ending = rng.choice(kind.endings)
      file = write(pathlib.Path(folder) / f"{number % 50}", ending, mutated)
      with contextlib.ExitStack() as stack:
        stack.callback(file.unlink)
        outcome = _outcome(file, kind, record, mutated, name, faults)
      table[name][outcome] += 1
      if outcome not in kind.outcomes:
        faults.add(name, f"outcome {outcome}", f"{file.suffix} {mutated!r}")
  return table


def _outcome(
  file: pathlib.Path,
  kind: Kind,
  record: Record,
  mutated: Any,
  name: str,
  faults: fuzz_faults.Faults,
) -> str:
  tally = records.Tally()
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
  if len(examples) + lost != tally.records:
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
  if kind.same and not _says(
    examples[0], mutated if name in _TEXTS else record
  ):
    faults.add(name, "says something else", f"{examples[0]} {shown}")
  return NOTED if tally.noted else READ


# Kinds whose mutated record is the one that must be read as it stands.
_TEXTS = ("answer that is data", "text that begins like a list")


def _says(example, record: Record) -> bool:
  """Whether a comparison says what a well-formed record does."""

  def last(reply):
    return reply if isinstance(reply, str) else reply[-1]["content"]

  rejected = record["rejected"]
  several = isinstance(rejected, list) and isinstance(rejected[0], str)
  dialogue = record.get("prompt", record["chosen"][:-1])
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
    and example.chosen == last(record["chosen"])
    and list(example.rejected)
    == [last(reply) for reply in (rejected if several else [rejected])]
    and example.user_id == record[_USER]
  )
