"""Trains and evaluates one experiment.

  python -m pdpo_jax.main --config=configs/quickstart.py

Started again, the same command goes on where it was cut off.
"""

import pathlib
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from pdpo_jax import command_line
from pdpo_jax.core import display, kept, processes, structs
from pdpo_jax.evaluation import accuracy, lengths
from pdpo_jax.evaluation.report import familiarity, length_control, report
from pdpo_jax.runs import answers, earlier, experiment, locks, run_folder
from pdpo_jax.runs import config as config_lib

_CONFIG = command_line.config_flag()


def train_and_answer(config: config_lib.Config) -> dict[str, Any]:
  """The whole experiment; returns what goes into `results.json`."""
  config_lib.validate(config)
  config = earlier.resolve(config)
  config.recipe.check_devices()
  run_folder.check_processes(config)
  with locks.writing(config.folder):
    outcome = experiment.run(config)
    results = summarize(config, outcome)
    page = report.make_report(config.folder, (), outcome.base, outcome.dataset)
    _print_end(config, outcome, page)
  return results


def summarize(
  config: config_lib.Config, outcome: experiment.Outcome
) -> dict[str, Any]:
  """Prints a table and the paper's claims; writes `results.json`."""
  dataset = outcome.dataset
  words = {
    name: lengths.count_words(texts) for name, texts in outcome.texts.items()
  }
  accuracies = {
    name: {
      split: accuracy.of_scores(scores) for split, scores in by_split.items()
    }
    for name, by_split in outcome.scores.items()
  }
  baseline = "vanilla" if "vanilla" in outcome.scores else None
  claims = lengths.claims(words, dataset.short_users, dataset.long_users)
  results = {
    "claims": claims,
    "words": {name: row.mean for name, row in words.items()},
    "words_standard_error": {
      name: row.standard_error for name, row in words.items()
    },
    "zero_length_share": {name: row.zero_share for name, row in words.items()},
    "reward_accuracy": {
      name: {split: value.to_json() for split, value in by_split.items()}
      for name, by_split in accuracies.items()
    },
    **{
      name: find(outcome.scores, dataset, baseline).to_json()
      for name, find in (
        ("familiarity", familiarity.find),
        ("length_control", length_control.find),
      )
    },
    "seconds": outcome.clock.all(),
  }
  if processes.is_first():
    kept.write_json(config.folder / run_folder.RESULTS, results)
  print("\n" + lengths.table(words, accuracies, dataset.short_users))
  for sentence in lengths.describe_claims(claims):
    print("\n" + textwrap.fill(sentence, 80))
  return results


def _print_end(
  config: config_lib.Config, outcome: experiment.Outcome, page: pathlib.Path
) -> None:
  """Says where everything is, and what to try next."""
  speakers = [name for name in outcome.texts if name not in answers.OTHERS]
  user = ""
  if config.user.kind != "none" and speakers:
    # One who is unlike most, where that is known.
    unlike = [each for each in outcome.dataset.short_users if each in speakers]
    user = f" --user={display.for_shell([*unlike, *speakers][0])}"
  place = display.for_shell(str(config.folder))
  print(
    f"\nReport: {display.name(str(page), 1000)}\nRun folder: {place} "
    f"({outcome.clock.all()['total']:.0f} s)\nTry next:\n"
    f"  {this_python()} -m pdpo_jax.generate --workdir={place}{user} "
    f"--prompt={example_prompt(outcome.prompts)}"
  )


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
