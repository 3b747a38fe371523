"""Trains and evaluates one experiment.

  python -m pdpo_jax.main --config=configs/quickstart.py

Started again, the same command goes on where it was cut off.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from ml_collections import config_flags

from pdpo_jax import command_line, run_folder
from pdpo_jax import config as config_lib
from pdpo_jax.data import batching, sources, tokenize
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import users as users_lib
from pdpo_jax.evaluation import accuracy, answers, lengths
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import pdpo, reference, sft
from pdpo_jax.weights import base as base_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "The experiment: configs/<name>.py, or configs/<name>.py:variant",
)


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


def get_base(
  config: config_lib.Config, dataset: dataset_lib.Dataset, folder: pathlib.Path
) -> base_lib.Base:
  """The base that the config names, trained first where it names none."""
  own = folder / "base"
  if config.base.path or base_lib.is_whole(own):
    return base_lib.read_base(run_folder.base_path(config, folder), config.base)
  return sft.train_base(config, dataset.sft_pairs, own)


def make_batches(
  config: config_lib.Config,
  base: base_lib.Base,
  users: users_lib.UserIndex,
  dataset: dataset_lib.Dataset,
  folder: pathlib.Path,
) -> tuple[batching.PreferenceBatches, batching.PreferenceBatches]:
  """Train and held-out batches with reference log-probabilities."""
  made = []
  for name in ("train", "heldout"):
    examples = getattr(dataset, name)
    tokenized, report = tokenize.tokenize_examples(
      examples,
      base.tokenizer,
      users,
      config.data.max_prompt_tokens,
      config.data.max_response_tokens,
    )
    print(f"{name}: {report}")
    arguments = {
      "examples": tokenized,
      "batch_size": config.train.batch_size,
      "seed": config.seed,
      "prefix_length": config.user.num_tokens,
      "max_shapes": config.data.max_shapes,
    }
    plain = batching.PreferenceBatches(**arguments, reference_logps=None)
    logps = reference.reference_logps(
      base, tokenized, plain, folder / "reference", config.train.logits_chunk
    )
    made.append(batching.PreferenceBatches(**arguments, reference_logps=logps))
  return made[0], made[1]


def train_and_answer(config: config_lib.Config) -> dict[str, Any]:
  """The whole experiment; returns what goes into `results.json`."""
  config_lib.validate(config)
  folder = run_folder.open_run(config)
  clock = Clock()
  with clock.stage("data"):
    dataset = sources.load(config)
    users = users_lib.UserIndex.from_examples(dataset.train)
  with clock.stage("sft"):
    base = get_base(config, dataset, folder)
  with clock.stage("reference"):
    batches, heldout = make_batches(config, base, users, dataset, folder)

  # Vanilla DPO is the same training with no user model.
  trainings = {"pdpo": config}
  if config.vanilla and config.user.kind != "none":
    no_users = dataclasses.replace(config.user, kind="none")
    vanilla = dataclasses.replace(config, user=no_users)
    trainings = {"vanilla": vanilla} | trainings
  accuracies, texts = {}, {}
  owners = [example.user_id for example in dataset.heldout]
  for name, one in trainings.items():
    with clock.stage(name):
      split = pdpo.train(
        one, base, users, batches, heldout, dataset.train, folder / name
      )
      ratios = pdpo.heldout_ratios(split, heldout, config.train.logits_chunk)
      accuracies[name] = accuracy.reward_accuracy(ratios, owners)
    with clock.stage(f"{name}_answers"):
      rows = {"V": 0}
      if name == "pdpo":
        rows = {"G": 0} | {each: users.row_of(each) for each in users.ids}
      texts |= answers.answer(split.merge(), base, dataset.prompts, rows, one)
  with clock.stage("sft_answers"):
    nobody = policy_lib.base_policy(base.lm)
    said = answers.answer(nobody, base, dataset.prompts, {"S": 0}, config)
    texts = said | texts
  answers.write(folder / "answers.jsonl", dataset.prompts, texts, config.seed)
  return report(config, dataset, texts, accuracies, folder, clock)


def report(
  config: config_lib.Config,
  dataset: dataset_lib.Dataset,
  texts: dict[str, list[str]],
  accuracies: dict[str, dict[str, float]],
  folder: pathlib.Path,
  clock: Clock,
) -> dict[str, Any]:
  """Figure, table, claims and `results.json`."""
  words = {name: lengths.count_words(said) for name, said in texts.items()}
  (folder / "figures").mkdir(exist_ok=True)
  figure = folder / "figures" / "figure3.png"
  title = f"{config.name}: length of answers, {len(dataset.prompts)} prompts"
  lengths.figure(figure, words, dataset.short_users, title)
  claims = {}
  if dataset.short_users and dataset.long_users:
    claims = lengths.claims(words, dataset.short_users, dataset.long_users)
  results = {
    "claims": claims,
    "words": {name: row.mean for name, row in words.items()},
    "words_standard_error": {
      name: row.standard_error for name, row in words.items()
    },
    "zero_length_share": {name: row.zero_share for name, row in words.items()},
    "reward_accuracy": accuracies,
    "seconds": clock.all(),
  }
  file = folder / "results.json"
  file.write_text(json.dumps(results, indent=2) + "\n")
  print("\n" + lengths.table(words, accuracies, dataset.short_users))
  if claims:
    print("\n" + lengths.describe_claims(claims))
  user = next(iter([*dataset.short_users, *texts]))
  print(
    f"\nFigure 3: {figure}\nRun folder: {folder} "
    f"({results['seconds']['total']:.0f} s)\nTry next:\n"
    f"  python -m pdpo_jax.generate --workdir={folder} --user={user} "
    f"--prompt={example_prompt(dataset)}"
  )
  return results


def example_prompt(dataset: dataset_lib.Dataset) -> str:
  """A held-out prompt, quoted for bash."""
  escaped = dataset.prompts[0].replace("\\", "\\\\").replace("'", "\\'")
  return "$'" + escaped.replace("\n", "\\n") + "'"


def main() -> None:
  if _CONFIG.value is None:
    raise ValueError(
      "--config is missing; name an experiment, e.g. "
      "--config=configs/quickstart.py"
    )
  train_and_answer(_CONFIG.value)


if __name__ == "__main__":
  command_line.run(main)
