"""Files of text that hold rows, JSON and CSV; they may be compressed."""

import bz2
import contextlib
import csv
import gzip
import io
import lzma
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

from pdpo_jax.data import literals, rows

COMPRESSIONS = {
  ".gz": (b"\x1f\x8b", gzip.open),
  ".bz2": (b"BZh", bz2.open),
  ".xz": (b"\xfd7zXZ\x00", lzma.open),
}
# What files begin with that hold no text of rows, and what to do.
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
  tally: rows.Tally,
  columns: Collection[str],
) -> rows.PlacedRows:
  """Objects, one a line; or in an array; or each over several lines."""
  with _open(path) as file:
    document = _document(file)
  if document:
    yield from _read_document(document, name, tally)
    return
  with _open(path) as file:
    for number, line in enumerate(_lines(file), start=1):
      if not line.strip():
        continue
      tally.read()
      place = f"{name}:{number}"
      try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        row = literals.parse_json(text)
      except UnicodeDecodeError as error:
        tally.break_(place, "invalid UTF-8", str(error))
      except ValueError as error:
        tally.break_(place, "malformed JSON", str(error))
      else:
        yield from _object(place, row, tally)


def _object(place: str, row: Any, tally: rows.Tally) -> rows.PlacedRows:
  if isinstance(row, dict):
    yield place, row
  else:
    tally.break_(place, "no JSON object", f"{row!r:.60}")


def _lines(file: io.BufferedIOBase) -> Iterator[bytes]:
  """Lines that end as on Unix, on Windows, or on an old Macintosh."""
  for line in file:
    # JSON has no bare line ends inside of its values.
    yield from line.rstrip(b"\r\n").split(b"\r")


def _document(file: io.BufferedIOBase) -> str:
  """The file's text where it is no JSON lines; "" where it is."""
  before = b""
  for line in _lines(file):
    before += line
    if line.strip(b" \t\xef\xbb\xbf"):
      break
  first = before.lstrip(b" \t\xef\xbb\xbf")
  if first[:1] not in (b"[", b"{"):
    return ""
  try:
    literals.parse_json(first.decode())
  except ValueError:
    pass
  else:
    if first[:1] == b"{":
      return ""
  file.seek(0)
  text = file.read().decode("utf-8-sig", errors="surrogateescape")
  if first[:1] == b"{":
    # A broken first line, or an object that goes over several.
    try:
      literals.parse_json_at(text, text.index("{"))
    except ValueError:
      return ""
  return text


def _read_document(text: str, name: str, tally: rows.Tally) -> rows.PlacedRows:
  """The objects of an array, or those that follow each other."""
  end = literals.skip_space(text, 0)
  in_array = text[end] == "["
  end = literals.skip_space(text, end + in_array)
  line, counted = 1, 0
  while end < len(text) and text[end] != "]":
    line += text.count("\n", counted, end)
    counted = end
    place = f"{name}:{line}"
    try:
      row, end = literals.parse_json_at(text, end)
    except ValueError as error:
      raise ValueError(
        f"{place}: malformed JSON, so that nothing behind it can be read: "
        f"{error}"
      ) from error
    tally.read()
    yield from _object(place, row, tally)
    end = literals.skip_space(text, end)
    if text[end : end + 1] == ",":
      end = literals.skip_space(text, end + 1)
  rest = text[end + in_array :].strip()
  if rest or (in_array and end == len(text)):
    raise ValueError(
      f"{name}: the JSON array "
      + (f"ends before {rest[:40]!r}" if rest else "is not closed")
      + "; an array is all that its file may hold"
    )


def read_csv(
  path: pathlib.Path,
  name: str,
  tally: rows.Tally,
  columns: Collection[str],
) -> rows.PlacedRows:
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
            'rows behind it are one cell; double a quote inside of a cell ("")'
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
        rows.check_header(path, header, columns)
        continue
      tally.read()
      if not any(cells):
        tally.drop("rows without any value")
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
