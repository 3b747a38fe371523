"""Lists that arrive as text."""

import json

import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet

from pdpo_jax.data import records
from pdpo_jax.data.sources import literals
from tests import loading
from tests.data.sources import preference_files_test as files
from tests.data.sources import preference_splits_test as splits

RECORD, messages, turns = files.RECORD, files.messages, files.turns

ASKED = 'It\'s "so", \\d\né?'
DIALOGUES = {
  "chosen": turns(ASKED, "it's [b]"),
  "rejected": turns(ASKED, 'a "c"'),
}


def array(items):
  """As a column of lists comes back from Parquet by pandas."""
  values = np.empty(len(items), object)
  values[:] = items
  return values


WRITERS = {
  "JSON": json.dumps,
  "Python": str,
  "NumPy": lambda value: str(array(value)),
  "array(…)": lambda value: f"array({value!r}, dtype=object)",
  "a tuple": lambda value: str(tuple(value)),
  "JSON in JSON": lambda value: json.dumps(json.dumps(value)),
  "space around": lambda value: f"\n {value}\t",
}


def write(tmp_path, ending, record):
  file = tmp_path / f"records{ending}"
  if ending == ".csv":
    pandas.DataFrame([record]).to_csv(file)
  elif ending == ".parquet":
    parquet.write_table(pyarrow.Table.from_pylist([record]), file)
  else:
    files.write_jsonl(file, record)
  return file


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("way", WRITERS)
def test_messages_written_as_text_are_read_as_messages(tmp_path, ending, way):
  record = {name: WRITERS[way](value) for name, value in DIALOGUES.items()}
  tally = records.Tally()
  (example,) = files.read(write(tmp_path, ending, record), tally)
  assert example.prompt == messages(ASKED)
  assert (example.chosen, example.rejected) == ("it's [b]", ('a "c"',))
  assert tally.noted == {"messages written as text, which are read": 2}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("way", WRITERS)
def test_responses_written_as_one_text_are_several(tmp_path, ending, way):
  record = RECORD | {"rejected": WRITERS[way](["it's x", "y, [z]"])}
  tally = records.Tally()
  (example,) = files.read(write(tmp_path, ending, record), tally)
  assert example.rejected == ("it's x", "y, [z]")
  note = "lists of responses written as text, which are read"
  assert tally.noted == {note: 1}


def test_what_pandas_writes_to_csv_is_what_it_was_given(tmp_path):
  stamp = pandas.Timestamp("2024-01-01")
  chosen = [turn | {"time": stamp} for turn in DIALOGUES["chosen"]]
  frame = pandas.DataFrame(
    [{"chosen": array(chosen), "rejected": DIALOGUES["rejected"]}]
  )
  frame.to_csv(tmp_path / "records.csv")
  (example,) = files.read(tmp_path / "records.csv")
  assert (example.prompt, example.chosen) == (messages(ASKED), "it's [b]")


@pytest.mark.parametrize(
  "rejected",
  [
    [str(turns("a?", "c")), str(turns("a?", "d"))],
    str([turns("a?", "c"), turns("a?", "d")]),
    [array(turns("a?", "c")).tolist(), str(turns("x", "d")[1:])],
    str([array(turns("a?", "c")), array(turns("a?", "d"))]),
    turns("x", "c")[1:] + turns("x", "d")[1:],  # Answers alone.
  ],
)
def test_several_rejected_dialogues_may_be_text_in_part(tmp_path, rejected):
  assert files.one(tmp_path, rejected=rejected).rejected == ("c", "d")


@pytest.mark.parametrize(
  "chosen",
  [
    {"role": "assistant", "content": "b"},
    '{"role": "model", "content": "b"}',
    {"role": ["user", "assistant"], "content": ["a?", "b"]},
    ['{"role": "user", "content": "a?"}', '{"from": "gpt", "value": "b"}'],
  ],
)
def test_one_message_and_an_object_of_lists_are_messages(tmp_path, chosen):
  assert files.one(tmp_path, chosen=chosen).chosen == "b"


@pytest.mark.parametrize(
  "kind", ["Row", "Message", "models.ChatCompletionMessage"]
)
def test_messages_printed_as_objects_are_read(tmp_path, kind):
  """As Spark and pydantic print records."""
  chosen = f"[{kind}(role='user', content='a?', id=None), "
  chosen += f"{kind}(content='b', role='assistant')]"
  assert files.one(tmp_path, chosen=chosen).chosen == "b"


