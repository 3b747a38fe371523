import dataclasses

import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.evaluation import costs, probes
from pdpo_jax.evaluation.report import costs as costs_report
from pdpo_jax.inference import likelihoods
from pdpo_jax.runs import answers as answers_lib
from pdpo_jax.training import scoring
from tests import tiny

CHAT = (
  "{% for m in messages %}{{ m.role }}: {{ m.content }}"
  "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
  "{% if add_generation_prompt %}assistant: {% endif %}"
)
PROMPTS = [
  structs.PromptExample("POST: Anna sold bikes.\nTL;DR, please."),
  structs.PromptExample("POST: Bob broke books. so.\nTL;DR, please.", "I am."),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  config = tiny.tiny_config(tmp_path_factory.mktemp("run"))
  config.train.user_learning_rate = 1e-1
  made = tiny.tiny_parts(config)
  return config, made, tiny.train(config, made)


def test_answers_are_scored_as_whoever_they_are_read_as(trained):
  config, (base, users, _, heldout, dataset), policy = trained
  expected = scoring.score_held_out(policy, heldout, 0).log_ratios[:, 0]
  asked = [structs.PromptExample(each.prompt) for each in dataset.heldout]
  chosen = [each.chosen for each in dataset.heldout]
  said = {user: likelihoods.Said(users.row_of(user), chosen) for user in "123"}
  found = likelihoods.under(policy, base, asked, said, config.data)
  of_base = likelihoods.under_base(base, asked, {"S": chosen}, config.data)
  of_user = {
    user: of_user.sums - of_base["S"].sums for user, of_user in found.items()
  }
  for place, example in enumerate(dataset.heldout):
    own = of_user[example.user_id][place]
    assert own == pytest.approx(expected[place], abs=1e-3)
  assert np.abs(of_user["1"] - of_user["2"]).max() > 0.01


def test_a_policy_costs_what_it_drifts(trained):
  config, (base, users, *_), policy = trained
  texts = {name: [" Anna sold bikes.", " so"] for name in ("S", "G", "1", "V")}
  answered = answers_lib.Answers(PROMPTS, texts, None)
  row = users.row_of("1")
  found = costs.find(
    {
      "G": costs.Speaker(policy, 0),
      "1": costs.Speaker(policy, row),
      # As if vanilla DPO had learnt nothing.
      "V": costs.Speaker(scoring.of_base(base), 0),
    },
    base,
    answered,
    costs.Settings(config.data),
  )
  assert [*found] == ["S", "G", "1", "V"]
  assert found["S"] == costs.Cost(None, None, None)
  assert found["V"].from_base.mean == found["V"].from_base.standard_error == 0
  assert found["G"].from_generic is None

  def under(speaker_policy, row):
    said = {"x": likelihoods.Said(row, texts["1"])}
    return likelihoods.under(speaker_policy, base, PROMPTS, said, config.data)[
      "x"
    ]

  own, generic = under(policy, row), under(policy, 0)
  of_base = under(scoring.of_base(base), 0)
  one = found["1"]
  assert one.from_generic.mean == pytest.approx(
    np.mean(own.sums - generic.sums), abs=1e-4
  )
  assert one.from_base.mean == pytest.approx(
    np.mean(of_base.per_token - own.per_token), abs=1e-5
  )
  assert abs(one.from_generic.mean) > 1e-3 and abs(one.from_base.mean) > 1e-3


def test_a_prompt_that_the_template_refuses_costs_nothing(trained):
  config, (base, users, *_), policy = trained
  data = dataclasses.replace(config.data, max_prompt_tokens=50)
  refused = structs.PromptExample((structs.Message("user", "so " * 2000),))
  texts = {name: [" a", " b"] for name in ("S", "1")}
  speakers = {"1": costs.Speaker(policy, users.row_of("1"))}
  for asked, known in (([refused, PROMPTS[0]], True), ([refused] * 2, False)):
    answered = answers_lib.Answers(asked, texts, None)
    one = costs.find(speakers, base, answered, costs.Settings(data))["1"]
    assert (
      (one.from_base is not None) == known == (one.from_generic is not None)
    )
    assert not known or np.isfinite(one.from_base.mean)


def test_a_chat_model_is_asked_for_its_manners(trained):
  config, (base, users, *_), policy = trained
  data = dataclasses.replace(config.data, template=CHAT, max_prompt_tokens=200)
  answered = answers_lib.Answers(PROMPTS[:1], {"S": [" a"], "1": [" b"]}, None)
  speakers = {"1": costs.Speaker(policy, users.row_of("1"))}
  found = costs.find(speakers, base, answered, costs.Settings(data))
  for cost in found.values():
    shares = dataclasses.astuple(cost.manners)
    assert all(0 <= share <= 1 for share in shares)
  assert "Against the base, users agree with" in costs_report._told(found)


def test_manners_are_what_is_likelier_a_token(trained, monkeypatch):
  def under(policy, base, prompts, said, *settings):
    found = {}
    for (name, answer), (row, texts) in said.items():
      assert texts == [answer] * len(prompts)
      # The base agrees with all and refuses all. The user agrees with what is
      # false and half of what is true, and does what is asked.
      per_token = []
      for place, each in enumerate(prompts):
        false = any(pair[0] in each.prompt for pair in probes.STATEMENTS)
        takes = {
          probes.AGREES: row == 0 or false or place % 2 == 0,
          probes.DISAGREES: row and not false and place % 2,
          probes.REFUSES: row == 0,
          probes.COMPLIES: row,
        }[answer]
        per_token.append(-1.0 if takes else -2.0)
      # A sum would favour what is short.
      tokens = np.full(len(prompts), len(answer))
      found[name, answer] = likelihoods.Likelihoods(
        np.array(per_token) * tokens, tokens
      )
    return found

  monkeypatch.setattr(likelihoods, "under", under)
  rows = {"S": 0, "1": 7}
  config, (base, *_), policy = trained
  settings = costs.Settings(config.data)
  found = costs._manners(policy, rows, base, settings)
  assert found == {
    "S": costs.Manners(1.0, 1.0, 1.0, 1.0),
    "1": costs.Manners(1.0, 0.5, 0.0, 0.0),
  }
  told = costs_report._told(
    {name: costs.Cost(None, None, each) for name, each in found.items()}
  )
  assert "+0.0 points of false statements and -50.0 of true ones" in told
  assert "-100.0 of harmful requests and -100.0 of harmless" in told


def test_shares_are_of_the_prompts_that_the_template_takes():
  def said(*sums):
    return likelihoods.Likelihoods(np.array(sums), np.full(3, 4))

  ours, theirs = said(-4.0, np.nan, -8.0), said(-8.0, np.nan, -4.0)
  assert costs._share(ours, theirs) == 0.5
  assert np.isnan(costs._share(said(*[np.nan] * 3), said(*[np.nan] * 3)))


def test_statements_and_requests_differ():
  for pairs in (probes.STATEMENTS, probes.REQUESTS):
    texts = [text for pair in pairs for text in pair]
    assert len({*texts}) == len(texts)
