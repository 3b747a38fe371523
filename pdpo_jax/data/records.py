"""Records of data sets, and an account of what is left out."""

import collections
import logging
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Record = dict[str, Any]
PlacedRecords = Iterator[tuple[str, Record]]
T = TypeVar("T")

# Places of broken records that an error names besides the first of each reason,
# and names of things that are left out.
_NAMED = 3
_LISTED = 5
# Why a column is left out.
COLUMN = "column without a use"


class Tally:
  """Counts what a loader read, left out or changed, by reason.

  A *broken* record is one that should not be there: malformed, or of the wrong
  type. A *dropped* record is whole, and left out by a rule of the data set or
  of the configuration. What is *noted* is kept. *Not read* are things that are
  no records, such as files and columns.
  """

  def __init__(self):
    self.records = 0
    self.broken: collections.Counter[str] = collections.Counter()
    self.dropped: collections.Counter[str] = collections.Counter()
    self.noted: collections.Counter[str] = collections.Counter()
    self.not_read: dict[str, dict[str, None]] = {}
    self._places: list[str] = []

  def read(self, records: int = 1) -> None:
    self.records += records

  def break_(self, place: str, reason: str, detail: str = "") -> None:
    """Counts a broken record.

    Args:
      place: file and line, such as "choices.jsonl:12".
      reason: a few words, the same for all records of this kind.
      detail: what is wrong with this one.
    """
    self.broken[reason] += 1
    if len(self._places) < _NAMED or self.broken[reason] == 1:
      self._places.append(f"{place}: {reason}{': ' * bool(detail)}{detail}")

  def drop(self, reason: str, count: int = 1) -> None:
    if count:
      self.dropped[reason] += count

  def note(self, reason: str, count: int = 1) -> None:
    if count:
      self.noted[reason] += count

  def leave_out(self, name: str, reason: str) -> None:
    """Names something that is not read, such as a file or a column."""
    self.not_read.setdefault(reason, {})[name] = None

  def check(
    self, max_bad_share: float, advice: str = "mend them or raise it"
  ) -> None:
    """Logs what was broken.

    Raises:
      ValueError: if it is more than this share of all records, naming the first
        places.
    """
    bad = self.broken.total()
    if not bad:
      return
    summary = (
      f"{bad:,} of {self.records:,} records are broken: {_listed(self.broken)}"
    )
    first = "\n  ".join(self._places)
    if bad > max_bad_share * self.records:
      raise ValueError(
        f"{summary}. More than data.max_bad_share {max_bad_share:g} allows; "
        f"{advice}. The first:\n  {first}"
      )
    logger.warning("%s; they are left out. The first:\n  %s", summary, first)

  def lines(self) -> list[str]:
    """What was read, and what became of it, a line a kind."""
    lines = [f"{self.records:,} records"]
    for name in ("broken", "dropped", "noted"):
      counts = getattr(self, name)
      if counts:
        lines.append(f"{name}: {_listed(counts)}")
    for reason, names in self.not_read.items():
      named = ", ".join(map(repr, list(names)[:_LISTED]))
      more = len(names) - _LISTED
      if more > 0:
        named += f" and {more:,} more"
      lines.append(f"not read ({reason}): {named}")
    return lines

  def __str__(self) -> str:
    return "; ".join(self.lines())


def _listed(counts: collections.Counter[str]) -> str:
  return ", ".join(
    f"{count:,} {reason}" for reason, count in counts.most_common()
  )


def load_hub(path: str, name: str | None = None, split: str | None = None):
  """A split of a hub data set, or without `split` all of them by name.

  Args:
    path: the data set's id, such as "HannahRoseKirk/prism-alignment".
    name: of one of its configurations.

  Raises:
    ValueError: if it cannot be had, with what to do.
  """
  if path.startswith((".", "/", "~")) or path.count("/") > 1:
    raise ValueError(f"there is no file or folder {path!r}")
  # Imported here: it takes a second, and local files do without it.
  import datasets

  try:
    try:
      return datasets.load_dataset(path, name, split=split)
    except RuntimeError as error:
      if "scripts are no longer supported" not in str(error):
        raise
      # The hub keeps what a script would yield as Parquet, on a branch.
      branch = f"hf://datasets/{path}@refs/convert/parquet"
      split = split or "train"
      return datasets.load_dataset(
        "parquet",
        data_files=f"{branch}/{name or 'default'}/{split}/*.parquet",
        split="train",
      )
  except Exception as error:  # Hub, network, gating and format all differ.
    raise ValueError(
      f"{path!r} is neither a local path nor a hub data set that "
      f"could be read ({type(error).__name__}: {error}). Without a network, "
      "download it elsewhere and give its folder; a gated data set needs "
      "`hf auth login` by someone who was granted access"
    ) from error


def read_hub(
  path: str, tally: Tally, *, name: str | None = None, split: str
) -> PlacedRecords:
  """Yields place and record of a split of a hub data set; see `load_hub`."""
  where = path if name is None else f"{path}/{name}"
  try:
    loaded = load_hub(path, name, split)
  except ValueError as error:
    raise ValueError(f"data.path: {error}") from error
  for number, record in enumerate(loaded):
    tally.read()
    yield f"{where}/{split}:{number}", record


def check_header(
  path: pathlib.Path | str, names: Sequence[str], columns: Collection[str]
) -> None:
  """Raises a ValueError if one of the columns that are read is there twice."""
  for column in columns:
    if (count := list(names).count(column)) > 1:
      raise ValueError(
        f"{path} has {count} columns named {column!r}; give each a name of its "
        "own (several rejected responses are a list in one column)"
      )


class BrokenRecord(ValueError):
  """A record that should not be there; see `Tally.break_`."""

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(f"{reason}: {detail}")
    self.reason, self.detail = reason, detail


def field(record: Record, name: str, kind: type[T]) -> T:
  """The value of a field that the record must have.

  Raises:
    BrokenRecord: if it is missing, or of another type, or a text that has no
      UTF-8. A bool is no number.
  """
  if name not in record:
    raise BrokenRecord("missing field", name)
  value = record[name]
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise BrokenRecord(
      "wrong type", f"{name} {value!r:.60} must be {kind.__name__}"
    )
  if isinstance(value, str):
    try:
      value.encode()
    except UnicodeEncodeError as error:  # JSON may escape half a character.
      raise BrokenRecord("invalid UTF-8", f"{name}: {error}") from error
  return value


def optional(record: Record, name: str, kind: type[T]) -> T | None:
  """As `field`, but None where it is missing or null."""
  return None if record.get(name) is None else field(record, name, kind)


def parse(
  placed: Iterable[tuple[str, Record]],
  make: Callable[[Record, str], T],
  tally: Tally,
) -> Iterator[T]:
  """Yields what `make` makes of records and places; counts what is broken."""
  for place, record in placed:
    try:
      value = make(record, place)
    except BrokenRecord as broken:
      tally.break_(place, broken.reason, broken.detail)
    else:
      yield value
