"""The sections about how it is trained, and what it then answers."""

import dataclasses

from pdpo_jax.config import sections


@dataclasses.dataclass
class LossConfig(sections.Section):
  """The P-DPO objective."""

  # "sigmoid" (DPO), "ipo", "hinge" or "robust".
  kind: str = "sigmoid"
  # How strongly the policy is held to the reference.
  beta: float = 0.5
  # Weight of the user branch; the generic branch has 1 - alpha.
  alpha: float = 0.5
  # Probability that a label is wrong, for "sigmoid" and "robust".
  label_smoothing: float = 0.0
  # Weight of the chosen response's mean negative log-likelihood a token, added
  # to each pair's loss (arXiv:2404.19733), so that a margin is not won by
  # making both responses unlikely. 0: the paper's loss.
  chosen_nll: float = 0.0
  # "sample" runs both branches on every sample (the paper). "batch" makes
  # user's and generic rows samples of their own, independently shuffled, and
  # mixes their means in each part of a batch (the released code).
  mixing: str = "sample"
  # Who reads the user's text besides the user branch: the reference (the
  # released code), the generic branch (the paper), vanilla DPO (the paper).
  reference_sees_text: bool = False
  generic_sees_text: bool = True
  vanilla_sees_text: bool = True


@dataclasses.dataclass
class TrainConfig(sections.Section):
  """How preferences are learnt."""

  # The folder of a finished run. Training begins with the LoRA weights and
  # users that it ended with; users who are new begin as its generic user,
  # whatever `user` says of the start. Where `base.path` is empty, its base is
  # this run's too, in the same `dtype` and `param_dtype`. Empty: from nothing.
  start_from: str = ""
  # "all", or "users": only the rows of users who have choices in the data.
  # LoRA, centers, the generic and all other users stay as `start_from` has
  # them, so that nobody else is answered differently. The generic branch is
  # not run then (as with `loss.alpha` 1), and LoRA has no dropout.
  learn: str = "all"
  # Samples a step.
  batch_size: int = 32
  # Parts that a batch is run in, one after the other, to save memory.
  accumulation_steps: int = 1
  epochs: int = 2
  learning_rate: float = 5e-5
  # Of the user model. 0: the same as `learning_rate`.
  user_learning_rate: float = 0.0
  warmup_steps: int = 150
  # A step touches the rows of its own users alone, at a cost that does not
  # depend on how many users there are; others keep their Adam moments as they
  # are. Without, all rows follow their momentum at every step.
  sparse_users: bool = False
  # The table and its moments stay in the host's memory, for one that devices
  # have no room for; takes `sparse_users`, and a single process.
  users_on_host: bool = False
  weight_decay: float = 0.0
  # Global gradient norm above which gradients are scaled down; 0: never.
  clip_norm: float = 1.0
  # Steps between lines of metrics, held-out evaluations, and checkpoints.
  log_every: int = 10
  eval_every: int = 50
  checkpoint_every: int = 50
  # Newest checkpoints that are kept.
  keep_checkpoints: int = 2
  # About how many positions of a device have logits over the vocabulary at a
  # time. 0: 128 on a CPU, whose cache that suits, and 1024 elsewhere.
  logits_chunk: int = 0


@dataclasses.dataclass
class AnswersConfig(sections.Section):
  """What is generated once training is done, and how."""

  # Held-out prompts, each answered for every speaker.
  num_prompts: int = 50
  # The users with the most training samples, each a speaker. Or the ids of
  # some.
  num_users: int = 10
  users: tuple[str, ...] = ()
  batch_size: int = 64
  max_new_tokens: int = 64
  # Until so many tokens the answer cannot end; 0 allows the empty answer.
  min_new_tokens: int = 0
  # 0 is greedy.
  temperature: float = 1.0
  # 1, 0, 1 and 0 turn these off.
  top_p: float = 1.0
  top_k: int = 0
  repetition_penalty: float = 1.0
  no_repeat_ngram: int = 0


@dataclasses.dataclass
class MeshConfig(sections.Section):
  """How devices share the work; see `training/sharding.py`."""

  # Devices that split the batch; 0: all that the others leave.
  data: int = 0
  # That split the batch, and weights and users as well.
  fsdp: int = 1
  # That split the products with the weights.
  tensor: int = 1
