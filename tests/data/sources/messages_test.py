"""Messages as data sets write them, and texts that are none."""

import pyarrow
import pytest
from pyarrow import parquet

from pdpo_jax.core import structs
from pdpo_jax.data import records
from tests.data.sources import preference_files_test as files

RECORD, messages, turns = files.RECORD, files.messages, files.turns


def read_one(tmp_path, **fields):
  """The comparison of a record, if it is one, and the account."""
  tally = records.Tally()
  record = {name: v for name, v in (RECORD | fields).items() if v is not ...}
  examples = files.read(
    files.write_jsonl(tmp_path / "records.jsonl", record), tally
  )
  return (examples or [None])[0], tally


def part(text):
  return {"type": "text", "text": text}


@pytest.mark.parametrize(
  ("content", "text", "noted"),
  [
    ([part("a?")], "a?", 0),
    ([part("a?") | {"image_url": None}], "a?", 0),  # A column of Parquet.
    ([{"type": "input_text", "text": "a?"}], "a?", 0),
    ([{"text": "a?"}], "a?", 0),
    (["a", "b?"], "a\nb?", 1),
    ([part("a"), part("b?")], "a\nb?", 1),
    (part("a?"), "a?", 0),
  ],
)
def test_parts_of_text_are_the_content(tmp_path, content, text, noted):
  prompt = [{"role": "user", "content": content}]
  example, tally = read_one(tmp_path, prompt=prompt)
  assert example.prompt == messages(text)
  assert tally.noted.total() == noted


@pytest.mark.parametrize(
  "content",
  [
    None,
    3,
    [],
    [None],
    {"text": 3},
    [part("a?"), {"type": "image_url", "image_url": {"url": "x"}}],
    [{"type": "image", "text": None}],
  ],
)
def test_content_that_is_no_text_is_broken(tmp_path, content):
  prompt = [{"role": "user", "content": content}]
  _, tally = read_one(tmp_path, prompt=prompt)
  assert list(tally.broken) in (["content that is no text"], ["empty message"])


def test_what_turns_have_besides_does_not_part_their_beginnings(tmp_path):
  dialogues = [
    [
      turn | {"id": f"{name}-{place}", "timestamp": place, "tool_calls": None}
      for place, turn in enumerate(turns("hi", "ho", "a?", name))
    ]
    for name in "bc"
  ]
  example, tally = read_one(
    tmp_path, prompt=..., chosen=dialogues[0], rejected=dialogues[1]
  )
  assert example.prompt == messages("hi", "ho", "a?")
  assert (example.chosen, example.rejected) == ("b", ("c",))
  assert not tally.broken
  # Nor does a prompt differ by it.
  example, _ = read_one(
    tmp_path, prompt=turns("hi", "ho", "a?"), chosen=dialogues[0]
  )
  assert example.chosen == "b"


@pytest.mark.parametrize("blank", ["", " ", "\n", "\u200b", "\u00a0\ufeff"])
def test_blank_messages_are_broken_wherever_they_are(tmp_path, blank):
  for fields in (
    {"prompt": turns(blank)},
    {"prompt": turns("hi", blank, "a?")},
    {"chosen": turns("x", blank)[1:]},
    {"rejected": ["c", turns("x", blank)[1:]]},
  ):
    _, tally = read_one(tmp_path, **fields)
    assert tally.broken == {"empty message": 1}
  for name in ("chosen", "rejected"):
    _, tally = read_one(tmp_path, **{name: blank})
    assert tally.broken == {"empty response": 1}
  _, tally = read_one(tmp_path, prompt=blank)
  assert tally.broken == {"empty prompt": 1}


def test_a_blank_system_message_is_left_out_and_noted(tmp_path):
  system = [{"role": "system", "content": " "}]
  example, tally = read_one(
    tmp_path,
    prompt=...,
    chosen=system + turns("a?", "b"),
    rejected=system + turns("a?", "c"),
  )
  assert example.prompt == messages("a?")
  assert tally.noted == {"blank system messages, which are left out": 2}


@pytest.mark.parametrize(
  ("role", "read"),
  [
    ("human", "user"), ("User", "user"), ("prompter", "user"),
    ("developer", "system"),
  ],
)  # fmt: skip
def test_other_names_of_roles_are_mapped_and_noted(tmp_path, role, read):
  prompt = [{"role": role, "content": "x"}, *turns("a?")]
  example, tally = read_one(tmp_path, prompt=prompt)
  assert example.prompt[0] == structs.Message(read, "x")
  assert tally.noted[f"messages of {role!r}, read as {read}"] == 1


