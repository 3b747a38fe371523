import dataclasses

import numpy as np
import pytest

from pdpo_jax import main
from pdpo_jax.data import sources, tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.runs import experiment
from pdpo_jax.weights import base as base_lib
from tests import loading, tiny


def test_what_is_wrong_shows_before_there_is_a_run_folder(tmp_path):
  config = tiny.tiny_config(tmp_path / "run")
  config.mesh.data = 3
  with pytest.raises(ValueError, match="make 3 devices, and there are 1"):
    main.train_and_answer(config)
  assert not (tmp_path / "run").exists()


def test_examples_that_are_longer_than_the_base_are_an_error(tmp_path):
  config = tiny.tiny_config(tmp_path)
  base, users, _, _, dataset = tiny.tiny_parts(config)
  data = tokenized.tokenize_dataset(
    dataset, config.data, base.tokenizer, users=users
  )
  experiment.check_lengths(config, base.lm.arch, data)
  longest = max(
    3 + len(row.prompt) + len(response)
    for split in data.splits.values()
    for row in split.tokenized
    for response in row.responses
  )
  arch = dataclasses.replace(base.lm.arch, max_positions=longest)
  base.lm.arch = arch
  experiment.check_lengths(config, base.lm.arch, data)
  base.lm.arch = dataclasses.replace(arch, max_positions=longest - 1)
  with pytest.raises(
    ValueError, match=f"have {longest} tokens.*has {longest - 1}"
  ):
    experiment.check_lengths(config, base.lm.arch, data)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("data.max_response_tokens", 1, "no training example|none of"),
    ("data.max_response_tokens", 1000, "the base has 256 positions"),
    ("answers.max_new_tokens", 1000, "the base has 256"),
    ("answers.users", ("nobody",), "user id 'nobody' is none of"),
    ("user.num_tokens", 300, "the base has 256 positions"),
    ("lora.targets", ("q_prj",), "q_prj"),
  ],
)
def test_what_needs_no_weights_is_checked_before_they_are_read(
  tmp_path, monkeypatch, field, value, message
):
  config = tiny.tiny_config(tmp_path / "run")
  config.data.long_response = "drop"
  config.data.max_prompt_tokens = 200
  dataset = loading.load(config)
  base_lib.write_base(tmp_path / "base", tiny.tiny_base(dataset))
  config.base.path = str(tmp_path / "base")
  owner, name = field.split(".")
  if value == 1000 and owner == "data":
    long = [
      dataclasses.replace(each, chosen="so? " * 200) for each in dataset.train
    ]
    dataset = dataclasses.replace(dataset, train=long)
    monkeypatch.setattr(sources, "load", lambda *_, **others: dataset)
  setattr(getattr(config, owner), name, value)
  monkeypatch.setattr(experiment.run_lib, "read_base", None)
  with pytest.raises(ValueError, match=message):
    main.train_and_answer(config)


def with_strangers(config):
  """Three users, and two who are not trained on."""
  dataset = loading.load(config)
  unseen = [
    dataclasses.replace(each, user_id=f"stranger{number % 2}")
    for number, each in enumerate(dataset.heldout)
  ]
  return dataclasses.replace(dataset, unseen=unseen)


@pytest.mark.parametrize("in_table", [False, True])
def test_an_unseen_user_is_the_generic_one_whatever_the_table(
  tmp_path, in_table
):
  config = tiny.tiny_config(tmp_path)
  config.data.unseen_in_table = in_table
  dataset = with_strangers(config)
  base = tiny.tiny_base(dataset)
  users = users_lib.UserIndex.of_dataset(dataset, config.data)
  assert users.ids == ("1", "2", "3")
  assert users.num_rows == (6 if in_table else 4)
  # One who is among the unseen by mistake has a row already.
  twice = dataclasses.replace(
    dataset, unseen=[*dataset.unseen, dataset.train[0]]
  )
  again = users_lib.UserIndex.of_dataset(twice, config.data)
  assert again.num_rows == users.num_rows
  data = tokenized.tokenize_dataset(dataset, config.data, base.tokenizer, users)
  assert {row.user_row for row in data.splits["unseen"].tokenized} == {0}
  assert {row.user_row for row in data.splits["train"].tokenized} == {1, 2, 3}


def test_a_user_none_of_whose_choices_fits_has_no_row(tmp_path):
  config = tiny.tiny_config(tmp_path)
  config.data.long_response = "drop"
  dataset = loading.load(config)
  train = [
    dataclasses.replace(each, chosen="x" * 1000)
    if each.user_id == "2"
    else each
    for each in dataset.train
  ]
  dataset = dataclasses.replace(dataset, train=train)
  base = tiny.tiny_base(dataset)
  users = users_lib.UserIndex.of_dataset(dataset, config.data)
  data = tokenized.tokenize_dataset(dataset, config.data, base.tokenizer, users)
  kept = users_lib.UserIndex.of_dataset(
    dataset, config.data, data.splits["train"].examples
  )
  assert kept.ids == ("1", "3")
  renumbered = data.with_users(kept)
  expected = {"1": 1, "2": 0, "3": 2}
  for split in renumbered.splits.values():
    for example, row in zip(split.examples, split.tokenized, strict=True):
      assert row.user_row == expected[example.user_id]
  np.testing.assert_equal(
    [row.prompt for row in renumbered.splits["train"].tokenized],
    [row.prompt for row in data.splits["train"].tokenized],
  )


def test_whoever_chose_in_an_earlier_run_alone_does_not_answer(tmp_path):
  config = tiny.tiny_config(tmp_path)
  dataset = loading.load(config)
  users = users_lib.UserIndex(["earlier", "1", "2", "3"])
  config.answers.num_users = 4
  found = experiment.speakers(config, dataset, users)
  assert found == {"1": 2, "2": 3, "3": 4}
  config.answers.users = ("earlier",)
  assert experiment.speakers(config, dataset, users) == {"earlier": 1}


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_a_prefix_after_bos_needs_a_bos(tmp_path, kind):
  config = tiny.tiny_config(tmp_path)
  config.user.kind = kind
  base = tiny.tiny_base(loading.load(config))
  experiment.check_prefix(config, base.tokenizer)  # In front, it needs none.
  config.user.prefix_position = "after_bos"
  with pytest.raises(
    ValueError, match=r"split their first word; set data\.add"
  ):
    experiment.check_prefix(config, base.tokenizer)
  config.data.add_bos = True
  experiment.check_prefix(config, base.tokenizer)
  config.data.add_bos = False
  base.tokenizer.bos_token = None
  with pytest.raises(ValueError, match="first word; use user"):
    experiment.check_prefix(config, base.tokenizer)
  config.user.kind = "none"
  experiment.check_prefix(config, base.tokenizer)
