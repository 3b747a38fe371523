"""Trains and evaluates one experiment.

  python -m pdpo_jax.main --config=configs/quickstart.py

Started again, the same command goes on where it was cut off.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from pdpo_jax import command_line, run_folder
from pdpo_jax import config as config_lib
from pdpo_jax.data import batching, sources, tokenize
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import parts as parts_lib
from pdpo_jax.data import users as users_lib
from pdpo_jax.evaluation import accuracy, answers, lengths, scores
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import pdpo, reference, sft
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


def make_batches(
  config: config_lib.Config, base: base_lib.Base, part: parts_lib.Part
) -> batching.PreferenceBatches:
  """Batches with reference log-probabilities, as the objective wants them."""
  rows = parts_lib.sample_rows(config, part)
  read = parts_lib.reference_rows(config, rows)
  logps = reference.reference_logps(
    base,
    read,
    parts_lib.make_batches(config, part, read, None),
    pathlib.Path(config.cache),
    config.train.logits_chunk,
    f"reference, {part.name}",
  )
  return parts_lib.make_batches(config, part, rows, logps)


def trainings(config: config_lib.Config) -> dict[str, config_lib.Config]:
  """What is trained, by name: P-DPO, after vanilla DPO if that is wanted.

  Vanilla DPO is the same training with no user model.
  """
  if not config.vanilla or config.user.kind == "none":
    return {run_folder.training_name(config): config}
  no_users = dataclasses.replace(config.user, kind="none")
  return {"vanilla": dataclasses.replace(config, user=no_users), "pdpo": config}


def speakers(
  config: config_lib.Config, users: users_lib.UserIndex, train: parts_lib.Part
) -> dict[str, int]:
  """The generic user and the users with the most samples: their rows."""
  counts = collections.Counter(train.owners)
  busiest = sorted(users.ids, key=lambda each: -counts[each])
  chosen = set(busiest[: config.answers.num_users])
  return {"G": 0} | {
    each: users.row_of(each) for each in users.ids if each in chosen
  }


def train_and_answer(config: config_lib.Config) -> dict[str, Any]:
  """The whole experiment; returns what goes into `results.json`."""
  config_lib.validate(config)
  folder = run_folder.open_run(config)
  clock = Clock()
  base = None
  own = folder / "base"
  if config.base.path or base_lib.is_whole(own):
    with clock.stage("base"):
      path = run_folder.base_path(config, folder)
      base = base_lib.read_base(path, config.base)
  with clock.stage("data"):
    count_tokens = None
    if base is not None:
      count_tokens = functools.partial(tokenize.count_tokens, base.tokenizer)
    dataset = sources.load(config, count_tokens)
    print(f"data: {dataset.tally}")
    unseen = dataset.unseen if config.data.unseen_in_table else []
    users = users_lib.UserIndex.from_examples([*dataset.train, *unseen])
  if base is None:
    with clock.stage("sft"):
      base = sft.train_base(config, dataset.sft_pairs, own)
  with clock.stage("tokenize"):
    parts = {
      name: parts_lib.tokenize_part(
        name, examples, config.data, base.tokenizer, users
      )
      for name, examples in (
        ("train", dataset.train),
        ("heldout", dataset.heldout),
        ("unseen", dataset.unseen),
      )
      if examples
    }
    for part in parts.values():
      print(part)
  accuracies, texts = {}, {}
  for name, one in trainings(config).items():
    with clock.stage(f"{name}_reference"):
      batches = {
        each: make_batches(one, base, part) for each, part in parts.items()
      }
    with clock.stage(name):
      split = pdpo.train(
        one,
        base,
        users,
        batches["train"],
        batches.get("heldout"),
        parts["train"].examples,
        folder / name,
      )
    with clock.stage(f"{name}_accuracy"):
      accuracies[name] = {}
      for each in ("heldout", "unseen"):
        if each in parts:
          ratios = pdpo.heldout_ratios(
            split, batches[each], config.train.logits_chunk
          )
          scored = scores.make(parts[each].examples, ratios)
          step = one.train.epochs * batches["train"].num_batches
          scores.write(scores.file_of(folder / name, each, step), scored)
          accuracies[name][each] = accuracy.reward_accuracy(
            scored.ratios, scored.user_ids
          )
    with clock.stage(f"{name}_answers"):
      rows = {"V": 0}
      if one.user.kind != "none":
        rows = speakers(config, users, parts["train"])
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
  accuracies: dict[str, dict[str, accuracy.Accuracy]],
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
  if (
    dataset.short_users
    and dataset.long_users
    and (words.keys() >= {*dataset.short_users, *dataset.long_users})
  ):
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
  prompt = dataset.prompts[0].prompt
  text = prompt if isinstance(prompt, str) else prompt[-1].content
  escaped = text.replace("\\", "\\\\").replace("'", "\\'")
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
