import dataclasses

import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import tokenize, tokenized, users
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import branch_batches

EXAMPLES = [
  structs.PreferenceExample(f"the cat {n}", " sat", (" ate",), user, text)
  for n, (user, text) in enumerate(
    [("ann", "I am"), ("bob", "so what"), ("ann", "I am"), (None, "")]
  )
]


@pytest.fixture
def config():
  config = config_lib.Config()
  config.train.batch_size = 3
  config.user.num_tokens = 2
  return config


def make_split(config, name="train", examples=EXAMPLES):
  tokenizer = tokenize.train_tokenizer(["the cat sat", "I ate so what"], 270)
  index = users.UserIndex(["ann", "bob"])
  split = tokenized.tokenize_split(
    name, examples, config.data, tokenizer, index
  )
  return split, tokenizer


def read(tokenizer, rows, field="prompt"):
  return [tokenizer.decode(getattr(row, field)) for row in rows]


BARE = [f"the cat {n}" for n in range(4)]
WITH_TEXT = ["I am\n\n" + BARE[0], "so what\n\n" + BARE[1]]
WITH_TEXT += ["I am\n\n" + BARE[2], BARE[3]]


def test_users_without_a_row_are_read_as_the_generic_user(config):
  stranger = dataclasses.replace(EXAMPLES[0], user_id="eve")
  split, _ = make_split(config, "unseen", [stranger, EXAMPLES[1]])
  assert [row.user_row for row in split.tokenized] == [0, 2]
  assert split.owners == ["eve", "bob"]


def test_what_does_not_fit_is_left_out_of_both_lists(config):
  config.data.long_response = "drop"
  config.data.max_response_tokens = 10
  long = dataclasses.replace(EXAMPLES[1], chosen=" sat" * 20)
  split, _ = make_split(config, examples=[EXAMPLES[0], long, EXAMPLES[2]])
  assert split.examples == [EXAMPLES[0], EXAMPLES[2]]
  assert len(split.tokenized) == 2
  assert str(split) == (
    "train: 2 examples; 1 comparisons dropped, 1 responses too long"
  )


def test_by_default_the_policy_sees_the_text_and_the_reference_does_not(config):
  split, tokenizer = make_split(config)
  rows = branch_batches.example_rows(config.recipe, split)
  assert read(tokenizer, rows) == WITH_TEXT
  assert (
    read(tokenizer, branch_batches.reference_rows(config.recipe, rows)) == BARE
  )
  config.loss.reference_sees_text = True
  assert (
    read(tokenizer, branch_batches.reference_rows(config.recipe, rows))
    == WITH_TEXT
  )


@pytest.mark.parametrize(("sees", "expected"), [(1, WITH_TEXT), (0, BARE)])
def test_vanilla_sees_the_text_or_not(config, sees, expected):
  config.user.kind = "none"
  config.loss.vanilla_sees_text = bool(sees)
  split, tokenizer = make_split(config)
  assert (
    read(tokenizer, branch_batches.example_rows(config.recipe, split))
    == expected
  )


@pytest.mark.parametrize(("sees", "generic"), [(1, WITH_TEXT), (0, BARE)])
def test_mixing_by_batch_makes_generic_rows_examples_of_their_own(
  config, sees, generic
):
  config.loss.mixing = "batch"
  config.loss.generic_sees_text = bool(sees)
  split, tokenizer = make_split(config)
  rows = branch_batches.example_rows(config.recipe, split)
  assert read(tokenizer, rows) == WITH_TEXT + generic
  assert [row.user_row for row in rows] == [1, 2, 1, 0, 0, 0, 0, 0]
  # Evaluation reads each example once, as its user.
  heldout, _ = make_split(config, "heldout")
  assert (
    branch_batches.example_rows(config.recipe, heldout) == heldout.tokenized
  )
  batch = branch_batches.make_batches(
    config.recipe, split, rows, np.zeros((8, 2)), trained=True
  ).batch(0)
  assert batch.bare_prompt is None


def test_where_users_alone_are_learnt_nothing_teaches_the_generic_row(config):
  config.loss.mixing, config.train.learn = "batch", "users"
  split, _ = make_split(config)
  rows = branch_batches.example_rows(config.recipe, split)
  assert rows == split.tokenized


def test_the_generic_branch_may_read_prompts_without_text(config):
  split, tokenizer = make_split(config)
  rows = branch_batches.example_rows(config.recipe, split)
  logps = np.zeros((len(rows), 2), np.float32)
  batch = branch_batches.make_batches(
    config.recipe, split, rows, logps, trained=True
  ).batch(0)
  assert batch.bare_prompt is None
  config.loss.generic_sees_text = False
  batch = branch_batches.make_batches(
    config.recipe, split, rows, logps, trained=True
  ).batch(0)
  for row, index in enumerate(batch.index):
    if index < 0:
      continue
    real = batch.bare_prompt[row][batch.bare_prompt_mask[row]]
    assert tokenizer.decode(real) == BARE[index]
    real = batch.prompt[row][batch.prompt_mask[row]]
    assert tokenizer.decode(real) == WITH_TEXT[index]


@pytest.mark.parametrize("sees", [True, False])
def test_vanilla_has_as_many_steps_and_the_same_rows_where_mixing_is_by_batch(
  config, sees
):
  config.loss.mixing = "batch"
  config.loss.generic_sees_text = config.loss.vanilla_sees_text = sees
  split, tokenizer = make_split(config)

  def made():
    rows = branch_batches.example_rows(config.recipe, split)
    logps = np.zeros((len(rows), 2))
    return rows, branch_batches.make_batches(
      config.recipe, split, rows, logps, trained=True
    )

  rows, batches = made()
  config.user.kind = "none"
  vanilla, vanilla_batches = made()
  assert [row.user_row for row in vanilla] == [row.user_row for row in rows]
  assert vanilla_batches.num_batches == batches.num_batches == 3
  assert read(tokenizer, vanilla) == 2 * (WITH_TEXT if sees else BARE)
  # What it is evaluated on is read once, and with the text.
  heldout, _ = make_split(config, "heldout")
  assert (
    read(tokenizer, branch_batches.example_rows(config.recipe, heldout))
    == WITH_TEXT
  )


def test_without_users_a_batch_has_one_prompt(config):
  config.user.kind = "none"
  config.loss.generic_sees_text = False
  split, _ = make_split(config)
  rows = branch_batches.example_rows(config.recipe, split)
  assert len(rows) == len(EXAMPLES)
  batches = branch_batches.make_batches(
    config.recipe, split, rows, np.zeros((4, 2)), trained=True
  )
  assert batches.batch(0).bare_prompt is None


def test_what_is_only_read_comes_in_as_much_as_a_device_trains_on(config):
  config.train.batch_size, config.train.accumulation_steps = 4, 2
  split, _ = make_split(config)
  rows = branch_batches.example_rows(config.recipe, split)
  sizes = {
    trained: branch_batches.make_batches(
      config.recipe, split, rows, np.zeros((4, 2)), trained=trained
    )
    .batch(0)
    .index.size
    for trained in (True, False)
  }
  assert sizes == {True: 4, False: 2}
