import dataclasses
import random
import sys
import types

import pytest

from pdpo_jax.core import structs
from tests import loading, prism_files


def load_one(folder, turns, **options):
  """Examples and tally of a seen user's train dialogue with these turns."""
  prism_files.write_dialogues(folder, prism_files.one_user(turns))
  dataset = loading.load(
    prism_files.make_config(folder, unseen_users=0.0, **options)
  )
  return dataset.train, dataset.tally


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
  """A folder of 60 users, and how often each trap is in it."""
  path = tmp_path_factory.mktemp("prism")
  return path, prism_files.write(path, users=60)


@pytest.mark.parametrize("users", [1, 2, 3, 4, 7, 19])
def test_a_folder_of_few_users_is_written_and_can_be_read(tmp_path, users):
  planted = prism_files.write(tmp_path, users)
  assert planted["survey only"] == (users > 1)
  if users >= 4:
    dataset = loading.load(prism_files.make_config(tmp_path))
    assert dataset.train and dataset.heldout


def test_a_folder_without_users_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="--users=0; a folder has at least one"):
    prism_files.write(tmp_path, 0)


def test_a_prompt_is_all_that_was_said_with_the_chosen_responses(tmp_path):
  examples, _ = load_one(tmp_path, prism_files.TURNS)
  message = structs.Message
  assert [each.prompt for each in examples] == [
    (message("user", "q0"),),
    (message("user", "q0"), message("assistant", "y0"), message("user", "q1")),
    (
      message("user", "q0"),
      message("assistant", "y0"),
      message("user", "q1"),
      message("assistant", "y1"),
      message("user", "q2"),
    ),
  ]
  assert [each.chosen for each in examples] == ["y0", "y1", "y2"]
  assert {each.user_id for each in examples} == {"user0"}


def test_messages_belong_to_their_turn_in_whatever_order_they_stand(tmp_path):
  record = prism_files.conversation_record("c0", "user0", prism_files.TURNS)
  other = prism_files.conversation_record("c1", "user0", prism_files.TURNS)
  # Responses keep their order within a turn.
  record["conversation_history"].sort(key=lambda message: -message["turn"])
  survey = [prism_files.survey_record("user0", random.Random(0))]
  prism_files.write_records(tmp_path, survey, [record, other])
  dataset = loading.load(prism_files.make_config(tmp_path, unseen_users=0.0))
  (train, heldout) = (
    [dataclasses.replace(each, dialogue_id="") for each in split]
    for split in (dataset.train, dataset.heldout)
  )
  assert train == heldout


def test_an_example_says_which_dialogue_it_is_of_and_what_was_said_of_it(
  tmp_path,
):
  records = [
    prism_files.conversation_record(name, "user0", prism_files.TURNS)
    for name in ("c0", "c1")
  ]
  records[0]["open_feedback"] = "Too  long."
  records[1]["open_feedback"] = "EMPTY STRING"
  survey = [prism_files.survey_record("user0", random.Random(0))]
  prism_files.write_records(tmp_path, survey, records)
  dataset = loading.load(prism_files.make_config(tmp_path, unseen_users=0.0))
  said = {(x.dialogue_id, x.feedback) for x in dataset.train + dataset.heldout}
  assert said == {("c0", "Too long."), ("c1", "")}
  places = {x.dialogue_id: x.place for x in dataset.train + dataset.heldout}
  file = "conversations.jsonl"
  assert places == {"c0": f"{file}:1", "c1": f"{file}:2"}


@pytest.mark.parametrize(
  ("option", "rejected"),
  [
    ("all", [("r0a", "r0b", "r0c"), ("r1",), ("r2",)]),
    ("each", [("r0a",), ("r0b",), ("r0c",), ("r1",), ("r2",)]),
  ],
)
def test_a_turn_makes_examples_of_its_rejected_responses(
  tmp_path, option, rejected
):
  examples, _ = load_one(tmp_path, prism_files.TURNS, rejected=option)
  assert [each.rejected for each in examples] == rejected


