r"""How soon is somebody known whose taste is real?

  python -m pdpo_jax.main --config=configs/movielens.py \
    --config.data.ratings.num_users=250 --config.data.ratings.unseen_users=0.2 \
    --config.workdir=runs/movielens-newcomers
  python -m benchmarks.taste_newcomers --workdir=runs/movielens-newcomers

People whom the run kept from training make 0, 1, 2, 5, … choices each, and what
they are like is learnt from these alone (`training/people.py`). The methods of
`benchmarks.tastes` get the same choices beside all that the run trained on,
with the settings that predict best there. Accuracy on held-out pairs is a mean
over people; gains are over the policy without any choice. CPU, some minutes.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from benchmarks import choice_methods
from pdpo_jax import command_line
from pdpo_jax.evaluation import accuracy, statistics
from pdpo_jax.runs import run as run_lib

_WORKDIR = command_line.workdir_flag()
_JSON = flags.DEFINE_string("json", None, "Also write the figures there.")
_CHOICES = flags.DEFINE_multi_integer(
  "choices", [0, 1, 2, 5, 10, 20, 40], "Numbers of choices."
)
_DRAWS = flags.DEFINE_integer("draws", 3, "Sets of choices of each person.")
_LEARNT, _PROBABILITY = "P-DPO", "probability"


class Newcomers:
  """People whom the run kept from training, and what they choose."""

  def __init__(self, run: run_lib.Run):
    self.learner = run.own.learner
    self.train = run.dataset.train
    self.own, held = choice_methods.of_strangers(
      run.dataset.unseen, run.config.data.ratings.train_per_user
    )
    # Pairs of texts whose tokens are the same are left out.
    self.asked = self.learner.prepare(held).choices
    self.held = [held[each.place] for each in self.asked]
    self.users = [str(each.user_id) for each in self.held]
    known = choice_methods.known_texts(
      x for own in self.own.values() for x in own
    )
    self.is_new = np.array([
      not {each.chosen, *each.rejected} & known[each.user_id]
      for each in self.held
    ])  # fmt: skip
    self._methods = choice_methods.Methods.of(
      [*self.train, *run.dataset.unseen],
      [*choice_methods.known_texts(self.train), *self.own],
    )
    train = self._methods.choices(self.train)
    self._settings = {
      name: choice_methods.best(fit, train, grid)[1]
      for name, (fit, grid) in self._methods.by_name.items()
    }

  def expect(self, known: choice_methods.Examples) -> dict[str, np.ndarray]:
    """Margins of the held-out pairs, by method, after these choices.

    Those of `_LEARNT` are of the most likely group. `_PROBABILITY` has what the
    policy gives to each choice.
    """
    people = self.learner.learn(self.learner.prepare(known).choices, self.own)
    outlook = self.learner.outlooks(
      [people[user] for user in self.users], self.asked
    )
    group = np.argmax(outlook.groups, 0)
    found = {
      _LEARNT: outlook.margin[group, np.arange(len(group))],
      _PROBABILITY: outlook.probability,
    }
    fitted = self._methods.choices([*self.train, *known])
    pairs = self._methods.choices(self.held)
    for name, (fit, _) in self._methods.by_name.items():
      found[name] = fit(fitted, *self._settings[name])(pairs)
    return found


def table(
  everybody: Newcomers, found: Mapping[int, Mapping[str, np.ndarray]]
) -> list[dict[str, Any]]:
  """Prints and returns accuracies by number of choices.

  Args:
    found: by number of choices and method, a column a draw.
  """
  rows = []
  kinds = {"all pairs": np.ones_like(everybody.is_new)}
  kinds["new texts"] = everybody.is_new
  for title, of_kind in kinds.items():
    places = np.flatnonzero(of_kind)
    if not places.size:
      continue
    users = [everybody.users[place] for place in places]
    print(f"{title}: {places.size:,} pairs of {len(set(users))} people")
    nobody = accuracy.reward_accuracy(found[0][_LEARNT][places], users)
    for count, methods in found.items():
      row: dict[str, Any] = {"pairs": title, "choices": count}
      for name, margins in methods.items():
        if name == _PROBABILITY:
          row["calibration"] = statistics.calibration_error(
            margins[places].ravel()
          )
          continue
        of_method = accuracy.reward_accuracy(margins[places], users)
        gain = accuracy.gain(of_method, nobody)
        row[name] = {
          "accuracy": of_method.users,
          "gain": gain.mean,
          "interval": gain.interval,
        }
      rows.append(row)
      show(row)
  return rows


def show(row: Mapping[str, Any]) -> None:
  cells = []
  for name, cell in row.items():
    if isinstance(cell, Mapping):
      low, high = (100 * end for end in cell["interval"])
      cells.append(
        f"{name} {100 * cell['accuracy']:.1f} "
        f"({100 * cell['gain']:+.1f} [{low:+.1f}, {high:+.1f}])"
      )
  print(
    f"  {row['choices']:3}  {'  '.join(cells)}  "
    f"calibration error {row['calibration']:.3f}",
    flush=True,
  )


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError("--workdir is missing, e.g. runs/movielens-newcomers")
  run = run_lib.Run.open(_WORKDIR.value)
  if run.config.data.source != "ratings" or not run.dataset.unseen:
    raise ValueError(
      f"{_WORKDIR.value} kept nobody who rated from training; train a run of "
      "configs/movielens.py or configs/jester.py with data.ratings.unseen_users"
    )
  everybody = Newcomers(run)
  population = everybody.learner.population
  print(
    f"{population.users} users in {population.groups} groups, "
    f"{population.size} directions",
    flush=True,
  )
  found: dict[int, dict[str, np.ndarray]] = {}
  # Nothing is the first, as what all others gain is measured from there.
  for count in sorted({0, *_CHOICES.value}):
    draws = [
      everybody.expect(
        [
          x
          for own in choice_methods.draw(everybody.own, number).values()
          for x in own[:count]
        ]
      )
      # Of nothing, nothing is drawn.
      for number in range(_DRAWS.value if count else 1)
    ]
    found[count] = {
      name: np.stack([each[name] for each in draws], 1) for name in draws[0]
    }
    print(f"{count} choices: learnt", flush=True)
  results = table(everybody, found)
  if _JSON.value:
    text = json.dumps(results, indent=2) + "\n"
    pathlib.Path(_JSON.value).write_text(text)


if __name__ == "__main__":
  command_line.run(main)
