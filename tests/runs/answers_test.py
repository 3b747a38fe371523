import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.inference import likelihoods
from pdpo_jax.runs import answers


def test_answers_are_read_as_they_were_written(tmp_path):
  prompts = [
    structs.PromptExample("why?\u2028\x85\x0c", "I am old."),
    structs.PromptExample((structs.Message("user", "who?"),)),
  ]
  said = {"S": ["so", ""], "4": ["ja\r\n", "“x\u2029”"]}
  likely = {
    "S": likelihoods.Likelihoods(np.array([-3.25, np.nan]), np.array([5, 0])),
    "4": likelihoods.Likelihoods(np.array([-1.5, -0.125]), np.array([3, 1])),
  }
  answers.write(tmp_path / "answers.jsonl", prompts, said, likely, seed=7)
  found = answers.read(tmp_path / "answers.jsonl")
  assert found.prompts == prompts
  assert found.texts == said
  for speaker, expected in likely.items():
    own = found.likelihoods[speaker]
    np.testing.assert_array_equal(own.sums, expected.sums)
    np.testing.assert_array_equal(own.tokens, expected.tokens)
  assert found.likelihoods["S"].mean == -3.25 / 5


def test_missing_answers_say_what_to_do(tmp_path):
  with pytest.raises(ValueError, match="start its training command again"):
    answers.read(tmp_path / "answers.jsonl")