@pytest.mark.parametrize("role", ["gpt", "model", "bot", "AI", "assistant "])
def test_names_of_the_assistant_are_mapped_and_noted(tmp_path, role):
  example, tally = read_one(tmp_path, chosen=[{"from": role, "value": "b"}])
  assert example.chosen == "b"
  assert tally.noted == {f"messages of {role!r}, read as assistant": 1}


@pytest.mark.parametrize(
  "role", ["tool", "function", "observation", "", None, 3, ["user"], "admin"]
)
def test_an_unknown_role_is_broken(tmp_path, role):
  prompt = [{"role": role, "content": "x"}, *turns("a?")]
  _, tally = read_one(tmp_path, prompt=prompt)
  assert tally.broken == {"unknown role": 1}


def test_a_call_of_a_tool_is_broken(tmp_path):
  call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}
  _, tally = read_one(tmp_path, prompt=[*turns("hi"), call, *turns("a?")])
  assert tally.broken == {"message with a call of a tool": 1}


def test_columns_for_both_ways_to_write_a_message_may_stand_together(tmp_path):
  chosen = [{"role": None, "content": None, "from": "gpt", "value": "b"}]
  assert read_one(tmp_path, chosen=chosen)[0].chosen == "b"


def test_messages_may_be_maps_of_a_table(tmp_path):
  maps = pyarrow.map_(pyarrow.string(), pyarrow.string())
  dialogues = [turns("hi", "ho", "a?", reply) for reply in "bc"]
  columns = {
    name: pyarrow.array(
      [[list(turn.items()) for turn in dialogue]], pyarrow.list_(maps)
    )
    for name, dialogue in zip(("chosen", "rejected"), dialogues, strict=True)
  }
  parquet.write_table(pyarrow.table(columns), tmp_path / "records.parquet")
  (example,) = files.read(tmp_path / "records.parquet")
  assert example.prompt == messages("hi", "ho", "a?")
  assert (example.chosen, example.rejected) == ("b", ("c",))


def test_orders_that_templates_may_refuse_are_noted(tmp_path):
  example, tally = read_one(tmp_path, prompt=turns("x", "hi", "a?")[1:])
  assert [turn.role for turn in example.prompt] == ["assistant", "user"]
  assert tally.noted == {"dialogues that the assistant begins": 1}
  example, tally = read_one(tmp_path, prompt=turns("hi") + turns("a?"))
  assert [turn.content for turn in example.prompt] == ["hi", "a?"]
  assert tally.noted == {"dialogues with two turns of one role in a row": 1}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_that_is_not_the_first_is_broken(tmp_path, role):
  prompt = [*turns("hi"), {"role": role, "content": "x"}, *turns("a?")]
  _, tally = read_one(tmp_path, prompt=prompt)
  assert tally.broken == {"system message that is not the first": 1}


def test_fields_of_messages_that_say_something_and_are_not_read_are_noted(
  tmp_path,
):
  chosen = [
    {"role": "assistant", "content": "b", "reasoning": "hm", "id": None}
  ]
  _, tally = read_one(tmp_path, chosen=chosen)
  assert tally.noted == {"messages with 'reasoning', which is not read": 1}


@pytest.mark.parametrize("user_text", ["['vegan', 'tall']", '{"age": 3}'])
def test_a_user_text_that_is_data_is_noted(tmp_path, user_text):
  example, tally = read_one(tmp_path, user_text=user_text)
  assert example.user_text == user_text
  note = "user texts that are JSON or Python data and stay text"
  assert tally.noted == {note: 1}


def test_nan_is_what_is_missing(tmp_path):
  nan = float("nan")
  example, _ = read_one(tmp_path, user_text=nan, user_id=nan)
  assert (example.user_text, example.user_id) == ("", None)
  for name in ("prompt", "chosen", "rejected"):
    _, tally = read_one(tmp_path, **{name: nan})
    (reason,) = tally.broken
    assert reason.startswith("no ")
  dialogues = {"chosen": turns("a?", "b"), "rejected": turns("a?", "c")}
  example, _ = read_one(tmp_path, prompt=nan, **dialogues)
  assert example.prompt == messages("a?")


def test_what_programs_write_for_nothing_is_noted(tmp_path):
  example, tally = read_one(tmp_path, chosen="None", user_text="nan")
  assert (example.chosen, example.user_text) == ("None", "")
  assert tally.noted == {
    "texts that are just 'nan', 'None', 'null' or the like": 1,
    "user texts like 'nan', 'None' and 'null', read as none": 1,
  }


def test_a_rejected_response_given_twice_is_kept_once(tmp_path):
  example, tally = read_one(tmp_path, rejected=["c", "c ", "d"])
  assert example.rejected == ("c", "d")
  assert tally.noted == {"rejected responses equal to another": 1}
