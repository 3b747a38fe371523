r"""Experiment 1 of the paper in miniature, from nothing.

  python -m pdpo_jax.main --config=configs/quickstart.py

A GPT-J of under a million weights learns a little language of posts and
summaries. Then ten workers compare summaries: 4, 5 and 6 prefer the shorter
one, the others the longer one. Vanilla DPO and P-DPO are trained on these
comparisons from the same base with the same budget, and 50 held-out posts are
summarised as S (the base), V (vanilla), G (P-DPO's generic user) and each
worker.

Hardware: 2 CPU cores, no accelerator, 8 to 10 minutes.
Expected: 4, 5 and 6 get empty summaries, the others long ones (E1); G is about
as long as V, and both are longer than S (E2). `results.json` says if they hold.
Held-out reward accuracy: P-DPO 0.92 or more for every worker and 0.95 to 0.98
over all, vanilla DPO 0.67 over all (docs/results.md has seeds and settings).

Variants: `:cluster`, the same with the cluster model; `:mixtures`, a hundred
workers who weigh five tastes each, for `benchmarks.mixtures`; `:smoke`, a
minute's run that only shows that everything works.
"""

from pdpo_jax.runs import config as config_lib

VARIANTS = ("individual", "cluster", "mixtures", "smoke")


def get_config(variant: str = "individual") -> config_lib.Config:
  config_lib.check_variant("quickstart.py", variant, VARIANTS)
  config = config_lib.Config(name="quickstart")
  config.data.synthetic.train_per_worker = 480
  config.data.synthetic.heldout_per_worker = 80
  config.data.max_shapes = 2
  config.data.pack = False
  # A base that knows its language well, and a hold on it: with 600 steps or the
  # paper's beta of 0.5 answers repeat themselves (docs/results.md).
  config.sft.steps = 1200
  config.loss.beta = 3.0
  # From scratch, in little time: larger steps than a real base would bear.
  config.lora.dropout = 0.0
  config.train.batch_size = 16
  config.train.epochs = 1
  config.train.learning_rate = 1.8e-3
  config.train.user_learning_rate = 5e-2
  config.train.warmup_steps = 100
  config.train.eval_every = 250
  config.train.checkpoint_every = 125
  config.train.logits_chunk = 4096
  config.answers.max_new_tokens = 48
  config.answers.temperature = 0.7
  config.answers.top_p = 0.9
  if variant == "cluster":
    config.name = "quickstart-cluster"
    config.user.kind = "cluster"
    config.user.num_clusters = 4
  elif variant == "mixtures":
    config.name = "quickstart-mixtures"
    config.data.synthetic.tastes = "mixtures"
    config.data.synthetic.num_workers = 100
    config.data.synthetic.short_workers = ()
    config.data.synthetic.train_per_worker = 100
    config.data.synthetic.heldout_per_worker = 20
    config.vanilla = False
    config.answers.num_users = 4
    config.answers.num_prompts = 10
  elif variant == "smoke":
    config.name = "quickstart-smoke"
    config.sft.width = 32
    config.sft.num_heads = 2
    config.sft.mlp_width = 64
    config.sft.num_posts = 600
    config.sft.steps = 20
    config.sft.warmup_steps = 5
    config.data.synthetic.train_per_worker = 8
    config.data.synthetic.heldout_per_worker = 3
    config.data.max_shapes = 1
    config.answers.num_prompts = 3
    # A base that knows next to nothing would else say nothing.
    config.answers.temperature = 1.0
    config.answers.top_p = 1.0
    config.train.log_every = 1
    config.train.warmup_steps = 2
  return config
