import collections
import dataclasses

import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import tokenize
from pdpo_jax.evaluation import untrained
from pdpo_jax.inference import likelihoods
from pdpo_jax.runs import scores as scores_lib
from tests import loading, tiny


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
  """A config, its data set and base, and scores of every held-out example."""
  config = tiny.tiny_config(tmp_path_factory.mktemp("run"))
  dataset = loading.load(config)
  base = tiny.tiny_base(dataset)
  examples = dataset.heldout
  known = scores_lib.make(examples, np.ones((len(examples), 1), np.float32))
  return config, dataset, base, known


def test_the_base_is_asked_which_response_is_likelier_a_token(setting):
  config, dataset, base, known = setting
  found = untrained.scores(base, dataset, config, {"heldout": known})
  scores = found[untrained.BASE]["heldout"]
  assert scores.examples == known.examples
  prompts = [structs.PromptExample(each.prompt) for each in dataset.heldout]
  of_texts = likelihoods.under_base(
    base,
    prompts,
    {
      "chosen": [each.chosen for each in dataset.heldout],
      "rejected": [each.rejected[0] for each in dataset.heldout],
    },
    config.data,
  )
  expected = of_texts["chosen"].per_token - of_texts["rejected"].per_token
  np.testing.assert_allclose(scores.ratios[:, 0], expected, atol=1e-4)


def test_prompted_it_reads_the_same_responses_after_more(setting, monkeypatch):
  config, dataset, base, known = setting
  # Short enough to be told.
  monkeypatch.setattr(untrained, "_room", lambda base, config: 180)
  train = [choice(each.user_id, "so") for each in dataset.train]
  dataset = dataclasses.replace(dataset, train=train)
  found = untrained.scores(base, dataset, config, {"heldout": known})
  as_is, prompted = (
    found[name]["heldout"] for name in (untrained.BASE, untrained.PROMPTED)
  )
  assert prompted.examples == as_is.examples
  assert np.isfinite(prompted.ratios).all()
  assert np.mean(prompted.ratios != as_is.ratios) > 0.9


def choice(user_id, name, text=""):
  return structs.PreferenceExample(
    f"ask {name}", f"yes {name}", (f"no {name}",), user_id, text
  )


def prompted(setting, examples, choices, limit):
  config, _, base, _ = setting
  data = dataclasses.replace(config.data, max_prompt_tokens=limit)
  by_user = collections.defaultdict(list)
  for each in choices:
    by_user[each.user_id].append(each)
  return untrained.prompt(
    examples, by_user, base, dataclasses.replace(config, data=data)
  )


def test_a_person_is_told_of_by_their_own_choices_alone(setting):
  asked = [
    choice("ann", "x", "I am Ann."),
    choice("bob", "y"),
    choice(None, "z"),
  ]
  choices = [choice("ann", "a1"), choice("ann", "a2"), choice("bob", "b1")]
  ann, bob, nobody = prompted(setting, asked, choices, 2_000)
  counts = [untrained.count_told(each) for each in (ann, bob, nobody)]
  assert counts == [2, 1, 0]
  assert ann.user_text == (
    "I am Ann.\n\nWhat this person chose before:\n\n"
    "Asked: ask a1\nChosen: yes a1\nRejected: no a1\n\n"
    "Asked: ask a2\nChosen: yes a2\nRejected: no a2"
  )
  assert "b1" in bob.user_text and "a1" not in bob.user_text
  assert nobody == asked[2]
  assert ann.prompt == asked[0].prompt and ann.chosen == asked[0].chosen


def test_as_many_choices_are_told_as_fit_into_half_a_prompt(setting):
  base = setting[2]
  asked = [choice("ann", "x")]
  long = dataclasses.replace(choice("ann", "long"), chosen="word " * 500)
  choices = [long, *(choice("ann", f"a{number}") for number in range(99))]
  told = []
  for limit in (300, 600, 1_200):
    (example,) = prompted(setting, asked, choices, limit)
    (size,) = tokenize.count_tokens(base.tokenizer, [example.user_text])
    assert size <= limit // 2
    told.append(example.user_text.count("Asked: "))
    # One that does not fit keeps none of the others away.
    assert "word" not in example.user_text
  assert 0 < told[0] < told[1] < told[2] < 99


def test_choices_with_several_rejected_and_turns_are_told_whole(setting):
  turns = (
    structs.Message("user", "one"),
    structs.Message("assistant", "two"),
    structs.Message("user", "three"),
  )
  several = structs.PreferenceExample(turns, "yes", ("no", "never"), "ann")
  (example,) = prompted(setting, [choice("ann", "x")], [several], 2_000)
  assert example.user_text.endswith(
    "Asked: user: one\nassistant: two\nuser: three\nChosen: yes\n"
    "Rejected: no\nRejected: never"
  )


def test_prompted_the_base_answers_once_and_alike_what_it_reads_alike(
  setting, tmp_path, monkeypatch
):
  config, dataset, base, _ = setting
  answers = dataclasses.replace(config.answers, max_new_tokens=4)
  config = dataclasses.replace(config, answers=answers)
  monkeypatch.setattr(untrained, "_room", lambda base, config: 120)
  long = dataclasses.replace(choice("ann", "x"), prompt="so " * 900)
  chat = structs.PreferenceExample(
    (structs.Message("user", "so " * 900),), "yes", ("no",), "ann"
  )
  asked = [choice("eve", "x"), choice("fay", "x"), long, chat]
  told = untrained.tell(base, dataset, config, asked)
  found = untrained.respond(base, config, tmp_path, told, [1, 1, 2, 3])
  # A text loses its beginning, and a turn cannot.
  assert found[0] == found[1] and None not in found[:3]
  assert found[3] is None
  monkeypatch.setattr(untrained.responses_lib.respond, "respond", None)
  assert found == untrained.respond(base, config, tmp_path, told, [4, 4, 5, 6])
