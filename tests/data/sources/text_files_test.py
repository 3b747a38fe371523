"""JSON and CSV as people have them."""

import bz2
import gzip
import json
import lzma
import os

import pyarrow
import pytest
from pyarrow import parquet

from pdpo_jax.data import records
from pdpo_jax.data.sources import formats, prism, tldr
from tests.data.sources import preference_files_test as files

RECORD = files.RECORD
LINE = json.dumps(RECORD).encode()


def read(file, content=None):
  if content is not None:
    file.write_bytes(content)
  tally = records.Tally()
  return files.read(file, tally), tally


@pytest.mark.parametrize(
  "content",
  [
    b"\xef\xbb\xbf" + LINE + b"\n" + LINE,
    LINE + b"\r\n" + LINE + b"\r\n",
    LINE + b"\r" + LINE,
    LINE + b"\n\xef\xbb\xbf" + LINE,
    b"\n \n" + LINE + b"\n\n" + LINE,
    json.dumps([RECORD, RECORD]).encode(),
    json.dumps([RECORD, RECORD], indent=2).encode(),
    b"\xef\xbb\xbf \n[" + LINE + b",\n" + LINE + b"]\n",
    json.dumps(RECORD, indent=2).encode() * 2,
    LINE + LINE,
    LINE + b",\n" + json.dumps(RECORD, indent=1).encode(),
  ],
)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".ndjson", ".JSONL"])
def test_json_is_read_however_it_is_laid_out(tmp_path, content, ending):
  examples, tally = read(tmp_path / f"records{ending}", content)
  assert len(examples) == tally.records == 2
  assert not tally.broken


@pytest.mark.parametrize("first", [LINE[:-1], LINE + b"x", b"{", b"\xff", b"3"])
def test_a_broken_first_line_is_one_broken_record(tmp_path, first):
  content = b"\n".join([first, LINE, LINE])
  examples, tally = read(tmp_path / "records.jsonl", content)
  assert len(examples) == 2
  assert tally.broken.total() == 1


def test_objects_of_an_array_know_their_lines(tmp_path):
  content = json.dumps([RECORD, RECORD, 3, RECORD], indent=1).encode()
  examples, tally = read(tmp_path / "records.jsonl", content)
  assert [example.place for example in examples] == [
    "records.jsonl:2",
    "records.jsonl:8",
    "records.jsonl:15",
  ]
  assert tally.broken == {"no JSON object": 1}


@pytest.mark.parametrize(
  ("content", "problem"),
  [
    (
      b"[" + LINE + b",\n" + LINE[:-9] + b"]",
      "records.jsonl:2: malformed JSON",
    ),
    (b"[" + LINE + b"\n", "array is not closed"),
    (b"[" + LINE + b"]\n" + LINE, "array ends before"),
    ("x".encode("utf-16"), "iconv"),
    ("{}".encode("utf-16-be"), "iconv"),
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"PAR1\x15\x04", "must end in .parquet"),
    (b"PK\x03\x04", "unpack it"),
    (b"\x28\xb5\x2f\xfd\x00", "unzstd"),
    (gzip.compress(LINE, mtime=0)[:-9], "cannot be read after record 0"),
    (b"\x1f\x8b" + LINE, "cannot be read after record 0"),
    (lzma.compress(LINE * 9)[:-30], "cannot be read after record 0"),
  ],
)
def test_a_file_that_cannot_be_read_on_is_named(tmp_path, content, problem):
  with pytest.raises(ValueError, match=problem) as error:
    read(tmp_path / "records.jsonl", content)
  assert "records.jsonl" in str(error.value)


@pytest.mark.parametrize(
  ("name", "pack"),
  [
    ("records.jsonl.gz", gzip.compress),
    ("records.JSONL.GZ", gzip.compress),
    ("records.jsonl.bz2", bz2.compress),
    ("records.jsonl.xz", lzma.compress),
    ("records.jsonl", gzip.compress),  # Whatever the name says.
    ("records.jsonl.gz", bytes),
  ],
)
def test_compressed_text_is_unpacked(tmp_path, name, pack):
  examples, _ = read(tmp_path / name, pack(LINE + b"\n" + LINE))
  assert len(examples) == 2


