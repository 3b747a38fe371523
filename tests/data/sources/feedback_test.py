"""Rankings, and thumbs up and down, in people's files."""

import json

import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import comparisons, config, records, splits
from pdpo_jax.data.sources import preference_files, thumbs

RANKED = {"prompt": "a?", "ranking": ["x", "y", "z"], "user_id": "u"}
THUMB = {"prompt": "a?", "response": "x", "label": True, "user_id": "u"}


def write(file, *lines):
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return file


def read(file, tally=None):
  return preference_files.read(str(file), "user_id", tally or records.Tally())


def one(tmp_path, record):
  """What a file of one record says; the reason where it is broken."""
  tally = records.Tally()
  found = read(write(tmp_path / "a.jsonl", record), tally)
  return found or next(iter(tally.broken or tally.dropped))


def comparison(chosen, *rejected, user_id="u"):
  return structs.PreferenceExample("a?", chosen, rejected, user_id)


def test_a_ranking_is_the_best_one_and_then_the_best_of_the_rest(tmp_path):
  assert one(tmp_path, RANKED) == [
    comparison("x", "y", "z"),
    comparison("y", "z"),
  ]
  two = {**RANKED, "ranking": ["x", "y"]}
  assert one(tmp_path, two) == [comparison("x", "y")]


def test_responses_of_one_rank_are_not_compared(tmp_path):
  tied = {**RANKED, "ranking": ["w", ["x", "y"], ["z"]]}
  assert one(tmp_path, tied) == [
    comparison("w", "x", "y", "z"),
    comparison("x", "z"),
    comparison("y", "z"),
  ]


def test_ranked_responses_may_be_messages_and_whole_dialogues(tmp_path):
  def reply(text):
    return {"role": "assistant", "content": text}

  asked = {"role": "user", "content": "a?"}
  expected = [("x", ("y",))]
  for ranking in (
    [reply("x"), reply("y")],
    [[reply("x")], [reply("y")]],
    [[asked, reply("x")], [asked, reply("y")]],
  ):
    found = one(tmp_path, {"ranking": ranking, "prompt": [asked]})
    assert [(x.chosen, x.rejected) for x in found] == expected
  # The last one says its prompt itself.
  found = one(tmp_path, {"ranking": ranking, "user_id": "u"})
  assert found[0].prompt == (structs.Message("user", "a?"),)


@pytest.mark.parametrize(
  "ranking, reason",
  [
    ([], "less than two ranks"),
    (["x"], "less than two ranks"),
    ([["x", "y"]], "less than two ranks"),
    (["x", []], "empty rank"),
    ("x > y", "no list"),
    ({"x": 1, "y": 2}, "no list"),
    (["x", 7], "neither text nor messages"),
    (["x", None], "neither text nor messages"),
    (["x", " "], "empty response"),
    (["x", "x "], "equal responses"),
  ],
)
def test_what_ranks_nothing_is_broken_or_dropped(tmp_path, ranking, reason):
  assert reason in one(tmp_path, {**RANKED, "ranking": ranking})


def test_a_response_keeps_the_best_of_its_ranks(tmp_path):
  tally = records.Tally()
  record = {**RANKED, "ranking": ["x", "y", "x", "z", "y"]}
  found = read(write(tmp_path / "a.jsonl", record), tally)
  assert found == [comparison("x", "y", "z"), comparison("y", "z")]
  assert tally.noted["rejected responses equal to the chosen one"] == 1
  assert tally.noted["rejected responses equal to another"] == 1


def test_a_table_writes_rankings_and_labels_as_text(tmp_path):
  file = tmp_path / "a.csv"
  file.write_text(
    "prompt,ranking,response,label,user_id\n"
    "a?,\"['x', 'y']\",,,u\n"
    "a?,,x,1.0,u\n"
    "a?,,y,0.0,u\n"
  )
  assert read(file) == [
    comparison("x", "y"),
    structs.Thumb("a?", "x", True, "u"),
    structs.Thumb("a?", "y", False, "u"),
  ]


