r"""Evaluates a run, alone or beside others, and writes a report.

  python -m pdpo_jax.evaluate --workdir=runs/prism-individual \
    --against=runs/prism-cluster10 --against=runs/prism-vanilla

Is it personal, for whom, and is it better than vanilla DPO? The report lies in
`report/` of the run: `index.html`, which opens without a network, `report.md`
and `report.json`. Scores and answers of a run's policies and verdicts are kept,
and not made again. Data and bases are those that the runs' configs name.

Win rates need a judge (docs/judge.md):

  python -m pdpo_jax.evaluate --workdir=runs/prism-individual \
    --judge.kind=openai --judge.model=gpt-4o --dry_run
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from pdpo_jax import command_line
from pdpo_jax.core import processes, sections
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import win_rates
from pdpo_jax.evaluation.report import report
from pdpo_jax.runs import contenders, locks, run_folder
from pdpo_jax.runs import run as run_lib

_WORKDIR = command_line.workdir_flag()
_AGAINST = flags.DEFINE_multi_string(
  "against", [], "Another run's folder; may be given several times."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Only print what the judge would be asked, and its price."
)
_JUDGE = command_line.judge_flag()


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError(
      "--workdir is missing; name the folder of a trained run, e.g. "
      "--workdir=runs/quickstart"
    )
  judge = _JUDGE.value
  sections.check(judge, "judge.")
  if _DRY_RUN.value and not judge.kind:
    raise ValueError("--dry_run needs a judge, e.g. --judge.kind=openai")
  run = run_lib.Run.open(_WORKDIR.value)
  against = [pathlib.Path(each).expanduser() for each in _AGAINST.value]
  # Policies of other runs keep what they say with those.
  with locks.writing(run.workdir, against):
    if processes.is_first():
      run_folder.remove_unfinished(run.workdir)
    _evaluate(run, against, judge)


def _evaluate(
  run: run_lib.Run,
  against: Sequence[pathlib.Path],
  judge: judge_config.JudgeConfig,
) -> None:
  # Before the base is read.
  contenders.check(run.workdir, against, run.dataset)
  if _DRY_RUN.value:
    policies = contenders.open_contenders(run.workdir, against, run.base)
    scores = policies[0].scores(run.dataset)
    print(win_rates.estimate(policies, run.dataset, scores, judge, run.workdir))
    return
  page = report.make_report(
    run.workdir, against, run.base, run.dataset, judge if judge.kind else None
  )
  print(f"Report: {page}")


if __name__ == "__main__":
  command_line.run(main, distributed=True)
