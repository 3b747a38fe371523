"""PRISM as the released code feeds it in."""

import random

import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data.sources import prism_authors, prism_survey
from tests import loading, prism_files

SURVEY = {
  "self_description": " I like\nto read. ",
  "age": "25-34 years old",
  "gender": "Prefer not to say",
  "education": "Vocational",
  "employment_status": "Student",
  "marital_status": "Married",
  "english_proficiency": "Fluent",
  "system_string": "Be kind.",
  "location": {"reside_country": "Kenya", "birth_country": "India"},
  "religion": {"simplified": "Christian"},
  "ethnicity": {"simplified": "Asian"},
  "stated_prefs": {"factuality": 100, "other": None, "other_text": None},
  "order_stated_prefs": {
    "values": 4,
    "safety": 3,
    "other": 1,
    "factuality": 9,
    "fluency": 2,
  },
}


def test_a_users_text_is_word_for_word_that_of_the_released_code():
  config = data_config.PrismConfig(
    prompt="authors", aspect_order="shown", self_description=True
  )
  assert prism_survey.user_text(SURVEY, config) == (
    "User textual information: preference: safety, other, fluency; "
    "self_description:  I like\nto read. ; age: 25-34 years old; gender: "
    "Prefer not to say; education: Vocational; employment: Student; marital: "
    "Married; english_proficiency: Fluent; "
  )


def test_the_parts_of_a_users_text_are_those_that_are_switched_on():
  config = data_config.PrismConfig(prompt="authors", demographics=False)
  assert prism_survey.user_text(SURVEY, config) == (
    "User textual information: preference: factuality; "
  )
  config.stated_preferences = False
  assert prism_survey.user_text(SURVEY, config) == ""


def rendered(turns):
  """As the released code writes turns, each behind its header."""
  return "".join(
    f"<|start_header_id|>{turn.role}<|end_header_id|>\n\n"
    f"{turn.content}<|eot_id|>\n"
    for turn in turns
  )


def dialogue(lengths):
  rng = random.Random(len(lengths))
  return tuple(
    structs.Message(
      ("user", "assistant")[place % 2],
      "".join(rng.choices("abc d", k=length)),
    )
    for place, length in enumerate(lengths)
  )


@pytest.mark.parametrize("text", [0, 300, 1211, 1212])
@pytest.mark.parametrize("lengths", [(30,), (900, 700, 40), (50, 20, 2000)])
def test_a_dialogue_keeps_the_end_that_the_released_code_keeps(lengths, text):
  turns = dialogue(lengths)
  # Of 1,400 characters, a user of three digits has taken these.
  room = 1400 - len("USER: 123 " + 10 * "<|end_of_text|>" + "||") - text
  whole = rendered(turns)
  expected = whole[-room:] if len(whole) > room else whole
  kept = prism_authors.cut(turns, "x" * text)
  found = rendered(kept)
  # But for the header of the turn that is cut.
  header = found.index("\n\n") + 2
  if len(kept) == len(turns) and kept[0] == turns[0]:
    assert found == whole and whole.endswith(expected)
  elif expected.startswith(found[header:][:20]):
    assert found[header:] == expected
  else:  # Cut inside of a header, which is whole here.
    assert found.endswith(expected.partition("\n\n")[2] or expected)


def test_a_text_over_the_limit_takes_from_the_dialogues_beginning():
  turns = dialogue((400, 300, 20))
  over = "x" * (1400 - 162 + 150)
  kept = prism_authors.cut(turns, over)
  assert rendered(kept)[-100:] == rendered(turns)[-100:]
  header = len("<|start_header_id|>user<|end_header_id|>\n\n")
  assert kept[0].content == turns[0].content[150 - header :]
  assert kept[1:] == turns[1:]
  # However much that is, the question is not empty.
  assert prism_authors.cut(turns[:1], "x" * 9000) == (
    structs.Message("user", turns[0].content[-1]),
  )


def test_turns_over_the_released_limit_are_left_out_and_counted(tmp_path):
  question, fits = "q" * 300, "y" * 1999
  turns = [
    # The chosen one must be below the limit, a rejected one may be at it.
    (question, [(fits, True), ("r" * 2000, False), ("s" * 2001, False)]),
    (question, [(fits + "y", True), ("r", False)]),
    ("q2", [("y2", True), ("r2", False)]),
  ]
  prism_files.write_dialogues(tmp_path, prism_files.one_user(turns))
  config = prism_files.make_config(
    tmp_path, unseen_users=0.0, prompt="authors", rejected="each"
  )
  dataset = loading.load(config)
  assert {(each.chosen, *each.rejected) for each in dataset.train} == {
    (fits, "r" * 2000), ("y2", "r2"),
  }  # fmt: skip
  reason = "rejected responses of turns over 2,300 characters"
  assert dataset.tally.dropped[reason] > 0
  assert dataset.tally.noted["dialogues cut"] > 0