def test_one_rejected_response_of_a_turn_is_drawn_by_the_seed(tmp_path):
  prism_files.write_dialogues(
    tmp_path, prism_files.one_user(prism_files.TURNS, copies=10)
  )
  config = prism_files.make_config(
    tmp_path, unseen_users=0.0, rejected="one", split="authors"
  )
  draws = []
  for config.seed in (0, 0, 1):
    dataset = loading.load(config)
    examples = dataset.train + dataset.heldout
    assert all(len(each.rejected) == 1 for each in examples)
    first = [e.rejected[0] for e in examples if len(e.prompt) == 1]
    assert len(first) == 10
    draws.append(first)
  assert draws[0] == draws[1] != draws[2]
  assert set(draws[0]) == {"r0a", "r0b", "r0c"}


# Trap: turns left of three; dropped; noted. Each is in both of two dialogues.
NO_REJECTED = "turns without a rejected response"
NO_CHOSEN = "turns without a chosen response"
AFTER = "turns after a gap"
EQUAL = "rejected responses equal to the chosen one"
SEVERAL = "turns with several chosen responses"
COUNTS = {
  "both chosen": ([0, 2], {NO_REJECTED: 1}, {SEVERAL: 1}),
  "two chosen": ([0, 1, 2], {}, {SEVERAL: 1}),
  "one rejected is chosen": ([0, 1, 2], {EQUAL: 1}, {}),
  "only rejected is chosen": ([0, 2], {EQUAL: 1, NO_REJECTED: 1}, {}),
  "rejected repeated": (
    [0, 1, 2],
    {"rejected responses equal to another": 1},
    {},
  ),
  "rejected empty": ([0, 1, 2], {"rejected responses without text": 1}, {}),
  "chosen empty": ([0], {NO_CHOSEN: 1, AFTER: 1}, {}),
  "no chosen": ([0, 1], {NO_CHOSEN: 1}, {}),
  "no rejected": ([1, 2], {NO_REJECTED: 1}, {}),
  "asked empty": ([0], {"turns without one utterance": 1, AFTER: 1}, {}),
}


