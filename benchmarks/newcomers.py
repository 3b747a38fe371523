r"""How many choices does it take to know somebody who comes later?

  python -m pdpo_jax.main --config=configs/quickstart.py
  python -m benchmarks.newcomers --workdir=runs/quickstart

Twelve people whom the run has never seen, half of whom prefer the shorter
summary, make 1, 2, 4, … choices each; what they are like is learnt from these
(`training/people.py`). Measured is held-out reward accuracy, with choices that
come by chance and with such as the policy asks for; whether its probabilities
are right; what those people are answered; and seconds. With `--thumbs`, they
also like or dislike single summaries instead. With `--trained`, rows are also
trained as a run of `train.learn` "users" does.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from absl import flags
from flax import nnx
from matplotlib import pyplot

from benchmarks import newcomers_trained
from pdpo_jax import command_line
from pdpo_jax.core import structs
from pdpo_jax.data.sources import synthetic
from pdpo_jax.evaluation import statistics
from pdpo_jax.inference import likelihoods, respond, text_health
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import choices as choices_lib
from pdpo_jax.training import people as people_lib
from pdpo_jax.training import policies, posterior

_WORKDIR = command_line.workdir_flag()
_JSON = flags.DEFINE_string("json", None, "Also write the figures there.")
_FIGURE = flags.DEFINE_string("figure", None, "Also draw them there, as PNG.")
_CHOICES = flags.DEFINE_multi_integer(
  "choices", [0, 1, 2, 4, 8, 16, 32, 64], "Numbers of choices."
)
_ASKED = flags.DEFINE_integer("asked", 8, "Choices that are asked for.")
_DRAWS = flags.DEFINE_integer("draws", 3, "Sets of choices of each person.")
_HELDOUT = flags.DEFINE_integer("heldout", 40, "Held-out pairs of a person.")
_PROMPTS = flags.DEFINE_integer("prompts", 10, "That are answered; 0: none.")
_THUMBS = flags.DEFINE_bool("thumbs", False, "Also learn from thumbs.")
_TRAINED = flags.DEFINE_bool("trained", False, "Also train rows.")

PEOPLE = tuple(f"new{place}" for place in range(1, 13))
SHORT = PEOPLE[::2]
# Pairs that the policy asks from.
_POOL = 32
# Of posts that the run did not draw.
_SEED = 1_000

Choices = Mapping[str, Sequence[choices_lib.Choice]]
People = Mapping[str, people_lib.Person]


@dataclasses.dataclass
class Held:
  """Held-out choices, in favour of what each person prefers."""

  learner: people_lib.Learner
  choices: Choices

  def measure(self, people: People) -> dict[str, Any]:
    """Accuracy of people's rows, and whether probabilities are right.

    Args:
      people: by person and draw, as "new1#0".
    """
    names = list(people)
    owners = [name for name in names for _ in self.choices[_person(name)]]
    outlook = self.learner.outlooks(
      [people[name] for name in owners],
      [each for name in names for each in self.choices[_person(name)]],
    )
    everyone = np.arange(len(owners))
    best = np.argmax(outlook.groups, 0)
    margin = outlook.margin[best, everyone]
    right = {name: [] for name in names}
    for name, correct in zip(owners, margin > 0, strict=True):
      right[name].append(correct)
    accuracy = {
      person: np.mean(
        [np.mean(right[n]) for n in names if _person(n) == person]
      )
      for person in PEOPLE
    }
    values = np.array([*accuracy.values()])
    plain = posterior.probability(margin, outlook.lapse)
    return {
      "accuracy": float(values.mean()),
      "interval": statistics.bootstrap_interval(values),
      "short": float(np.mean([accuracy[person] for person in SHORT])),
      "long": float(np.mean([accuracy[p] for p in PEOPLE if p not in SHORT])),
      "iterations": float(np.mean([people[n].iterations for n in names])),
      "converged": float(np.mean([people[n].converged for n in names])),
      "calibration": statistics.calibration_error(outlook.probability),
      "calibration_of_margin": statistics.calibration_error(plain),
      "log_loss": float(-np.log(outlook.probability.clip(1e-9)).mean()),
      "log_loss_of_margin": float(-np.log(plain.clip(1e-9)).mean()),
    }


def _person(name: str) -> str:
  return name.partition("#")[0]


def make_choices(
  learner: people_lib.Learner,
) -> tuple[Choices, Choices, Choices]:
  """Choices to learn from, thumbs, and held-out choices, of each person.

  The former two are by person and draw. A thumb is on one response of a choice:
  up on the preferred one of every other choice, and down on the other one of
  the rest.
  """
  most = max(*_CHOICES.value, _POOL)
  count = len(PEOPLE) * (most * _DRAWS.value + _HELDOUT.value)
  posts = synthetic.make_posts(count, _SEED)
  cut = len(PEOPLE) * most * _DRAWS.value
  train = synthetic.comparisons(posts[:cut], PEOPLE, SHORT, _SEED)
  heldout = synthetic.comparisons(posts[cut:], PEOPLE, SHORT, _SEED + 1)
  by_draw = {
    f"{person}#{draw}": [
      dataclasses.replace(example, user_id=f"{person}#{draw}")
      for example in [x for x in train if x.user_id == person][
        draw * most : (draw + 1) * most
      ]
    ]
    for person in PEOPLE
    for draw in range(_DRAWS.value)
  }
  prepared = learner.prepare([x for own in by_draw.values() for x in own])
  thumbs = [
    structs.Thumb(x.prompt, text, is_up, x.user_id)
    for own in by_draw.values()
    for place, x in enumerate(own)
    for is_up in [place % 2 == 0]
    for text in [x.chosen if is_up else x.rejected[0]]
  ]
  of_thumbs = learner.prepare(thumbs if _THUMBS.value else [])
  held = learner.prepare(heldout)
  return (
    _by_user(prepared.choices, by_draw),
    _by_user(of_thumbs.choices, by_draw),
    _by_user(held.choices, PEOPLE),
  )


def _by_user(choices, names):
  return {
    name: [each for each in choices if each.user_id == name] for name in names
  }


def by_chance(
  learner: people_lib.Learner,
  choices: Choices,
  held: Held,
  title: str = "by chance",
) -> list[dict[str, Any]]:
  rows = []
  for count in _CHOICES.value:
    began = time.perf_counter()
    people = learner.learn(
      [each for own in choices.values() for each in own[:count]], choices
    )
    seconds = time.perf_counter() - began
    rows.append({"choices": count, "seconds": seconds} | held.measure(people))
    rows[-1]["people"] = people
    show(title, rows[-1])
  return rows


def asked(
  learner: people_lib.Learner, choices: Choices, held: Held
) -> list[dict[str, Any]]:
  """The same with choices that the policy asks for, one after another."""
  rows, known = [], {name: [] for name in choices}
  people = learner.learn([], choices)
  left = {name: list(own[:_POOL]) for name, own in choices.items()}
  for count in range(1, _ASKED.value + 1):
    owners = [name for name, own in left.items() for _ in own]
    outlook = learner.outlooks(
      [people[name] for name in owners],
      [each for own in left.values() for each in own],
    )
    information = outlook.information
    start = 0
    for name, own in left.items():
      best = int(np.argmax(information[start : start + len(own)]))
      start += len(own)
      known[name].append(own.pop(best))
    people = learner.learn([x for own in known.values() for x in own])
    if count in _CHOICES.value:
      rows.append({"choices": count} | held.measure(people))
      show("asked", rows[-1])
  return rows


def answers(run: run_lib.Run, rows: Sequence[dict[str, Any]]) -> None:
  """Adds what is wrong with the text that people are answered."""
  posts = synthetic.make_posts(_PROMPTS.value, _SEED + 2)
  prompts = [structs.PromptExample(post.prompt) for post in posts]
  graphdef, trainable, frozen = nnx.split(
    run.own.policy, policy_lib.trainable, ...
  )
  split = policies.SplitPolicy(graphdef, trainable, frozen)
  first = split.merge().user_model.num_rows
  config = run.config
  ask = functools.partial(
    respond.answer,
    base=run.base,
    prompts=prompts,
    answers=config.answers,
    data=config.data,
    seed=0,
  )
  base = ask(policy_lib.base_policy(run.base.lm), rows={"base": 0})
  trained = ask(
    run.own.policy,
    rows={user_id: run.own.row_of(user_id) for user_id in run.own.table.ids},
  )
  of_trained = examine(run, prompts, base | trained)
  print("trained users", of_trained)
  for row in rows:
    people = [row["people"][f"{person}#0"].row for person in PEOPLE]
    policy = policies.with_rows(split, people).merge()
    said = ask(policy, rows={name: first + n for n, name in enumerate(PEOPLE)})
    row["text"] = examine(run, prompts, base | said)
    print(f"{row['choices']:3} choices", row["text"], flush=True)


def examine(run, prompts, said: Mapping[str, list[str]]) -> dict[str, float]:
  """Repeated 3-grams beyond the base's, faithfulness, likelihood, words."""
  mine = {name: own for name, own in said.items() if name != "base"}

  def repeated(name):
    return 100 * np.mean([text_health.repetition(text) for text in said[name]])

  likely = likelihoods.under_base(run.base, prompts, said, run.config.data)
  return {
    "repeated_points": float(
      np.mean([repeated(name) for name in mine]) - repeated("base")
    ),
    "faithful": float(
      np.mean(
        [
          synthetic.faithfulness(prompt.prompt, text)
          for own in mine.values()
          for prompt, text in zip(prompts, own, strict=True)
        ]
      )
    ),
    "log_likelihood": float(np.nanmean([likely[name].mean for name in mine])),
    "least_log_likelihood": float(
      np.nanmin([likely[name].mean for name in mine])
    ),
    "words_of_short": words(mine, SHORT),
    "words_of_long": words(mine, set(mine) - set(SHORT)),
  }


