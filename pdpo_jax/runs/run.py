"""A run folder, and what is in it."""

import functools
import pathlib
from collections.abc import Mapping

import transformers

from pdpo_jax.core import processes
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import experiment, run_folder, trained
from pdpo_jax.weights import base as base_lib


class Run:
  """What a run was made with and what it keeps, read when it is asked for.

  This is how every command opens a run that was trained: its base lies split
  over whatever devices there are.

  Attributes:
    workdir: the run folder.
    config: what it was made with.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    config: config_lib.Config,
    base: base_lib.Base | None = None,
  ):
    """
    Args:
      base: of the run, if it is read already.
    """
    self.workdir, self.config = workdir, config
    if base is not None:
      self.base = base

  @classmethod
  def open(
    cls,
    workdir: pathlib.Path | str,
    *,
    name: str = "--workdir",
    base: base_lib.Base | None = None,
  ) -> "Run":
    """The run in a folder.

    Args:
      name: of the flag or field that names the folder.
      base: as for `Run`.

    Raises:
      ValueError: if there is none, or its config is damaged.
    """
    workdir = pathlib.Path(workdir).expanduser()
    return cls(workdir, run_folder.read_config(workdir, name), base)

  @property
  def base_path(self) -> str:
    return run_folder.base_path(self.config, self.workdir)

  @functools.cached_property
  def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
    return base_lib.read_tokenizer(self.base_path)

  @functools.cached_property
  def base(self) -> base_lib.Base:
    return experiment.read_base(self.config, self.workdir, reading=True)

  @functools.cached_property
  def dataset(self) -> dataset_lib.Dataset:
    return experiment.load_dataset(self.config, self.tokenizer, self.workdir)

  @functools.cached_property
  def user_texts(self) -> dict[str, str]:
    """What users say of themselves, by id."""
    return processes.from_first(
      lambda: run_folder.read_user_texts(self.workdir)
    )

  @functools.cached_property
  def versions(self) -> dict[str, str]:
    """Of what it was made with."""
    return processes.from_first(lambda: run_folder.read_versions(self.workdir))

  @functools.cached_property
  def trainings(self) -> Mapping[str, trained.Trained]:
    """What was trained, by name: what the run is for, and vanilla DPO."""
    own = run_folder.training_name(self.config)
    found = {
      name: trained.Trained(self.workdir, name, self.config, lambda: self.base)
      for name in (own, experiment.VANILLA)
    }
    return {
      name: training
      for name, training in found.items()
      if name == own or training.is_there
    }

  @property
  def own(self) -> trained.Trained:
    """What the run is for, and not vanilla DPO beside it."""
    return self.trainings[run_folder.training_name(self.config)]
