import dataclasses

import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.inference import asking, respond
from pdpo_jax.training import people, policies
from pdpo_jax.training import population as population_lib
from tests import loading, tiny


def make_person(groups, size):
  return people.Person(
    row=np.zeros((2, 3), np.float32),
    groups=np.asarray(groups),
    z=np.zeros((len(groups), size)),
    covariance=np.stack([np.diag(1.0 / np.arange(1, size + 1))] * len(groups)),
    choices=1,
    log_evidence=-1.0,
    iterations=1,
    converged=True,
  )


POPULATION = population_lib.Population(
  means=np.array([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0], [5.0, 5.0, 5.0]]),
  shares=np.array([0.5, 0.3, 0.2]),
  directions=np.array([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0]]),
  generic=np.zeros(3),
  shape=(1, 3),
  users=9,
  shrinkage=0.0,
)


def test_voices_are_of_likely_groups_and_of_where_least_is_known():
  found = asking.voices(make_person([0.5, 0.48, 0.02], 2), POPULATION, 1)
  step = 2 * 0.5**0.5 * 3
  np.testing.assert_allclose(
    np.sort(np.concatenate(found)[:, 1]),
    np.sort([0, step, -step, 9, 9 + step, 9 - step]),
    rtol=1e-5,
  )


def test_pairs_are_of_answers_that_differ(tmp_path, monkeypatch):
  config = tiny.tiny_config(tmp_path)
  config.user.num_tokens = 1
  base = tiny.tiny_base(loading.load(config))
  policy = policies.make_policy(config.recipe, base, 5)
  population = dataclasses.replace(
    POPULATION,
    means=np.zeros((3, 20)),
    directions=np.eye(2, 20),
    generic=np.zeros(20),
    shape=(1, 20),
  )

  def answer(longer, base, prompts, rows, *_):
    # Behind the five of the table, one of the likely group and two beside it.
    assert sorted(rows.values()) == [5, 6, 7]
    assert longer.user_model.num_rows == 8
    words = [["Yes.", "a b"], [" yes. ", "A  b"], ["No", "a b"]]
    return dict(zip(rows, words, strict=True))

  monkeypatch.setattr(respond, "answer", answer)
  pairs = asking.make_candidates(
    policy,
    base,
    make_person([1.0, 0.0, 0.0], 2),
    population,
    [structs.PromptExample("x", "me"), structs.PromptExample("y")],
    config.answers,
    config.data,
    directions=1,
  )
  # All that was said to y reads alike.
  assert [(x.prompt, x.user_text, x.user_id) for x in pairs] == [
    ("x", "me", None)
  ]
  assert {asking.plain(pairs[0].chosen), *pairs[0].rejected} == {"yes.", "No"}


@pytest.mark.parametrize(
  ("long_response", "said", "expected"),
  [
    ("error", ["yes", "no", "long " * 20], {"yes", "no"}),
    ("drop", ["yes", "no", "long " * 20], {"yes", "no"}),
    # There it is learnt from as far as it goes.
    ("cut", ["yes", "yes", "long " * 20], {"yes", "long " * 20}),
    # A byte may be a token, and an end token is one more.
    ("error", ["yes", "\1\2\3\4\5\6\7", "12345678"], {"yes", "\1\2\3\4\5\6\7"}),
    ("error", ["long " * 20, "longer " * 20, "yes"], None),
    ("error", ["long " * 20] * 3, None),
    ("error", ["yes", "Yes ", "yes"], set()),
  ],
)  # fmt: skip
def test_answers_that_are_too_long_to_learn_from_make_no_pair(
  tmp_path, monkeypatch, caplog, long_response, said, expected
):
  config = tiny.tiny_config(tmp_path)
  config.user.num_tokens = 1
  base = tiny.tiny_base(loading.load(config))
  config.data.max_response_tokens = 8
  config.data.long_response = long_response
  config.answers.max_new_tokens, config.answers.min_new_tokens = 64, 20
  settings = []

  def answer(longer, base, prompts, rows, answers, *_):
    settings.append((answers.max_new_tokens, answers.min_new_tokens))
    return dict(zip(rows, ([text] for text in said), strict=True))

  monkeypatch.setattr(respond, "answer", answer)

  def make():
    return asking.make_candidates(
      policies.make_policy(config.recipe, base, 5),
      base,
      make_person([1.0, 0.0, 0.0], 2),
      dataclasses.replace(
        POPULATION,
        means=np.zeros((3, 20)),
        directions=np.eye(2, 20),
        generic=np.zeros(20),
        shape=(1, 20),
      ),
      [structs.PromptExample("x")],
      config.answers,
      config.data,
      directions=1,
    )

  if expected is None:
    with pytest.raises(ValueError, match=r"\d of the model's 3 answers cannot"):
      make()
  else:
    found = {text for x in make() for text in (x.chosen, *x.rejected)}
    assert found == expected
    is_told = "1 of the model's 3 answers" in caplog.text
    assert is_told == (long_response != "cut" and bool(expected))
  # So many tokens, and the one that ends them.
  assert settings == [(7, 7)]