@pytest.mark.parametrize("trap", COUNTS)
def test_a_trap_is_passed_over_and_counted(tmp_path, trap):
  turns = list(prism_files.TURNS)
  prism_files.spring(trap, turns)
  examples, tally = load_one(tmp_path, turns, stated_preferences=False)
  left, dropped, noted = COUNTS[trap]
  assert [len(each.prompt) // 2 for each in examples] == left
  for each in examples:
    number = len(each.prompt) // 2
    assert each.chosen == f"y{number}"
    assert each.chosen not in each.rejected
    assert len(set(each.rejected)) == len(each.rejected) > 0
    assert "EMPTY STRING" not in (each.chosen, *each.rejected)
    said = [message.content for message in each.prompt]
    assert said == ["q0", "y0", "q1", "y1", "q2"][: len(said)]
  assert tally.dropped == {name: 2 * count for name, count in dropped.items()}
  # Fewer prompts than wanted are noted too.
  assert tally.noted[SEVERAL] == 2 * noted.get(SEVERAL, 0)


def test_responses_that_differ_in_space_only_are_equal(tmp_path):
  responses = [("y", True), (" y\n", False), ("r ", False), ("r", False)]
  examples, tally = load_one(tmp_path, [("q", responses)])
  assert [(each.chosen, each.rejected) for each in examples] == [("y", ("r ",))]
  assert tally.dropped.total() == 4


def test_all_traps_of_a_folder_are_counted(generated):
  folder, planted = generated
  tally = loading.load(prism_files.make_config(folder)).tally
  expected = {
    NO_REJECTED: ("both chosen", "only rejected is chosen", "no rejected"),
    NO_CHOSEN: ("chosen empty", "no chosen", "never chosen"),
    EQUAL: ("one rejected is chosen", "only rejected is chosen"),
    "rejected responses equal to another": ("rejected repeated",),
    "rejected responses without text": ("rejected empty",),
    "turns without one utterance": ("asked empty",),
    "dialogues without a comparison": ("never chosen",),
    "users without a dialogue": ("survey only",),
  }
  for reason, traps in expected.items():
    assert tally.dropped[reason] == sum(planted[trap] for trap in traps) > 0
  assert set(tally.dropped) == {*expected, AFTER}
  assert tally.noted[SEVERAL] == planted["both chosen"] + planted["two chosen"]
  assert (
    tally.noted["users without stated preferences"]
    == planted["no stated preferences"]
    > 0
  )
  assert tally.broken == {"user is not in the survey": 1}


def test_loading_is_a_function_of_config_and_files(generated):
  folder, _ = generated
  first, second = (
    loading.load(prism_files.make_config(folder)) for _ in range(2)
  )
  for name in ("train", "heldout", "unseen", "prompts"):
    assert getattr(first, name) == getattr(second, name) != []
  assert str(first.tally) == str(second.tally)


def broken(change):
  record = prism_files.conversation_record("c9", "user0", prism_files.TURNS)
  change(record)
  return record


@pytest.mark.parametrize(
  ("reason", "change"),
  [
    ("missing field", lambda record: record.pop("conversation_id")),
    ("missing field", lambda record: record.pop("user_id")),
    ("missing field", lambda record: record.pop("conversation_history")),
    ("empty id", lambda record: record.update(conversation_id="")),
    (
      "repeated conversation_id",
      lambda record: record.update(conversation_id="c0"),
    ),
    (
      "user is not in the survey",
      lambda record: record.update(user_id="user7"),
    ),
    ("wrong type", lambda record: record.update(user_id=7)),
    (
      "invalid UTF-8",
      lambda record: record["conversation_history"][0].update(content="\ud800"),
    ),
    ("wrong type", lambda record: record.update(conversation_history=None)),
    ("wrong type", lambda record: record["conversation_history"].append("hi")),
    (
      "wrong type",
      lambda record: record["conversation_history"][0].update(content=None),
    ),
    (
      "wrong type",
      lambda record: record["conversation_history"][0].update(turn="0"),
    ),
    (
      "wrong type",
      lambda record: record["conversation_history"][1].update(if_chosen=1),
    ),
    (
      "missing field",
      lambda record: record["conversation_history"][1].pop("if_chosen"),
    ),
    (
      "turn out of range",
      lambda record: record["conversation_history"][0].update(turn=-1),
    ),
    (
      "turn out of range",
      lambda record: record["conversation_history"][0].update(turn=11),
    ),
    (
      "unknown role",
      lambda record: record["conversation_history"][0].update(role="tool"),
    ),
  ],
)
def test_a_broken_dialogue_is_counted_and_too_many_are_an_error(
  tmp_path, reason, change
):
  records = [
    prism_files.conversation_record(f"c{number}", "user0", prism_files.TURNS)
    for number in range(2)
  ]
  survey = [prism_files.survey_record("user0", random.Random(0))]
  prism_files.write_records(tmp_path, survey, [*records, broken(change)])
  config = prism_files.make_config(tmp_path, unseen_users=0.0)
  with pytest.raises(ValueError, match=rf"conversations.jsonl:3: {reason}"):
    loading.load(config)
  config.data.max_bad_share = 0.25
  dataset = loading.load(config)
  assert dataset.tally.broken == {reason: 1}
  assert len(dataset.train) == len(dataset.heldout) == 3


@pytest.mark.parametrize(
  ("reason", "changes"),
  [
    ("wrong type", {"age": 34}),
    ("wrong type", {"religion": "none"}),
    ("wrong type", {"location": {"reside_country": 1}}),
    ("wrong type", {"stated_prefs": {"values": "high"}}),
    ("wrong type", {"stated_prefs": {"values": True}}),
    ("wrong type", {"order_stated_prefs": [1, 2]}),
    ("wrong type", {"self_description": ["I"]}),
    ("wrong type", {"user_id": 5}),
    ("repeated user_id", {"user_id": "user0"}),
  ],
)
def test_a_broken_participant_is_counted(tmp_path, reason, changes):
  rng = random.Random(0)
  survey = [
    prism_files.survey_record("user0", rng),
    prism_files.survey_record("user1", rng) | changes,
  ]
  prism_files.write_dialogues(
    tmp_path, prism_files.one_user(prism_files.TURNS), survey
  )
  config = prism_files.make_config(tmp_path, unseen_users=0.0)
  with pytest.raises(ValueError, match=rf"survey.jsonl:2: {reason}"):
    loading.load(config)
  config.data.max_bad_share = 0.25
  assert loading.load(config).tally.broken == {reason: 1}


def test_malformed_lines_are_counted(tmp_path):
  prism_files.write_dialogues(tmp_path, prism_files.one_user(prism_files.TURNS))
  with (tmp_path / "conversations.jsonl").open("a") as file:
    file.write('{"conversation_id": "c7", \n[1]\n')
  config = prism_files.make_config(tmp_path, unseen_users=0.0)
  config.data.max_bad_share = 0.5
  tally = loading.load(config).tally
  assert tally.broken == {"malformed JSON": 1, "no JSON object": 1}


@pytest.mark.parametrize("name", ["survey.jsonl", "conversations.jsonl"])
def test_a_folder_without_one_of_the_files_is_an_error(tmp_path, name):
  prism_files.write_dialogues(tmp_path, prism_files.one_user(prism_files.TURNS))
  (tmp_path / name).unlink()
  with pytest.raises(ValueError, match=f"has no {name}; give a folder with"):
    loading.load(prism_files.make_config(tmp_path))


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
  with pytest.raises(ValueError, match="there is no file or folder"):
    loading.load(prism_files.make_config(tmp_path / "nowhere"))


def test_a_file_for_a_folder_is_an_error(tmp_path):
  prism_files.write_dialogues(tmp_path, prism_files.one_user(prism_files.TURNS))
  with pytest.raises(ValueError, match="give a folder with PRISM's"):
    loading.load(prism_files.make_config(tmp_path / "survey.jsonl"))


@pytest.mark.parametrize(
  ("dialogues", "counts"),
  [
    ({"c0": ("user0", prism_files.TURNS)}, "0 examples for training and 3"),
    (prism_files.one_user([("q", [("r", False)])]), "training and 0 to"),
  ],
)
def test_no_example_left_is_an_error_with_the_counts(
  tmp_path, dialogues, counts
):
  prism_files.write_dialogues(tmp_path, dialogues)
  with pytest.raises(ValueError, match=f"{counts}.*records"):
    loading.load(prism_files.make_config(tmp_path))


def test_the_hub_is_asked_for_survey_and_conversations(tmp_path, monkeypatch):
  prism_files.write_dialogues(tmp_path, prism_files.one_user(prism_files.TURNS))
  local = loading.load(prism_files.make_config(tmp_path, unseen_users=0.0))
  asked = []

  def load_dataset(path, name, split):
    asked.append((path, name, split))
    rng = random.Random(0)
    if name == "survey":
      return [prism_files.survey_record("user0", rng)]
    return [
      prism_files.conversation_record(each, user, turns)
      for each, (user, turns) in prism_files.one_user(prism_files.TURNS).items()
    ]

  fake = types.SimpleNamespace(load_dataset=load_dataset)
  monkeypatch.setitem(sys.modules, "datasets", fake)
  hub = loading.load(prism_files.make_config("someone/prism", unseen_users=0.0))
  assert asked == [
    ("someone/prism", "survey", "train"),
    ("someone/prism", "conversations", "train"),
  ]
  assert (hub.train, hub.heldout) == (local.train, local.heldout)


def test_prism_is_a_source(tmp_path):
  prism_files.write_dialogues(tmp_path, prism_files.one_user(prism_files.TURNS))
  config = prism_files.make_config(tmp_path, unseen_users=0.0)
  assert loading.load(config).train == loading.load(config).train


def test_written_files_depend_on_users_and_seed_alone(tmp_path):
  contents = []
  for place, seed in enumerate((0, 0, 1)):
    prism_files.write(tmp_path / str(place), users=20, seed=seed)
    contents.append(
      [file.read_bytes() for file in sorted((tmp_path / str(place)).iterdir())]
    )
  assert contents[0] == contents[1]
  assert contents[0][0] != contents[2][0]
