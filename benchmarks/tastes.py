r"""What methods without a language model make of the same choices.

  python -m pdpo_jax.main --config=configs/jester.py
  python -m benchmarks.tastes --workdir=runs/jester-individual

Beside a run's own policies: popularity, regression on the words of a text, and
matrix factorisation (`benchmarks/choice_methods.py`). All are fitted to the
run's training choices alone; how strongly they are regularised is chosen by
choices that are kept from the fit. Accuracy on held-out pairs, a mean over
people, apart for pairs of texts that the person compared in training and pairs
of texts that are new to the person. CPU, a few minutes.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags
from jaxtyping import Float

from benchmarks import choice_methods
from pdpo_jax import command_line
from pdpo_jax.core import structs
from pdpo_jax.evaluation import accuracy
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import scores as scores_lib

_WORKDIR = command_line.workdir_flag()
_JSON = flags.DEFINE_string("json", None, "Also write the figures there.")
_KINDS = {2: "known texts", 1: "one new text", 0: "new texts"}


def rivals(
  train: Sequence[structs.PreferenceExample],
  heldout: Sequence[structs.PreferenceExample],
) -> dict[str, tuple[Float[np.ndarray, "examples 1"], str]]:
  """Margins of held-out examples by method, and the settings of each."""
  methods = choice_methods.Methods.of(
    [*train, *heldout], choice_methods.known_texts(train)
  )
  choices, asked = methods.choices(train), methods.choices(heldout)
  results = {}
  for name, (fit, grid) in methods.by_name.items():
    predict, settings = choice_methods.best(fit, choices, grid)
    results[name] = predict(asked)[:, None], ", ".join(map(str, settings))
  return results


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError("--workdir is missing, e.g. --workdir=runs/jester")
  run = run_lib.Run.open(_WORKDIR.value)
  dataset = run.dataset
  heldout = [each for each in dataset.heldout if len(each.rejected) == 1]
  margins = rivals(dataset.train, heldout)
  for training in run.trainings.values():
    scores = training.scores(dataset)["heldout"]
    by_key = dict(zip(scores.examples, scores.ratios, strict=True))
    ratios = [by_key[scores_lib.example_key(each)][:1] for each in heldout]
    margins[training.name] = np.array(ratios), ""
  known = choice_methods.known_texts(dataset.train)
  kinds = np.array([
    len({each.chosen, *each.rejected} & known.get(each.user_id, set()))
    for each in heldout
  ])  # fmt: skip
  figures = {}
  for kind, title in _KINDS.items():
    places = np.flatnonzero(kinds == kind)
    if places.size:
      figures[title] = table(title, places, heldout, margins)
  if _JSON.value:
    text = json.dumps(figures, indent=2) + "\n"
    pathlib.Path(_JSON.value).write_text(text)


def table(title, places, heldout, margins) -> dict:
  """Prints and returns accuracies, and gains over popularity."""
  users = [heldout[place].user_id for place in places]
  print(f"{title}: {places.size:,} pairs of {len(set(users)):,} people")
  first = None
  figures = {}
  for name, (ratios, settings) in margins.items():
    of_kind = accuracy.reward_accuracy(ratios[places], users)
    first = first or of_kind
    gain = accuracy.gain(of_kind, first)
    low, high = (100 * end for end in gain.interval)
    print(
      f"  {name:24} {100 * of_kind.users:5.1f}   {100 * gain.mean:+5.1f} "
      f"[{low:+.1f}, {high:+.1f}] p = {gain.p_value:.4f}   {settings}"
    )
    figures[name] = {
      "accuracy": of_kind.users,
      "gain": gain.mean,
      "interval": gain.interval,
      "p": gain.p_value,
    }
  return figures


if __name__ == "__main__":
  command_line.run(main)