@pytest.mark.parametrize(
  "chosen",
  [
    "[{“role”: “assistant”, “content”: “b”}]",
    "[{role: assistant, content: b}]",
    '[{""role"": ""assistant"", ""content"": ""b""}]',
    "[{&quot;role&quot;: &quot;assistant&quot;}]",
    r"[{\"role\": \"assistant\", \"content\": \"b\"}]",
    "[Row(role=assistant, content=b)]",
    '{"role": "assistant", "content": b}',
    '"[{"role": "assistant", "con',
    '[{"from": "gpt", "value": "b"},]]',
    '[{"role": "assistant", "text": "b"}]',
  ],
)
def test_messages_that_were_spoilt_are_broken(tmp_path, chosen):
  tally = records.Tally()
  file = files.write_jsonl(
    tmp_path / "records.jsonl", RECORD | {"chosen": chosen}
  )
  assert not files.read(file, tally)
  assert tally.broken.total() == 1


def test_a_column_of_lists_that_stays_text_is_warned_of(tmp_path, caplog):
  table = [
    RECORD | {"prompt": f"{n}?", "chosen": "['b']", "rejected": "['c']"}
    for n in range(9)
  ]
  loading.load(splits.config_of(tmp_path, table))
  assert "18 texts that are JSON or Python data and stay text" in caplog.text


@pytest.mark.parametrize("cut", [12, 40, -1])
@pytest.mark.parametrize("write_list", [json.dumps, str, json.dumps])
def test_messages_that_were_cut_off_are_broken(tmp_path, cut, write_list):
  """As spreadsheets do after 32,767 characters."""
  text = write_list(turns("a?", "b"))[:cut]
  tally = records.Tally()
  file = files.write_jsonl(
    tmp_path / "records.jsonl", RECORD | {"chosen": text}
  )
  assert not files.read(file, tally)
  assert tally.broken == {"messages written as text that cannot be read": 1}


def test_a_prompt_that_is_a_list_of_texts_is_broken(tmp_path):
  tally = records.Tally()
  file = files.write_jsonl(
    tmp_path / "records.jsonl", RECORD | {"prompt": "['a', 'b']"}
  )
  assert not files.read(file, tally)
  assert tally.broken == {"prompt is a list of texts": 1}


@pytest.mark.parametrize(
  ("chosen", "rejected", "noted"),
  [
    ("[1] As said", "[laughs] no", 0),
    ("[a link](http://b)", "{curly}", 0),
    ("(aside) yes", "('quoted')", 0),
    ("arrays are", "array(x)", 0),
    ('"quoted"', '"[half"', 0),
    ('["a", "b"]', '["a"]', 2),
    ("['a', 'b']", "[]", 2),
    ('{"a": 1}', '[{"name": "x"}]', 2),
    ("[1, 2, 3]", "[1, 2, 3, 4]", 2),
    ("['x'] is how", "no", 1),
    ("{ content: '' }", "print(value=3)", 0),
    ("[{ value: 1 }, {}] // as such", "from: me", 0),
    ("[" * 5000, "{" * 5000 + "}" * 5000, 0),
  ],
)
def test_what_only_looks_like_a_list_stays_text(
  tmp_path, chosen, rejected, noted
):
  tally = records.Tally()
  record = RECORD | {"chosen": chosen, "rejected": rejected}
  file = files.write_jsonl(tmp_path / "records.jsonl", record)
  (example,) = files.read(file, tally)
  assert (example.chosen, example.rejected) == (chosen, (rejected,))
  assert tally.noted.total() == noted


@pytest.mark.parametrize(
  ("text", "value"),
  [
    ("['x' 'y']", ["x", "y"]),  # Not 'xy'.
    ("[['a' 'b']\n ['c' 'd']]", [["a", "b"], ["c", "d"]]),
    ("[np.str_('x'), nan, <NA>, None, True]", ["x", None, None, None, True]),
    ("{'a': datetime.datetime(2024, 1, 2), 'b': -1.5e3}", None),
    ("('x',)", ["x"]),
    ("[Row(a=1, b=['x'])]", [{"a": 1, "b": ["x"]}]),
    ("array(['x'], dtype='<U1')", ["x"]),
    ("['a' ... 'z']", ["a", ..., "z"]),
    (r"['\x41\n', u'é', '']", ["A\n", "é", ""]),
  ],
)
def test_printed_values_are_read(text, value):
  expected = value or {"a": 2024, "b": -1500.0}
  assert literals.parse_printed(text) == expected


@pytest.mark.parametrize(
  "text",
  [
    "", "x", "[x]", "['a'", "['a']]", "{'a'}", "('x')", "[b'x']", r"['\d']",
    "['\\N{none}']", "[x=1]", "[1, ,]", "{1: [}", "[" * 500 + "]" * 500,
    "__import__('os')", "[9" + "9" * 5000 + "]", "{'a': 1, 'a': 2}",
  ],
)  # fmt: skip
def test_what_is_no_printed_value_is_an_error(text):
  if text.startswith("__import__"):  # Calls are not made.
    assert literals.parse_printed(text) == "os"
    return
  with pytest.raises(ValueError):
    literals.parse_printed(text)
