"""All that decides what a training learns, a section of the config each."""

import dataclasses
import pathlib
from typing import Literal

from pdpo_jax.core import sections
from pdpo_jax.data import config as data_config
from pdpo_jax.models import layers, user_model
from pdpo_jax.training import objective, sharding
from pdpo_jax.weights import base as base_lib


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
  learn: Literal["all", "users"] = "all"
  # Examples a step.
  batch_size: sections.Count = 32
  # Microbatches that a batch is run in, one after the other, to save memory.
  accumulation_steps: sections.Count = 1
  epochs: sections.Count = 2
  learning_rate: sections.Positive = 5e-5
  # Of the user model. 0: the same as `learning_rate`.
  user_learning_rate: sections.NotNegative = 0.0
  warmup_steps: sections.CountOrNone = 150
  # A step touches the rows of its own users alone, at a cost that does not
  # depend on how many users there are; others keep their Adam moments as they
  # are. Without, all rows follow their momentum at every step.
  sparse_users: bool = False
  # The table and its moments stay in the host's memory, for one that devices
  # have no room for; takes `sparse_users`, and a single process.
  users_on_host: bool = False
  weight_decay: sections.NotNegative = 0.0
  # Global gradient norm above which gradients are scaled down; 0: never.
  clip_norm: sections.NotNegative = 1.0
  # Steps between lines of metrics, held-out evaluations, and checkpoints.
  log_every: sections.Count = 10
  eval_every: sections.Count = 50
  checkpoint_every: sections.Count = 50
  # How often on the way a few people's answers to a few prompts are looked at:
  # whether they are language still, and end. 0: never.
  text_checks: sections.CountOrNone = 6
  # Newest checkpoints that are kept.
  keep_checkpoints: sections.Count = 2
  # About how many positions of a device have logits over the vocabulary at a
  # time. 0: 128 on a CPU, whose cache that suits, and 1024 elsewhere.
  logits_chunk: sections.CountOrNone = 0

  @property
  def start(self) -> pathlib.Path | None:
    """The run that this one starts from, if there is one."""
    return (
      pathlib.Path(self.start_from).expanduser() if self.start_from else None
    )

  def check_together(self) -> None:
    if self.users_on_host and not self.sparse_users:
      raise ValueError(
        "train.users_on_host needs train.sparse_users: a step on all rows "
        "would send the whole table to the devices; set it too"
      )
    if self.batch_size % self.accumulation_steps:
      raise ValueError(
        f"train.batch_size {self.batch_size} is not divisible by "
        f"train.accumulation_steps {self.accumulation_steps}; use a multiple"
      )


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What a policy is made of, and how it is trained."""

  seed: int
  base: base_lib.BaseConfig
  data: data_config.DataConfig
  user: user_model.UserConfig
  lora: layers.LoraConfig
  loss: objective.LossConfig
  train: TrainConfig
  mesh: sharding.MeshConfig

  @property
  def learns_generic(self) -> bool:
    """Whether the generic user is somebody, and learns."""
    return self.user.kind != "none" and self.train.learn == "all"

  def check_devices(self) -> None:
    """Checks that the devices divide each microbatch; see `sharding`."""
    train = self.train
    sharding.check_batch(self.mesh, train.batch_size, train.accumulation_steps)
