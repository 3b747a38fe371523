import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.inference import likelihoods
from pdpo_jax.training import scoring
from tests import loading, tiny


@pytest.fixture(scope="module")
def base_and_config(tmp_path_factory):
  config = tiny.tiny_config(tmp_path_factory.mktemp("run"))
  return tiny.tiny_base(loading.load(config)), config


def test_likelihoods_are_those_of_each_answer_scored_alone(base_and_config):
  base, config = base_and_config
  prompts = [
    structs.PromptExample("POST: Anna sold bikes.\nTL;DR, please."),
    structs.PromptExample(
      "POST: Bob broke books. so.\nTL;DR, please.", "I am."
    ),
  ]
  # More speakers than are scored together, and one who says nothing.
  answers = {
    str(number): [" Anna" * number, " Bob broke books." * (10 - number)]
    for number in range(11)
  }
  found = likelihoods.under_base(base, prompts, answers, config.data)
  assert [*found] == [*answers]
  for speaker in ("0", "3", "9", "10"):
    alone = likelihoods.under_base(
      base, prompts, {speaker: answers[speaker]}, config.data
    )[speaker]
    np.testing.assert_allclose(found[speaker].sums, alone.sums, rtol=1e-5)
    np.testing.assert_array_equal(found[speaker].tokens, alone.tokens)
  assert found["0"].tokens[0] == 1  # the end
  assert found["10"].tokens[1] == 1


def test_a_likelihood_is_the_sum_over_its_tokens(base_and_config):
  base, config = base_and_config
  prompt, text = "POST: Anna sold bikes.", " so"
  (found,) = likelihoods.under_base(
    base, [structs.PromptExample(prompt)], {"S": [text]}, config.data
  ).values()
  ids = base.tokenizer(prompt)["input_ids"]
  answer = [*base.tokenizer(text)["input_ids"], base.tokenizer.eos_token_id]
  whole = np.array([[*ids, *answer]])
  policy = scoring.of_base(base).merge()
  tokens = jnp.asarray(whole, jnp.int32)
  hidden = policy.response_hidden(
    tokens[:, :1],
    jnp.ones((1, 1), bool),
    tokens[:, None, 1:],
    jnp.ones((1, 1, whole.shape[1] - 1), bool),
    jnp.zeros((1, 0, base.lm.arch.width)),
  )
  logits = np.asarray(base.lm.logits(hidden[0, 0]), np.float64)
  logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = [logps[place, token] for place, token in enumerate(whole[0, 1:])]
  np.testing.assert_allclose(
    found.sums, [sum(expected[-len(answer) :])], rtol=1e-4
  )
  assert found.tokens == [len(answer)]
  assert found.mean == pytest.approx(found.sums[0] / len(answer))


def test_an_answer_that_the_template_refuses_has_no_likelihood(
  base_and_config,
):
  base, config = base_and_config
  long = structs.PromptExample((structs.Message("user", "so " * 2000),))
  config.data.max_prompt_tokens = 50
  short = structs.PromptExample("so?")
  (found,) = likelihoods.under_base(
    base, [long, short], {"S": [" a", " b"]}, config.data
  ).values()
  assert np.isnan(found.sums[0]) and found.tokens[0] == 0
  assert found.mean == found.sums[1] / found.tokens[1]
