"""A run folder, and what is in it."""

import functools
import logging
import pathlib
from collections.abc import Mapping

import transformers

from pdpo_jax.core import processes
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import sources, tokenize
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import earlier, roster, run_folder, trained
from pdpo_jax.runs import people as people_lib
from pdpo_jax.training import sharding
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)


def read_base(
  config: config_lib.Config, folder: pathlib.Path, reading: bool = False
) -> base_lib.Base:
  """The base of the run in `folder`, on the devices that there are.

  Args:
    reading: for a run that is only read, perhaps on another machine than it was
      trained on: its weights are split over whatever devices there are.

  Raises:
    ValueError: as `base_lib.read_base`, or if devices and mesh do not match.
  """
  if not reading:
    config.recipe.check_devices()
  mesh = sharding.reading_mesh() if reading else config.mesh
  placement = sharding.of_base(sharding.make_mesh(mesh))
  path = run_folder.base_path(config, folder)
  return base_lib.read_base(path, config.base, placement)


def load_dataset(
  config: config_lib.Config,
  tokenizer: transformers.PreTrainedTokenizerBase | None,
  folder: pathlib.Path | None = None,
) -> dataset_lib.Dataset:
  """The data set; some sources count in the base's tokens, if there is one.

  Args:
    folder: of the run, if there is one yet. What an earlier run that it starts
      from was trained on is not held out.
  """
  count_tokens = None
  if tokenizer is not None:
    count_tokens = functools.partial(tokenize.count_tokens, tokenizer)
  dataset = sources.load(
    config.data,
    seed=config.seed,
    num_prompts=config.answers.num_prompts,
    num_posts=config.sft.num_posts,
    users_alone=config.train.learn == "users",
    count_tokens=count_tokens,
    before=earlier.held_out(config, folder),
  )
  if folder is not None:
    dataset = roster.without_erased(dataset, folder)
  if config.user.prefix_length and not any(
    example.user_id for example in dataset.train
  ):
    logger.warning(
      "data.path %r: no comparison says who made it, so that only the generic "
      "embedding is learnt; where the column of users is not %r, name it by "
      "data.files.user_column",
      config.data.path,
      config.data.files.user_column,
    )
  if processes.several():
    processes.agree("the data", dataset.digests())
  return dataset


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
    database: str = "",
  ):
    """
    Args:
      base: of the run, if it is read already.
      database: of the people who came after training, as SQLAlchemy's address;
        empty: the one in the folder.
    """
    self.workdir, self.config = workdir, config
    self._database = database
    if base is not None:
      self.base = base

  @classmethod
  def open(
    cls,
    workdir: pathlib.Path | str,
    *,
    name: str = "--workdir",
    base: base_lib.Base | None = None,
    database: str = "",
  ) -> "Run":
    """The run in a folder.

    Args:
      name: of the flag or field that names the folder.
      base, database: as for `Run`.

    Raises:
      ValueError: if there is none, or its config is damaged.
    """
    workdir = pathlib.Path(workdir).expanduser()
    return cls(workdir, run_folder.read_config(workdir, name), base, database)

  @property
  def base_path(self) -> str:
    return run_folder.base_path(self.config, self.workdir)

  @functools.cached_property
  def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
    return base_lib.read_tokenizer(self.base_path)

  @functools.cached_property
  def base(self) -> base_lib.Base:
    return read_base(self.config, self.workdir, reading=True)

  @functools.cached_property
  def dataset(self) -> dataset_lib.Dataset:
    return load_dataset(self.config, self.tokenizer, self.workdir)

  @functools.cached_property
  def people(self) -> people_lib.People:
    """Who came after training.

    Raises:
      ValueError: if the address of their database is none.
    """
    if self._database:
      return people_lib.People(self._database)
    return people_lib.People.of_run(self.workdir)

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
    main = self.config.training_name
    trainings = {
      name: trained.Trained(self.workdir, name, self.config, lambda: self.base)
      for name in (main, config_lib.VANILLA)
    }
    return {
      name: training
      for name, training in trainings.items()
      if name == main or training.is_there
    }

  @property
  def own(self) -> trained.Trained:
    """What the run is for, and not vanilla DPO beside it."""
    return self.trainings[self.config.training_name]