@pytest.mark.parametrize(
  "label, is_up",
  [
    *(
      (x, True)
      for x in (
        True,
        1,
        1.0,
        "up",
        "True",
        " Like ",
        "1",
        "👍",
        "👍🏽",
        "👍️",
        "Thumbs-Up",
        "+1",
      )
    ),
    *((x, False) for x in (False, 0, -1, "down", "no", "-1", "👎")),
  ],
)
def test_labels_say_up_or_down(tmp_path, label, is_up):
  found = one(tmp_path, {**THUMB, "label": label})
  assert found == [structs.Thumb("a?", "x", is_up, "u")]


@pytest.mark.parametrize("label", [5, 0.5, 10**400, "maybe", "", [], None])
def test_labels_that_say_neither_are_broken(tmp_path, label):
  assert "label" in one(tmp_path, {**THUMB, "label": label})


def test_nought_beside_minus_one_is_neither(tmp_path):
  lines = [{**THUMB, "label": label} for label in (1, -1, 0)]
  tally = records.Tally()
  assert len(read(write(tmp_path / "a.jsonl", *lines), tally)) == 2
  assert tally.broken["label 0 beside -1"] == 1


def test_a_comparison_goes_before_other_columns_of_the_same_record(tmp_path):
  tally = records.Tally()
  record = {**THUMB, "chosen": "x", "rejected": "y"}
  file = write(tmp_path / "a.jsonl", record, RANKED, THUMB)
  found = read(file, tally)
  assert found[0] == comparison("x", "y")
  assert isinstance(found[-1], structs.Thumb) and len(found) == 4
  assert "beside 'chosen'): 'response', 'label'" in str(tally)


@pytest.mark.parametrize(
  "record, missing",
  [
    ({"prompt": "a?"}, "'chosen' and no 'rejected'"),
    ({"prompt": "a?", "chosen": "x"}, "'rejected'"),
    ({"prompt": "a?", "response": "x"}, "'label'"),
    ({"prompt": "a?", "label": True}, "'response'"),
  ],
)
def test_what_a_file_lacks_is_named(tmp_path, record, missing):
  file = write(tmp_path / "a.jsonl", record)
  with pytest.raises(ValueError, match=f"has no {missing}; .*'ranking'"):
    read(file)


def thumb(response, is_up, user_id="u", prompt="a?"):
  return structs.Thumb(prompt, response, is_up, user_id)


def test_opposite_thumbs_of_a_user_at_one_prompt_are_comparisons():
  tally = records.Tally()
  found = thumbs.as_comparisons(
    [
      thumb("x", True),
      thumb("y", False),
      comparison("p", "q"),
      thumb("z", True),
      thumb("v", False, user_id="w"),
      thumb("w", True, prompt="b?"),
      thumb("x", True, user_id=None),
      thumb("y", False, user_id=None),
      # Changed their mind.
      thumb("r", True, user_id="w"),
      thumb("r", False, user_id="w"),
    ],
    tally,
  )
  assert found == [
    comparison("x", "y"),
    comparison("z", "y"),
    comparison("p", "q"),
  ]
  assert tally.noted.total() == 3 and tally.dropped.total() == 6


def test_a_training_says_what_thumbs_alone_are_good_for(tmp_path):
  file = write(tmp_path / "a.jsonl", *[THUMB] * 3)
  data = config.DataConfig(source="files", path=str(file))
  with pytest.raises(ValueError, match=r"3 thumbs without .*users learn"):
    preference_files.load(data, 0, 1)


def test_comparisons_of_a_ranking_stay_on_one_side(tmp_path):
  lines = [
    {**RANKED, "prompt": f"{n}?", "ranking": ["w", "x", "y", "z"]}
    for n in range(8)
  ]
  # Somebody else ranks the same in another order.
  lines += [{**x, "ranking": x["ranking"][::-1], "user_id": "v"} for x in lines]
  examples = read(write(tmp_path / "a.jsonl", *lines))
  train, heldout = splits.split(examples, 0.3, 0)
  assert heldout and len(train) + len(heldout) == 16 * 3
  assert {x.prompt for x in train}.isdisjoint(x.prompt for x in heldout)
  assert splits.without_common(train, train, records.Tally()) == []


@pytest.mark.parametrize(
  "feedback",
  [comparison("x", "y", "z"), thumb("x", True), thumb(" x\n", False)],
)
def test_feedback_is_read_as_it_was_written(feedback):
  assert comparisons.from_json(comparisons.to_json(feedback), "u") == feedback
