"""Rows of data files and hub data sets, and an account of what is left out."""

import collections
import json
import logging
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Row = dict[str, Any]
T = TypeVar("T")

# Places of broken rows that an error names.
_NAMED = 3


class Tally:
  """Counts what a loader read, left out or changed, by reason.

  A *broken* row is one that should not be there: malformed, or of the wrong
  type. A *dropped* row is whole, and left out by a rule of the data set or of
  the configuration. What is *noted* is kept.
  """

  def __init__(self):
    self.rows = 0
    self.broken: collections.Counter[str] = collections.Counter()
    self.dropped: collections.Counter[str] = collections.Counter()
    self.noted: collections.Counter[str] = collections.Counter()
    self._places: list[str] = []

  def read(self, rows: int = 1) -> None:
    self.rows += rows

  def break_(self, place: str, reason: str, detail: str = "") -> None:
    """Counts a broken row.

    Args:
      place: file and line, such as "choices.jsonl:12".
      reason: a few words, the same for all rows of this kind.
      detail: what is wrong with this one.
    """
    self.broken[reason] += 1
    if len(self._places) < _NAMED:
      self._places.append(f"{place}: {reason}{': ' * bool(detail)}{detail}")

  def drop(self, reason: str, count: int = 1) -> None:
    if count:
      self.dropped[reason] += count

  def note(self, reason: str, count: int = 1) -> None:
    if count:
      self.noted[reason] += count

  def check(self, max_bad_share: float) -> None:
    """Logs what was broken.

    Raises:
      ValueError: if it is more than this share of all rows, naming the first
        places.
    """
    bad = self.broken.total()
    if not bad:
      return
    what = f"{bad:,} of {self.rows:,} rows are broken: {_listed(self.broken)}"
    first = "\n  ".join(self._places)
    if bad > max_bad_share * self.rows:
      raise ValueError(
        f"{what}. More than data.max_bad_share {max_bad_share:g} allows; mend "
        f"them or raise it. The first:\n  {first}"
      )
    logger.warning("%s; they are left out. The first:\n  %s", what, first)

  def __str__(self) -> str:
    parts = [f"{self.rows:,} rows"]
    for name in ("broken", "dropped", "noted"):
      counts = getattr(self, name)
      if counts:
        parts.append(f"{name}: {_listed(counts)}")
    return "; ".join(parts)


def _listed(counts: collections.Counter[str]) -> str:
  return ", ".join(
    f"{count:,} {reason}" for reason, count in counts.most_common()
  )


def read_jsonl(file: pathlib.Path, tally: Tally) -> Iterator[tuple[str, Row]]:
  """Yields place ("name:line") and row of each line that is a JSON object.

  Every line that is not blank is counted as read; one that is no JSON object
  or no UTF-8 is counted as broken.

  Raises:
    ValueError: if there is no such file, or it has no rows.
  """
  if not file.is_file():
    raise ValueError(f"data.path: there is no file {str(file)!r}")
  before = tally.rows
  with file.open("rb") as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      tally.read()
      place = f"{file.name}:{number}"
      try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
      except UnicodeDecodeError as error:
        tally.break_(place, "invalid UTF-8", str(error))
      except (json.JSONDecodeError, RecursionError) as error:
        tally.break_(place, "malformed JSON", str(error))
      else:
        if isinstance(row, dict):
          yield place, row
        else:
          tally.break_(place, "no JSON object", f"{row!r:.60}")
  if tally.rows == before:
    raise ValueError(f"{file} is empty; it should have one row a line")


def read_hub(
  path: str, tally: Tally, *, name: str | None = None, split: str
) -> Iterator[tuple[str, Row]]:
  """Yields place and row of a split of a hub data set.

  Args:
    path: the data set's id, such as "HannahRoseKirk/prism-alignment".
    name: of one of its configurations.

  Raises:
    ValueError: if it cannot be had, with what to do.
  """
  if path.startswith((".", "/", "~")) or path.count("/") > 1:
    raise ValueError(f"data.path: there is no file or folder {path!r}")
  # Imported here: it takes a second, and local files do without it.
  import datasets

  try:
    try:
      loaded = datasets.load_dataset(path, name, split=split)
    except RuntimeError as error:
      if "scripts are no longer supported" not in str(error):
        raise
      # The hub keeps what a script would yield as Parquet, on a branch.
      branch = f"hf://datasets/{path}@refs/convert/parquet"
      loaded = datasets.load_dataset(
        "parquet",
        data_files=f"{branch}/{name or 'default'}/{split}/*.parquet",
        split="train",
      )
  except Exception as error:  # Hub, network, gating and format all differ.
    raise ValueError(
      f"data.path {path!r} is neither a local path nor a hub data set that "
      f"could be read ({type(error).__name__}: {error}). Without a network, "
      "download it elsewhere and give its folder; a gated data set needs "
      "`hf auth login` by someone who was granted access"
    ) from error
  where = path if name is None else f"{path}/{name}"
  for number, row in enumerate(loaded):
    tally.read()
    yield f"{where}/{split}:{number}", row


class BrokenRow(ValueError):
  """A row that should not be there; see `Tally.break_`."""

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(f"{reason}: {detail}")
    self.reason, self.detail = reason, detail


def field(row: Row, name: str, kind: type[T]) -> T:
  """The value of a field that the row must have.

  Raises:
    BrokenRow: if it is missing, or of another type, or a text that has no
      UTF-8. A bool is no number.
  """
  if name not in row:
    raise BrokenRow("missing field", name)
  value = row[name]
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise BrokenRow(
      "wrong type", f"{name} {value!r:.60} must be {kind.__name__}"
    )
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError as error:  # JSON may escape half a character.
      raise BrokenRow("invalid UTF-8", f"{name}: {error}") from error
  return value


def optional(row: Row, name: str, kind: type[T]) -> T | None:
  """As `field`, but None where it is missing or null."""
  return None if row.get(name) is None else field(row, name, kind)


def parse(
  found: Iterable[tuple[str, Row]], make: Callable[[Row], T], tally: Tally
) -> Iterator[T]:
  """Yields what `make` makes of rows, and counts those it finds broken."""
  for place, row in found:
    try:
      made = make(row)
    except BrokenRow as broken:
      tally.break_(place, broken.reason, broken.detail)
    else:
      yield made
