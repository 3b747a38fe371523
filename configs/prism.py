r"""Experiment 2 of the paper: PRISM with Llama-3-8B-Instruct.

  python -m pdpo_jax.main --config=configs/prism.py

1,396 people from 75 countries chose between answers in dialogues of their own.
Each turn is an example: its dialogue so far, the chosen answer, and all
rejected ones; the user's text says who they are and which qualities they rank
highest.
Users are seen or unseen, dialogues of the seen are trained on or held out.

Variants: `:individual` (the default), `:cluster10`, `:cluster100`, `:vanilla`
with the paper's settings, longer prompts aside; `:authors`, the released code's
in all that paper and code differ in (docs/data.md has both, and what is not
reproduced), for individual users; `:authors --config.user.kind=cluster`, or
`none` for vanilla DPO. A second run goes to a folder of its own by
`--config.workdir`.

Turns of a dialogue share a trunk as far as no prompt is cut. The paper's limit
of 800 tokens in all cuts about half, by the lengths that docs/performance.md
assumes, and 2,000 of the prompt alone hardly any: nine tenths of the positions,
in less room. `--config.data.max_prompt_tokens=500` is the paper's.

Hardware: the base in bfloat16 is 16 GB. A step of 32 examples in 4 microbatches
needs 29.5 GiB where all prompts have 500 tokens and all turns four responses of
300, and a GPU with 40 GB, all of which JAX must be given
(`XLA_PYTHON_CLIENT_MEM_FRACTION=0.95`). By the assumed lengths, a microbatch of
dialogues has a quarter of those positions. An H100 trains some 5 such examples
a second. `base.remat` "dots" with 8 microbatches is a fifth faster and needs
54.4 GiB; an int8 base (`base.param_dtype`) is half as large.
`python -m pdpo_jax.plan` says what fits on which GPU or TPU slice, and launch/
starts it there. The data and the base come from the hub; the base is gated
(accept its licence, then `hf auth login`). Both may be local folders:
`--config.data.path=data/prism --config.base.path=models/llama-3-8b-instruct`.
See what becomes of the data first:

  python -m pdpo_jax.preview --config=configs/prism.py

Expected: the paper reports win rates over vanilla DPO of 60 to 66%, by GPT-4o
on 76 examples; it reports no reward accuracy. Not yet run at this size.
"""

from pdpo_jax.runs import config as config_lib

# The released code's: the user's text without a header, and a line break after
# each turn.
_TEMPLATE = (
  '{% if messages[0].role == "system" %}{{ messages[0].content }}{% endif %}'
  '{{ "\\n" }}'
  '{% for turn in messages if turn.role != "system" %}'
  '{{ "<|start_header_id|>" + turn.role + "<|end_header_id|>\\n\\n" }}'
  '{{ turn.content + "<|eot_id|>\\n" }}'
  "{% endfor %}"
  "{% if add_generation_prompt %}"
  '{{ "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}'
  "{% endif %}"
)

VARIANTS = ("individual", "cluster10", "cluster100", "vanilla", "authors")


def get_config(variant: str = "individual") -> config_lib.Config:
  config_lib.check_variant("prism.py", variant, VARIANTS)
  config = config_lib.Config(name=f"prism-{variant}", vanilla=False)
  config.base.path = "meta-llama/Meta-Llama-3-8B-Instruct"
  config.base.dtype = "bfloat16"
  config.base.param_dtype = "bfloat16"
  config.base.remat = "full"
  config.data.source = "prism"
  config.data.path = "HannahRoseKirk/prism-alignment"
  # The paper's 800 tokens in all cut dialogues short, which costs more.
  config.data.max_prompt_tokens = 2000
  config.data.max_response_tokens = 300
  config.data.long_response = "cut"
  config.data.max_shapes = 4
  config.lora.alpha = 32.0
  config.lora.dropout = 0.1
  config.loss.beta = 0.1
  config.train.accumulation_steps = 4
  config.answers.num_prompts = 20
  config.answers.max_new_tokens = 500
  config.answers.temperature = 0.6
  config.answers.top_p = 0.9
  config.answers.repetition_penalty = 1.15
  config.answers.no_repeat_ngram = 3
  if variant.startswith("cluster"):
    config.user.kind = "cluster"
    config.user.num_clusters = int(variant.removeprefix("cluster"))
  elif variant == "vanilla":
    config.user.kind = "none"
  elif variant == "authors":
    _as_released(config)
  return config


def _as_released(config: config_lib.Config) -> None:
  """Where the released code differs from the paper."""
  config.user.prefix_position = "after_bos"
  config.user.weights = "softmax"
  config.user.offset_init = "vocabulary"
  config.user.init_std = 1.0  # Of cluster weights.
  config.loss.beta = 0.5
  config.loss.mixing = "batch"
  config.loss.reference_sees_text = True
  config.loss.generic_sees_text = False
  config.loss.vanilla_sees_text = False
  config.lora.targets = ("q_proj", "k_proj", "v_proj")
  config.lora.alpha = 16.0
  config.lora.dropout = 0.0
  config.train.epochs = 1
  # Of a row each, so that its weight is alpha or 1 - alpha.
  config.train.accumulation_steps = config.train.batch_size
  config.data.add_bos = True
  # Of 470 and 770 in all, the text that names the user takes 16 there.
  config.data.max_prompt_tokens = 470 - 16
  config.data.truncation = "keep_start"
  config.data.template = _TEMPLATE
  config.data.prism.split = "authors"
  config.data.prism.rejected = "each"
  config.data.prism.aspect_order = "shown"
  config.data.prism.prompt = "authors"
  config.data.prism.self_description = True
  config.data.unseen_in_table = True
  config.answers.min_new_tokens = 32
  config.answers.penalize_prompt = True
