"""A run's report: what is found out about each subject, on one page."""

import pathlib
import textwrap
from collections.abc import Sequence

from pdpo_jax.core import display, processes
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import win_rates as judge_win_rates
from pdpo_jax.evaluation.report import (
  accuracy,
  answers,
  by_user,
  controls,
  costs,
  familiarity,
  length_control,
  page,
  provenance,
  users,
  win_rates,
)
from pdpo_jax.evaluation.report import contenders as contenders_report
from pdpo_jax.runs import contenders, run_folder
from pdpo_jax.weights import base as base_lib


def make_report(
  workdir: pathlib.Path,
  against: Sequence[pathlib.Path],
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  judge: judge_config.JudgeConfig | None = None,
) -> pathlib.Path:
  """Writes a run's report, prints its verdict, and returns its page.

  Args:
    against: other runs on the same base and data.
    base: the run's.
    dataset: the run's.
    judge: for win rates; none without.
  """
  policies = contenders.open_contenders(workdir, against, base)
  first = policies[0]
  # First what results hang on: errors there are errors of this command.
  groups = accuracy.taste_groups(dataset.short_users, dataset.long_users)
  scores = {policy.name: policy.scores(dataset) for policy in policies}
  accuracies = accuracy.find(policies, scores, dataset, groups)
  familiar = familiarity.find(scores, dataset, accuracies.baseline)
  numbers = accuracies.to_json()
  answered = answers.read(policies)
  health = answers.find_health(
    answered.get(first.name), first.config.answers.max_new_tokens
  )
  rates = None
  if judge:
    rates = judge_win_rates.of_run(
      policies, base, dataset, scores[first.name], judge, workdir
    )
    numbers |= win_rates.numbers(rates, judge)
  vectors = users.read_vectors(first, dataset)
  new_texts = {
    split: familiarity.new_texts(familiar, split)
    for split in scores[first.name]
  }
  length = length_control.find(scores, dataset, accuracies.baseline)
  verdict = f"{answers.verdict(health)} {accuracies.verdict(new_texts)}".strip()
  # Then what describes and shows them.
  subjects = {
    "Reward accuracy": accuracies.section,
    "Contenders side by side": lambda: contenders_report.section(
      policies,
      base,
      dataset,
      scores[first.name],
      accuracies,
      answered.get(first.name),
      groups,
      rates,
    ),
    "Users one by one": lambda: by_user.section(accuracies),
    "Known and new texts": familiar.compared
    and (lambda: familiarity.section(familiar)),
    "Controlled for length": length.compared
    and (lambda: length_control.section(length, scores, dataset)),
    "Generated text": answered
    and (lambda: answers.section(answered, dataset, health)),
    "What it costs": first.name in answered
    and (lambda: costs.section(policies, base, answered[first.name])),
    "Win rates": rates and (lambda: win_rates.section(rates, judge)),
    "Controls": lambda: controls.section(
      policies, accuracies, dataset, vectors
    ),
    "Users": vectors
    and (lambda: users.section(first, base, dataset, vectors, groups)),
    "What was evaluated": lambda: provenance.section(policies, dataset),
  }
  sections = [
    page.section_or_note(title, make)
    for title, make in subjects.items()
    if make
  ]
  title = f"{first.config.name}: does it personalise?"
  numbers["verdict"] = verdict
  report = page.Report(title, verdict, sections, numbers)
  folder = workdir / run_folder.REPORT
  problems = processes.from_first(lambda: page.write(folder, report))
  for text in (verdict, *problems):
    print(f"\n{textwrap.fill(display.visible(text), 80)}")
  return folder / page.PAGE
