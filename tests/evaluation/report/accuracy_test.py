import dataclasses

import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation.report import accuracy
from pdpo_jax.runs import scores as scores_lib

USERS = list("aabbccddeeff")


def verdict(scored, own, baseline, new_texts=None):
  found = accuracy.Findings(scored, own, baseline, {})
  return found.verdict({"heldout": new_texts})


def scored(*ratios, keys="1234567890+-"):
  """Of six users: three, and three who are the same."""
  values = np.array(ratios * 2, np.float32)[:, None]
  return scores_lib.Scores(list(keys), USERS, values)


def of_users(scores, users):
  kept = [place for place, user in enumerate(scores.user_ids) if user in users]
  return scores_lib.Scores(
    [scores.examples[place] for place in kept],
    [scores.user_ids[place] for place in kept],
    scores.ratios[kept],
  )


VANILLA = scored(1, -1, 1, -1, 1, -1)
GOOD = scored(1, 1, 1, 1, 1, 1)


def test_policies_are_compared_user_by_user():
  scores = {"P": {"heldout": GOOD}, "V": {"heldout": VANILLA}}
  compared = accuracy.compare(scores, {"first": ["a"], "none": ["z"]}, "V")
  ours, vanilla = compared
  assert (ours.name, ours.pairs, ours.users) == ("P", 12, 6)
  assert (ours.gain.mean, ours.gain.interval) == (0.5, (0.5, 0.5))
  assert vanilla.gain is None
  assert vanilla.groups == {"first": 0.5}
  assert ours.to_json()["gain"] == {
    "mean": 0.5,
    "interval": (0.5, 0.5),
    "p_value": 2 / 2**6,
  }


def test_other_examples_are_refused_with_both_names():
  scores = {
    "P": {"heldout": GOOD},
    "V": {"heldout": scored(1, 1, 1, 1, 1, 1, keys="1234567890+x")},
  }
  with pytest.raises(ValueError, match="P and V were evaluated on different"):
    accuracy.compare(scores, {}, None)


@pytest.mark.parametrize(
  "ours,words",
  [
    (GOOD, "is more accurate than V: +50.0 points"),
    (VANILLA, "is no more accurate than V, as far as these users"),
    # A gain of one user in three is none to speak of, up or down.
    (scored(1, 1, 1, -1, 1, -1), "is no more accurate than V, as"),
    (scored(-1, -1, 1, -1, 1, -1), "is no more accurate than V, as"),
    (scored(-1, -1, -1, -1, -1, -1), "is less accurate than V: -50"),
  ],
)
def test_the_verdict_says_only_what_the_interval_bears(ours, words):
  scores = {"P": {"heldout": ours}, "V": {"heldout": VANILLA}}
  compared = accuracy.compare(scores, {}, "V")
  assert words in verdict(compared, "P", "V")


@pytest.mark.parametrize(
  ("new", "words"),
  [
    (GOOD, "more accurate than V, also on texts that are new to a person: +50"),
    (
      VANILLA,
      "more accurate than V, which is not shown on texts that are new to a "
      "person: +50.0 points on held-out choices (95% "
      "interval +50.0 to +50.0, p = 0.031), +0.0 on those between texts new to "
      "the person (95% interval +0.0 to +0.0, p = 1).",
    ),
    (
      scored(-1, -1, -1, -1, -1, -1),
      "more accurate than V, but less accurate on texts that are new to a",
    ),
    (
      None,
      "more accurate than V on texts that they had compared before: +50.0 "
      "points on held-out choices (95% interval +50.0 to +50.0, p = 0.031), "
      "too few of which are between texts that are new to the person.",
    ),
  ],
)
def test_what_holds_on_known_texts_is_not_claimed_of_new_ones(new, words):
  scores = {"P": {"heldout": GOOD}, "V": {"heldout": VANILLA}}
  compared = accuracy.compare(scores, {}, "V")
  on_new = {}
  if new:
    alike = {"P": {"heldout": new}, "V": {"heldout": VANILLA}}
    on_new = {each.name: each for each in accuracy.compare(alike, {}, "V")}
  assert words in verdict(compared, "P", "V", on_new)


def test_where_nothing_is_gained_new_texts_are_not_spoken_of():
  scores = {"P": {"heldout": VANILLA}, "V": {"heldout": VANILLA}}
  compared = accuracy.compare(scores, {}, "V")
  assert "new" not in verdict(compared, "P", "V", {})


@pytest.mark.parametrize("users", ["a", "ab", "abcde"])
def test_of_few_users_nothing_is_claimed_however_alike_they_are(users):
  scores = {
    "P": {"heldout": of_users(GOOD, users)},
    "V": {"heldout": of_users(VANILLA, users)},
  }
  compared = accuracy.compare(scores, {}, "V")
  text = verdict(compared, "P", "V")
  assert "is no more accurate than V, as far as these" in text
  assert f"p = {2 / 2 ** len(users):.2g}" in text


def test_other_pairs_of_the_same_examples_are_refused():
  ratios = np.concatenate([GOOD.ratios, GOOD.ratios], 1)
  both = dataclasses.replace(GOOD, ratios=ratios)
  scores = {"P": {"heldout": both}, "V": {"heldout": VANILLA}}
  with pytest.raises(ValueError, match="on different pairs of 12 examples"):
    accuracy.compare(scores, {}, "V")


def test_vanilla_alone_is_not_told_to_bring_itself():
  compared = accuracy.compare({"V": {"heldout": VANILLA}}, {}, "V")
  text = verdict(compared, "V", "V")
  assert "since it answers all users alike" in text


def test_without_a_baseline_the_verdict_claims_nothing_personal():
  compared = accuracy.compare({"P": {"heldout": GOOD}}, {}, None)
  text = verdict(compared, "P", None)
  assert "without a vanilla run" in text
  assert "does not say if it is personal" in text


def test_without_users_the_verdict_says_why_it_claims_nothing():
  nobody = dataclasses.replace(GOOD, user_ids=[None] * len(GOOD.examples))
  scores = {"P": {"heldout": nobody}, "V": {"heldout": nobody}}
  compared = accuracy.compare(scores, {}, "V")
  text = verdict(compared, "P", "V")
  assert "since no choice says who made it" in text
  assert "without a vanilla run" not in text


def test_the_smaller_group_is_the_minority():
  groups = accuracy.taste_groups(["4", "5"], ["1"])
  assert groups == {
    "minority (prefer long)": ["1"],
    "majority (prefer short)": ["4", "5"],
  }
  assert accuracy.taste_groups([], ["1"]) == {}


def test_the_oracle_is_asked_of_the_pairs_that_were_scored():
  right = structs.PreferenceExample("?", "one", ("one two",), "s")
  wrong = structs.PreferenceExample("?", "one two", ("one",), "s")
  dataset = dataset_lib.Dataset([], [right, wrong], [], short_users=("s",))
  config = data_config.DataConfig()
  for examples, expected in (([right], 1.0), ([right, wrong], 0.5)):
    found = scores_lib.make(examples, np.zeros((len(examples), 1)))
    oracles = accuracy._oracles(config, dataset, {"heldout": found})
    assert oracles == {"heldout": expected}
