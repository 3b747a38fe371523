"""Values written as text: in JSON, or as Python, NumPy and pandas print them.

`json.loads` keeps the last of two equal keys, and fails on long numbers in its
own way; `ast.literal_eval` takes the texts of a printed array, which has no
commas, for one text. Hence these.
"""

import ast
import json
import re
import warnings
from typing import Any

# Python converts no longer number from text to integer and back.
_MOST_DIGITS = 4300
# Of brackets in each other; lists of messages need five.
_MOST_LEVELS = 20


def _integer(digits: str) -> int:
  if len(digits) > _MOST_DIGITS:
    raise ValueError(f"a number of {len(digits):,} digits")
  return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    names = [name for name, _ in pairs]
    repeated = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"key {repeated!r:.60} is given twice")
  return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def parse_json(text: str) -> Any:
  """The value of a JSON text.

  Raises:
    ValueError: if it is malformed, has a key twice in an object or a number of
      too many digits, or is nested too deeply.
  """
  value, end = parse_json_at(text, skip_space(text, 0))
  end = skip_space(text, end)
  if end < len(text):
    raise ValueError(f"more text after the first value: {text[end:][:40]!r}")
  return value


def parse_json_at(text: str, start: int) -> tuple[Any, int]:
  """The JSON value that begins at a place, and where it ends.

  Raises:
    ValueError: as `parse_json`.
  """
  try:
    value, end = _DECODER.raw_decode(text, start)
  except RecursionError as error:
    raise ValueError("nested too deeply") from error
  opened = text.count("[", start, end) + text.count("{", start, end)
  if opened > _MOST_LEVELS:
    _check_levels(value)
  return value, end


def _check_levels(value: Any) -> None:
  """Keeps from others what they could not walk through, nor even print."""
  level = [value]
  for _ in range(_MOST_LEVELS + 1):
    level = [
      inner
      for outer in level
      if isinstance(outer, list | dict)
      for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]
  if level:
    raise ValueError("nested too deeply")


def skip_space(text: str, start: int) -> int:
  """Where the next character is that is no white space of JSON."""
  return _SPACE.match(text, start).end()


_SPACE = re.compile(r"[ \t\r\n]*")

_TOKEN = re.compile(
  r"""\s*(?:
    (?P<text>[bu]?(?:'[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*"))
  | (?P<keyword>[A-Za-z_]\w*=)
  | (?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<name><NA>|[A-Za-z_][\w.]*)
  | (?P<sign>\.\.\.|[\[\](){},:])
  )""",
  re.VERBOSE | re.DOTALL,
)
_NAMES = {
  "None": None,
  "null": None,
  "nan": None,
  "NaN": None,
  "NaT": None,
  "<NA>": None,
  "True": True,
  "true": True,
  "False": False,
  "false": False,
}
_CLOSING = {"[": "]", "(": ")"}


def parse_printed(text: str) -> Any:
  """The value of a text that Python printed, arrays and the like included.

    ['x', 'y']   ['x' 'y']   array(['x', 'y'], dtype=object)   -> ['x', 'y']

  Neighbours without a comma are items of their own, as NumPy prints them. Of a
  call, such as `Timestamp('2020-01-01')`, the first argument is taken, or those
  that have names, as of `Row(role='user', content='x')`.

  Raises:
    ValueError: if it is no such text.
  """
  printed = _Printed(text)
  value = printed.value(0)
  printed.expect_end()
  return value


class _Printed:
  """Reads a printed value from left to right."""

  def __init__(self, text: str):
    self._text = text
    self._end = 0
    self._comma = False
    self._named: list[tuple[str, Any]] = []
    self._advance()

  def _advance(self) -> None:
    match = _TOKEN.match(self._text, self._end)
    if match:
      self._end = match.end()
      self._kind, self._token = match.lastgroup, match[match.lastgroup]
    elif rest := self._text[self._end :].strip():
      raise ValueError(f"no Python value at {rest[:40]!r}")
    else:
      self._kind, self._token = "end", ""

  def _take(self) -> str:
    token = self._token
    self._advance()
    return token

  def expect_end(self) -> None:
    if self._kind != "end":
      raise ValueError(f"more text after the first value: {self._token!r:.40}")

  def value(self, level: int) -> Any:
    if level > _MOST_LEVELS:
      raise ValueError("nested too deeply")
    if self._kind == "text":
      return _unquote(self._take())
    if self._kind == "number":
      return _number(self._take())
    if self._kind == "name":
      name = self._take()
      if self._token == "(":
        arguments = self._items(level)
        return arguments[0] if arguments else dict(self._named)
      if name not in _NAMES:
        raise ValueError(f"{name!r:.40} is no Python value")
      return _NAMES[name]
    if self._token == "...":
      self._take()
      return ...
    if self._token == "{":
      return self._fields(level)
    if self._token == "[":
      return self._items(level)
    if self._token == "(":
      items = self._items(level)
      if len(items) == 1 and not self._comma:
        raise ValueError("a value in brackets, and no tuple")
      return items
    raise ValueError(f"no Python value at {self._token!r}")

  def _items(self, level: int) -> list[Any]:
    closing = _CLOSING[self._take()]
    items = []
    comma, named = False, []
    while self._token != closing:
      if self._kind == "keyword" and closing == ")":
        name = self._take()[:-1]
        is_type = self._kind == "name" and name == "dtype"  # Of an array.
        named.append((name, self._take() if is_type else self.value(level + 1)))
      else:
        items.append(self.value(level + 1))
      comma = self._token == ","
      if comma:
        self._take()
    self._take()
    # Whether the last item had one behind it, and the arguments with names.
    self._comma, self._named = comma, named
    return items

  def _fields(self, level: int) -> dict[Any, Any]:
    self._take()
    pairs = []
    while self._token != "}":
      name = self.value(level + 1)
      if self._kind != "sign" or self._take() != ":":
        raise ValueError("a set, or a field without a value")
      if not isinstance(name, str | int | float | None):
        raise ValueError(f"{name!r:.40} is no name of a field")
      pairs.append((name, self.value(level + 1)))
      if self._token == ",":
        self._take()
    self._take()
    return _object(pairs)


def _unquote(quoted: str) -> str:
  if quoted[0] == "b":
    raise ValueError("bytes are no text")
  if "\\" not in quoted:
    return quoted.lstrip("u")[1:-1]
  # A line end is written out, or it would end the literal.
  one_line = quoted.replace("\r", "\\r").replace("\n", "\\n")
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      return ast.literal_eval(one_line)
  except (SyntaxError, Warning) as error:  # No escape that Python knows.
    raise ValueError(f"{quoted:.40} is no Python text") from error


def _number(digits: str) -> int | float:
  if digits.lstrip("+-").isdecimal():
    return _integer(digits)
  return float(digits.replace("_", ""))
