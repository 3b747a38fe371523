"""Where a run's comparisons come from."""

import dataclasses
import random
from collections.abc import Callable, Sequence

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out, records
from pdpo_jax.data.sources import (
  community_alignment,
  mixtures,
  preference_files,
  prism,
  ratings,
  synthetic,
  tldr,
)


def load(
  data: data_config.DataConfig,
  *,
  seed: int,
  num_prompts: int,
  num_posts: int = 0,
  users_alone: bool = False,
  count_tokens: Callable[[Sequence[str]], list[int]] | None = None,
  before: held_out.Record | None = None,
) -> dataset_lib.Dataset:
  """The data that `data.source` names.

  Args:
    seed: of the run.
    num_prompts: to be answered.
    num_posts: of the synthetic language, to teach a base with.
    users_alone: whether only what says something of a user is trained on.
    count_tokens: lengths of texts in the base's tokens, for what is counted in
      them; None before there is a base.
    before: what the run that this one starts from was trained on.
  """
  if data.source == "synthetic":
    dataset = _synthetic(data.synthetic, seed, num_prompts, num_posts)
  elif data.source == "tldr":
    dataset = tldr.load(data, seed, num_prompts, count_tokens)
  else:
    load_source = {
      "prism": prism.load,
      "community_alignment": community_alignment.load,
      "files": preference_files.load,
      "ratings": ratings.load,
    }
    dataset = load_source[data.source](data, seed, num_prompts)
  if before:
    dataset = held_out.keep_apart(dataset, before, num_prompts, seed)
  train = dataset.train
  if users_alone:
    train = _of_users(train, dataset.tally)
  if data.shuffle_users:
    train = _shuffle_users(train, seed)
  swapped = swapped_users(data, seed, train)
  if swapped:
    train = [_swap(each) if each.user_id in swapped else each for each in train]
  return dataclasses.replace(dataset, train=train)


def _of_users(
  train: Sequence[structs.PreferenceExample], tally: records.Tally
) -> list[structs.PreferenceExample]:
  """What says something of a user."""
  known = [each for each in train if each.user_id is not None]
  tally.drop("training comparisons without a user", len(train) - len(known))
  if not known:
    raise ValueError(
      "train.learn 'users' has nobody to learn of: no training comparison says "
      "who made it"
    )
  return known


def _shuffle_users(
  train: Sequence[structs.PreferenceExample], seed: int
) -> list[structs.PreferenceExample]:
  ids = [example.user_id for example in train]
  random.Random(f"users {seed}").shuffle(ids)
  return [
    dataclasses.replace(example, user_id=user_id)
    for example, user_id in zip(train, ids, strict=True)
  ]


def swapped_users(
  data: data_config.DataConfig,
  seed: int,
  train: Sequence[structs.PreferenceExample],
) -> set[str]:
  """Whose choices `data.swap_choices` turns round in training."""
  users = sorted({example.user_id for example in train} - {None})
  count = round(data.swap_choices * len(users))
  return set(random.Random(f"swapped {seed}").sample(users, count))


def _swap(example: structs.PreferenceExample) -> structs.PreferenceExample:
  """The opposite choice; of several rejected responses, the first wins."""
  return dataclasses.replace(
    example, chosen=example.rejected[0], rejected=(example.chosen,)
  )


def _synthetic(
  data: data_config.SyntheticConfig, seed: int, num_prompts: int, num_posts: int
) -> dataset_lib.Dataset:
  """Posts and summaries of the little language, no post used twice."""
  workers = [str(number + 1) for number in range(data.num_workers)]
  need = len(workers) * (data.train_per_worker + data.heldout_per_worker)
  need += num_prompts
  posts = synthetic.make_posts(num_posts + need, seed)
  learnt, fresh = posts[:num_posts], posts[num_posts:]
  cut = len(workers) * data.train_per_worker
  train, fresh = fresh[:cut], fresh[cut:]
  cut = len(workers) * data.heldout_per_worker
  heldout, asked = fresh[:cut], fresh[cut:]
  prompts = [structs.PromptExample(post.prompt) for post in asked]
  if data.tastes == "mixtures":
    tastes = {worker: mixtures.taste_of(worker, seed) for worker in workers}
    return dataset_lib.Dataset(
      train=mixtures.comparisons(train, tastes, seed),
      heldout=mixtures.comparisons(heldout, tastes, seed + 1),
      prompts=prompts,
      sft_pairs=mixtures.sft_pairs(learnt, seed),
    )
  short = tuple(each for each in workers if each in data.short_workers)
  return dataset_lib.Dataset(
    train=synthetic.comparisons(train, workers, short, seed),
    heldout=synthetic.comparisons(heldout, workers, short, seed + 1),
    prompts=prompts,
    sft_pairs=synthetic.sft_pairs(learnt, seed),
    short_users=short,
    long_users=tuple(each for each in workers if each not in short),
  )
