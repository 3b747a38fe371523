"""What a compiled program sends between devices, from XLA's text of it.

Bytes are those that one device receives, where g devices take part:

    all-gather           (g - 1) / g of the result
    reduce-scatter       g - 1 times the result
    all-reduce           2 (g - 1) / g of the result: it is both of the above
    all-to-all           (g - 1) / g of the result
    collective-permute   the result

Those in the body of a loop count as often as it is run.
"""

import collections
import math
import re
from collections.abc import Iterator, Mapping

_FACTORS = {
  "all-gather": lambda group: (group - 1) / group,
  "reduce-scatter": lambda group: group - 1,
  "all-reduce": lambda group: 2 * (group - 1) / group,
  "all-to-all": lambda group: (group - 1) / group,
  "collective-permute": lambda group: 1,
}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?[\]})]) ([\w-]+)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations?)=\{?(%[^}\s]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")


def received(text: str) -> dict[str, float]:
  """Bytes a device receives in a run of the program, by kind of collective.

  Args:
    text: of a compiled program, as `compiled.as_text()` gives it.
  """
  computations, entry = _computations(text)
  by_channel: dict[str, tuple[float, str]] = {}
  for times, line in _executed(computations, entry):
    collective = _collective(line)
    if collective is None:
      continue
    kind, size = collective
    # One that overlaps with other work, perhaps with all rounds of a loop, is
    # written down with each piece of it.
    channel = _CHANNEL.search(line)
    name = channel.group(1) if channel else line
    once = (times * size, kind)
    by_channel[name] = min(by_channel.get(name, once), once)
  totals = collections.Counter()
  for size, kind in by_channel.values():
    totals[kind] += size
  return dict(totals)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """The lines of each computation, and which is run first."""
  computations, entry, lines = {}, "", []
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      lines = computations[header.group(2)] = []
      if header.group(1):
        entry = header.group(2)
    elif _INSTRUCTION.match(line):
      lines.append(line)
  return computations, entry


def _executed(
  computations: Mapping[str, list[str]], name: str, times: int = 1
) -> Iterator[tuple[int, str]]:
  """Instructions of a computation and of those it calls, and how often."""
  for line in computations.get(name, ()):
    yield times, line
    operation = _INSTRUCTION.match(line).group(3)
    if operation == "while":
      body, condition = (
        re.search(rf"\b{name}=%?([\w.-]+)", line).group(1)
        for name in ("body", "condition")
      )
      trips = _trips(line, computations[body], computations[condition])
      yield from _executed(computations, body, times * trips)
      continue
    for called in _called(line):
      yield from _executed(computations, called, times)


def _called(line: str) -> list[str]:
  names = ",".join(_CALLED.findall(line) + _BRANCHES.findall(line))
  return [name.strip().lstrip("%") for name in names.split(",") if name]


def _trips(loop: str, body: list[str], condition: list[str]) -> int:
  """How often a loop is run, whose counter goes from 0 up to a constant."""
  known = _TRIPS.search(loop)
  if known:
    return int(known.group(1))
  limits = _constants(condition)
  places = [re.search(r"\), index=(\d+)", line) for line in condition]
  places = [int(place.group(1)) for place in places if place]
  if len(limits) != 1 or len(places) != 1:
    return 1
  step = _step(body, places[0])
  return -(-next(iter(limits.values())) // step)


def _step(body: list[str], place: int) -> int:
  """What a loop's body adds to a counter; 1 where that is not plain."""
  results = re.search(r" tuple\((.*?)\)", body[-1])
  if not results:
    return 1
  name = re.findall(r"%([\w.-]+)", results.group(1))[place]
  sums = (
    re.match(rf"\s+%{re.escape(name)} = .* add\((.*?)\)", x) for x in body
  )
  operands = next((each.group(1) for each in sums if each), "")
  constants = _constants(body)
  added = [constants.get(each) for each in re.findall(r"%([\w.-]+)", operands)]
  return next((each for each in added if each), 1)


def _constants(lines: list[str]) -> dict[str, int]:
  matches = (
    re.match(
      r"\s+(?:ROOT )?%?([\w.-]+) = [su]32\[\]\S* constant\((\d+)\)", line
    )
    for line in lines
  )
  return {each.group(1): int(each.group(2)) for each in matches if each}


def _collective(line: str) -> tuple[str, float] | None:
  """Kind of a collective, and what a device receives in it."""
  _, result, operation = _INSTRUCTION.match(line).groups()
  kind = operation.removesuffix("-start")
  if kind not in _FACTORS:
    return None
  arrays = [size for size in map(_size, _ARRAY.findall(result)) if size]
  if operation.endswith("-start") and kind != "all-reduce":
    # Operands come before results, and counters behind.
    results = [size for size in arrays if size > 4] or arrays
    arrays = results[len(results) // 2 :]
  return kind, float(sum(arrays) * _FACTORS[kind](_group(line)))


def _size(array: tuple[str, str]) -> int:
  """Bytes of an array such as ("bf16", "4,8")."""
  dtype, shape = array
  bits = re.search(r"\d+", dtype)  # A pred has none, and takes a byte.
  count = math.prod(int(size) for size in shape.split(",") if size)
  return -(-count * int(bits.group() if bits else 8) // 8)


def _group(line: str) -> int:
  """How many devices take part."""
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
  if listed:
    return len(listed.group(1).split(","))
  iota = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
  if iota:
    return int(iota.group(1))
  named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
  if named:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
    axes = re.findall(r"'(\w+)'", named.group(2))
    return math.prod(int(sizes[axis]) for axis in axes)
  return 1
