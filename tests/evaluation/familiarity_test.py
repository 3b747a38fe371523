import dataclasses

import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import familiarity
from pdpo_jax.runs import scores as scores_lib


def example(user, chosen, *rejected, prompt="?"):
  return structs.PreferenceExample(prompt, chosen, rejected, user)


def strata(train, heldout, ratios=None, unseen=()):
  """Places of pairs in each stratum, by whom they are known to and kind."""
  dataset = dataset_lib.Dataset(train, heldout, [], list(unseen))
  scores = {}
  for split, examples in (("heldout", heldout), ("unseen", unseen)):
    if examples:
      most = max(len(each.rejected) for each in examples)
      pairs = np.full((len(examples), most), np.nan, np.float32)
      for place, each in enumerate(examples):
        pairs[place, : len(each.rejected)] = 1
      scores[split] = scores_lib.make(
        examples, pairs if ratios is None else ratios
      )
  found = familiarity.divide({"P": scores}, dataset)
  return {
    (each.split, each.by, each.kind): [
      tuple(place)
      for place in np.argwhere(~np.isnan(each.scores["P"].ratios)).tolist()
    ]
    for each in found
  }


TRAIN = [example("ann", "a", "b"), example("bob", "c", "d")]


def test_pairs_are_told_apart_by_who_compared_their_texts_in_training():
  heldout = [
    example("ann", "a", "b"),
    example("ann", "c", "b"),
    example("ann", "x", "d"),
    example("bob", "a", "y"),
    example("ann", "x", "y"),
  ]
  assert strata(TRAIN, heldout) == {
    ("heldout", "person", "both"): [(0, 0)],
    ("heldout", "person", "one"): [(1, 0)],
    ("heldout", "person", "none"): [(2, 0), (3, 0), (4, 0)],
    ("heldout", "anybody", "both"): [(0, 0), (1, 0)],
    ("heldout", "anybody", "one"): [(2, 0), (3, 0)],
    ("heldout", "anybody", "none"): [(4, 0)],
  }


def test_each_pair_of_a_choice_is_of_its_own_stratum():
  heldout = [example("ann", "a", "b", "x"), example("ann", "x", "y")]
  found = strata(TRAIN, heldout)
  assert found["heldout", "person", "both"] == [(0, 0)]
  assert found["heldout", "person", "one"] == [(0, 1)]
  assert found["heldout", "person", "none"] == [(1, 0)]


@pytest.mark.parametrize("text", [" a\n", "a", "a "])
def test_a_text_is_the_same_under_any_prompt_and_however_it_is_spaced(text):
  heldout = [example("ann", text, "new", prompt="another?")]
  assert strata(TRAIN, heldout)["heldout", "person", "one"] == [(0, 0)]


def test_letters_are_compared_by_what_they_are_and_not_by_how_they_are_coded():
  train = [example("ann", "cafe\u0301", "b")]
  heldout = [example("ann", "caf\u00e9", "new")]
  assert strata(train, heldout)["heldout", "person", "one"] == [(0, 0)]


def test_where_no_text_comes_twice_there_are_no_strata():
  assert strata(TRAIN, [example("ann", "x", "y")]) == {}


def test_unseen_users_know_nothing_and_others_may_know_their_texts():
  found = strata(
    TRAIN, [example("ann", "x", "y")], unseen=[example("eve", "a", "c")]
  )
  assert found["unseen", "person", "none"] == [(0, 0)]
  assert found["unseen", "anybody", "both"] == [(0, 0)]


def test_a_choice_of_nobody_is_new_to_the_person():
  train = [example(None, "a", "b")]
  found = strata(train, [example(None, "a", "b")])
  assert found == {
    ("heldout", "person", "none"): [(0, 0)],
    ("heldout", "anybody", "both"): [(0, 0)],
  }


def test_pairs_that_cannot_be_told_apart_are_in_no_stratum():
  heldout = [example("ann", "a", "b", "x"), example("ann", "a", "b")]
  # One of two rejected responses was too long for the model.
  ratios = np.array([[1, np.nan], [1, np.nan]], np.float32)
  assert strata(TRAIN, heldout, ratios) == {
    ("heldout", "person", "both"): [(1, 0)],
    ("heldout", "anybody", "both"): [(1, 0)],
  }


def test_other_values_of_scores_stay():
  heldout = [example("ann", "a", "b")]
  scores = scores_lib.make(
    heldout,
    np.ones((1, 1), np.float32),
    np.ones(1, np.float32),
    np.ones(1, np.int32),
  )
  dataset = dataset_lib.Dataset(TRAIN, heldout, [])
  first, *_ = familiarity.divide({"P": {"heldout": scores}}, dataset)
  kept = first.scores["P"]
  assert dataclasses.replace(kept, ratios=scores.ratios) == scores
