"""User ids as files have them."""

import unicodedata

import pandas
import pytest

from pdpo_jax.data import records, users
from pdpo_jax.data.sources import preference_files
from tests import loading
from tests.data.sources import preference_files_test as files
from tests.data.sources import preference_splits_test as splits

RECORD = files.RECORD


def read_ids(tmp_path, *ids):
  tally = records.Tally()
  table = [RECORD | {"user_id": user_id} for user_id in ids]
  file = files.write_jsonl(tmp_path / "records.jsonl", *table)
  return [example.user_id for example in files.read(file, tally)], tally


@pytest.mark.parametrize(
  "nothing", ["nan", "NaN", "None", "null", "NULL", "<NA>", "N/A", "undefined"]
)
def test_what_programs_write_for_nobody_is_no_user(tmp_path, nothing):
  ids, tally = read_ids(tmp_path, "ann", nothing)
  assert ids == ["ann", None]
  note = "user ids like 'nan', 'None' and 'null', read as no user"
  assert tally.noted == {note: 1}


@pytest.mark.parametrize(
  "written", ["é ", "\té", "\u200bé", "é\ufeff", "e\u0301", "\u00a0é"]
)
def test_ids_that_look_the_same_are_the_same(tmp_path, written):
  ids, tally = read_ids(tmp_path, "é", written)
  assert ids == ["é", "é"]
  assert tally.noted.total() == 1


@pytest.mark.parametrize("blank", ["", " ", "\u200b"])
def test_blank_ids_are_no_user(tmp_path, blank):
  assert read_ids(tmp_path, blank)[0] == [None]


def test_whole_floats_are_integers(tmp_path):
  nan = float("nan")
  ids, tally = read_ids(tmp_path, 7.0, nan, 8, None)
  assert ids == ["7", None, "8", None]
  assert tally.noted == {"whole floats as user ids, such as 7.0, read as 7": 1}


def test_whole_floats_are_integers_in_csv_where_all_ids_are(tmp_path):
  table = [RECORD | {"user_id": user_id} for user_id in (7.0, None, 10.0)]
  pandas.DataFrame(table).to_csv(tmp_path / "records.csv")
  tally = records.Tally()
  examples = files.read(tmp_path / "records.csv", tally)
  assert [example.user_id for example in examples] == ["7", None, "10"]
  assert tally.noted == {"whole floats as user ids, such as 7.0, read as 7": 2}
  assert read_ids(tmp_path, "7.0", "1.1")[0] == ["7.0", "1.1"]


@pytest.mark.parametrize(
  "broken",
  [
    7.5,
    float("inf"),
    2.0**60,
    True,
    [],
    {},
    "a\nb",
    "a\0b",
    "x" * 300,
    "9" * 5000,
  ],
)
def test_what_is_no_id_is_broken(tmp_path, broken):
  ids, tally = read_ids(tmp_path, "ann", broken)
  assert ids == ["ann"]
  assert tally.broken.total() == 1


def load(tmp_path, *ids):
  table = [
    RECORD | {"prompt": f"{place}?", "user_id": user_id}
    for user_id in ids
    for place in range(9)
  ]
  return loading.load(splits.config_of(tmp_path, table))


@pytest.mark.parametrize(
  "other",
  ["Ann", "ANN", "a\u200bnn", "ａnn", "7.0"],
)
def test_users_whose_ids_look_alike_are_kept_apart_and_noted(tmp_path, other):
  first = "7" if other == "7.0" else "ann"
  dataset = load(tmp_path, first, other, "bob")
  assert {example.user_id for example in dataset.train} == {first, other, "bob"}
  listed = " and ".join(map(repr, sorted((first, other))))
  note = f"users whose ids look alike, such as {listed}"
  assert dataset.tally.noted[note] == 2


def test_different_users_are_not_noted(tmp_path):
  tally = load(tmp_path, "ann", "anna", "7", "70").tally
  assert not any("alike" in note for note in tally.noted)


def test_numbers_of_any_length_are_sorted_by_value():
  long = "1" * 5000
  ids = ["u10", "u2", f"u{long}", "u02", "u", f"u{long}0"]
  index = users.UserIndex.from_examples(
    [
      files.structs.PreferenceExample("a", "b", ("c",), user_id)
      for user_id in ids
    ]
  )
  assert index.ids == ("u", "u02", "u2", "u10", f"u{long}", f"u{long}0")


def test_nfd_and_nfc_are_told_apart_by_nobody():
  tally = records.Tally()
  reader = preference_files.user_ids.Reader()
  forms = ("NFC", "NFD")
  ids = {
    reader.read("f:1", unicodedata.normalize(form, "Zoë"), tally.noted)
    for form in forms
  }
  assert ids == {"Zoë"}
