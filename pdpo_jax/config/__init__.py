"""Every knob once: its type, default and meaning, and what may be combined.

A file in `configs/` returns a `Config` with what differs from the defaults;
`--config.loss.beta=0.2` on the command line overrides a field.
"""

import dataclasses
import json
import operator
import pathlib

from pdpo_jax.config import data as data_config
from pdpo_jax.config import sections
from pdpo_jax.config.policy import (
  BaseConfig,
  LoraConfig,
  SftConfig,
  UserConfig,
)
from pdpo_jax.config.training import (
  AnswersConfig,
  LossConfig,
  MeshConfig,
  TrainConfig,
)


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
    config = cls()
    for path, value in sections.flatten(json.loads(text)).items():
      holder = config
      *owners, name = path.split(".")
      for section in owners:
        holder = getattr(holder, section)
      setattr(holder, name, tuple(value) if isinstance(value, list) else value)
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