def test_csv_may_be_compressed_too(tmp_path):
  content = b"prompt,chosen,rejected\na,b,c\n"
  assert len(read(tmp_path / "records.csv.gz", gzip.compress(content))[0]) == 1


@pytest.mark.parametrize(
  "name", ["records.parquet.gz", "records.jsonl.zst", "records"]
)
def test_other_endings_are_refused_by_name(tmp_path, name):
  with pytest.raises(ValueError, match=f"{name}: the format is told by"):
    read(tmp_path / name, LINE)


@pytest.mark.parametrize(
  "field",
  ['"user_id": ', '"score": ', '"turns": [{"n": -', '"x": {"a": [1, '],
)
def test_a_number_of_many_digits_breaks_its_record_alone(tmp_path, field):
  closing = {"[": "]", "{": "}"}
  ends = "".join(closing[c] for c in reversed(field) if c in closing)
  line = LINE[:-1] + f", {field}{'1' * 5000}{ends}}}".encode()
  line = line.replace(b', "user_id": "u"', b"", field.startswith('"user_id'))
  content = LINE + b"\n" + line + b"\n" + LINE
  examples, tally = read(tmp_path / "records.jsonl", content)
  assert len(examples) == 2
  with pytest.raises(
    ValueError, match=r"records\.jsonl:2: malformed .* digits"
  ):
    tally.check(0.0)


def test_an_id_of_many_digits_as_text_breaks_its_record_alone(tmp_path):
  content = f"prompt,chosen,rejected,user_id\na,b,c,{'1' * 5000}\na,b,c,u\n"
  examples, tally = read(tmp_path / "records.csv", content.encode())
  assert len(examples) == 1
  with pytest.raises(
    ValueError, match=r"records\.csv:2: user id is longer than"
  ):
    tally.check(0.0)


@pytest.mark.parametrize(
  "value", ["[" * 50 + "]" * 50, "[" * 10**5, '{"a": ' * 900 + "1" + "}" * 900]
)
def test_what_is_nested_deeply_breaks_its_record_alone(tmp_path, value):
  line = LINE[:-1] + f', "x": {value}}}'.encode()
  examples, tally = read(tmp_path / "records.jsonl", LINE + b"\n" + line)
  assert len(examples) == 1
  assert tally.broken == {"malformed JSON": 1}


@pytest.mark.parametrize(
  "line",
  [
    LINE[:-1] + b', "rejected": "d"}',
    b'{"prompt": [{"role": "user", "content": "a?", "content": "x"}], '
    b'"chosen": "b", "rejected": "c"}',
  ],
)
def test_a_key_given_twice_breaks_its_record(tmp_path, line):
  examples, tally = read(tmp_path / "records.jsonl", LINE + b"\n" + line)
  assert len(examples) == 1
  assert tally.broken == {"malformed JSON": 1}


@pytest.mark.parametrize("column", ["rejected", "chosen", "prompt", "user_id"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".arrow"])
def test_a_column_given_twice_is_refused(tmp_path, column, ending):
  names = ["prompt", "chosen", "rejected", "user_id", column]
  file = tmp_path / f"records{ending}"
  if ending in (".csv", ".tsv"):
    mark = "," if ending == ".csv" else "\t"
    file.write_text(f"{mark.join(names)}\n{mark.join('abcde')}\n")
  else:
    table = pyarrow.table([["a"], ["b"], ["c"], ["u"], ["d"]], names)
    if ending == ".parquet":
      parquet.write_table(table, file)
    else:
      with pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
  with pytest.raises(ValueError, match=f"records.* 2 columns named '{column}'"):
    read(file)


