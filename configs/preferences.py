r"""One's own comparisons, with any base.

  python -m pdpo_jax.main --config=configs/preferences.py \
    --config.data.path=choices.jsonl

A line of the file is a choice that somebody made:

  {"prompt": "…", "chosen": "…", "rejected": "…", "user_id": "ann"}

`prompt`, `chosen` and `rejected` are texts or lists of messages; `rejected` may
be several; `user_text` (optional) is what the user says of themselves. JSONL,
Parquet, CSV or a hub data set; `data/sources/preference_files.py` says more.
One comparison in ten is held out. Vanilla DPO is trained as well, to compare
with; `--config.vanilla=False` does without. What becomes of a file:

  python -m pdpo_jax.preview --config=configs/preferences.py \
    --config.data.path=choices.jsonl

Hardware: a GPU with 12 GB for the base named here, of which a step needs 7.3
GiB. The base is gated (accept its licence, then `hf auth login`); another by
`--config.base.path` (a folder or hub id), and `python -m pdpo_jax.plan
--users=N` says what it needs. Without a GPU: `configs/smollm2.py`.

Variants: `:individual` (the default), one embedding a user; `:cluster`, where
users share a few embeddings and each has a mixture of them; `:newcomers`, which
learns the embeddings of people who come later, and nothing else, on top of
what `:individual` left in `train.start_from`.
"""

from pdpo_jax.runs import config as config_lib

VARIANTS = ("individual", "cluster", "newcomers")


def get_config(variant: str = "individual") -> config_lib.Config:
  config_lib.check_variant("preferences.py", variant, VARIANTS)
  config = config_lib.Config(name=f"preferences-{variant}")
  config.base.path = "meta-llama/Llama-3.2-1B-Instruct"
  config.base.dtype = "bfloat16"
  config.base.param_dtype = "bfloat16"
  config.base.remat = "full"
  config.data.source = "files"
  config.data.path = "choices.jsonl"
  config.data.max_prompt_tokens = 512
  config.data.max_response_tokens = 512
  config.data.long_response = "drop"
  config.data.max_shapes = 4
  config.loss.beta = 0.1
  # Eight examples at a time, which a GPU with 12 GB takes at 512 tokens each.
  config.train.accumulation_steps = 4
  config.train.user_learning_rate = 1e-3
  config.train.warmup_steps = 10
  config.answers.num_prompts = 10
  config.answers.max_new_tokens = 256
  config.answers.temperature = 0.7
  config.answers.top_p = 0.9
  if variant == "cluster":
    config.user.kind = "cluster"
  elif variant == "newcomers":
    config.vanilla = False
    config.train.start_from = "runs/preferences-individual"
    config.train.learn = "users"
    config.base.path = ""  # That run's.
    config.data.files.heldout_share = 0.25
    # Of few choices each. A row moves by about the learning rate in each step
    # that has its user: with dozens of choices each, take fewer epochs. Choices
    # are told apart long after answers have become worse.
    config.train.batch_size = 16
    config.train.accumulation_steps = 2
    config.train.epochs = 10
    config.train.warmup_steps = 5
  return config
