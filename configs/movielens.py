r"""Real people whose tastes differ: who likes which kind of film.

  python -m benchmarks.movielens --source=ml-100k
  python -m pdpo_jax.main --config=configs/movielens.py

The first line makes the files of MovieLens 100k, which may not be passed on,
and says where it is to be had. A film is its genres and decade. A film rated
two stars above another was chosen; in these pairs everybody else likes both
about equally, so that popularity tells next to nothing. A small GPT-J is taught
these texts first, and then the choices of 200 people. `python -m
benchmarks.tastes --workdir=RUN` compares with popularity and matrix
factorisation.

Variants: `:individual` (the default) and `:cluster`.

Hardware: 2 CPU cores. Expected: docs/results.md, "People whose tastes differ".
"""

from pdpo_jax.runs import config as config_lib

VARIANTS = ("individual", "cluster")


def get_config(variant: str = "individual") -> config_lib.Config:
  config_lib.check_variant("movielens.py", variant, VARIANTS)
  config = config_lib.Config(name=f"movielens-{variant}")
  config.sft.steps = 300
  config.data.source = "ratings"
  config.data.path = "data/movielens"
  config.data.ratings.prompt = "Which film?\n"
  config.data.ratings.least_gap = 2.0
  config.data.ratings.most_mean_gap = 0.25
  config.data.ratings.num_users = 200
  config.data.ratings.heldout_texts = 0.3
  config.data.max_prompt_tokens = 8
  config.data.max_response_tokens = 48
  config.user.num_tokens = 4
  config.loss.beta = 2.0
  config.loss.alpha = 1.0
  config.lora.dropout = 0.0
  config.train.batch_size = 32
  config.train.epochs = 4
  config.train.learning_rate = 1e-3
  config.train.user_learning_rate = 1e-2
  config.train.warmup_steps = 20
  config.train.eval_every = 100
  config.train.checkpoint_every = 100
  config.answers.num_prompts = 1
  config.answers.max_new_tokens = 32
  if variant == "cluster":
    config.user.kind = "cluster"
    config.user.num_clusters = 8
  return config
