import pytest

from pdpo_jax.training import diagnosis

TEXT = {
  "text_log_likelihood": -0.22,
  "text_repetition": 0.17,
  "text_ended": 1.0,
  "text_empty": 0.25,
  "text_broken": 0.0625,
  "text_base_log_likelihood": -0.17,
  "text_base_repetition": 0.07,
  "text_base_ended": 1.0,
  "text_base_empty": 0.14,
}


@pytest.mark.parametrize("prefix", ["", "heldout_"])
def test_chosen_responses_that_become_unlikely_are_warned_of(prefix):
  name = f"{prefix}chosen_per_token"
  assert diagnosis.problems({name: -0.01}, before={name: 0.0}) == {}
  for before in (0.0, -0.2):
    found = diagnosis.problems({name: -0.2}, before={name: before})
    assert "0.20 nats a token less likely" in found["unlikely"]


@pytest.mark.parametrize(
  ("changes", "warned_at"),
  [
    # New prefixes, as real trainings have them in their first steps.
    ([-0.118, -0.018, -0.012], None),
    ([-0.5, -0.3, -0.2, -0.11, -0.05], None),
    ([-0.5, -0.3, -0.31], 2),
    ([-0.05, -0.15, -0.2], 1),
    ([-0.2, -0.2], 1),
  ],
)
def test_what_is_on_its_way_up_is_not_warned_of(caplog, changes, warned_at):
  noticed = diagnosis.Diagnosis("pdpo")
  for step, change in enumerate(changes):
    noticed.notice(step, {"chosen_per_token": change})
    noticed.notice(step, {"other": 0.0})
  warned = [record.args[1] for record in caplog.records]
  assert warned == ([] if warned_at is None else [warned_at])


def test_each_problem_is_warned_of_once(caplog):
  noticed = diagnosis.Diagnosis("pdpo")
  for step in (10, 20, 30):
    assert noticed.notice(step, {"chosen_per_token": -0.5}) == ""
  (record,) = caplog.records
  assert record.getMessage().startswith("pdpo, step 20: chosen responses are")


def test_what_text_is_like_is_a_line():
  assert diagnosis.Diagnosis("pdpo").notice(21, TEXT) == (
    "pdpo, step 21: text -0.22 nats a token under the base (its own -0.17), "
    "repeated 3-grams 17% (7%), ended 100% (100%), empty 25% (14%), broken 6%"
  )


@pytest.mark.parametrize(
  ("changes", "warned"),
  [
    ({}, False),
    ({"text_broken": 0.3125}, True),
    ({"text_ended": 0.4}, True),
    ({"text_empty": 0.75}, True),
    # A base that is cut off itself says nothing of who is.
    ({"text_ended": 0.0, "text_base_ended": 0.3}, False),
  ],
)
def test_answers_that_are_broken_or_do_not_end_are_warned_of(changes, warned):
  found = diagnosis.problems(TEXT | changes)
  assert ("text" in found) == warned


@pytest.mark.parametrize(
  ("held_out", "pairs", "learnt", "warned"),
  [
    (0.1, 100, 0.9, True),
    # What begins as it happens to begin is wrong of both.
    (0.1, 100, 0.2, False),
    (0.45, 100, 0.9, False),
    # As many by chance.
    (0.3, 10, 0.9, False),
  ],
)
def test_held_out_choices_that_contradict_those_learnt_are_warned_of(
  caplog, held_out, pairs, learnt, warned
):
  noticed = diagnosis.Diagnosis("pdpo")
  noticed.notice(10, {"reward_accuracy": learnt})
  noticed.notice(
    12, {"heldout_reward_accuracy": held_out, "heldout_pairs": pairs}
  )
  assert ("the opposite of what is learnt" in caplog.text) == warned
