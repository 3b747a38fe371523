import pytest

from pdpo_jax.training import diagnosis

TEXT = {
  "text_log_likelihood": -0.22,
  "text_repetition": 0.17,
  "text_ended": 1.0,
  "text_broken": 0.0625,
  "text_base_log_likelihood": -0.17,
  "text_base_repetition": 0.07,
  "text_base_ended": 1.0,
}


@pytest.mark.parametrize("prefix", ["", "heldout_"])
def test_chosen_responses_that_become_unlikely_are_warned_of(prefix):
  name = f"{prefix}chosen_per_token"
  assert diagnosis.problems({name: -0.01}) == {}
  found = diagnosis.problems({name: -0.2})
  assert "0.20 nats a token less likely" in found["unlikely"]


def test_each_problem_is_warned_of_once(caplog):
  noticed = diagnosis.Diagnosis("pdpo")
  for step in (10, 20):
    assert noticed.notice(step, {"chosen_per_token": -0.5}) == ""
  (record,) = caplog.records
  assert record.getMessage().startswith("pdpo, step 10: chosen responses are")


def test_what_text_is_like_is_a_line():
  assert diagnosis.Diagnosis("pdpo").notice(21, TEXT) == (
    "pdpo, step 21: text -0.22 nats a token under the base (its own -0.17), "
    "repeated 3-grams 17% (7%), ended 100% (100%), broken 6%"
  )
