import numpy as np
import pytest

from pdpo_jax.evaluation import text_health
from pdpo_jax.inference import likelihoods

BASE = ["Anna sold bikes.", "Bob broke books. Carl hid coins.", "Fay ran.", ""]


def likely(per_token, tokens=8):
  per_token = np.array(per_token)
  return likelihoods.Likelihoods(
    per_token * tokens, np.full(per_token.shape, tokens)
  )


def examine(texts, per_token, tokens=8):
  answers = {"S": BASE, "4": texts}
  scored = {
    "S": likely([-0.3, -0.4, -0.9, -1.0]),
    "4": likely(per_token, tokens),
  }
  return text_health.examine(answers, scored, "S", max_new_tokens=8)["4"]


def test_answers_like_the_bases_are_whole():
  found = examine(BASE, [-0.3, -0.4, -0.9, -1.4])
  assert (found.unlikely, found.repeating, found.broken) == (0, 0, 0)
  assert found.log_likelihood == pytest.approx(-0.75)
  assert found.ended == 1


def test_answers_far_less_likely_than_any_of_the_bases_are_broken():
  found = examine(["f Bob f", "so", "", "no"], [-2.0, -0.5, -9.0, -1.6])
  assert found.unlikely == found.broken == 0.5  # An empty one is not.


def test_answers_that_repeat_as_none_of_the_bases_does_are_broken():
  again = "Nora ruined bags. " * 5
  found = examine([again, "so", "Anna sold bikes. Bob ran.", ""], [-0.3] * 4)
  assert found.repeating == found.broken == 0.25
  assert found.unlikely == 0


def test_a_base_that_repeats_itself_is_the_measure():
  again = "Nora ruined bags. " * 5
  answers = {"S": [again], "4": [again]}
  scored = dict.fromkeys(answers, likely([-0.3]))
  found = text_health.examine(answers, scored, "S", 8)
  assert found["4"].broken == 0


def test_answers_that_were_cut_off_did_not_end():
  assert examine(BASE, [-0.3] * 4, tokens=9).ended == 0


def test_an_answer_without_a_likelihood_is_not_unlikely():
  found = examine(["so"] * 4, [np.nan, -0.5, -0.5, -0.5])
  assert found.broken == 0
  assert found.log_likelihood == pytest.approx(-0.5)


def test_a_base_without_any_likelihood_says_nothing_of_others():
  nothing = likelihoods.Likelihoods(np.array([np.nan]), np.array([0]))
  answers, scored = {"S": ["a"], "4": ["b"]}, {"S": nothing, "4": nothing}
  found = text_health.examine(answers, scored, "S", 8)["4"]
  assert (found.unlikely, found.broken) == (0, 0)


def health(broken):
  return text_health.Health(-1.0, 1.0, broken, 0.0, broken)


def test_whose_text_is_broken_is_said_the_worst_first():
  found = {"G": health(0.2), "4": health(0.9), "5": health(0.05)}
  text = text_health.sentence(found, {"G": "the generic user"})
  assert text.startswith("Text is broken, whatever accuracy says")
  assert "as user 4 (90%), the generic user (20%), so many" in text
  assert "user 5" not in text


def test_of_many_whose_text_is_broken_the_others_are_counted():
  found = {str(number): health(0.5) for number in range(9)}
  assert "and 6 more" in text_health.sentence(found, {})


def test_of_whole_text_nothing_is_said():
  assert text_health.sentence({"4": health(0.1)}, {}) == ""
  assert text_health.sentence({}, {}) == ""
