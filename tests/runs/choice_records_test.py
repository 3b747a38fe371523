"""Choices that are kept are read again as they were."""

import collections
import json

import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import records
from pdpo_jax.data.sources import preference_files
from pdpo_jax.runs import choice_records, learning
from pdpo_jax.runs import run as run_lib
from tests.runs.learning_test import choice

# Texts that somebody may write, and that a file would have for something else.
LIKE_DATA = [
  '["a", "b"]',
  "['a']",
  "[]",
  "[1, 2]",
  '{"a": 1}',
  '"[1]"',
  '[{"role": "user", "content": "x"}]',
  '{"role": "assistant", "content": "x"}',
  "[{'role': 'assistant', 'content': 'x'}]",
  '[{"from": "human", "value": "x"}]',
  '[{"role": "user", "content": "cut o',
  '{"role": ["user"], "content": ["x"]}',
  '[[{"role": "user", "content": "x"}]]',
  "nan",
  " spaces \n",
  "a\0b",
]
BLANK = ["", " ", "\n", "\u200b"]


def written(run):
  """What a run's choices are read as, once they are a file."""
  left_out = collections.Counter()
  lines = [*choice_records.of_run(run, left_out)]
  file = run.workdir / "choices.jsonl"
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  files, tally = run.config.data.files, records.Tally()
  read = preference_files.read(
    str(file), files.user_column, tally, files.prompt_column
  )
  assert not tally.broken and len(read) == len(lines)
  return read, left_out


@pytest.fixture
def run(folder):
  run = run_lib.Run.open(folder)
  run.people.erase(lambda user_id: True)
  return run


def texts(prompt):
  return prompt if isinstance(prompt, str) else [x.content for x in prompt]


@pytest.mark.parametrize("text", LIKE_DATA)
def test_a_text_that_looks_like_data_comes_back_as_the_text(run, text):
  turns = (structs.Message("user", text), structs.Message("assistant", text))
  examples = [
    choice("flo", chosen=text, rejected=("b", "c")),
    choice("flo", chosen="a", rejected=(text, "c")),
    choice("flo", chosen="a", rejected=(text,)),
    choice("flo", prompt=(*turns, turns[0]), chosen=text, rejected=("b",)),
    structs.Thumb("p", text, True, "flo"),
    structs.Thumb("p", text, False, "flo"),
  ]
  run.people.add(examples)
  assert written(run) == (examples, {})
  run.people.add([choice("gus", prompt=text)])
  read, left_out = written(run)
  assert not left_out
  (asked,) = [x.prompt for x in read if x.user_id == "gus"]
  assert texts(asked) in (text, [text])
  if not isinstance(asked, str):
    assert asked[0].role == "user"


@pytest.mark.parametrize("blank", BLANK)
def test_choices_with_a_blank_text_are_left_out_and_counted(run, blank):
  turn = structs.Message("user", "x")
  good = [choice("flo"), structs.Thumb("p", "y", True, "flo")]
  run.people.add(
    [
      *good,
      choice("flo", chosen=blank),
      choice("flo", chosen="a", rejected=(blank,)),
      choice("flo", chosen="a", rejected=("b", blank)),
      structs.Thumb("p", blank, True, "flo"),
      # Those of servers that kept them.
      choice("flo", prompt=blank or " "),
      choice("flo", prompt=(turn, structs.Message("assistant", blank), turn)),
    ]
  )
  read, left_out = written(run)
  assert read == good
  assert left_out == {
    "empty response": 4, "empty prompt": 1, "empty message": 1,
  }  # fmt: skip


@pytest.mark.parametrize(
  ("user_column", "prompt_column"),
  [("rater", "question"), ("user_id", "question"), ("prompt", "asked")],
)
def test_columns_are_those_of_the_run(run, user_column, prompt_column):
  run.config.data.files.user_column = user_column
  run.config.data.files.prompt_column = prompt_column
  examples = [
    choice("flo"),
    choice("flo", prompt="[1, 2"),
    structs.Thumb("p", "y", False, "gus", user_text="I am."),
  ]
  run.people.add(examples)
  assert written(run) == (examples, {})
  file = str(run.workdir / "choices.jsonl")
  assert learning.read_choices(run, file) == examples
