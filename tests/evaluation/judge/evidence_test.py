import dataclasses

from pdpo_jax.core import structs
from pdpo_jax.evaluation.judge import evidence

PERSONA = structs.Persona({"Age": "40"})


def turn(number, dialogue="d", user="ann"):
  """Turn `number` of a dialogue, with the answers chosen so far."""
  said = []
  for before in range(number):
    said.append(structs.Message("user", f"{dialogue} asks {before}"))
    said.append(structs.Message("assistant", f"{dialogue} best {before}"))
  said.append(structs.Message("user", f"{dialogue} asks {number}"))
  return structs.PreferenceExample(
    tuple(said),
    f"{dialogue} best {number}",
    (f"{dialogue} other {number}",),
    user,
    dialogue_id=dialogue,
    feedback=f"about {dialogue}",
  )


def gather(judged, candidates, count=9, later=False):
  found = evidence.gather(judged, candidates, PERSONA, count, later)
  return [each.chosen for each in found.examples]


DIALOGUE = [turn(number) for number in range(5)]


def test_earlier_turns_are_shown_and_the_judged_one_never():
  assert gather(DIALOGUE[2], DIALOGUE) == ["d best 0", "d best 1"]


def test_later_turns_are_shown_only_where_asked_for():
  assert gather(DIALOGUE[2], DIALOGUE, later=True) == [
    "d best 0",
    "d best 1",
    "d best 3",
    "d best 4",
  ]


def test_no_example_holds_the_answer_that_is_judged():
  for judged in DIALOGUE:
    found = evidence.gather(judged, DIALOGUE, PERSONA, 9, False)
    for example in found.examples:
      assert judged.chosen not in [m.content for m in example.prompt]
      assert judged.chosen != example.chosen


def test_the_nearest_turns_come_before_other_dialogues():
  others = [turn(0, "e"), turn(1, "e")]
  assert gather(DIALOGUE[3], [*others, *DIALOGUE], 2) == [
    "d best 1",
    "d best 2",
  ]
  assert gather(DIALOGUE[1], [*others, *DIALOGUE], 3) == [
    "d best 0",
    "e best 0",
    "e best 1",
  ]
  assert gather(DIALOGUE[1], [*others, *DIALOGUE], 0) == []


def test_the_nearest_turns_are_before_and_after_where_later_ones_are_shown():
  assert gather(DIALOGUE[1], DIALOGUE, 2, later=True) == [
    "d best 0",
    "d best 2",
  ]


def test_examples_of_the_same_turn_count_as_one():
  examples = [
    dataclasses.replace(each, rejected=(f"no {number}",))
    for each in DIALOGUE
    for number in range(3)
  ]
  found = evidence.gather(examples[6], examples, PERSONA, 3, False)
  assert [(each.chosen, each.rejected) for each in found.examples] == [
    ("d best 0", ("no 0", "no 1", "no 2")),
    ("d best 1", ("no 0", "no 1", "no 2")),
  ]


def test_a_plain_text_that_holds_the_judged_answer_is_not_shown():
  judged = structs.PreferenceExample("why?", "so (it is)", ("no",), "ann")
  leak = structs.PreferenceExample(
    "User: why?\n\nAssistant: so (it is)\n\nUser: how?", "x", ("y",), "ann"
  )
  other = structs.PreferenceExample("why so (it is) odd", "z", ("y",), "ann")
  assert gather(judged, [leak, other]) == ["z"]


def test_nobody_elses_choices_are_shown():
  assert gather(DIALOGUE[1], [turn(0, "f", "bob")]) == []


def test_the_same_comparison_elsewhere_is_not_shown():
  plain = structs.PreferenceExample("why?", "so", ("no",), "ann")
  same = structs.PreferenceExample("why?", "no", ("so",), "ann")
  leak = structs.PreferenceExample("how?", "x", ("so ",), "ann")
  other = structs.PreferenceExample("who?", "me", ("you",), "ann")
  assert gather(plain, [plain, same, leak, other]) == ["me"]


def test_persona_and_feedback_are_of_the_judged_example():
  found = evidence.gather(DIALOGUE[2], DIALOGUE, PERSONA, 1, False)
  assert (found.persona, found.feedback) == (PERSONA, "about d")