def test_columns_without_a_use_may_be_there_twice_and_are_named(tmp_path):
  content = b",prompt,x,chosen,rejected,x\n0,a,1,b,c,2\n"
  examples, tally = read(tmp_path / "records.csv", content)
  assert len(examples) == 1
  assert "not read (column without a use): '', 'x'" in str(tally) or (
    "not read (column without a use): 'x', ''" in str(tally)
  )


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl", ".arrow"])
def test_columns_without_a_use_are_named_in_every_format(tmp_path, ending):
  table = pyarrow.Table.from_pylist([RECORD | {"score": 7}])
  file = tmp_path / f"records{ending}"
  if ending == ".parquet":
    parquet.write_table(table, file)
  elif ending == ".arrow":
    with pyarrow.ipc.new_file(file, table.schema) as out:
      out.write_table(table)
  elif ending == ".csv":
    files.write_csv(file, RECORD | {"score": 7})
  else:
    files.write_jsonl(file, RECORD | {"score": 7})
  _, tally = read(file)
  assert tally.not_read == {"column without a use": {"score": None}}


def test_a_column_that_python_cannot_hold_does_no_harm_unread(tmp_path):
  years = pyarrow.array([10**12], pyarrow.timestamp("s"))
  table = pyarrow.table({"year": years, "prompt": ["a"]})
  for name, value in (("chosen", "b"), ("rejected", "c")):
    table = table.append_column(name, [[value]])
  parquet.write_table(table, tmp_path / "records.parquet")
  assert len(read(tmp_path / "records.parquet")[0]) == 1
  table = table.rename_columns(["user_id", *table.column_names[1:]])
  parquet.write_table(table, tmp_path / "records.parquet")
  with pytest.raises(
    ValueError, match=r"records\.parquet cannot be read as Parq"
  ):
    read(tmp_path / "records.parquet")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_of_any_program_is_read(tmp_path, delimiter, ending, start, end):
  table = [("prompt", "chosen", "rejected"), ('"a, b; c\td"', "b", "c")]
  content = start + end.join(map(delimiter.join, table)) + end
  examples, tally = read(tmp_path / f"records{ending}", content.encode())
  assert [example.prompt for example in examples] == ["a, b; c\td"]
  assert not tally.broken


def test_rows_without_any_value_are_dropped_and_counted(tmp_path):
  content = b"prompt,chosen,rejected\na,b,c\n,,\n,,\n\n"
  examples, tally = read(tmp_path / "records.csv", content)
  assert len(examples) == 1
  assert tally.dropped == {"records without any value": 2}


def test_rows_that_repeat_the_header_are_dropped_and_counted(tmp_path):
  """As of files that were put together."""
  content = b"prompt,chosen,rejected\na,b,c\nprompt,chosen,rejected\na,b,d\n"
  examples, tally = read(tmp_path / "records.csv", content)
  assert [example.rejected for example in examples] == [("c",), ("d",)]
  assert tally.dropped == {"records that repeat the header": 1}
  content = content.replace(b"\nprompt", b"\n\xef\xbb\xbfprompt")
  assert read(tmp_path / "records.csv", content)[1].dropped == tally.dropped


def test_a_name_that_is_no_unicode_can_be_printed(tmp_path):
  file = tmp_path / os.fsdecode(b"r\xffws.jsonl")
  (example,), tally = read(file, LINE + b"\n{")
  assert example.place.encode() == b"r\\udcffws.jsonl:1"
  with pytest.raises(ValueError) as error:
    tally.check(0.0)
  assert str(error.value).encode()


def test_the_character_nul_is_noted(tmp_path):
  content = b"prompt,chosen,rejected\na\0b,b,c\n"
  examples, tally = read(tmp_path / "records.csv", content)
  assert examples[0].prompt == "a\0b"
  assert tally.noted == {"texts with the character NUL": 1}


def test_prism_and_tldr_find_their_files_compressed(tmp_path):
  (tmp_path / "survey.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n'))
  file = formats.find_jsonl(tmp_path, "survey")
  assert list(formats.read(file, records.Tally())) == [
    ("survey.jsonl.gz:1", {"a": 1})
  ]
  assert formats.find_jsonl(tmp_path, "conversations") is None
  (tmp_path / "survey.jsonl").write_bytes(b"{}\n")
  with pytest.raises(ValueError, match=r"survey\.jsonl and survey\.jsonl\.gz"):
    formats.find_jsonl(tmp_path, "survey")
  assert prism.formats is tldr.formats is formats
