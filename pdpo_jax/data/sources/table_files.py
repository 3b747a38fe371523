"""Files of tables that hold records: Parquet, Arrow, and saved data sets."""

import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pdpo_jax.data import records

_BATCH = 1024  # records that become Python's at a time


def read_parquet(
  path: pathlib.Path,
  name: str,
  tally: records.Tally,
  columns: Collection[str],
) -> records.PlacedRecords:
  # Imported here: JSON and CSV do without it.
  from pyarrow import parquet

  def batches():
    with parquet.ParquetFile(path) as table:
      names = table.schema_arrow.names
      wanted = _wanted(path, names, tally, columns)
      yield from table.iter_batches(_BATCH, columns=wanted)

  return _read_tables(batches(), path, name, tally)


def read_arrow(
  path: pathlib.Path,
  name: str,
  tally: records.Tally,
  columns: Collection[str],
) -> records.PlacedRecords:
  import pyarrow

  def batches():
    with pyarrow.memory_map(str(path)) as file:
      try:
        reader = pyarrow.ipc.open_stream(file)
      except pyarrow.ArrowInvalid:
        reader = pyarrow.ipc.open_file(file)
        count = reader.num_record_batches
        reader = map(reader.get_batch, range(count))
      for batch in reader:
        names = batch.schema.names
        yield batch.select(_wanted(path, names, tally, columns))

  return _read_tables(batches(), path, name, tally)


def read_saved(
  path: pathlib.Path,
  name: str,
  tally: records.Tally,
  columns: Collection[str],
) -> records.PlacedRecords:
  import datasets

  def batches():
    try:
      saved = datasets.load_from_disk(str(path))
    except Exception as error:  # What its files may be wrong in is manifold.
      raise ValueError(
        f"{path} cannot be read as a saved data set "
        f"({type(error).__name__}: {error})"
      ) from error
    wanted = _wanted(path, saved.column_names, tally, columns)
    yield from saved.select_columns(wanted).with_format("arrow").iter(_BATCH)

  return _read_tables(batches(), path, name, tally)


def select(
  loaded: Any, name: str, tally: records.Tally, columns: Collection[str]
) -> Any:
  """A loaded data set with wanted columns alone, since others need decoding."""
  names = getattr(loaded, "column_names", None)
  if names is None:
    return loaded
  return loaded.select_columns(_wanted(name, names, tally, columns))


def _wanted(
  path: pathlib.Path | str,
  names: Sequence[str],
  tally: records.Tally,
  columns: Collection[str],
) -> list[str]:
  """Those columns that are wanted; all of them where there are none such."""
  records.check_header(path, names, columns)
  wanted = [name for name in names if name in columns]
  if not wanted:
    return list(names)
  for name in set(names).difference(wanted):
    tally.leave_out(name, records.COLUMN)
  return wanted


def _read_tables(
  tables: Iterable[Any], path: pathlib.Path, name: str, tally: records.Tally
) -> records.PlacedRecords:
  import pyarrow

  number = 0
  try:
    for table in tables:
      for record in table.to_pylist():
        tally.read()
        number += 1
        yield f"{name} row {number}", record
  except (
    pyarrow.ArrowException,
    OSError,
    UnicodeError,
    OverflowError,
  ) as error:
    form = "a saved data set" if path.is_dir() else path.suffix[1:].title()
    raise ValueError(
      f"{path} cannot be read as {form} after row {number}: {error}"
    ) from error