def words(said, names) -> float:
  lengths = [len(text.split()) for n in names for text in said.get(n, ())]
  return float(np.mean(lengths)) if lengths else float("nan")


def show(title: str, row: Mapping[str, Any]) -> None:
  low, high = row["interval"]
  print(
    f"{title:9} {row['choices']:3}  {row['accuracy']:.3f} "
    f"[{low:.3f}, {high:.3f}]  short {row['short']:.3f} "
    f"long {row['long']:.3f}  calibration {row.get('calibration', 0):.3f} "
    f"({row.get('calibration_of_margin', 0):.3f} of the margin alone)",
    flush=True,
  )


def times(learner: people_lib.Learner, choices: Choices) -> dict[str, float]:
  """Seconds for five choices of one person, and of all, programs compiled."""
  found = {}
  for title, names in (("one", [*choices][:1]), ("all", [*choices])):
    mine = [each for name in names for each in choices[name][:5]]
    learner.learn(mine)
    began = time.perf_counter()
    learner.learn(mine)
    found[title] = time.perf_counter() - began
  found["people"] = len(choices)
  print("seconds for five choices each:", found, flush=True)
  return found


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError("--workdir is missing, e.g. --workdir=runs/quickstart")
  run = run_lib.Run.open(_WORKDIR.value)
  learner = run.own.learner
  population = learner.population
  print(
    f"{population.users} users in {population.groups} groups "
    f"{population.shares.round(2)}, {population.size} directions",
    flush=True,
  )
  choices, thumbs, heldout = make_choices(learner)
  held = Held(learner, heldout)
  results = {"by chance": by_chance(learner, choices, held)}
  if _THUMBS.value:
    results["thumbs"] = by_chance(learner, thumbs, held, "thumbs")
  results["asked"] = asked(learner, choices, held)
  results["seconds"] = times(learner, choices)
  if _PROMPTS.value:
    answers(run, results["by chance"])
  for row in (*results["by chance"], *results.get("thumbs", ())):
    del row["people"]
  if _TRAINED.value:
    with tempfile.TemporaryDirectory() as folder:
      results["trained"] = newcomers_trained.measure(
        run, PEOPLE, SHORT, _CHOICES.value, _HELDOUT.value, folder, show
      )
  if _JSON.value:
    text = json.dumps(results, indent=2) + "\n"
    pathlib.Path(_JSON.value).write_text(text)
  if _FIGURE.value:
    draw(pathlib.Path(_FIGURE.value), results)


def draw(file: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Accuracy by choices, as PNG."""
  chart, axes = pyplot.subplots(figsize=(6.4, 3.6), dpi=150)
  titles = {
    "trained": ("a row is trained", "#888888"),
    "by chance": ("learnt from any choices", "#3c78b4"),
    "asked": ("learnt from choices it asks for", "#c8641e"),
  }
  for name, (title, color) in titles.items():
    rows = [row for row in results.get(name, ()) if row["choices"]]
    if not rows:
      continue
    places = [row["choices"] for row in rows]
    ends = np.array([row["interval"] for row in rows]).T
    means = [row["accuracy"] for row in rows]
    axes.fill_between(places, *ends, color=color, alpha=0.15, linewidth=0)
    axes.plot(places, means, "o-", color=color, label=title)
  ticks = [count for count in _CHOICES.value if count]
  axes.set_xscale("log", base=2)
  axes.set_xticks(ticks, map(str, ticks))
  axes.set_xlabel("choices of each newcomer")
  axes.set_ylabel("held-out reward accuracy")
  axes.set_ylim(0.4, 1.02)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, loc="lower right")
  chart.tight_layout()
  chart.savefig(file)
  pyplot.close(chart)


if __name__ == "__main__":
  command_line.run(main)
