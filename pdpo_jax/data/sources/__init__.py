"""Where a run's comparisons come from."""

import dataclasses
import random
from collections.abc import Callable, Sequence

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out, rows
from pdpo_jax.data.sources import preference_files, prism, synthetic, tldr
from pdpo_jax.runs import config as config_lib


def load(
  config: config_lib.Config,
  count_tokens: Callable[[Sequence[str]], list[int]] | None = None,
  before: held_out.Record | None = None,
) -> dataset_lib.Dataset:
  """The data that `config.data` names.

  Args:
    count_tokens: lengths of texts in the base's tokens, for what is counted in
      them; None before there is a base.
    before: what the run that this one starts from was trained on.
  """
  if config.data.source == "tldr":
    dataset = tldr.load(config, count_tokens)
  else:
    dataset = SOURCES[config.data.source](config)
  if before:
    dataset = held_out.keep_apart(
      dataset, before, config.answers.num_prompts, config.seed
    )
  train = dataset.train
  if config.train.learn == "users":
    train = _of_users(train, dataset.tally)
  if config.data.shuffle_users:
    train = _shuffle_users(train, config.seed)
  swapped = swapped_users(config, train)
  if swapped:
    train = [_swap(each) if each.user_id in swapped else each for each in train]
  return dataclasses.replace(dataset, train=train)


def _of_users(
  train: Sequence[structs.PreferenceExample], tally: rows.Tally
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
  config: config_lib.Config, train: Sequence[structs.PreferenceExample]
) -> set[str]:
  """Whose choices `data.swap_choices` turns round in training."""
  users = sorted({example.user_id for example in train} - {None})
  count = round(config.data.swap_choices * len(users))
  return set(random.Random(f"swapped {config.seed}").sample(users, count))


def _swap(example: structs.PreferenceExample) -> structs.PreferenceExample:
  """The opposite choice; of several rejected responses, the first wins."""
  return dataclasses.replace(
    example, chosen=example.rejected[0], rejected=(example.chosen,)
  )


def _synthetic(config: config_lib.Config) -> dataset_lib.Dataset:
  """Posts and summaries of the little language, no post used twice."""
  data = config.data.synthetic
  workers = [str(number + 1) for number in range(data.num_workers)]
  need = len(workers) * (data.train_per_worker + data.heldout_per_worker)
  need += config.answers.num_prompts
  posts = synthetic.make_posts(config.sft.num_posts + need, config.seed)
  learnt, fresh = posts[: config.sft.num_posts], posts[config.sft.num_posts :]
  cut = len(workers) * data.train_per_worker
  train, fresh = fresh[:cut], fresh[cut:]
  cut = len(workers) * data.heldout_per_worker
  heldout, asked = fresh[:cut], fresh[cut:]
  short = tuple(each for each in workers if each in data.short_workers)
  return dataset_lib.Dataset(
    train=synthetic.comparisons(train, workers, short, config.seed),
    heldout=synthetic.comparisons(heldout, workers, short, config.seed + 1),
    prompts=[structs.PromptExample(post.prompt) for post in asked],
    sft_pairs=synthetic.sft_pairs(learnt, config.seed),
    short_users=short,
    long_users=tuple(each for each in workers if each not in short),
  )


SOURCES = {
  "synthetic": _synthetic,
  "prism": prism.load,
  "files": preference_files.load,
}
