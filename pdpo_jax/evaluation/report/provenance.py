"""What was evaluated, so that the report can be made again."""

from collections.abc import Mapping, Sequence
from typing import Any

from pdpo_jax.core import processes
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation.report import page
from pdpo_jax.runs import run_folder, trained


def section(
  policies: Sequence[trained.Trained], dataset: dataset_lib.Dataset
) -> page.Section:
  """Of policies, of which the first is the run's own."""
  table = page.Table(
    ("policy", "folder", "step", "seed", "batch size"), numbers=False
  )
  for policy in policies:
    train = policy.config.train
    table.add(
      policy.name,
      str(policy.folder),
      f"{policy.step:,}",
      str(policy.config.seed),
      f"{train.batch_size} × {train.epochs} epochs",
    )
  first = policies[0]
  versions = processes.from_first(
    lambda: run_folder.read_versions(first.workdir)
  )
  text = [f"Data: {dataset.tally}."] if dataset.tally.records else []
  text += [
    f"Answers were sampled with {_listed(first.config.answers.sampling())}.",
    f"On {_listed(versions)}.",
  ]
  return page.Section("What was evaluated", text, [table])


def _listed(values: Mapping[str, Any]) -> str:
  return ", ".join(f"{name} {value}" for name, value in values.items())
