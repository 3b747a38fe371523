import numpy as np
import pytest

from pdpo_jax.inference import likelihoods, respond, text_health
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import policies
from tests import loading, tiny

BASE = ["Anna sold bikes.", "Bob broke books. Carl hid coins.", "Fay ran.", ""]


def likely(per_token, tokens=8):
  per_token = np.array(per_token)
  return likelihoods.Likelihoods(
    per_token * tokens, np.full(per_token.shape, tokens)
  )


def examine(texts, per_token, tokens=8):
  answers = {"S": BASE, "4": texts}
  scored = {
    "S": likely([-0.3, -0.4, -0.9, -1.0]),
    "4": likely(per_token, tokens),
  }
  return text_health.examine(answers, scored, "S", max_new_tokens=8)["4"]


def test_answers_like_the_bases_are_whole():
  found = examine(BASE, [-0.3, -0.4, -0.9, -1.4])
  assert (found.unlikely, found.repeating, found.broken) == (0, 0, 0)
  assert found.log_likelihood == pytest.approx(-0.75)
  assert found.ended == 1


def test_answers_far_less_likely_than_any_of_the_bases_are_broken():
  found = examine(["f Bob f", "so", "", "no"], [-2.0, -0.5, -9.0, -1.6])
  assert found.unlikely == found.broken == 0.5  # An empty one is not.


def test_answers_that_repeat_as_none_of_the_bases_does_are_broken():
  again = "Nora ruined bags. " * 5
  found = examine([again, "so", "Anna sold bikes. Bob ran.", ""], [-0.3] * 4)
  assert found.repeating == found.broken == 0.25
  assert found.unlikely == 0


def test_a_base_that_repeats_itself_is_the_measure():
  again = "Nora ruined bags. " * 5
  answers = {"S": [again], "4": [again]}
  scored = dict.fromkeys(answers, likely([-0.3]))
  found = text_health.examine(answers, scored, "S", 8)
  assert found["4"].broken == 0


def test_answers_that_were_cut_off_did_not_end():
  assert examine(BASE, [-0.3] * 4, tokens=9).ended == 0


def test_an_answer_without_a_likelihood_is_not_unlikely():
  found = examine(["so"] * 4, [np.nan, -0.5, -0.5, -0.5])
  assert found.broken == 0
  assert found.log_likelihood == pytest.approx(-0.5)


def test_a_base_without_any_likelihood_says_nothing_of_others():
  nothing = likelihoods.Likelihoods(np.array([np.nan]), np.array([0]))
  answers, scored = {"S": ["a"], "4": ["b"]}, {"S": nothing, "4": nothing}
  found = text_health.examine(answers, scored, "S", 8)["4"]
  assert (found.unlikely, found.broken) == (0, 0)


def health(broken, ended=1.0):
  return text_health.Health(-1.0, ended, broken, 0.0, broken, 0.0, 0.0)


def test_whose_text_is_broken_is_said_the_worst_first():
  found = {
    "S": health(0.0),
    "G": health(0.2),
    "4": health(0.9),
    "5": health(0.05),
  }
  text = text_health.sentence(found, {"G": "the generic user"}, "S")
  assert text.startswith("Text is broken, whatever accuracy says")
  assert "as user 4 (90%), the generic user (20%), so many" in text
  assert "user 5" not in text


def test_of_many_whose_text_is_broken_the_others_are_counted():
  found = {str(number): health(0.5) for number in range(9)}
  found["S"] = health(0.0)
  assert "and 6 more" in text_health.sentence(found, {}, "S")


def test_answers_that_do_not_end_are_broken_where_the_bases_do():
  found = {"S": health(0.0), "4": health(0.05, ended=0.2)}
  assert "user 4 (80%)" in text_health.sentence(found, {}, "S")
  found["S"] = health(0.0, ended=0.4)
  assert text_health.sentence(found, {}, "S") == ""


def test_of_whole_text_nothing_is_said():
  found = {"S": health(0.0), "4": health(0.1)}
  assert text_health.sentence(found, {}, "S") == ""


@pytest.mark.parametrize(
  "text,share",
  [("", 0.0), ("a b", 0.0), ("a b c d", 0.0), ("a b c a b c", 0.25)],
)
def test_repetition_is_the_share_of_3_grams_seen_before(text, share):
  assert text_health.repetition(text) == share


@pytest.mark.parametrize(
  "again",
  [
    "ノラはバッグを壊した。",
    "他卖了自行车。",
    "แม่ขายจักรยาน",
    "no",
    "a",
    "Nora ruined bags. ",
  ],
)
def test_a_text_that_repeats_itself_does_so_in_any_script(again):
  assert text_health.repetition(again * 30) > 0.9


@pytest.mark.parametrize(
  "text",
  [
    "ノラは昨日バッグを壊してしまったので新しい物を買いに行った。",
    "Donaudampfschifffahrtsgesellschaftskapitän",
    "https://example.org/a/page?name=value&other=thing",
    "Anna sold bikes. Bob broke books. Carl hid coins.",
  ],
)
def test_a_text_that_does_not_repeat_itself_is_not_said_to(text):
  assert text_health.repetition(text) < 0.1


def test_a_watch_finds_what_the_same_answers_would_show_at_the_end(tmp_path):
  config = tiny.tiny_config(tmp_path)
  config.answers.max_new_tokens = 6
  config.user.init_std = 1.0
  dataset = loading.load(config)
  base, prompts = tiny.tiny_base(dataset), dataset.prompts
  policy = policies.make_policy(config.recipe, base, num_rows=9)
  rows = {"G": 0} | {str(row): row for row in range(1, 9)}

  def answer(policy, rows):
    return respond.answer(
      policy, base, prompts, rows, config.answers, config.data, config.seed
    )

  own = answer(policy_lib.base_policy(base.lm), {"S": 0})
  watch = text_health.Watch(
    base, prompts, rows, own["S"], config.answers, config.data, config.seed
  )
  found = watch(policy)
  few = {name: rows[name] for name in ("G", "1", "5", "8")}
  answered = answer(policy.merge(), few)
  likely = likelihoods.under_base(base, prompts, own | answered, config.data)
  health = text_health.examine(own | answered, likely, "S", 6)
  for name in ("ended", "broken", "repetition", "empty"):
    mean = np.mean([getattr(health[speaker], name) for speaker in few])
    assert found[name] == pytest.approx(mean)
  joined = likelihoods.Likelihoods.joined(likely[name] for name in few)
  assert found["log_likelihood"] == pytest.approx(joined.mean, rel=1e-5)
  assert found["base_log_likelihood"] == pytest.approx(
    likely["S"].mean, rel=1e-5
  )
  assert found["base_ended"] == health["S"].ended
