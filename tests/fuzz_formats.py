"""Records in the formats that are read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import pathlib
from typing import Any

import pyarrow
from pyarrow import parquet

from pdpo_jax.data.sources import turns

_PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def to_bytes(path: str, table: list[dict[str, Any]]) -> bytes:
  """A file of records, in the format that its name tells.

  Raises:
    Exception: of pyarrow's, if a table cannot hold the records.
  """
  name = path.lower()
  out = io.BytesIO()
  if name.endswith(".parquet"):
    parquet.write_table(pyarrow.Table.from_pylist(table), out)
  elif name.endswith(".arrow"):
    arrow = pyarrow.Table.from_pylist(table)
    with pyarrow.ipc.new_stream(out, arrow.schema) as stream:
      stream.write_table(arrow)
  elif ".csv" in name or ".tsv" in name:
    out.write(_csv(table, "\t" if ".tsv" in name else ","))
  elif ".json" in name and ".jsonl" not in name:
    out.write(json.dumps(table, indent=2).encode())
  else:
    out.write(b"".join(json.dumps(record).encode() + b"\n" for record in table))
  return _PACK.get(pathlib.PurePath(name).suffix, bytes)(out.getvalue())


def _csv(table: list[dict[str, Any]], delimiter: str) -> bytes:
  """As pandas writes it: lists as Python prints them, nothing for NaN."""
  out = io.StringIO(newline="")
  writer = csv.writer(out, delimiter=delimiter)
  writer.writerow(table[0])
  for record in table:
    writer.writerow(
      "" if turns.is_missing(value) else str(value) for value in record.values()
    )
  return out.getvalue().encode(errors="surrogatepass")
