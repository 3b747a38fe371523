"""What the base knows of held-out choices without training."""

import dataclasses
from collections.abc import Mapping, Sequence

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy, untrained
from pdpo_jax.evaluation.report import accuracy as report_accuracy
from pdpo_jax.evaluation.report import page
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.runs import trained
from pdpo_jax.weights import base as base_lib


def section(
  policies: Sequence[trained.Trained],
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  accuracies: report_accuracy.Findings,
) -> page.Section:
  """The base, as it is and prompted, beside what was trained.

  Args:
    policies: of which the first is the run's own.
    scores: of the run's policy, by split.
  """
  first = policies[0]
  found = untrained.scores(base, dataset, first.config, scores)
  tables, numbers = [], []
  for split, title in accuracy.USERS_OF.items():
    if split not in scores:
      continue
    table = page.Table((
      title,
      "accuracy, all pairs",
      "mean over users",
      f"{first.name} beyond it, points",
    ))  # fmt: skip
    ours = accuracies.on(split)[first.name].accuracy
    for name, by_split in found.items():
      of_base = accuracy.of_scores(by_split[split])
      numbers.append({"name": name, "part": split, **of_base.to_json()})
      mean, gain = "–", None
      if of_base.by_user:
        mean = page.with_interval(of_base.users, of_base.interval())
        gain = accuracy.gain(ours, of_base)
        numbers[-1]["beyond"] = dataclasses.asdict(gain)
      table.add(name, page.percent(of_base.pairs), mean, page.points(gain))
    tables.append(table)
  text = (
    "How often the base itself finds the chosen response more likely, a token, "
    "than the rejected one. Prompted, it reads before each question what the "
    "person says of themselves and choices that they made in training, as many "
    "as fit in half of the positions that are left. What training is for must "
    "show beyond that."
  )
  return page.Section(
    "Without training", [text], tables, numbers={"untrained": numbers}
  )
