"""One experiment from its config on: data, base, trainings and answers."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import transformers

from pdpo_jax.core import display, processes, structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out, prompts, tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.inference import likelihoods, respond, text_health
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import answers, earlier, roster, run_folder
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.training import branch_batches, pdpo, policies, sft
from pdpo_jax.weights import base as base_lib


class Clock:
  """Seconds by stage."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._start = time.perf_counter()

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    self.seconds[name] = round(time.perf_counter() - start, 2)

  def all(self) -> dict[str, float]:
    total = round(time.perf_counter() - self._start, 2)
    return self.seconds | {"total": total}


@dataclasses.dataclass(frozen=True)
class Prepared:
  """All of a run that needs its base's tokenizer, and no weights.

  Attributes:
    data: as tokens.
    prompts: that are answered at the end.
    speakers: user rows of those who answer them, besides the generic user.
  """

  data: tokenized.TokenizedDataset
  prompts: Sequence[structs.PromptExample]
  speakers: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What an experiment found.

  Attributes:
    base: that was trained on.
    dataset: likewise.
    prompts: that were answered.
    texts: answers to them, by who answers: S the base, V vanilla DPO, G the
      generic user, or a user's id.
    scores: of held-out pairs, by training and split.
    clock: seconds by stage, which runs on.
  """

  base: base_lib.Base
  dataset: dataset_lib.Dataset
  prompts: Sequence[structs.PromptExample]
  texts: Mapping[str, list[str]]
  scores: Mapping[str, Mapping[str, scores_lib.Scores]]
  clock: Clock


def run(config: config_lib.Config) -> Outcome:
  """Trains what the config asks for, or goes on, and answers prompts.

  Args:
    config: valid, and resolved by `earlier.resolve`.

  Raises:
    ValueError: as `prepare`, or if the run folder holds another run.
  """
  processes.from_first(lambda: roster.check_whole(config.folder))
  folder = run_folder.begin_or_continue(config)
  clock = Clock()
  dataset, base, prepared = _prepare_base(config, folder, clock)
  earlier.check_base(config, folder, base)
  for split in prepared.data.splits.values():
    print(split)
  before = earlier.held_out(config, folder) or held_out.Record()
  user_texts = earlier.user_texts(config, folder, dataset)
  if not any(policies.is_begun(folder / name) for name in config.trainings):
    run_folder.write_user_texts(folder, user_texts)
  with clock.stage("sft_answers"):
    nobody = policy_lib.base_policy(base.lm)
    texts = _answer(config, nobody, base, prepared.prompts, {"S": 0})
  scores = {}
  for name, training in config.trainings.items():
    scores[name], answered = _train(
      training, base, prepared, texts["S"], folder / name, dataset.digest, clock
    )
    texts |= answered
  # Not before, since a folder that holds another run has refused by now.
  run_folder.write_user_texts(folder, user_texts)
  run_folder.write_held_out(folder, before.after(dataset))
  with clock.stage("likelihoods"):
    likely = likelihoods.under_base(
      base,
      prepared.prompts,
      texts,
      config.data,
      config.train.logits_chunk,
      config.answers.max_new_tokens,
    )
  answers.write(
    folder / run_folder.ANSWERS, prepared.prompts, texts, likely, config.seed
  )
  return Outcome(base, dataset, prepared.prompts, texts, scores, clock)


def _prepare_base(
  config: config_lib.Config, folder: pathlib.Path, clock: Clock
) -> tuple[dataset_lib.Dataset, base_lib.Base, Prepared]:
  """Data and base, which is taught first where the config says so."""
  base_folder = folder / run_folder.BASE
  is_taught = not config.base.path and not processes.from_first(
    lambda: base_lib.is_whole(base_folder)
  )
  source = run_folder.base_path(config, folder)
  if is_taught:
    source = config.sft.path  # "" from scratch, with no tokenizer yet
  tokenizer = base_lib.read_tokenizer(source) if source else None
  with clock.stage("data"):
    dataset = run_lib.load_dataset(config, tokenizer, folder)
    if dataset.tally.records:
      print(display.visible(f"data: {dataset.tally}"))
  if not config.base.path and not is_taught:
    processes.from_first(lambda: sft.check_data(base_folder, dataset.digest))
  # What is wrong shall show before weights are read, and hours of training.
  if source:
    with clock.stage("tokenize"):
      arch = base_lib.read_architecture(source)
      prepared = prepare(config, folder, dataset, tokenizer, arch)
  if not is_taught:
    with clock.stage("base"):
      return dataset, run_lib.read_base(config, folder), prepared
  with clock.stage("sft"):
    base = sft.train_base(
      config.sft, config.recipe, dataset, base_folder, dataset.digest
    )
  with clock.stage("tokenize"):
    # With the tokenizer that later commands find.
    prepared = prepare(config, folder, dataset, base.tokenizer, base.lm.arch)
  return dataset, base, prepared


def _train(
  config: config_lib.Config,
  base: base_lib.Base,
  prepared: Prepared,
  own: Sequence[str],
  folder: pathlib.Path,
  digest: str,
  clock: Clock,
) -> tuple[dict[str, scores_lib.Scores], dict[str, list[str]]]:
  """Trains a policy; its scores by split, and answers by speaker.

  Args:
    config: of the training.
    own: the base's answers to all prompts.
    folder: of the training.
    digest: of the data set.
  """
  name, recipe, splits = folder.name, config.recipe, prepared.data.splits
  with clock.stage(f"{name}_reference"):
    batches = {
      split: branch_batches.with_reference(
        recipe, base, examples, config.cache_folder
      )
      for split, examples in splits.items()
    }
  shared = branch_batches.describe_trunks(
    recipe, splits[tokenized.TRAIN], batches[tokenized.TRAIN]
  )
  if shared:
    print(f"{name}: {shared}")
  rows = {"V": 0}
  if config.user.kind != "none":
    rows = {"G": 0} | prepared.speakers
  with clock.stage(name):
    check_text = None
    if config.train.text_checks and config.answers.max_new_tokens:
      check_text = text_health.Watch(
        base,
        prepared.prompts,
        rows,
        own,
        config.answers,
        config.data,
        config.seed,
        config.train.logits_chunk,
      )
    policy = pdpo.train(
      recipe,
      base,
      prepared.data.users,
      batches[tokenized.TRAIN],
      batches.get("heldout"),
      splits[tokenized.TRAIN].examples,
      folder,
      digest,
      check_text,
    )
  with clock.stage(f"{name}_accuracy"):
    step = recipe.train.epochs * batches[tokenized.TRAIN].num_batches
    trained = policy.digest()
    scores = {
      split: scores_lib.compute(
        recipe,
        policy,
        batches[split],
        splits[split].examples,
        scores_lib.file_of(folder, split, step, trained),
      )
      for split in tokenized.EVALUATED
      if split in splits
    }
  with clock.stage(f"{name}_answers"):
    texts = _answer(config, policy.merge(), base, prepared.prompts, rows)
  return scores, texts


def _answer(
  config: config_lib.Config,
  policy: policy_lib.Policy,
  base: base_lib.Base,
  prompts: Sequence[structs.PromptExample],
  rows: Mapping[str, int],
) -> dict[str, list[str]]:
  return respond.answer(
    policy, base, prompts, rows, config.answers, config.data, config.seed
  )


def prepare(
  config: config_lib.Config,
  folder: pathlib.Path,
  dataset: dataset_lib.Dataset,
  tokenizer: transformers.PreTrainedTokenizerBase,
  arch: policy_lib.Architecture,
) -> Prepared:
  """Tokenizes a data set, and checks all that can be checked by then.

  Raises:
    ValueError: if no examples are left, or they, the prompts, the users or the
      policy do not go with the base.
  """
  check_prefix(config, tokenizer)
  users = users_lib.UserIndex.of_dataset(dataset, config.data)
  users = earlier.users(config, folder, users)
  data = tokenized.tokenize_dataset(dataset, config.data, tokenizer, users)
  # Nothing teaches the row of a user none of whose examples fits.
  users = users_lib.UserIndex.of_dataset(
    dataset, config.data, data.splits[tokenized.TRAIN].examples
  )
  data = data.with_users(earlier.users(config, folder, users))
  check_lengths(config, arch, data)
  fitting = respond.fitting(
    dataset.prompts,
    tokenizer,
    arch,
    config.answers,
    config.data,
    config.user.prefix_length,
  )
  for training in config.trainings.values():
    policies.check_policy(training.recipe, arch)
  return Prepared(data, fitting, speakers(config, dataset, data.users))


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


def check_lengths(
  config: config_lib.Config,
  arch: policy_lib.Architecture,
  data: tokenized.TokenizedDataset,
) -> None:
  """Checks that the base has positions for the longest example.

  Raises:
    ValueError: if it has not.
  """
  prefix = config.user.prefix_length
  longest = prefix + data.longest
  if longest > arch.max_positions:
    raise ValueError(
      f"the longest prompt and response have {longest} tokens, user.num_tokens "
      f"{prefix} included, and the base has {arch.max_positions} "
      "positions; lower data.max_prompt_tokens or data.max_response_tokens"
    )


def speakers(
  config: config_lib.Config,
  dataset: dataset_lib.Dataset,
  users: users_lib.UserIndex,
) -> dict[str, int]:
  """User rows of those who answer besides the generic user.

  Raises:
    ValueError: if `answers.users` names somebody who is not trained on, or a
      user has the name of another speaker.
  """
  ids = config.answers.users
  if not ids:
    chose = {example.user_id for example in dataset.train}
    busiest = users.busiest(dataset.train, config.answers.num_users)
    ids = [user_id for user_id in busiest if user_id in chose]
  for user_id in ids:
    if user_id in answers.OTHERS:
      raise ValueError(
        f"user {user_id!r} has the name that the answers of "
        f"{answers.OTHERS[user_id]} go by; give the user another id, or name "
        "others in answers.users"
      )
  return {user_id: users.row_of(user_id) for user_id in ids}
