"""Files of records: JSON, CSV, Parquet, Arrow, told by how their names end."""

import lzma
import pathlib
import zlib
from collections.abc import Collection

from pdpo_jax.data import records
from pdpo_jax.data.sources import table_files, text_files

_TABLES = {
  ".parquet": table_files.read_parquet,
  ".arrow": table_files.read_arrow,
}
ENDINGS = {
  ".jsonl": text_files.read_json,
  ".ndjson": text_files.read_json,
  ".json": text_files.read_json,
  ".csv": text_files.read_csv,
  ".tsv": text_files.read_csv,
  **_TABLES,
}


class EmptyFileError(ValueError):
  """A file that has no records."""


def is_saved(folder: pathlib.Path) -> bool:
  """Whether `datasets.Dataset.save_to_disk` wrote this folder."""
  names = ("state.json", "dataset_info.json")
  return all((folder / name).is_file() for name in names)


def ending(name: str) -> str | None:
  """What tells a file's format, as ".jsonl" of "a.JSONL.gz"; None without."""
  suffixes = [suffix.lower() for suffix in pathlib.PurePath(name).suffixes]
  packed = bool(suffixes) and suffixes[-1] in text_files.COMPRESSIONS
  if packed:
    suffixes.pop()
  if not suffixes or suffixes[-1] not in ENDINGS:
    return None
  return None if packed and suffixes[-1] in _TABLES else suffixes[-1]


def find_jsonl(folder: pathlib.Path, stem: str) -> pathlib.Path | None:
  """The file of JSON lines that has this name, compressed or not.

  Raises:
    ValueError: if there are several.
  """
  names = [f"{stem}.jsonl{end}" for end in ("", *text_files.COMPRESSIONS)]
  files = [folder / name for name in names if (folder / name).is_file()]
  if len(files) > 1:
    listed = " and ".join(file.name for file in files)
    raise ValueError(f"{folder} has {listed}; keep one of them")
  return files[0] if files else None


def read(
  path: pathlib.Path,
  tally: records.Tally,
  name: str = "",
  columns: Collection[str] = (),
) -> records.PlacedRecords:
  """Yields place and record of each in a file, or in a saved data set.

  Each record is counted as read, and as broken where it is none.

  Args:
    name: of the file in places.
    columns: that are wanted; of a table, no others are converted.

  Raises:
    EmptyFileError: if it has no records.
    ValueError: if it is not there, is of no format that is read, has a column
      twice, or cannot be read on.
  """
  # Names of files need not be Unicode, which messages must.
  name = (name or path.name).encode(errors="backslashreplace").decode()
  before = tally.records
  end = ending(path.name)
  if path.is_dir():
    reader = table_files.read_saved
  elif not path.is_file():
    raise ValueError(f"there is no file {str(path)!r}")
  elif end is None:
    raise ValueError(
      f"{path}: the format is told by the name, which must end in one of "
      f"{', '.join(ENDINGS)}; text may be compressed "
      f"({', '.join(text_files.COMPRESSIONS)})"
    )
  elif path.stat().st_size:
    reader = ENDINGS[end]
  else:
    raise EmptyFileError(f"{path} is empty; it should have records")
  try:
    yield from reader(path, name, tally, columns)
  except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
    raise ValueError(
      f"{path} cannot be read after record {tally.records - before:,}: {error}"
    ) from error
  if tally.records == before:
    raise EmptyFileError(f"{path} is empty; it should have records")
