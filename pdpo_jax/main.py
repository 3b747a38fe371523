"""Trains and evaluates one experiment.

  python -m pdpo_jax.main --config=configs/quickstart.py

Started again, the same command goes on where it was cut off.
"""

import contextlib
import dataclasses
import pathlib
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import transformers

from pdpo_jax import command_line
from pdpo_jax.core import display, kept, processes, structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out
from pdpo_jax.evaluation import accuracy, lengths
from pdpo_jax.evaluation.report import report
from pdpo_jax.inference import respond
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import (
  answers,
  earlier,
  experiment,
  locks,
  run_folder,
  scores,
)
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import pdpo, policies, sft
from pdpo_jax.weights import base as base_lib

_CONFIG = command_line.config_flag()


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


def train_and_answer(config: config_lib.Config) -> dict[str, Any]:
  """The whole experiment; returns what goes into `results.json`."""
  config_lib.validate(config)
  config = earlier.resolve(config)
  experiment.check_batch(config)
  run_folder.check_processes(config)
  with locks.writing(config.folder):
    return _train_and_answer(config)


@dataclasses.dataclass(frozen=True)
class Prepared:
  """All of a run that needs its base's tokenizer, and no weights.

  Attributes:
    data: as tokens.
    prompts: that are answered at the end.
    speakers: user rows of those who answer them, besides the generic user.
  """

  data: experiment.Data
  prompts: Sequence[structs.PromptExample]
  speakers: Mapping[str, int]


def prepare(
  config: config_lib.Config,
  folder: pathlib.Path,
  dataset: dataset_lib.Dataset,
  tokenizer: transformers.PreTrainedTokenizerBase,
  arch: policy_lib.Architecture,
) -> Prepared:
  """Makes samples of a data set, and checks all that can be checked by then.

  Raises:
    ValueError: if no samples are left, or they, the prompts, the users or the
      policy do not go with the base.
  """
  experiment.check_prefix(config, tokenizer)
  users = experiment.users_of(config, dataset)
  users = earlier.users(config, folder, users)
  data = experiment.tokenize_parts(config, tokenizer, dataset, users)
  # Nothing teaches the row of a user none of whose samples fits.
  users = experiment.users_of(config, dataset, data.parts["train"].examples)
  data = experiment.with_rows_of(data, earlier.users(config, folder, users))
  experiment.check_lengths(config, arch, data)
  prompts = respond.fitting(
    dataset.prompts,
    tokenizer,
    arch,
    config.answers,
    config.data,
    config.user.prefix_length,
  )
  for training in experiment.trainings(config).values():
    policies.check_policy(training.recipe, arch)
  return Prepared(data, prompts, experiment.speakers(config, data))


