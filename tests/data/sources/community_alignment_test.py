import collections
import sys
import types

import pytest

from pdpo_jax.core import structs
from tests import community_alignment_files as files
from tests import loading

FOUR = ("a0", "b0", "c0", "d0")
TURNS = [
  ("q0", FOUR, "b"),
  ("q1", ("a1", "b1", "c1", "d1"), "a"),
  ("q2", ("a2", "b2", "c2", "d2"), "d"),
]


def load(tmp_path, records, bad=0.01, **options):
  files.write(tmp_path / "all.csv", records)
  config = files.make_config(tmp_path / "all.csv", **options)
  config.data.max_bad_share = bad
  return loading.load(config)


def load_one(tmp_path, turns, **changes):
  """Examples and tally of a dialogue; another person's is held out."""
  records = [
    files.make_record("c0", "7", turns, **changes),
    *(
      files.make_record(f"x{place}", "7", [(f"other {place}", FOUR, "a")])
      for place in range(3)
    ),
  ]
  dataset = load(tmp_path, records, unseen_users=0.0)
  examples = [*dataset.train, *dataset.heldout]
  return [each for each in examples if each.dialogue_id == "c0"], dataset.tally


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
  """A file of 60 people, and how often each trap is in it."""
  file = tmp_path_factory.mktemp("ca") / "all.csv"
  planted = collections.Counter()
  files.write(file, files.generate(60, 0, planted))
  return file, planted


def test_a_turn_is_an_example_after_all_that_was_said_before(tmp_path):
  examples, tally = load_one(tmp_path, TURNS)
  said = [[turn.content for turn in each.prompt] for each in examples]
  assert said == [["q0"], ["q0", "b0", "q1"], ["q0", "b0", "q1", "a1", "q2"]]
  assert [turn.role for turn in examples[1].prompt] == [
    "user",
    "assistant",
    "user",
  ]
  assert [(each.chosen, each.rejected) for each in examples] == [
    ("b0", ("a0", "c0", "d0")),
    ("a1", ("b1", "c1", "d1")),
    ("d2", ("a2", "b2", "c2")),
  ]
  assert {each.user_id for each in examples} == {"7"}
  assert {each.place for each in examples} == {"all.csv:2"}
  # Why somebody chose so belongs to that turn.
  assert [each.feedback for each in examples] == [
    "Turn 0.",
    "Turn 1.",
    "Turn 2.",
  ]
  assert not tally.dropped and not tally.broken


def test_what_people_are_is_their_text_and_their_persona(tmp_path):
  records = [
    files.make_record(f"c{number}", "7", [(f"q{number}", FOUR, "a")])
    for number in range(3)
  ]
  dataset = load(tmp_path, records, unseen_users=0.0)
  facts = {
    "Age": "18-34",
    "Gender": "female",
    "Education": "Some post-secondary",
    "Country": "united states",
  }
  assert dataset.personas == {"7": structs.Persona(facts)}
  assert dataset.user_texts() == {
    "7": "About me. Age: 18-34. Gender: female. Education: Some "
    "post-secondary. Country: united states."
  }
  dataset = load(tmp_path, records, unseen_users=0.0, demographics=False)
  assert dataset.personas == {"7": structs.Persona(facts)}
  assert dataset.user_texts() == {}


def test_people_of_whom_dialogues_say_different_things_are_noted(tmp_path):
  records = [
    files.make_record(
      f"c{number}", "7", [(f"q{number}", FOUR, "a")], annotator_age=age
    )
    for number, age in enumerate(("18-34", "35-45", "46-54"))
  ]
  for column in files.make_record("", "", []):
    if column.startswith("annotator_") and column != "annotator_id":
      records[0][column] = None
  dataset = load(tmp_path, records, unseen_users=0.0)
  # The first dialogue says nothing.
  assert dataset.personas["7"].facts["Age"] == "35-45"
  (noted,) = [each for each in dataset.tally.noted if "different" in each]
  assert dataset.tally.noted[noted] == 1


