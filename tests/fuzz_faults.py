"""What a run of mutations found, and how it is shown."""

import collections


class Faults(collections.Counter):
  """What should not be, by kind; with a first example of each."""

  def __init__(self):
    super().__init__()
    self.first: dict[str, str] = {}

  def add(self, kind: str, what: str, example: str) -> None:
    self[kind, what] += 1
    self.first.setdefault(f"{kind}: {what}", example[:600])


def show(
  table: dict[str, collections.Counter[str]], outcomes: tuple[str, ...]
) -> str:
  """The table as text."""
  lines = [f"{'':32}" + "".join(f"{name:>10}" for name in outcomes)]
  for name, counts in table.items():
    cells = "".join(f"{counts[outcome] or '·':>10}" for outcome in outcomes)
    lines.append(f"{name:32}{cells}")
  total = sum(table.values(), collections.Counter())
  cells = "".join(f"{total[outcome]:>10,}" for outcome in outcomes)
  return "\n".join([*lines, f"{'all':32}{cells}"])
