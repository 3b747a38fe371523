r"""Community Alignment with Llama-3.1-8B: 3,500 people, five languages.

  python -m pdpo_jax.main --config=configs/community_alignment.py

More than 3,500 people in five countries chose between four answers, in
dialogues of up to four turns, a median of 26 dialogues each. Each turn is an
example: its dialogue so far, the chosen answer, and the three rejected ones;
the user's text says their age, gender, education and so on
(`--config.data.community_alignment.demographics=False` leaves it out). A tenth
of the people is unseen, and a tenth of the openings is held out, whoever judges
them. Vanilla DPO is trained as well, to compare with.

Variants: `:individual` (the default), one embedding a user; `:cluster`, where
users share a few embeddings and each has a mixture of them. One language:

  --config.data.community_alignment.languages=en

The data comes from the hub, or from its CSV file by
`--config.data.path=community_alignment.csv`. Where a version of it has several
splits, one is named behind a colon:
`facebook/community-alignment-dataset:filtered`. The base is gated (accept its
licence, then `hf auth login`); it knows all five languages.
See what becomes of the data first:

  python -m pdpo_jax.preview --config=configs/community_alignment.py

Hardware: reading 90,256 dialogues takes half a minute and 1.3 GiB. A step of 32
examples in 8 microbatches needs some 39 GiB of a GPU with 80 GB, in 4
microbatches 60 GiB (`python -m pdpo_jax.plan
--config=configs/community_alignment.py --topology=h100-1 --users=3500`; the
memory is an estimate). At half of its peak an H100 trains 3 examples of full
length a second, and an epoch of 190,000 takes 17 hours for each of the two
policies.

Expected: not yet run at this size, and on generated files in the public schema
only (docs/data.md).
"""

from pdpo_jax.runs import config as config_lib

VARIANTS = ("individual", "cluster")


def get_config(variant: str = "individual") -> config_lib.Config:
  config_lib.check_variant("community_alignment.py", variant, VARIANTS)
  config = config_lib.Config(name=f"community-alignment-{variant}")
  config.base.path = "meta-llama/Llama-3.1-8B-Instruct"
  config.base.dtype = "bfloat16"
  config.base.param_dtype = "bfloat16"
  config.base.remat = "full"
  config.data.source = "community_alignment"
  config.data.path = "facebook/community-alignment-dataset"
  config.data.max_prompt_tokens = 700
  config.data.max_response_tokens = 300
  config.data.long_response = "cut"
  config.data.max_shapes = 4
  config.lora.alpha = 32.0
  config.loss.beta = 0.1
  config.train.accumulation_steps = 8
  config.train.epochs = 1
  config.answers.num_prompts = 20
  config.answers.max_new_tokens = 300
  config.answers.temperature = 0.6
  config.answers.top_p = 0.9
  if variant == "cluster":
    config.user.kind = "cluster"
  return config
