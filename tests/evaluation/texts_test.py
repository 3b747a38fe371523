import pytest

from pdpo_jax.evaluation import statistics, texts


def test_distance_counts_words_that_users_do_not_share():
  found = texts.distinctness(
    {"ann": ["the red cat", "one"], "bob": ["The red dog", "one"]}
  )
  # {the, red} of {the, red, cat, dog} are common; "one" is the same answer.
  assert found.distance == pytest.approx((0.5 + 0.0) / 2)
  assert found.identical == 0.5
  assert found.chance == 1.0  # no user uses a word for both prompts


def test_empty_answers_do_not_differ():
  found = texts.distinctness({"ann": [""], "bob": [""], "cem": ["so"]})
  assert found.distance == pytest.approx(2 / 3)
  assert found.identical == pytest.approx(1 / 3)
  assert found.chance is None


def test_one_user_differs_from_nobody():
  assert texts.distinctness({"ann": ["a"]}) is None


def test_answers_without_spaces_differ_by_their_letters():
  found = texts.distinctness({"ann": ["犬が好き"], "bob": ["猫が好き"]})
  assert found.distance == pytest.approx(2 / 5)


def test_drift_is_paired_by_prompt():
  found = texts.drift(["a b c", "a"], ["a", "a"])
  assert found.words == statistics.Mean(1.0, 1.0)
  assert found.repetition == statistics.Mean(0.0, 0.0)
  with pytest.raises(ValueError, match="zip"):
    texts.drift(["a"], ["a", "b"])
