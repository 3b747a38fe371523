"""Files of text that hold records, JSON and CSV; they may be compressed."""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import lzma
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

from pdpo_jax.data import records
from pdpo_jax.data.sources import literals

COMPRESSIONS = {
  ".gz": (b"\x1f\x8b", gzip.open),
  ".bz2": (b"BZh", bz2.open),
  ".xz": (b"\xfd7zXZ\x00", lzma.open),
}
# What files begin with that hold no text of records, and what to do.
_UTF_16 = "is no UTF-8; rewrite it with `iconv -f UTF-16 -t UTF-8`"
_STRANGERS = {
  b"version https://git-lfs": "is a pointer of Git LFS; fetch the file that it "
  "stands for with `git lfs pull`",
  b"\xff\xfe": _UTF_16,
  b"\xfe\xff": _UTF_16,
  b"PAR1": "is Parquet; its name must end in .parquet",
  b"PK\x03\x04": "is a ZIP archive or a spreadsheet; unpack it, or save it as "
  "CSV",
  b"\x28\xb5\x2f\xfd": "is compressed with Zstandard; unpack it with `unzstd`",
}


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[io.BufferedIOBase]:
  """The bytes of a file of text, unpacked where they are compressed."""
  with path.open("rb") as file:
    head = file.read(64)
  for start, problem in _STRANGERS.items():
    if head.startswith(start):
      raise ValueError(f"{path} {problem}")
  if b"\x00" in head[:2]:
    raise ValueError(f"{path} {_UTF_16}")
  opener = open
  for start, unpack in COMPRESSIONS.values():
    if head.startswith(start):
      opener = unpack
  with opener(path, "rb") as file:
    yield file


def read_json(
  path: pathlib.Path,
  name: str,
  tally: records.Tally,
  columns: Collection[str],
) -> records.PlacedRecords:
  """Objects, one a line; or in an array; or each over several lines."""
  with _open(path) as file:
    first = _first_line(file)
    file.seek(0)
    if first[:1] == b"[" or not _is_json(first):
      text = file.read().decode("utf-8-sig", errors="surrogateescape")
      try:
        values = list(_values(text, name))
      except ValueError:
        # An array is no lines of JSON. A first line may just be broken.
        if first[:1] == b"[":
          raise
      else:
        for place, record in values:
          tally.read()
          yield from _object(place, record, tally)
        return
      file.seek(0)
    for number, line in enumerate(_lines(file), start=1):
      if not line.strip():
        continue
      tally.read()
      place = f"{name}:{number}"
      try:
        # Files that were put together have a mark inside.
        record = literals.parse_json(line.decode("utf-8-sig"))
      except UnicodeDecodeError as error:
        tally.break_(place, "invalid UTF-8", str(error))
      except ValueError as error:
        tally.break_(place, "malformed JSON", str(error))
      else:
        yield from _object(place, record, tally)


def _object(
  place: str, record: Any, tally: records.Tally
) -> records.PlacedRecords:
  if isinstance(record, dict):
    yield place, record
  else:
    tally.break_(place, "no JSON object", f"{record!r:.60}")


def _lines(file: io.BufferedIOBase) -> Iterator[bytes]:
  """Lines that end as on Unix, on Windows, or on an old Macintosh."""
  for line in file:
    # JSON has no bare line ends inside of its values.
    yield from line.rstrip(b"\r\n").split(b"\r")


def _first_line(file: io.BufferedIOBase) -> bytes:
  """The first that is not blank, without a mark of UTF-8."""
  for line in _lines(file):
    if line := line.removeprefix(codecs.BOM_UTF8).strip():
      return line
  return b""


def _is_json(line: bytes) -> bool:
  try:
    literals.parse_json(line.decode())
  except ValueError:
    return False
  return True


def _values(text: str, name: str) -> Iterator[tuple[str, Any]]:
  """Places and values of an array, or of values that follow each other.

  Raises:
    ValueError: with the place, if it is neither.
  """
  end = literals.skip_space(text, 0)
  in_array = text.startswith("[", end)
  end = literals.skip_space(text, end + in_array)
  line, counted = 1, 0
  while end < len(text) and not (in_array and text[end] == "]"):
    line += text.count("\n", counted, end)
    counted = end
    place = f"{name}:{line}"
    try:
      value, end = literals.parse_json_at(text, end)
    except ValueError as error:
      raise ValueError(
        f"{place}: malformed JSON, so that nothing behind it can be read: "
        f"{error}"
      ) from error
    yield place, value
    end = literals.skip_space(text, end)
    if text.startswith(",", end):
      end = literals.skip_space(text, end + 1)
  rest = text[end + in_array :].strip()
  if rest or (in_array and end == len(text)):
    problem = f"ends before {rest[:40]!r}" if rest else "is not closed"
    raise ValueError(
      f"{name}: the JSON array {problem}; it must be all that a file holds"
    )


def read_csv(
  path: pathlib.Path,
  name: str,
  tally: records.Tally,
  columns: Collection[str],
) -> records.PlacedRecords:
  csv.field_size_limit(2**31 - 1)
  with _open(path) as file:
    # Bytes that are no UTF-8 become surrogates, which the reader finds.
    text = io.TextIOWrapper(
      file, encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    delimiter = _delimiter(text, columns)
    text.seek(0)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
      place = f"{name}:{reader.line_num + 1}"
      try:
        cells = next(reader)
      except StopIteration:
        return
      except csv.Error as error:
        if "unexpected end" in str(error):
          raise ValueError(
            f"{place}: a quote opens here that is never closed, so that all "
            "records behind it are one cell; double a quote inside of a cell "
            '("")'
          ) from error
        if not header:
          raise ValueError(f"{place}: the header is no CSV: {error}") from error
        tally.read()
        tally.break_(place, "malformed CSV", str(error))
        continue
      if not cells:
        continue
      if not header:
        header = cells
        records.check_header(path, header, columns)
        continue
      tally.read()
      if [cells[0].lstrip("\ufeff"), *cells[1:]] == header:
        tally.drop("records that repeat the header")
      elif not any(cells):
        tally.drop("records without any value")
      elif len(cells) != len(header):
        tally.break_(
          place,
          "malformed CSV",
          f"{len(cells)} cells, where the header has {len(header)}",
        )
      else:
        values = (cell or None for cell in cells)
        yield place, dict(zip(header, values, strict=True))


def _delimiter(text: io.TextIOWrapper, columns: Collection[str]) -> str:
  """That by which the header has most of the wanted columns."""
  header = next((line for line in text if line.strip()), "")

  def known(delimiter: str) -> int:
    cells = header.strip().split(delimiter)
    return sum(cell.strip('"') in columns for cell in cells)

  return max((",", "\t", ";"), key=known)
