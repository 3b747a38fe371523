import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import length_regression
from pdpo_jax.runs import scores as scores_lib

USERS = [f"u{number}" for number in range(8)]
# The first half like it short.
LIKES = {user: -1 if place < 4 else 1 for place, user in enumerate(USERS)}


def choices(name):
  """Of each user ten, against their taste twice; and how long is the chosen."""
  examples = []
  for user in USERS:
    for place in range(10):
      longer = LIKES[user] if place < 8 else -LIKES[user]
      texts = (f"yes {name} {place}", f"yes {name} {place}, of course, yes")
      chosen, other = texts if longer < 0 else texts[::-1]
      examples.append(structs.PreferenceExample("?", chosen, (other,), user))
  return examples


DATASET = dataset_lib.Dataset(choices("train"), choices("heldout"), [])


def predict(margin_of):
  margins = [margin_of(place, each) for place, each in enumerate(HELDOUT)]
  scores = scores_lib.make(HELDOUT, np.array(margins, np.float32)[:, None])
  return length_regression.predict(scores, DATASET, "heldout")


HELDOUT = DATASET.heldout


def longer(example):
  return len(example.chosen) - len(example.rejected[0])


def test_tastes_are_how_far_a_person_goes_for_the_longer_text():
  found = length_regression.tastes(DATASET.train)
  assert found == pytest.approx({u: 0.6 * sign for u, sign in LIKES.items()})


def test_a_margin_that_repeats_each_taste_in_length_adds_nothing():
  lengths, both = predict(lambda _, each: LIKES[each.user_id] * longer(each))
  assert lengths.users == both.users == pytest.approx(0.8)


def test_a_margin_that_knows_more_than_length_adds_that():
  # Those against their taste stand last of each person's ten.
  lengths, both = predict(lambda place, each: 1.0)
  assert lengths.users == pytest.approx(0.8)
  assert both.users == 1.0


def test_a_margin_of_chance_is_not_taken_for_knowledge():
  rng = np.random.default_rng(0)
  lengths, both = predict(lambda place, each: rng.normal())
  assert both.users == pytest.approx(lengths.users, abs=0.05)


def test_of_one_person_nothing_is_predicted_by_others():
  of_one = [each for each in HELDOUT if each.user_id == "u0"]
  scores = scores_lib.make(of_one, np.ones((len(of_one), 1), np.float32))
  assert length_regression.predict(scores, DATASET, "heldout") is None
