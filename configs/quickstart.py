r"""Experiment 1 of the paper in miniature, from nothing.

  python -m pdpo_jax.main --config=configs/quickstart.py

A GPT-J of under a million weights learns a little language of posts and
summaries. Then ten workers compare summaries: 4, 5 and 6 prefer the shorter
one, the others the longer one. Vanilla DPO and P-DPO are trained on these
comparisons from the same base with the same budget, and 50 held-out posts are
summarised as S (the base), V (vanilla), G (P-DPO's generic user) and each
worker.

Hardware: 2 CPU cores, no accelerator, under 5 minutes.
Expected: 4, 5 and 6 get empty summaries, the others long ones (E1); G is about
as long as V, and both are longer than S (E2); `results.json` says if they hold.

Variants: `:cluster`, the same with the cluster model; `:smoke`, a minute's run
that only shows that everything works.
"""

from pdpo_jax import config as config_lib


def get_config(variant: str = "individual") -> config_lib.Config:
  config = config_lib.Config(name="quickstart")
  if variant == "cluster":
    config.name = "quickstart-cluster"
    config.user.kind = "cluster"
    config.user.num_clusters = 4
  elif variant == "smoke":
    config.name = "quickstart-smoke"
    config.sft.width = 32
    config.sft.num_layers = 2
    config.sft.num_heads = 2
    config.sft.mlp_width = 64
    config.sft.num_posts = 600
    config.sft.steps = 20
    config.data.train_per_worker = 8
    config.data.heldout_per_worker = 3
    config.answers.num_prompts = 3
    config.train.epochs = 1
    config.train.warmup_steps = 1
    config.train.log_every = 1
  elif variant != "individual":
    raise ValueError(
      f"configs/quickstart.py has no variant {variant!r}; it has 'individual', "
      "'cluster' and 'smoke'"
    )
  return config
