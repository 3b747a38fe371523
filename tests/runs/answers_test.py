import pytest

from pdpo_jax.core import structs
from pdpo_jax.runs import answers


def test_answers_are_read_as_they_were_written(tmp_path):
  prompts = [
    structs.PromptExample("why?\u2028\x85\x0c", "I am old."),
    structs.PromptExample((structs.Message("user", "who?"),)),
  ]
  said = {"S": ["so", ""], "4": ["ja\r\n", "“x\u2029”"]}
  answers.write(tmp_path / "answers.jsonl", prompts, said, seed=7)
  found, texts = answers.read(tmp_path / "answers.jsonl")
  assert found == [each.prompt for each in prompts]
  assert texts == said


def test_missing_answers_say_what_to_do(tmp_path):
  with pytest.raises(ValueError, match="start its training command again"):
    answers.read(tmp_path / "answers.jsonl")
