import dataclasses

import numpy as np
import pytest

from pdpo_jax.evaluation import comparison
from pdpo_jax.evaluation import scores as scores_lib

USERS = ["a", "a", "b", "b", "c", "c"]


def scored(*ratios, keys="123456"):
  values = np.array(ratios, np.float32)[:, None]
  return scores_lib.Scores(list(keys), USERS, values)


VANILLA = scored(1, -1, 1, -1, 1, -1)
GOOD = scored(1, 1, 1, 1, 1, 1)


def test_policies_are_compared_user_by_user():
  scores = {"P": {"heldout": GOOD}, "V": {"heldout": VANILLA}}
  rows = comparison.compare(scores, {"first": ["a"], "none": ["z"]}, "V")
  ours, vanilla = rows
  assert (ours.name, ours.pairs, ours.users) == ("P", 6, 3)
  assert ours.gain == (0.5, (0.5, 0.5)) and vanilla.gain is None
  assert vanilla.groups == {"first": 0.5}
  assert ours.to_json()["gain"] == {"mean": 0.5, "interval": [0.5, 0.5]}


def test_other_samples_are_refused_with_both_names():
  scores = {
    "P": {"heldout": GOOD},
    "V": {"heldout": scored(1, 1, 1, 1, 1, 1, keys="12345x")},
  }
  with pytest.raises(ValueError, match="P and V were evaluated on different"):
    comparison.compare(scores, {}, None)


@pytest.mark.parametrize(
  "ours,words",
  [
    (GOOD, "is more accurate than vanilla DPO: +50.0 points"),
    (VANILLA, "is no more accurate than vanilla DPO, as far as these users"),
    # A gain of one user in three is none to speak of, up or down.
    (scored(1, 1, 1, -1, 1, -1), "is no more accurate than vanilla DPO, as"),
    (scored(-1, -1, 1, -1, 1, -1), "is no more accurate than vanilla DPO, as"),
    (scored(-1, -1, -1, -1, -1, -1), "is less accurate than vanilla DPO: -50"),
  ],
)
def test_the_verdict_says_only_what_the_interval_bears(ours, words):
  scores = {"P": {"heldout": ours}, "V": {"heldout": VANILLA}}
  rows = comparison.compare(scores, {}, "V")
  assert words in comparison.verdict(rows, "P")


def test_without_a_baseline_the_verdict_claims_nothing_personal():
  rows = comparison.compare({"P": {"heldout": GOOD}}, {}, None)
  said = comparison.verdict(rows, "P")
  assert "without a vanilla run" in said
  assert "does not say if it is personal" in said


def test_without_users_the_verdict_says_why_it_claims_nothing():
  nobody = dataclasses.replace(GOOD, user_ids=[None] * len(GOOD.samples))
  scores = {"P": {"heldout": nobody}, "V": {"heldout": nobody}}
  rows = comparison.compare(scores, {}, "V")
  said = comparison.verdict(rows, "P")
  assert "since no choice says who made it" in said
  assert "without a vanilla run" not in said


def test_the_smaller_group_is_the_minority():
  groups = comparison.taste_groups(["4", "5"], ["1"])
  assert groups == {
    "minority (prefer long)": ["1"],
    "majority (prefer short)": ["4", "5"],
  }
  assert comparison.taste_groups([], ["1"]) == {}
