"""An experiment's base, data and policies, for the commands that need them."""

import collections
import dataclasses
import functools
import hashlib
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import transformers

from pdpo_jax.core import kept, processes, structs
from pdpo_jax.data import batching, held_out, prompts, sources, tokenize
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import parts as parts_lib
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import answers, run_folder
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.training import (
  branch_batches,
  policies,
  reference,
  scoring,
  sharding,
)
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

VANILLA = run_folder.VANILLA
# Parts that are never trained on.
EVALUATED = ("heldout", "unseen")


@dataclasses.dataclass(frozen=True)
class Data:
  """What a run is trained and evaluated on, as text and as tokens.

  Attributes:
    dataset: all of it.
    users: rows of the user table.
    parts: by name; empty ones are left out.
  """

  dataset: dataset_lib.Dataset
  users: users_lib.UserIndex
  parts: dict[str, parts_lib.Part]


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
  mesh = sharding.reading_mesh() if reading else config.mesh
  if not reading:
    check_batch(config)
  mesh = sharding.make_mesh(mesh)
  path = run_folder.base_path(config, folder)
  return base_lib.read_base(path, config.base, sharding.of_base(mesh))


def check_batch(config: config_lib.Config) -> None:
  """Checks that the devices divide each microbatch; see `sharding`."""
  train = config.train
  sharding.check_batch(config.mesh, train.batch_size, train.accumulation_steps)


def check_prefix(
  config: config_lib.Config, tokenizer: transformers.PreTrainedTokenizerBase
) -> None:
  """Checks that a prefix that is to come after BOS has one before it.

  Raises:
    ValueError: if prompts begin with none, so that it would stand between
      their first token and the second, within a word perhaps.
  """
  if config.user.kind == "none" or config.user.prefix_position != "after_bos":
    return
  if not prompts.make_encoder(tokenizer, config.data).begins_with_bos:
    remedy = "use user.prefix_position 'front'"
    if tokenizer.bos_token_id is not None:
      remedy = f"set data.add_bos (--config.data.add_bos=True), or {remedy}"
    raise ValueError(
      "user.prefix_position 'after_bos' needs prompts that begin with BOS, and "
      f"this base's do not: the prefix would split their first word; {remedy}"
    )


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
  before = held_out_before(config, folder)
  dataset = sources.load(
    config.data,
    seed=config.seed,
    num_prompts=config.answers.num_prompts,
    num_posts=config.sft.num_posts,
    users_alone=config.train.learn == "users",
    count_tokens=count_tokens,
    before=before,
  )
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
    processes.agree("the data", _digests(dataset))
  return dataset


def held_out_before(
  config: config_lib.Config, folder: pathlib.Path | None
) -> held_out.Record | None:
  """What the run that this one starts from was trained on, if there is one.

  Args:
    folder: of this run, if there is one yet. One that is done has it all.
  """
  if config.start is None:
    return None
  if folder is not None and run_folder.is_done(folder, config):
    try:
      return run_folder.read_held_out(folder)
    except kept.Damaged as problem:
      if not (config.start / run_folder.CONFIG).is_file():
        raise
      logger.warning("%s; until then what %s has", problem, config.start)
  return run_folder.read_held_out(config.start)


def digest(dataset: dataset_lib.Dataset) -> str:
  """Names what is trained on and evaluated on."""
  found = _digests(dataset)
  return "-".join(found[name] for name in (parts_lib.TRAIN, *EVALUATED))


def _digests(dataset: dataset_lib.Dataset) -> dict[str, str]:
  """A hash of each field's text; the tally's paths may differ."""
  found = {}
  for field in dataclasses.fields(dataset):
    value = getattr(dataset, field.name)
    if isinstance(value, Mapping):
      value = value.items()
    if isinstance(value, Iterable):
      digest = hashlib.sha256()
      for each in value:
        digest.update(repr(each).encode())
      found[field.name] = digest.hexdigest()[:8]
  return found


def users_of(
  config: config_lib.Config,
  dataset: dataset_lib.Dataset,
  trained: Sequence[structs.PreferenceExample] | None = None,
) -> users_lib.UserIndex:
  """The users of the data who get a row in the table: who is trained on.

  Everyone else is the generic user, in training and in evaluation.

  Args:
    trained: what is left of `dataset.train`, if that is known.
  """
  users = users_lib.UserIndex.from_examples(
    dataset.train if trained is None else trained
  )
  if not config.data.unseen_in_table:
    return users
  unseen = {each.user_id for each in dataset.unseen} - {None, *users.ids}
  return users_lib.UserIndex(users.ids, len(unseen))


def with_rows_of(data: Data, users: users_lib.UserIndex) -> Data:
  """The same data, with the rows of another table of users.

  Whoever has no row there is the generic user.
  """
  if users.ids == data.users.ids:
    return data

  def renumber(row):
    user = data.users.ids[row.user_row - 1] if row.user_row else None
    row_there = users.row_of(user) if user in users else 0
    return dataclasses.replace(row, user_row=row_there)

  parts = {
    name: dataclasses.replace(part, tokenized=[*map(renumber, part.tokenized)])
    for name, part in data.parts.items()
  }
  return dataclasses.replace(data, users=users, parts=parts)


