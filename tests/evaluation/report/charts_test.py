"""Figures of whatever names and numbers there are."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

from pdpo_jax.evaluation import accuracy as reward_accuracy
from pdpo_jax.evaluation import lengths
from pdpo_jax.evaluation.report import accuracy, answers, by_user, users
from tests.evaluation import hostile


def scored(name, values):
  found = reward_accuracy.Accuracy(0.5, values, dict.fromkeys(values, 0.0))
  return accuracy.Scored(name, "heldout", 4, found, {}, None)


def words(*names):
  return {name: lengths.Words(3.0, 0.1, 0.0) for name in names}


def drawn(ids):
  """Every figure that has names in it, with a name in each place."""
  name = ids[-1]
  values = dict(zip(ids, np.linspace(0.5, 0.9, len(ids)), strict=True))
  features = np.eye(len(ids), dtype=np.float32)
  return [
    accuracy.draw_means([scored(name, values), scored("ann", values)]),
    by_user.draw_users(scored(name, values), scored("ann", values)),
    answers.draw_words(words("S", *ids), [name]),
    users.draw_cosines(ids, features),
    users.draw_projection(ids, features[:, :2], 0.5, {"minority": [name]}),
    users.draw_weights(ids, features),
  ]


def size_of(png):
  return pyplot.imread(io.BytesIO(png)).shape


@pytest.mark.parametrize("start", range(0, len(hostile.NAMES), 7))
def test_any_name_is_drawn_as_it_is(start):
  # Warnings are errors here: of characters without a picture, of layouts.
  for png in drawn(["ann", *hostile.NAMES[start : start + 7]]):
    height, width, _ = size_of(png)
    assert 100 < height < 3000 and 100 < width < 3000


def test_dollars_are_no_mathematics():
  assert answers.draw_words(words("a$b", "c$d"), ()) != answers.draw_words(
    words("ab", "cd"), ()
  )


def test_what_the_user_set_matplotlib_to_makes_no_difference():
  plain = answers.draw_words(words("S", "a_b"), ())
  settings = {"text.usetex": True, "font.size": 30, "figure.dpi": 10}
  with matplotlib.rc_context(settings):
    assert answers.draw_words(words("S", "a_b"), ()) == plain
    assert matplotlib.rcParams["font.size"] == 30
  assert not pyplot.get_fignums()


def test_users_whose_names_are_shortened_to_the_same_have_their_own_bars():
  names = ["x" * 60 + "1" + "y" * 60, "x" * 60 + "2" + "y" * 60]
  two = answers.draw_words(words(*names), ())
  one = answers.draw_words(words(*names[:1]), ())
  assert size_of(two)[:2] == size_of(one)[:2]
  assert two != one


@pytest.mark.parametrize("count", [1, 500])
def test_any_number_of_users_is_drawn(count):
  ids = [f"user {number}" for number in range(count)]
  values, two = dict.fromkeys(ids, 0.5), {"1": 0.5, "2": 0.5}
  features = np.zeros((count, 2), np.float32)
  for png in (
    accuracy.draw_means([scored("a", values), scored("b", two)]),
    by_user.draw_users(scored("a", values), scored("b", values)),
    answers.draw_words(words(*ids[:200]), ()),
    users.draw_cosines(ids[:60], np.zeros((len(ids[:60]),) * 2, np.float32)),
    users.draw_projection(ids, features, 1.0, {}),
    users.draw_weights(ids[:60], features[:60]),
  ):
    assert max(size_of(png)) <= 40 * 150
