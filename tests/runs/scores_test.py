import dataclasses
import re

import numpy as np
import pytest

from pdpo_jax.core import kept, structs
from pdpo_jax.runs import scores

EXAMPLES = [
  structs.PreferenceExample("p", "y", ("r", "s"), "ann"),
  structs.PreferenceExample("p", "r", ("y",), None),
]
# One needs all nine digits.
RATIOS = np.array([[0.5, -0.123456791], [2.0, np.nan]], np.float32)


def test_scores_come_back_as_they_were(tmp_path):
  made = scores.make(EXAMPLES, RATIOS)
  file = scores.file_of(tmp_path, "heldout", 75, "ab12")
  assert scores.read(file) is None
  scores.write(file, made)
  found = scores.from_lines(scores.read(file))
  assert (found.examples, found.user_ids) == (made.examples, ["ann", None])
  np.testing.assert_array_equal(found.ratios, RATIOS)
  assert found.chosen_per_token is None
  chosen, tokens = np.array([-0.123456791, 4.25], np.float32), np.array([3, 1])
  scores.write(file, scores.make(EXAMPLES, RATIOS, chosen, tokens))
  found = scores.from_lines(scores.read(file))
  np.testing.assert_array_equal(found.chosen, chosen)
  np.testing.assert_array_equal(found.chosen_tokens, tokens)
  assert found.chosen_per_token == pytest.approx((4.25 - 0.123456791) / 4)
  np.testing.assert_array_equal(found.ratios, RATIOS)
  assert {each.name for each in file.parent.iterdir()} == {
    "heldout_75_ab12.jsonl",
    kept.CHECKSUMS,
  }


def test_damaged_scores_are_named_and_count_as_missing(tmp_path, caplog):
  file = scores.file_of(tmp_path, "heldout", 75, "ab12")
  scores.write(file, scores.make(EXAMPLES, RATIOS))
  file.write_text(file.read_text().replace("0.5", "0.6"))
  assert scores.read(file) is None
  assert re.search(r"heldout_75.*not what was written.*again", caplog.text)
  file.unlink()
  assert scores.read(file) is None
  assert "heldout_75_ab12.jsonl is missing" in caplog.text


@pytest.mark.parametrize(
  "change",
  [
    {"prompt": "q"},
    {"chosen": "s"},
    {"rejected": ("s", "r")},
    {"user_id": "bob"},
    {"user_text": "I am old."},
  ],
)
def test_a_key_is_of_all_that_an_example_says(change):
  other = dataclasses.replace(EXAMPLES[0], **change)
  assert scores.example_key(other) != scores.example_key(EXAMPLES[0])


def test_a_key_is_the_same_for_the_same_example():
  again = dataclasses.replace(EXAMPLES[0], dialogue_id="c0", feedback="fine")
  assert scores.example_key(again) == scores.example_key(EXAMPLES[0])


def test_runs_on_other_examples_are_not_compared():
  ours = scores.make(EXAMPLES, RATIOS)
  theirs = scores.make(EXAMPLES[:1], RATIOS[:1])
  scores.check_same(ours, ours, ("a", "b"))
  with pytest.raises(ValueError, match=r"a and b .*\(2 and 1, 1 of them"):
    scores.check_same(ours, theirs, ("a", "b"))