def _train_and_answer(config: config_lib.Config) -> dict[str, Any]:
  folder = run_folder.open_run(config)
  clock = Clock()
  own = folder / run_folder.BASE
  taught = not config.base.path and not processes.from_first(
    lambda: base_lib.is_whole(own)
  )
  source = run_folder.base_path(config, folder)
  if taught:
    source = config.sft.path  # "" from scratch, with no tokenizer yet
  tokenizer = base_lib.read_tokenizer(source) if source else None
  with clock.stage("data"):
    dataset = experiment.load_dataset(config, tokenizer, folder)
    if dataset.tally.rows:
      print(display.visible(f"data: {dataset.tally}"))
  if not config.base.path and not taught:
    processes.from_first(
      lambda: sft.check_data(own, experiment.digest(dataset))
    )
  # What is wrong shall show before weights are read, and hours of training.
  if source:
    with clock.stage("tokenize"):
      arch = base_lib.read_architecture(source)
      prepared = prepare(config, folder, dataset, tokenizer, arch)
  if taught:
    with clock.stage("sft"):
      base = sft.train_base(
        config.sft, config.recipe, dataset, own, experiment.digest(dataset)
      )
    with clock.stage("tokenize"):
      # With the tokenizer that later commands find.
      prepared = prepare(config, folder, dataset, base.tokenizer, base.lm.arch)
  else:
    with clock.stage("base"):
      base = experiment.read_base(config, folder)
  earlier.check_base(config, folder, base)
  data, prompts, speakers = prepared.data, prepared.prompts, prepared.speakers
  for part in data.parts.values():
    print(part)
  trainings = experiment.trainings(config)
  before = experiment.held_out_before(config, folder) or held_out.Record()
  own_texts = earlier.user_texts(config, folder, dataset)
  if not any(policies.is_begun(folder / name) for name in trainings):
    run_folder.write_user_texts(folder, own_texts)
  accuracies, texts = {}, {}
  for name, one in trainings.items():
    with clock.stage(f"{name}_reference"):
      batches = {
        each: experiment.make_batches(one, base, part)
        for each, part in data.parts.items()
      }
    with clock.stage(name):
      split = pdpo.train(
        one.recipe,
        base,
        data.users,
        batches["train"],
        batches.get("heldout"),
        data.parts["train"].examples,
        folder / name,
        experiment.digest(dataset),
      )
    with clock.stage(f"{name}_accuracy"):
      step = one.train.epochs * batches["train"].num_batches
      accuracies[name], digest = {}, split.digest()
      for each in experiment.EVALUATED:
        if each not in data.parts:
          continue
        file = scores.file_of(folder / name, each, step, digest)
        accuracies[name][each] = accuracy.of_scores(
          experiment.score(one, split, batches[each], data.parts[each], file)
        )
    with clock.stage(f"{name}_answers"):
      rows = {"V": 0}
      if one.user.kind != "none":
        rows = {"G": 0} | speakers
      texts |= respond.answer(
        split.merge(), base, prompts, rows, one.answers, one.data, one.seed
      )
  # Not before, since a folder that holds another run has refused by now.
  run_folder.write_user_texts(folder, own_texts)
  run_folder.write_held_out(folder, before.after(dataset))
  with clock.stage("sft_answers"):
    nobody = policy_lib.base_policy(base.lm)
    said = respond.answer(
      nobody,
      base,
      prompts,
      {"S": 0},
      config.answers,
      config.data,
      config.seed,
    )
    texts = said | texts
  answers.write(folder / run_folder.ANSWERS, prompts, texts, config.seed)
  results = summarize(config, dataset, texts, accuracies, clock)
  page = report.make_report(folder, (), base, dataset)
  user = ""
  if config.user.kind != "none" and speakers:
    # One who is unlike most, where that is known.
    named = [each for each in dataset.short_users if each in speakers]
    user = f" --user={display.for_shell(next(iter([*named, *speakers])))}"
  place = display.for_shell(str(folder))
  print(
    f"\nReport: {display.name(str(page), 1000)}\nRun folder: {place} "
    f"({clock.all()['total']:.0f} s)\nTry next:\n"
    f"  {this_python()} -m pdpo_jax.generate --workdir={place}{user} "
    f"--prompt={example_prompt(prompts)}"
  )
  return results


def summarize(
  config: config_lib.Config,
  dataset: dataset_lib.Dataset,
  texts: dict[str, list[str]],
  accuracies: dict[str, dict[str, accuracy.Accuracy]],
  clock: Clock,
) -> dict[str, Any]:
  """Prints a table and the paper's claims; writes `results.json`."""
  words = {name: lengths.count_words(said) for name, said in texts.items()}
  claims = lengths.claims(words, dataset.short_users, dataset.long_users)
  results = {
    "claims": claims,
    "words": {name: row.mean for name, row in words.items()},
    "words_standard_error": {
      name: row.standard_error for name, row in words.items()
    },
    "zero_length_share": {name: row.zero_share for name, row in words.items()},
    "reward_accuracy": {
      name: {part: found.to_json() for part, found in by_part.items()}
      for name, by_part in accuracies.items()
    },
    "seconds": clock.all(),
  }
  if processes.is_first():
    kept.write_json(config.folder / run_folder.RESULTS, results)
  print("\n" + lengths.table(words, accuracies, dataset.short_users))
  for sentence in lengths.describe_claims(claims):
    print("\n" + textwrap.fill(sentence, 80))
  return results


def this_python() -> str:
  """What a shell here calls this Python; its environment may not be active."""
  here, place = pathlib.Path.cwd(), pathlib.Path(sys.executable)
  return str(place.relative_to(here)) if here in place.parents else "python"


def example_prompt(prompts: Sequence[structs.PromptExample]) -> str:
  """A held-out prompt, quoted for bash."""
  prompt = prompts[0].prompt
  text = prompt if isinstance(prompt, str) else prompt[-1].content
  return display.ansi_quoted(text)


def main() -> None:
  if _CONFIG.value is None:
    raise ValueError(
      "--config is missing; name an experiment, e.g. "
      "--config=configs/quickstart.py"
    )
  train_and_answer(_CONFIG.value)


if __name__ == "__main__":
  command_line.run(main, distributed=True)
