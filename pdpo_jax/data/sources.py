"""Where a run's comparisons come from."""

import math

from pdpo_jax import config as config_lib
from pdpo_jax import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import prism, synthetic, tldr


def load(config: config_lib.Config) -> dataset_lib.Dataset:
  """The data that `config.data` names."""
  return SOURCES[config.data.source](config)


def _synthetic(config: config_lib.Config) -> dataset_lib.Dataset:
  """Posts and summaries of the little language, no post used twice."""
  data = config.data.synthetic
  workers = [str(number + 1) for number in range(data.num_workers)]
  need = len(workers) * (data.train_per_worker + data.heldout_per_worker)
  need += config.answers.num_prompts
  # Some posts report nothing, and nobody compares summaries of those.
  spare = math.ceil(need * 1.2) + 100
  posts = synthetic.make_posts(config.sft.num_posts + spare, config.seed)
  learnt, fresh = posts[: config.sft.num_posts], posts[config.sft.num_posts :]
  telling = [post for post in fresh if post.facts]
  cut = [
    len(workers) * data.train_per_worker,
    len(workers) * data.heldout_per_worker,
    config.answers.num_prompts,
  ]
  train, telling = telling[: cut[0]], telling[cut[0] :]
  heldout, telling = telling[: cut[1]], telling[cut[1] :]
  short = tuple(each for each in workers if each in data.short_workers)
  return dataset_lib.Dataset(
    train=synthetic.comparisons(train, workers, short, config.seed),
    heldout=synthetic.comparisons(heldout, workers, short, config.seed + 1),
    prompts=[structs.PromptExample(post.prompt) for post in telling[: cut[2]]],
    sft_pairs=synthetic.sft_pairs(learnt, config.seed),
    short_users=short,
    long_users=tuple(each for each in workers if each not in short),
  )


SOURCES = {"synthetic": _synthetic, "prism": prism.load, "tldr": tldr.load}
