import csv
import json
import logging

import pyarrow
import pytest
from pyarrow import parquet

from pdpo_jax.core import structs
from pdpo_jax.data import records
from pdpo_jax.data.sources import preference_files

RECORD = {"prompt": "a?", "chosen": "b", "rejected": "c", "user_id": "u"}


def turns(*texts):
  return [
    {"role": ("user", "assistant")[place % 2], "content": text}
    for place, text in enumerate(texts)
  ]


def messages(*texts):
  return tuple(structs.Message(**turn) for turn in turns(*texts))


def write_jsonl(file, *lines):
  with file.open("wb") as out:
    for line in lines:
      text = line if isinstance(line, bytes) else json.dumps(line).encode()
      out.write(text + b"\n")
  return file


def read(file, tally=None, user_column="user_id"):
  tally = tally or records.Tally()
  return preference_files.read(str(file), user_column, tally)


def one(tmp_path, **fields):
  """The only comparison of a file with one record."""
  record = {k: v for k, v in (RECORD | fields).items() if v is not ...}
  (example,) = read(write_jsonl(tmp_path / "records.jsonl", record))
  return example


def test_texts_make_a_comparison(tmp_path):
  example = one(tmp_path, user_text="I am.")
  assert example == structs.PreferenceExample("a?", "b", ("c",), "u", "I am.")


def test_an_example_knows_its_file_and_line_and_equals_one_from_elsewhere(
  tmp_path,
):
  first, second = read(write_jsonl(tmp_path / "records.jsonl", RECORD, RECORD))
  assert (first.place, second.place) == ("records.jsonl:1", "records.jsonl:2")
  # Digests of the data and keys of scores rest on these.
  assert first == second and repr(first) == repr(second)


@pytest.mark.parametrize("user_id", [None, "", ...])
def test_without_a_user_id_the_user_is_unknown(tmp_path, user_id):
  assert one(tmp_path, user_id=user_id).user_id is None


def test_integers_are_user_ids(tmp_path):
  assert one(tmp_path, user_id=7).user_id == "7"


def test_the_user_column_may_have_another_name(tmp_path):
  file = write_jsonl(tmp_path / "records.jsonl", RECORD | {"worker": "w"})
  assert read(file, user_column="worker")[0].user_id == "w"
  with pytest.raises(ValueError, match=r"no 'who' .*'worker'"):
    read(file, user_column="who")


@pytest.mark.parametrize("single", [True, False])
def test_rows_of_personal_reward_bench_name_their_column_of_prompts(
  tmp_path, single
):
  def reply(text):
    message = {"role": "model", "content": text}
    return message if single else [message]

  row = {
    "user_id": "user12",
    "split": "val",
    "context": [
      {"role": "user", "content": "q0"},
      {"role": "model", "content": "y0"},
      {"role": "user", "content": "q1"},
    ],
    "chosen": reply("y1"),
    "rejected": reply("r1"),
  }
  file = write_jsonl(tmp_path / "rows.jsonl", row, row | {"split": "train"})
  tally = records.Tally()
  (example, _) = preference_files.read(str(file), "user_id", tally, "context")
  message = structs.Message
  assert example == structs.PreferenceExample(
    (message("user", "q0"), message("assistant", "y0"), message("user", "q1")),
    "y1",
    ("r1",),
    "user12",
  )
  assert tally.not_read == {records.COLUMN: {"split": None}}
  with pytest.raises(ValueError, match=r"no 'asked' \(data.files.prompt_col"):
    preference_files.read(str(file), "user_id", tally, "asked")


def test_several_rejected_responses_stay_together(tmp_path):
  assert one(tmp_path, rejected=["c", "d"]).rejected == ("c", "d")


@pytest.mark.parametrize(
  ("chosen", "rejected"),
  [
    ("b", "c"),
    (turns("x", "b")[1:], turns("x", "c")[1:]),
    (turns("hi", "ho", "a?", "b"), turns("hi", "ho", "a?", "c")),
    ("b", [turns("x", "c")[1:]]),
  ],
)
def test_messages_are_turns_of_a_dialogue(tmp_path, chosen, rejected):
  example = one(
    tmp_path, prompt=turns("hi", "ho", "a?"), chosen=chosen, rejected=rejected
  )
  assert example.prompt == messages("hi", "ho", "a?")
  assert (example.chosen, example.rejected) == ("b", ("c",))