def tokenize_parts(
  config: config_lib.Config,
  tokenizer: transformers.PreTrainedTokenizerBase,
  dataset: dataset_lib.Dataset,
  users: users_lib.UserIndex,
  names: Iterable[str] = (parts_lib.TRAIN, *EVALUATED),
) -> Data:
  """Those of the named parts that have samples.

  Args:
    users: of the policy.
  """
  parts = {
    name: parts_lib.tokenize_part(
      name, getattr(dataset, name), config.data, tokenizer, users
    )
    for name in names
    if getattr(dataset, name)
  }
  return Data(dataset, users, parts)


def check_lengths(
  config: config_lib.Config, arch: policy_lib.Architecture, data: Data
) -> None:
  """Checks that the base has positions for the longest sample.

  Raises:
    ValueError: if it has not.
  """
  prefix = config.user.prefix_length
  longest = prefix + max(
    max(len(row.prompt), len(row.bare_prompt)) + max(map(len, row.responses))
    for part in data.parts.values()
    for row in part.tokenized
  )
  if longest > arch.max_positions:
    raise ValueError(
      f"the longest prompt and response have {longest} tokens, user.num_tokens "
      f"{prefix} included, and the base has {arch.max_positions} "
      "positions; lower data.max_prompt_tokens or data.max_response_tokens"
    )


def make_batches(
  config: config_lib.Config, base: base_lib.Base, part: parts_lib.Part
) -> batching.PreferenceBatches:
  """Batches with reference log-probabilities, as the objective wants them."""
  recipe = config.recipe
  rows = branch_batches.sample_rows(recipe, part)
  read = branch_batches.reference_rows(recipe, rows)
  devices = sharding.batch_shards(sharding.mesh_of(base.params))
  logps = reference.reference_logps(
    base,
    read,
    branch_batches.make_batches(
      recipe, part, read, None, devices, trained=False
    ),
    pathlib.Path(config.cache).expanduser(),
    config.train.logits_chunk,
    f"reference, {part.name}",
  )
  trained = part.name == parts_lib.TRAIN
  return branch_batches.make_batches(
    recipe, part, rows, logps, devices, trained=trained
  )


def trainings(config: config_lib.Config) -> dict[str, config_lib.Config]:
  """What is trained, by name: P-DPO, after vanilla DPO if that is wanted.

  Vanilla DPO is the same training with no user model.
  """
  if not config.vanilla or config.user.kind == "none":
    return {run_folder.training_name(config): config}
  no_users = dataclasses.replace(config.user, kind="none")
  vanilla = dataclasses.replace(config, user=no_users)
  return {VANILLA: vanilla, run_folder.PDPO: config}


def busiest_users(
  train: Iterable[structs.PreferenceExample],
  users: users_lib.UserIndex,
  count: int,
) -> list[str]:
  """The users with the most training samples, in the order of their rows."""
  counts = collections.Counter(each.user_id for each in train)
  busiest = sorted(users.ids, key=lambda each: -counts[each])
  chosen = set(busiest[:count])
  return [each for each in users.ids if each in chosen]


def user_texts(dataset: dataset_lib.Dataset) -> dict[str, str]:
  """What the users who are trained on say of themselves, the last of it."""
  return {
    each.user_id: each.user_text
    for each in dataset.train
    if each.user_id is not None and each.user_text
  }


def speakers(config: config_lib.Config, data: Data) -> dict[str, int]:
  """User rows of those who answer besides the generic user.

  Raises:
    ValueError: if `answers.users` names somebody who is not trained on, or a
      user has the name of another speaker.
  """
  ids = config.answers.users
  if not ids:
    train = data.dataset.train
    chose = {each.user_id for each in train}
    busiest = busiest_users(train, data.users, config.answers.num_users)
    ids = [each for each in busiest if each in chose]
  for each in ids:
    if each in answers.OTHERS:
      raise ValueError(
        f"user {each!r} has the name that the answers of "
        f"{answers.OTHERS[each]} go by; give the user another id, or name "
        "others in answers.users"
      )
  return {each: data.users.row_of(each) for each in ids}


def score(
  config: config_lib.Config,
  split: policies.SplitPolicy,
  batches: batching.PreferenceBatches,
  part: parts_lib.Part,
  file: pathlib.Path,
) -> scores_lib.Scores:
  """Scores a part's pairs with a policy, and keeps them in `file`."""
  ratios = scoring.heldout_ratios(
    split, batches, config.train.logits_chunk, config.loss.length_normalized
  )
  scores = scores_lib.make(part.examples, ratios)
  scores_lib.write(file, scores)
  return scores
