import json

import pytest

from pdpo_jax.evaluation import accuracy, lengths

Words = lengths.Words


def test_words_are_counted_with_their_standard_error():
  words = lengths.count_words(["a b c", "", " d ", "e f g h"])
  assert words.mean == 2.0
  # Sample variance of 3, 0, 1, 4 is 10 / 3.
  assert words.standard_error == pytest.approx((10 / 3 / 4) ** 0.5)
  assert words.zero_share == 0.25


def speakers(**changes):
  means = {"S": 10, "V": 16, "G": 14, "1": 14, "2": 12, "4": 0} | changes
  return {
    name: Words(float(mean), 0.1, 1.0 if mean == 0 else 0.0)
    for name, mean in means.items()
  }


@pytest.mark.parametrize(
  ("changes", "first", "second"),
  [
    ({}, True, True),
    ({"4": 1}, False, True),  # not empty
    ({"1": 13}, False, True),  # 12.5 words on average, 1.25 times S
    ({"G": 11.9}, True, False),  # more than 25% from V
    ({"V": 9, "G": 9}, True, False),  # shorter than S
  ],
)
def test_claims_hold_or_not_by_their_numbers(changes, first, second):
  found = lengths.claims(speakers(**changes), ["4"], ["1", "2"])
  assert found["E1"]["holds"] is first
  assert found["E2"]["holds"] is second
  text = "\n".join(lengths.describe_claims(found))
  assert ("E1 holds" in text) is first and ("E2 holds" in text) is second


@pytest.mark.parametrize("silent", ["S", "V"])
def test_claims_about_a_model_without_words_do_not_hold(silent):
  found = lengths.claims(speakers(**{silent: 0}), ["4"], ["1", "2"])
  assert not found["E2" if silent == "V" else "E1"]["holds"]
  assert "–" in "".join(lengths.describe_claims(found))
  json.dumps(found, allow_nan=False)


def test_without_vanilla_there_is_no_second_claim():
  words = speakers()
  del words["V"]
  assert set(lengths.claims(words, ["4"], ["1"])) == {"E1"}


def test_the_table_shows_every_speaker():
  words = speakers()
  made = accuracy.Accuracy
  accuracies = {
    "vanilla": {"heldout": made(0.7, {"1": 0.9, "4": 0.1}, {})},
    "pdpo": {
      "heldout": made(0.99, {"1": 1.0, "4": 0.9}, {}),
      "unseen": made(0.61, {}, {}),
    },
  }
  text = lengths.table(words, accuracies, ["4"])
  for shown in (
    "S  SFT model",
    "4   (prefers short)",
    "0.990",
    "0.700",
    "0.500",
    "0.900–1.000",
    "unseen users, all",
  ):
    assert shown in text