def test_dialogues_may_go_on_a_prompt_that_is_a_text(tmp_path):
  found = one(
    tmp_path, chosen=turns("a?", "b"), rejected=[turns("a?", "c"), "d"]
  )
  assert (found.prompt, found.chosen, found.rejected) == ("a?", "b", ("c", "d"))


def test_without_a_prompt_it_is_what_the_dialogues_share(tmp_path):
  example = one(
    tmp_path,
    prompt=...,
    chosen=turns("hi", "ho", "a?", "b"),
    rejected=turns("hi", "ho", "a?", "c"),
  )
  assert example.prompt == messages("hi", "ho", "a?")
  assert (example.chosen, example.rejected) == ("b", ("c",))


def test_a_response_equal_to_the_chosen_one_is_left_out(tmp_path):
  tally = records.Tally()
  file = write_jsonl(
    tmp_path / "records.jsonl",
    RECORD | {"rejected": ["c", " b"]},
    RECORD | {"rejected": "b "},
  )
  (example,) = read(file, tally)
  assert example.rejected == ("c",)
  assert tally.noted.total() == 2
  assert tally.dropped == {"comparisons of equal responses": 1}


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    (b'{"prompt": ', "malformed JSON"),
    (b"[" * 100_000, "malformed JSON"),
    (b"[1, 2]", "no JSON object"),
    (b'{"prompt": "\xff"}', "invalid UTF-8"),
    (b'{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}', "UTF-8"),
    (RECORD | {"prompt": 3}, "prompt is neither text nor messages"),
    (RECORD | {"prompt": " "}, "empty prompt"),
    (RECORD | {"prompt": []}, "empty prompt"),
    (RECORD | {"prompt": None}, "no prompt"),
    (
      RECORD | {"prompt": turns("a", "b")},
      "does not end with a turn of the user",
    ),
    (RECORD | {"prompt": [{"role": "x", "content": "a"}]}, "unknown role"),
    (RECORD | {"prompt": ["a"]}, "without a role"),
    (RECORD | {"chosen": ""}, "empty response"),
    (RECORD | {"chosen": None}, "no chosen response"),
    (RECORD | {"chosen": turns("b")}, "response is not the assistant's"),
    (RECORD | {"chosen": turns("x", "b")}, "does not go on the prompt"),
    (RECORD | {"rejected": []}, "no rejected response"),
    (RECORD | {"rejected": ["c", 3]}, "response is neither text nor messages"),
    (RECORD | {"user_id": 1.5}, "user id is no text and no integer"),
    (RECORD | {"user_id": True}, "user id is no text and no integer"),
    (RECORD | {"user_text": ["x"]}, "user_text is no text"),
  ],
)
def test_a_broken_record_is_counted_with_its_reason(tmp_path, line, reason):
  tally = records.Tally()
  file = write_jsonl(tmp_path / "records.jsonl", RECORD, line, RECORD)
  assert len(read(file, tally)) == 2
  assert tally.records == 3
  ((found, count),) = tally.broken.items()
  assert reason in found
  assert count == 1
  with pytest.raises(
    ValueError, match=r"1 of 3 records .*\n  records.jsonl:2: "
  ):
    tally.check(0.1)


def test_few_broken_rows_are_left_out_with_a_warning(tmp_path, caplog):
  tally = records.Tally()
  read(
    write_jsonl(tmp_path / "records.jsonl", RECORD, b"{", RECORD, RECORD), tally
  )
  with caplog.at_level(logging.WARNING):
    tally.check(0.25)
  assert "1 of 4 records are broken: 1 malformed JSON; they" in caplog.text
  with pytest.raises(ValueError, match=r"data\.max_bad_share 0\.2 allows"):
    tally.check(0.2)


def test_missing_columns_are_named_with_those_there_are(tmp_path):
  file = write_jsonl(tmp_path / "records.jsonl", {"prompt": "a", "good": "b"})
  with pytest.raises(
    ValueError,
    match=r"records.jsonl:1 has no 'chosen' and no 'rejected'.*'good'",
  ):
    read(file)


def test_user_ids_of_mixed_type_are_an_error(tmp_path):
  file = write_jsonl(
    tmp_path / "records.jsonl", RECORD, RECORD | {"user_id": 7}
  )
  with pytest.raises(
    ValueError, match=r"7 \(records.jsonl:2\) and 'u' \(records.jsonl:1\)"
  ):
    read(file)


