r"""How soon is somebody known whose taste is a mixture of five?

  python -m pdpo_jax.main --config=configs/quickstart.py:mixtures
  python -m benchmarks.mixtures --workdir=runs/quickstart-mixtures

Fifty people whom the run has never seen weigh length, tone, order, names and
repetition in ways of their own (`data/sources/mixtures.py`), and never err.
They make 1, 2, 4, … choices each, by chance or such as the policy asks for.
Beside the policy stands who knows what the five are: the same inference, of
five weights, with what a summary is like in place of a margin.
"""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float

from pdpo_jax import command_line
from pdpo_jax.core import structs
from pdpo_jax.data.sources import mixtures, synthetic
from pdpo_jax.evaluation import accuracy, statistics
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import choices as choices_lib
from pdpo_jax.training import people as people_lib
from pdpo_jax.training import posterior

_WORKDIR = command_line.workdir_flag()
_JSON = flags.DEFINE_string("json", None, "Also write the figures there.")
_CHOICES = flags.DEFINE_multi_integer(
  "choices", [0, 1, 2, 4, 8, 16, 32], "Numbers of choices."
)
_PEOPLE = flags.DEFINE_integer("people", 50, "Newcomers.")
_ASKED = flags.DEFINE_integer("asked", 8, "Choices that are asked for.")
_HELDOUT = flags.DEFINE_integer("heldout", 20, "Held-out pairs of a person.")

# Pairs that the policy asks from.
_POOL = 16
# Of posts that the run did not draw.
_SEED = 2_000
# Of what suits somebody, for who knows the five ways: the least difference that
# is compared, 0.1, is a margin of 1.
_SHARPNESS = 10.0

Examples = Sequence[structs.PreferenceExample]


def measure(
  names: Sequence[str],
  owners: Sequence[str],
  margin: Float[np.ndarray, " B"],
  probability: Float[np.ndarray, " B"],
) -> dict[str, Any]:
  """Accuracy over people, and whether probabilities are right.

  Args:
    owners: of each held-out pair.
    margin, probability: in favour of what they chose.
  """
  owners = np.array(owners)
  # Who knows nothing is right by half.
  right = np.heaviside(margin, 0.5)
  values = np.array([np.mean(right[owners == name]) for name in names])
  return {
    "accuracy": float(values.mean()),
    "interval": statistics.bootstrap_interval(values),
    "calibration": statistics.calibration_error(probability),
    "log_loss": float(-np.log(probability.clip(1e-9)).mean()),
  }


def show(title: str, count: int, row: Mapping[str, Any]) -> None:
  low, high = row["interval"]
  print(
    f"{title:10} {count:3}  {row['accuracy']:.3f} [{low:.3f}, {high:.3f}]  "
    f"calibration {row['calibration']:.3f}  log loss {row['log_loss']:.3f}",
    flush=True,
  )


class Newcomers:
  """People, what they choose, and what is held out of that."""

  def __init__(self, run: run_lib.Run, most: int):
    self.names = [f"new{number + 1}" for number in range(_PEOPLE.value)]
    tastes = {name: mixtures.taste_of(name, _SEED) for name in self.names}
    cut = most * len(self.names)
    posts = synthetic.make_posts(cut + _HELDOUT.value * len(self.names), _SEED)
    self.facts = {post.prompt: post.facts for post in posts}
    self.train = mixtures.comparisons(posts[:cut], tastes, _SEED)
    self.held = mixtures.comparisons(posts[cut:], tastes, _SEED + 1)
    self.learner = run.own.learner
    self.choices = self.learner.prepare(self.train).choices
    self.held_choices = self.learner.prepare(self.held).choices
    self.owners = [choice.user_id for choice in self.held_choices]

  def of(self, name: str) -> list[choices_lib.Choice]:
    return [each for each in self.choices if each.user_id == name]

  def measure(self, people: Mapping[str, people_lib.Person]) -> dict[str, Any]:
    outlook = self.learner.outlooks(
      [people[name] for name in self.owners], self.held_choices
    )
    best = np.argmax(outlook.groups, 0)
    margin = outlook.margin[best, np.arange(len(best))]
    return measure(self.names, self.owners, margin, outlook.probability)


