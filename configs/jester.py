r"""Real people whose tastes differ: who finds which joke funny.

  python -m pdpo_jax.main --config=configs/jester.py

People of the Jester recommender rated jokes from -10 to 10 (Goldberg et al.,
"Eigentaste", 2001; free for research when it is acknowledged). A joke rated 5
points above another was chosen. In these pairs everybody else likes both about
equally, so that popularity tells next to nothing. A small GPT-J is taught the
jokes first, and then the choices of 200 people.

Put into a folder `ratings.parquet` (user_id, joke_id, rating) and
`jokes.parquet` (joke_id, text), or name others by `data.path` and
`data.ratings`; any format will do (docs/data.md). `python -m benchmarks.tastes
--workdir=RUN` compares with popularity and matrix factorisation.

Variants: `:individual` (the default) and `:cluster`.

Hardware: 2 CPU cores, about half an hour. Expected: docs/results.md, "People
whose tastes differ": on jokes that a person has compared, right in 94% of new
pairs; on others by chance; broken jokes for some people.
"""

from pdpo_jax.runs import config as config_lib

VARIANTS = ("individual", "cluster")


def get_config(variant: str = "individual") -> config_lib.Config:
  config_lib.check_variant("jester.py", variant, VARIANTS)
  config = config_lib.Config(name=f"jester-{variant}")
  config.sft.steps = 400
  config.data.source = "ratings"
  config.data.path = "data/jester"
  config.data.ratings.texts_file = "jokes"
  config.data.ratings.item_column = "joke_id"
  config.data.ratings.prompt = "Tell me a joke.\n"
  config.data.ratings.least_gap = 5.0
  config.data.ratings.most_mean_gap = 0.5
  config.data.ratings.num_users = 200
  config.data.ratings.heldout_texts = 0.3
  config.data.max_prompt_tokens = 16
  config.data.max_response_tokens = 192
  config.data.long_response = "cut"
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
  config.train.logits_chunk = 4096
  config.answers.num_prompts = 1
  config.answers.max_new_tokens = 128
  if variant == "cluster":
    config.user.kind = "cluster"
    config.user.num_clusters = 8
  return config
