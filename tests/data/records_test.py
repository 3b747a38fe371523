import sys
import types

import pytest

from pdpo_jax.data import records

SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found x.py")


def fake_hub(monkeypatch, load_dataset):
  fake = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, "datasets", fake)


def test_a_data_set_with_a_script_is_read_from_its_parquet_files(monkeypatch):
  def load_dataset(path, name=None, *, data_files=None, split):
    if path != "parquet":
      raise SCRIPT
    assert (data_files, split) == (
      "hf://datasets/some/one@refs/convert/parquet/pairs/validation/*.parquet",
      "train",
    )
    return [{"x": 1}, {"x": 2}]

  fake_hub(monkeypatch, load_dataset)
  tally = records.Tally()
  found = records.read_hub("some/one", tally, name="pairs", split="validation")
  assert list(found) == [
    ("some/one/pairs/validation:0", {"x": 1}),
    ("some/one/pairs/validation:1", {"x": 2}),
  ]
  assert tally.records == 2


@pytest.mark.parametrize("error", [SCRIPT, RuntimeError("x"), OSError("x")])
def test_what_the_hub_cannot_give_is_an_error_that_says_what_to_do(
  monkeypatch, error
):
  def load_dataset(*_, **__):
    raise error

  fake_hub(monkeypatch, load_dataset)
  with pytest.raises(ValueError, match="Without a network, download it"):
    list(records.read_hub("some/one", records.Tally(), split="train"))


@pytest.mark.parametrize("path", ["/no/where", "./x", "~/x", "a/b/c"])
def test_the_hub_is_not_asked_for_a_local_path(path):
  with pytest.raises(ValueError, match=f"no file or folder '{path}'"):
    list(records.read_hub(path, records.Tally(), split="train"))


@pytest.mark.parametrize(
  ("value", "kind", "reason"),
  [
    (1, str, "wrong type"),
    (None, str, "wrong type"),
    (True, int, "wrong type"),
    ("\ud800", str, "invalid UTF-8"),
  ],
)
def test_a_field_that_is_not_of_its_kind_breaks_the_record(value, kind, reason):
  with pytest.raises(records.BrokenRecord, match=f"{reason}: x"):
    records.field({"x": value}, "x", kind)
  with pytest.raises(records.BrokenRecord, match="missing field: y"):
    records.field({"x": value}, "y", kind)


def test_an_optional_field_may_be_missing_or_null_but_not_of_another_kind():
  assert records.optional({}, "x", str) is None
  assert records.optional({"x": None}, "x", str) is None
  assert records.optional({"x": "a"}, "x", str) == "a"
  assert records.optional({"x": False}, "x", bool) is False
  with pytest.raises(records.BrokenRecord):
    records.optional({"x": 1}, "x", str)


def test_an_error_names_the_first_place_of_each_reason():
  tally = records.Tally()
  tally.read(9)
  for line in range(1, 8):
    tally.break_(f"f:{line}", "malformed JSON")
  tally.break_("f:8", "empty prompt")
  with pytest.raises(
    ValueError, match=r"f:1: m(.|\n)*f:3: m\S* JSON\n  f:8: e"
  ):
    tally.check(0.1)


def test_broken_rows_are_counted_with_their_places_and_the_others_made():
  def make(record, place):
    return place, records.field(record, "x", int)

  found = [("f:1", {"x": 1}), ("f:2", {"x": "2"}), ("f:3", {"x": 3})]
  tally = records.Tally()
  tally.read(3)
  assert list(records.parse(found, make, tally)) == [("f:1", 1), ("f:3", 3)]
  with pytest.raises(
    ValueError, match=r"1 of 3 records(.|\n)*f:2: wrong type: x"
  ):
    tally.check(0.3)