def by_chance(everybody: Newcomers) -> list[dict[str, Any]]:
  rows = []
  for count in _CHOICES.value:
    began = time.perf_counter()
    people = everybody.learner.learn(
      [x for name in everybody.names for x in everybody.of(name)[:count]],
      everybody.names,
    )
    seconds = time.perf_counter() - began
    row = everybody.measure(people)
    rows.append({"choices": count, "seconds": seconds} | row)
    show("by chance", count, row)
  return rows


def asked(everybody: Newcomers) -> list[dict[str, Any]]:
  """With choices that the policy asks for, one after another."""
  learner, names = everybody.learner, everybody.names
  left = {name: everybody.of(name)[:_POOL] for name in names}
  known: list[choices_lib.Choice] = []
  people, rows = learner.learn([], names), []
  for count in range(1, _ASKED.value + 1):
    outlook = learner.outlooks(
      [people[name] for name in names for _ in left[name]],
      [each for name in names for each in left[name]],
    )
    telling = outlook.information.reshape(len(names), -1).argmax(1)
    for name, place in zip(names, telling, strict=True):
      known.append(left[name].pop(place))
    people = learner.learn(known)
    if count in _CHOICES.value:
      row = everybody.measure(people)
      rows.append({"choices": count} | row)
      show("asked", count, row)
  return rows


def by_features(
  everybody: Newcomers, run_tastes: Float[np.ndarray, "U 5"]
) -> list[dict[str, Any]]:
  """By who knows the five ways, and how the run's people weigh them."""
  # row = z B, as the policy's prior has it.
  directions = np.linalg.cholesky(np.cov(run_tastes.T)).T

  def features(examples: Examples) -> Float[np.ndarray, "B 5"]:
    return np.stack(
      [
        mixtures.ways(x.chosen, everybody.facts[x.prompt])
        - mixtures.ways(x.rejected[0], everybody.facts[x.prompt])
        for x in examples
      ]
    )

  names, rows = everybody.names, []
  place = {name: number for number, name in enumerate(names)}
  held = _SHARPNESS * features(everybody.held) @ directions.T
  owner_of_held = np.array([place[x.user_id] for x in everybody.held])
  for count in _CHOICES.value:
    train = [
      each
      for name in names
      for each in [x for x in everybody.train if x.user_id == name][:count]
    ]
    gradients = np.zeros((0, 5))
    if train:
      gradients = _SHARPNESS * features(train) @ directions.T
    owner = np.array([place[x.user_id] for x in train], np.int64)

    def margins_of(places, z, gradients=gradients):
      return np.sum(gradients[places] * z, -1), gradients[places]

    found = posterior.start(len(names), 5, margins_of, owner, 0.0)
    posterior.minimize(found, np.arange(len(names)), margins_of, owner, 0.0)
    margin = np.sum(held * found.z[owner_of_held], -1)
    covariance = np.linalg.inv(found.curvature)[owner_of_held]
    deviation = np.sqrt(np.einsum("bi,bij,bj->b", held, covariance, held))
    probability = posterior.expected(
      lambda margin: posterior.probability(margin, 0.0), margin, deviation
    )
    owners = [x.user_id for x in everybody.held]
    row = measure(names, owners, margin, probability)
    rows.append({"choices": count} | row)
    show("features", count, row)
  return rows


def main() -> None:
  workdir = _WORKDIR.value
  if workdir is None:
    raise ValueError(
      "--workdir is missing, e.g. --workdir=runs/quickstart-mixtures"
    )
  run = run_lib.Run.open(workdir)
  if run.config.data.synthetic.tastes != "mixtures":
    raise ValueError(
      f"{workdir} is no run of configs/quickstart.py:mixtures; train one"
    )
  trained = accuracy.of_scores(run.own.scores(run.dataset)["heldout"])
  print(f"trained users: {trained.users:.3f} {trained.interval()}", flush=True)
  everybody = Newcomers(run, max(*_CHOICES.value, _POOL))
  population = everybody.learner.population
  print(
    f"{population.users} users in {population.groups} groups, "
    f"{population.size} directions, {everybody.learner.calibration}",
    flush=True,
  )
  tastes = [
    mixtures.taste_of(user_id, run.config.seed) for user_id in run.own.table.ids
  ]
  results = {
    "trained": trained.users,
    "features": by_features(everybody, np.stack(tastes)),
    "by chance": by_chance(everybody),
    "asked": asked(everybody),
  }
  if _JSON.value:
    text = json.dumps(results, indent=2) + "\n"
    pathlib.Path(_JSON.value).write_text(text)


if __name__ == "__main__":
  command_line.run(main)