@pytest.mark.parametrize(
  "name", ["records.jsonl", "records.csv", "records.parquet"]
)
def test_empty_and_missing_files_are_errors(tmp_path, name):
  file = tmp_path / name
  with pytest.raises(ValueError, match="there is no file"):
    read(file)
  file.touch()
  with pytest.raises(ValueError, match=r"is empty|cannot be read as Parquet"):
    read(file)


def test_an_unknown_format_is_an_error(tmp_path):
  file = tmp_path / "records.xlsx"
  file.touch()
  with pytest.raises(ValueError, match=r"must end in one of \.jsonl"):
    read(file)
  with pytest.raises(ValueError, match=r"holds no file ending in \.jsonl"):
    read(tmp_path)
  with pytest.raises(ValueError, match="no file or folder"):
    read("./nowhere")


def write_csv(file, *dicts):
  with file.open("w", newline="") as out:
    writer = csv.DictWriter(out, dicts[0])
    writer.writeheader()
    writer.writerows(dicts)


def test_parquet_and_csv_hold_the_same_as_jsonl(tmp_path):
  table = [
    RECORD | {"prompt": 'a, "b"\n?', "rejected": ["c", "ü"], "user_text": "I"},
    RECORD | {"user_id": "v", "rejected": ["d"], "user_text": ""},
  ]
  expected = read(write_jsonl(tmp_path / "records.jsonl", *table))
  parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "p.parquet")
  assert read(tmp_path / "p.parquet") == expected
  write_csv(
    tmp_path / "c.csv",
    *(
      record | {"rejected": json.dumps(record["rejected"])} for record in table
    ),
  )
  assert read(tmp_path / "c.csv") == expected
  assert read(tmp_path) == expected * 3  # a folder is all its files


def test_broken_csv_rows_are_counted(tmp_path):
  file = tmp_path / "records.csv"
  file.write_bytes(
    b"prompt,chosen,rejected\na,b,c\na,b\na,b,c,d\na,\xff,c\na,[b,c\n"
  )
  tally = records.Tally()
  examples = read(file, tally)
  assert [example.chosen for example in examples] == ["b", "[b"]
  assert tally.broken == {"malformed CSV": 2, "invalid UTF-8": 1}
  with pytest.raises(ValueError, match=r"records\.csv:3: malformed CSV"):
    tally.check(0.0)
  file.write_text("prompt,chosen,rejected\na,b\n")
  tally = records.Tally()
  read(file, tally)
  with pytest.raises(ValueError, match=r"records\.csv:2: malformed CSV"):
    tally.check(0.0)


def test_a_quote_that_is_never_closed_is_an_error(tmp_path):
  file = tmp_path / "records.csv"
  file.write_text('prompt,chosen,rejected\na,b,c\n"a,b,c\n' + "a,b,c\n" * 500)
  with pytest.raises(ValueError, match=r"records\.csv:3: a quote opens here"):
    read(file)


def test_a_list_of_numbers_in_a_csv_cell_is_text(tmp_path):
  file = tmp_path / "records.csv"
  write_csv(file, RECORD | {"chosen": "[1, 2, 3]", "rejected": "[4]"})
  (example,) = read(file)
  assert (example.chosen, example.rejected) == ("[1, 2, 3]", ("[4]",))


@pytest.mark.parametrize("rejected", ["[]", '["good", null]'])
def test_a_list_that_lacks_a_response_is_a_broken_record(tmp_path, rejected):
  file = tmp_path / "records.csv"
  write_csv(file, RECORD | {"rejected": rejected})
  tally = records.Tally()
  assert read(file, tally) == [] and sum(tally.broken.values()) == 1


def test_a_truncated_parquet_file_is_an_error(tmp_path):
  file = tmp_path / "records.parquet"
  parquet.write_table(pyarrow.Table.from_pylist([RECORD]), file)
  file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(ValueError, match="cannot be read as Parquet"):
    read(file)


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
  import datasets

  def unreachable(path, name, split):
    raise ConnectionError("no route")

  monkeypatch.setattr(datasets, "load_dataset", unreachable)
  with pytest.raises(ValueError, match=r"'some/data'.*no route.*download it"):
    read("some/data:test")


def test_hub_rows_are_read_like_files(monkeypatch):
  import datasets

  def stored(path, name, split):
    assert (path, name, split) == ("some/data", None, "test")
    return [RECORD, RECORD | {"chosen": 3}]

  monkeypatch.setattr(datasets, "load_dataset", stored)
  tally = records.Tally()
  assert len(read("some/data:test", tally)) == 1
  with pytest.raises(ValueError, match="some/data/test:1: response is neither"):
    tally.check(0.0)
