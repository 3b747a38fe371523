"""One experiment: the sections of all parts, and how they go together.

A knob stands in the section of the part that reads it, with its type, range,
default and meaning. A file in `configs/` returns a `Config` with what differs
from the defaults; `--config.loss.beta=0.2` on the command line overrides a
field.
"""

import dataclasses
import json
import pathlib
from typing import Annotated

from pdpo_jax.core import sections
from pdpo_jax.data import config as data_config
from pdpo_jax.inference import sampling
from pdpo_jax.models import layers, user_model
from pdpo_jax.training import objective, recipes, sharding
from pdpo_jax.training import sft as sft_lib
from pdpo_jax.weights import base as base_lib

# The folder of each training in its run's.
VANILLA, PDPO = "vanilla", "pdpo"


@dataclasses.dataclass
class Config(sections.Section):
  """One experiment."""

  name: str = "experiment"
  # The run folder; empty: runs/<name>.
  workdir: str = ""
  # Where reference log-probabilities are kept, for all runs on the same data
  # and base.
  cache: str = "runs/cache"
  seed: Annotated[int, sections.Range(least=0, most=2**31 - 1)] = 0
  # Also train vanilla DPO from the same base with the same budget.
  vanilla: bool = True
  base: base_lib.BaseConfig = dataclasses.field(
    default_factory=base_lib.BaseConfig
  )
  sft: sft_lib.SftConfig = dataclasses.field(default_factory=sft_lib.SftConfig)
  data: data_config.DataConfig = dataclasses.field(
    default_factory=data_config.DataConfig
  )
  user: user_model.UserConfig = dataclasses.field(
    default_factory=user_model.UserConfig
  )
  lora: layers.LoraConfig = dataclasses.field(default_factory=layers.LoraConfig)
  loss: objective.LossConfig = dataclasses.field(
    default_factory=objective.LossConfig
  )
  train: recipes.TrainConfig = dataclasses.field(
    default_factory=recipes.TrainConfig
  )
  mesh: sharding.MeshConfig = dataclasses.field(
    default_factory=sharding.MeshConfig
  )
  answers: sampling.AnswersConfig = dataclasses.field(
    default_factory=sampling.AnswersConfig
  )

  @property
  def source_path(self) -> str:
    """Of the base, or of what it is taught from; empty: from scratch."""
    return self.base.path or self.sft.path

  @property
  def folder(self) -> pathlib.Path:
    return pathlib.Path(self.workdir or f"runs/{self.name}").expanduser()

  @property
  def cache_folder(self) -> pathlib.Path:
    return pathlib.Path(self.cache).expanduser()

  @property
  def start(self) -> pathlib.Path | None:
    """The run that this one starts from, if there is one."""
    return self.train.start

  @property
  def recipe(self) -> recipes.Recipe:
    """The sections that a training reads."""
    names = [field.name for field in dataclasses.fields(recipes.Recipe)]
    return recipes.Recipe(**{name: getattr(self, name) for name in names})

  @property
  def training_name(self) -> str:
    """The folder, in its run's, of the training that the run is for."""
    return VANILLA if self.user.kind == "none" else PDPO

  @property
  def trainings(self) -> dict[str, "Config"]:
    """What is trained, by name: P-DPO, after vanilla DPO if that is wanted.

    Vanilla DPO is the same training with no user model.
    """
    if not self.vanilla or self.user.kind == "none":
      return {self.training_name: self}
    no_users = dataclasses.replace(self.user, kind="none")
    return {VANILLA: dataclasses.replace(self, user=no_users), PDPO: self}

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
  """Checks each section, and how they go together.

  Raises:
    ValueError: with the field, its value, what is allowed and what to do.
  """
  sections.check(config)
  sections.require(config.name.strip() != "", "name", config.name, "non-empty")
  if config.user.kind == "none" and not config.lora.targets:
    raise ValueError(
      "lora.targets () and user.kind 'none' leave nothing to train; name some "
      "layers or choose a user model"
    )
  if config.vanilla and not config.lora.targets:
    raise ValueError(
      "lora.targets () leaves vanilla DPO nothing to train; name some layers, "
      "or do without it (--config.vanilla=False)"
    )
  if config.train.learn == "users":
    _check_users_alone(config)
  if config.start:
    _check_start(config)
  if config.base.path and config.sft.path:
    raise ValueError(
      f"sft.path {config.sft.path!r} is not taught where base.path is "
      f"{config.base.path!r}; leave one of them empty"
    )
  from_scratch = config.data.source in ("synthetic", "ratings")
  needs_base = not from_scratch and not config.start
  if needs_base and not config.source_path:
    raise ValueError(
      f"base.path '' does not go with data.source {config.data.source!r}: from "
      "scratch only the synthetic language and rated texts are learnt. "
      "Name a base, or with sft.path one that is taught the chosen responses "
      "first"
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
