"""Of generated text; what of it is the same in every run is in report_test."""

import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation.report import answers
from pdpo_jax.inference import likelihoods
from pdpo_jax.runs import answers as run_answers

PROMPTS = [structs.PromptExample(text) for text in ("why?", "who?")]
TEXTS = {
  "S": ["Anna sold bikes.", "Bob ran."],
  "G": ["Anna sold bikes.", "Bob broke books."],
  "4": ["f Bob f", "so so so so so so"],
}


def make(per_token):
  """Answers of ten tokens each, of so many nats a token under the base."""
  likely = {
    speaker: likelihoods.Likelihoods(10.0 * np.array(values), np.full(2, 10))
    for speaker, values in per_token.items()
  }
  return run_answers.Answers(PROMPTS, dict(TEXTS), likely or None)


def test_whose_text_is_broken_stands_in_the_verdict_and_the_table():
  answered = make({"S": [-0.3, -0.4], "G": [-0.3, -0.5], "4": [-4.0, -0.3]})
  health = answers.find_health(answered, 10)
  assert health["4"].unlikely == 0.5
  assert health["4"].repeating == 0.5
  verdict = answers.verdict(health)
  assert verdict.startswith("Text is broken, whatever accuracy says")
  assert "user 4 (100%)" in verdict and "generic" not in verdict
  section = answers.section(
    {"ours": answered}, dataset_lib.Dataset([], [], []), health
  )
  table = section.tables[0]
  assert table.columns[-3:] == (
    "nats a token under the base",
    "ended, %",
    "broken, %",
  )
  assert [line[-1] for line in table.lines] == ["0.0", "0.0", "100.0"]
  speakers = section.numbers["text"]["ours"]["speakers"]
  assert speakers["4"]["health"]["broken"] == 1.0
  assert speakers["S"]["health"]["log_likelihood"] == pytest.approx(-0.35)


def test_of_whole_text_the_verdict_says_nothing():
  answered = make({name: [-0.3, -0.4] for name in TEXTS})
  answered.texts["4"] = ["Anna ran.", ""]
  assert answers.verdict(answers.find_health(answered, 10)) == ""


def test_a_run_that_kept_no_likelihoods_has_no_health():
  answered = make({})
  assert answers.find_health(answered, 10) == {}
  assert answers.find_health(None, 10) == {}
  section = answers.section(
    {"ours": answered}, dataset_lib.Dataset([], [], []), {}
  )
  assert "broken, %" not in section.tables[0].columns
  speakers = section.numbers["text"]["ours"]["speakers"]
  assert "health" not in speakers["4"]
