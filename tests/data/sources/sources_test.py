import collections

import pytest

from pdpo_jax.data import dataset, sources
from pdpo_jax.data.sources import tldr
from pdpo_jax.runs import config as config_lib
from tests import loading


@pytest.fixture
def config():
  config = config_lib.Config()
  config.sft.num_posts = 20
  config.data.synthetic.train_per_worker = 8
  config.data.synthetic.heldout_per_worker = 3
  config.answers.num_prompts = 4
  return config


def test_the_synthetic_parts_share_no_post(config):
  found = loading.load(config)
  assert len(found.train) == 80
  assert len(found.heldout) == 30
  assert len(found.prompts) == 4
  splits = [
    [prompt for prompt, _ in found.sft_pairs],
    *([e.prompt for e in split] for split in (found.train, found.heldout)),
    [each.prompt for each in found.prompts],
  ]
  counts = collections.Counter(prompt for split in splits for prompt in split)
  assert counts.total() == len(counts) == 20 + 80 + 30 + 4


def test_shuffled_users_keep_their_number_of_examples_and_lose_their_taste(
  config,
):
  plain = loading.load(config)
  config.data.shuffle_users = True
  shuffled = loading.load(config)
  assert loading.load(config).train == shuffled.train
  # Held-out examples stay whose they are.
  assert shuffled.heldout == plain.heldout
  ids = [[e.user_id for e in found.train] for found in (plain, shuffled)]
  assert collections.Counter(ids[0]) == collections.Counter(ids[1])
  moved = sum(a != b for a, b in zip(*ids, strict=True))
  assert moved > 50
  for before, after in zip(plain.train, shuffled.train, strict=True):
    assert (before.prompt, before.chosen) == (after.prompt, after.chosen)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_swapped_choices_are_the_opposite_for_a_share_of_users(config, share):
  plain = loading.load(config)
  config.data.swap_choices = share
  swapped = loading.load(config)
  assert swapped.heldout == plain.heldout
  users = sources.swapped_users(config.data, config.seed, plain.train)
  everyone = {example.user_id for example in plain.train}
  assert users <= everyone
  assert len(users) == round(share * len(everyone))
  for before, after in zip(plain.train, swapped.train, strict=True):
    if before.user_id in users:
      assert (after.chosen, after.rejected) == (
        before.rejected[0],
        (before.chosen,),
      )
    else:
      assert after == before


def test_lengths_in_tokens_are_counted_by_the_base(config, monkeypatch):
  asked = []

  def load(data, seed, num_prompts, count_tokens):
    asked.append(count_tokens)
    return dataset.Dataset([], [], [])

  monkeypatch.setattr(tldr, "load", load)
  config.data.source = "tldr"

  def count_tokens(texts):
    return [len(text) for text in texts]

  loading.load(config, count_tokens)
  assert asked == [count_tokens]
