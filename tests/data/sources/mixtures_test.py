import random

import numpy as np
import pytest

from pdpo_jax.data import config, sources
from pdpo_jax.data.sources import mixtures, synthetic

POSTS = synthetic.make_posts(300, 0)
FACTS = ("Anna sold bikes abroad", "Bob lost keys", "Fay hid cats")


@pytest.mark.parametrize(
  "summary, ways",
  [
    (" Anna sold bikes.", [-1, -1, 0, 1, -1]),
    (" sadly someone sold bikes.", [-1, 1, 0, -1, -1]),
    (" Anna sold bikes. Anna sold bikes.", [-1, -1, 0, 1, 1]),
    (" Anna sold bikes. Bob lost keys.", [-0.5, -1, 1, 1, -1]),
    (" sadly Fay hid cats. sadly Bob lost keys. sadly Anna sold bikes."
     " sadly Fay hid cats.", [0, 1, -1, 1, 1]),
  ],
)  # fmt: skip
def test_a_summary_shows_how_it_is(summary, ways):
  np.testing.assert_array_equal(mixtures.ways(summary, FACTS), ways)


def test_summaries_come_in_all_ways():
  rng = random.Random(0)
  ways = np.stack(
    [mixtures.ways(mixtures.summarize(post, rng), post.facts) for post in POSTS]
  )
  assert len(np.unique(ways[:, 0])) == 5
  assert (np.abs(ways[:, [1, 3, 4]].mean(0)) < 0.2).all()
  assert {*ways[:, 2]} == {-1, 0, 1}


def test_tastes_are_a_persons_own_and_add_up_to_one():
  tastes = np.stack([mixtures.taste_of(str(n), 0) for n in range(500)])
  np.testing.assert_allclose(np.abs(tastes).sum(1), 1)
  np.testing.assert_array_equal(tastes[7], mixtures.taste_of("7", 0))
  assert not np.array_equal(tastes[7], mixtures.taste_of("7", 1))
  # Nothing is everybody's taste, and nothing is nobody's.
  assert (np.abs(tastes.mean(0)) < 0.1).all()
  assert (np.abs(tastes).mean(0) > 0.15).all()


def test_people_prefer_what_suits_them():
  tastes = {user_id: mixtures.taste_of(user_id, 0) for user_id in "123"}
  examples = mixtures.comparisons(POSTS, tastes, 0)
  assert len(examples) == 300
  facts = {post.prompt: post.facts for post in POSTS}
  for example in examples:
    chosen, rejected = (
      mixtures.ways(text, facts[example.prompt])
      for text in (example.chosen, *example.rejected)
    )
    assert tastes[example.user_id] @ (chosen - rejected) >= 0.1
  # And not what suits another.
  chosen = [mixtures.ways(x.chosen, facts[x.prompt]) for x in examples[:20]]
  assert len({tuple(x) for x in chosen}) > 10


def test_a_run_may_have_mixtures():
  data = config.DataConfig(
    synthetic=config.SyntheticConfig(
      num_workers=4,
      tastes="mixtures",
      short_workers=(),
      train_per_worker=3,
      heldout_per_worker=2,
    )
  )
  dataset = sources.load(data, seed=0, num_prompts=2, num_posts=5)
  sizes = len(dataset.train), len(dataset.heldout), len(dataset.sft_pairs)
  assert sizes == (12, 8, 5)
  assert not dataset.short_users and not dataset.long_users
  assert any("someone" in x.chosen for x in dataset.train)


def test_short_workers_have_no_meaning_for_mixtures():
  with pytest.raises(ValueError, match=r"short_workers .*use \(\)"):
    config.SyntheticConfig(tastes="mixtures").check_together()