GAP = "turns after a gap"
NO_CHOSEN = "turns without a chosen response"
NO_REJECTED = "turns without a rejected response"
EQUAL = "rejected responses equal to the chosen one"
# What becomes of the second of three turns; turns left; what is dropped.
CASES = {
  "nothing": ((None, (None,) * 4, None), [0], ("turns without one utterance",)),
  "not asked": ((" ", FOUR, "a"), [0], ("turns without one utterance",)),
  "not chosen": (("q1", FOUR, None), [0], (NO_CHOSEN,)),
  "chosen is empty": (("q1", (None, "b", "c", "d"), "a"), [0], (NO_CHOSEN,)),
  "one is empty": (
    ("q1", ("a", "", "c", "d"), "a"),
    [0, 1, 2],
    ("rejected responses without text",),
  ),
  "two are alike": (
    ("q1", ("a", "b", " b\n", "d"), "a"),
    [0, 1, 2],
    ("rejected responses equal to another",),
  ),
  "one is as the chosen": (
    ("q1", ("a", f"a{files.END}", "c", "d"), "a"),
    [0, 1, 2],
    (EQUAL,),
  ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trap_is_passed_over_and_counted(tmp_path, case):
  turn, left, reasons = CASES[case]
  examples, tally = load_one(tmp_path, [TURNS[0], turn, TURNS[2]])
  assert [len(each.prompt) // 2 for each in examples] == left
  expected = dict.fromkeys(reasons, 1)
  if left == [0]:
    expected[GAP] = 1
  assert tally.dropped == expected
  for each in examples:
    assert each.chosen not in each.rejected
    assert len(set(each.rejected)) == len(each.rejected) > 0


def test_a_turn_whose_responses_are_all_alike_stays_in_the_history(tmp_path):
  turns = [TURNS[0], ("q1", ("a",) * 4, "a"), TURNS[2]]
  examples, tally = load_one(tmp_path, turns)
  assert [each.prompt[-1].content for each in examples] == ["q0", "q2"]
  assert examples[1].prompt[3].content == "a"
  assert tally.dropped == {EQUAL: 3, NO_REJECTED: 1}


def test_marks_of_the_end_are_no_part_of_texts(tmp_path):
  marked = tuple(
    text + end
    for text, end in zip(
      FOUR,
      (files.END, f" {files.END}\n", 2 * files.END, f"{files.END} more"),
      strict=True,
    )
  )
  (example,), tally = load_one(tmp_path, [("q0", marked, "a")])
  # One inside of a text stays: nobody knows what it is.
  assert (example.chosen, example.rejected) == (
    "a0",
    ("b0", "c0", f"d0{files.END} more"),
  )
  assert tally.noted["texts without the '<|end_of_text|>' at their end"] == 3


def test_all_traps_of_a_file_are_counted(generated):
  file, planted = generated
  tally = loading.load(files.make_config(file)).tally
  assert tally.records == 1547
  expected = {
    "turns without one utterance": planted["missing in the middle"],
    NO_CHOSEN: planted["not chosen"] + planted["chosen without text"],
    GAP: planted["missing in the middle"]
    + planted["not chosen"]
    + planted["chosen without text"],
    "rejected responses without text": planted["one without text"],
    "rejected responses equal to another": planted["two alike"],
    EQUAL: planted["one as the chosen"] + 3 * planted["all alike"],
    NO_REJECTED: planted["all alike"],
  }
  unseen = [each for each in tally.dropped if "unseen users" in each]
  assert len(unseen) == 1
  assert {
    reason: count
    for reason, count in tally.dropped.items()
    if reason not in unseen
  } == expected
  assert not tally.broken


def test_nobody_compares_in_training_what_is_held_out(generated):
  file, _ = generated
  dataset = loading.load(files.make_config(file, heldout_openings=0.2))
  users = [
    {each.user_id for each in split}
    for split in (dataset.train, dataset.heldout, dataset.unseen)
  ]
  assert users[1] <= users[0] and not users[2] & users[0]
  assert len(users[2]) == 6  # a tenth of 60
  openings = [
    {each.prompt[0].content for each in split}
    for split in (dataset.train, dataset.heldout, dataset.unseen)
  ]
  assert all(openings)
  assert not openings[0] & (openings[1] | openings[2])
  judged = collections.defaultdict(set)
  for each in dataset.heldout:
    judged[each.prompt[0].content].add(each.user_id)
  # Several people judge one opening, so that this is not a split by dialogue.
  assert max(map(len, judged.values())) > 3


def test_loading_is_a_function_of_seed_config_and_file(generated):
  file, _ = generated
  config = files.make_config(file)
  first, second = loading.load(config), loading.load(config)
  assert first.digests() == second.digests()
  config.seed = 1
  assert loading.load(config).digests()["train"] != first.digests()["train"]


@pytest.mark.parametrize(
  ("languages", "left"), [(["it"], 1), (["it", "hi"], 2)]
)
def test_only_dialogues_in_languages_that_are_asked_for(
  tmp_path, languages, left
):
  records = [
    files.make_record(f"{name}{n}", name, [(f"q{n}", FOUR, "a")])
    | {"assigned_lang": name}
    for name in ("en", "it", "hi")
    for n in range(4)
  ]
  options = {"languages": tuple(languages), "unseen_users": 0.0}
  dataset = load(tmp_path, records, **options)
  assert {each.user_id for each in dataset.train} == set(languages)
  assert dataset.personas.keys() == set(languages)
  dropped = {"dialogues in other languages": 4 * (3 - left)}
  assert dataset.tally.dropped == dropped
  with pytest.raises(ValueError, match=r"'fr', in which .*en \(4\), it \(4\)"):
    load(tmp_path, records, languages=("it", "fr"))


@pytest.mark.parametrize("flags", [(False, True), ("FALSE", "true")])
def test_openings_that_people_wrote_can_be_left_out(tmp_path, flags):
  records = [
    files.make_record(
      f"c{n}",
      "7",
      [(f"q{n}", FOUR, "a")],
      is_pregenerated_first_prompt=flags[n % 2],
    )
    for n in range(6)
  ]
  dataset = load(tmp_path, records, unseen_users=0.0, pregenerated_only=True)
  ids = {each.dialogue_id for each in dataset.train + dataset.heldout}
  assert ids == {"c1", "c3", "c5"}
  assert dataset.tally.dropped == {"dialogues that people opened themselves": 3}


def test_a_person_all_of_whose_openings_are_held_out_is_unseen(tmp_path):
  records = [
    files.make_record("a0", "a", [("first", FOUR, "a")]),
    files.make_record("b0", "b", [("second", FOUR, "a")]),
  ]
  dataset = load(tmp_path, records, unseen_users=0.0, heldout_openings=0.5)
  assert not dataset.heldout
  (example,) = dataset.unseen
  assert example.user_id != dataset.train[0].user_id
  assert (
    dataset.tally.noted["users with no comparison for training, who are unseen"]
    == 1
  )


@pytest.mark.parametrize(
  ("reason", "changes"),
  [
    ("empty id", {"conversation_id": " "}),
    ("repeated conversation_id", {"conversation_id": "c0"}),
    ("no annotator_id", {"annotator_id": None}),
    ("wrong type", {"assigned_lang": None}),
    (
      "unknown preferred response: third_turn_preferred_response 'a' is none "
      "of response_a, response_b, response_c, response_d",
      {"third_turn_preferred_response": "a"},
    ),
    (
      "wrong type: is_pregenerated_first_prompt 'maybe' must be true or false",
      {"is_pregenerated_first_prompt": "maybe"},
    ),
  ],
)
def test_a_broken_record_is_counted_and_too_many_are_an_error(
  tmp_path, reason, changes
):
  records = [
    files.make_record(f"c{n}", "7", [(f"q{n}", FOUR, "a")]) for n in range(3)
  ]
  records.append(files.make_record("c9", "7", TURNS, **changes))
  options = {"pregenerated_only": True, "unseen_users": 0.0}
  with pytest.raises(ValueError, match=rf"all.csv:5: {reason}"):
    load(tmp_path, records, **options)
  dataset = load(tmp_path, records, bad=0.5, **options)
  assert dataset.tally.broken == {reason.partition(":")[0]: 1}
  assert len(dataset.train + dataset.heldout) == 3


@pytest.mark.parametrize(
  "column", ["annotator_id", "second_turn_response_c", "assigned_lang"]
)
def test_a_file_of_another_schema_is_an_error_that_names_a_column(
  tmp_path, column
):
  record = files.make_record("c0", "7", TURNS)
  del record[column]
  with pytest.raises(ValueError, match=f"all.csv:2: missing field: {column}"):
    load(tmp_path, [record])


def test_columns_without_a_use_are_named(tmp_path):
  _, tally = load_one(tmp_path, TURNS)
  assert tally.not_read == {
    "column without a use": {"in_balanced_subset": None}
  }


def test_too_little_is_an_error_with_what_to_change(tmp_path):
  record = files.make_record("c0", "7", TURNS)
  with pytest.raises(
    ValueError,
    match=r"leaves 0 examples for training and 3 to be answered; .*change "
    r"data.community_alignment.unseen_users and .*heldout_openings",
  ):
    load(tmp_path, [record])


def test_ids_may_be_integers_as_the_hub_has_them(tmp_path, monkeypatch):
  records = [files.make_record(n, 7, [(f"q{n}", FOUR, "a")]) for n in range(4)]
  asked = []

  def load_dataset(path, name, split):
    asked.append((path, name, split))
    return {"filtered": records, "full": records[:1]}

  fake = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, "datasets", fake)
  config = files.make_config("someone/ca", unseen_users=0.0)
  with pytest.raises(ValueError, match="as in 'someone/ca:filtered'"):
    loading.load(config)
  monkeypatch.setattr(fake, "load_dataset", lambda path, name, split: records)
  dataset = loading.load(
    files.make_config("someone/ca:filtered", unseen_users=0.0)
  )
  assert {each.user_id for each in dataset.train} == {"7"}
  assert asked == [("someone/ca", None, None)]
