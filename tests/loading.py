"""The data set of a config, for tests of sources."""

from pdpo_jax.data import dataset, sources
from pdpo_jax.runs import config as config_lib


def load(config: config_lib.Config, count_tokens=None) -> dataset.Dataset:
  return sources.load(
    config.data,
    seed=config.seed,
    num_prompts=config.answers.num_prompts,
    num_posts=config.sft.num_posts,
    users_alone=config.train.learn == "users",
    count_tokens=count_tokens,
  )
