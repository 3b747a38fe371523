r"""Do warnings come where a training goes wrong, in time, and nowhere else?

  python -m pdpo_jax.main --config=configs/quickstart.py
  python -m benchmarks.diagnosis --base=runs/quickstart/base

Five trainings are broken on purpose, ten are not; all are of the quickstart's
language on its base, with fewer comparisons, a minute each on two cores alone.
For each: after which share of its steps training warned first, and of what;
accuracy on held-out pairs, and the share of answers that are broken, as the
report counts them, at the end. A warning has to come before the half of a
broken training, and never in another.

The last columns say when text was whole for the last time on the way, and how
accurate the policy was then.
"""

import dataclasses
import json
import logging
import pathlib
import random
from collections.abc import Callable

import numpy as np
from absl import flags

from configs import quickstart
from pdpo_jax import command_line
from pdpo_jax.core import kept
from pdpo_jax.data import sources
from pdpo_jax.inference import text_health
from pdpo_jax.runs import answers, experiment, run_folder
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import diagnosis

_BASE = flags.DEFINE_string("base", None, "A quickstart's base.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "runs/diagnosis", "Gets the runs.")
_ONLY = flags.DEFINE_multi_string("only", [], "Names of runs; all without.")
_PER_WORKER = 128


def _rates(config):
  config.train.learning_rate *= 10
  config.train.user_learning_rate *= 10


def _epochs(config):
  config.data.synthetic.train_per_worker = 8
  config.train.epochs = _PER_WORKER // 8
  config.loss.beta = 0.1


def _tiny_beta(config):
  config.loss.beta = 0.01


def _all_rejected(config):
  """A file that was joined by the wrong key: what is chosen answers another."""
  dataset = sources.load(
    config.data, seed=config.seed, num_prompts=1, num_posts=1
  )
  pool = [example.rejected[0] for example in dataset.train]
  random.Random(0).shuffle(pool)
  lines = [
    {
      "prompt": example.prompt,
      "chosen": other,
      "rejected": example.rejected[0],
      "user_id": example.user_id,
    }
    for example, other in zip(dataset.train, pool, strict=True)
    if other.strip() and example.rejected[0].strip()
    if other != example.rejected[0]
  ]
  file = pathlib.Path(_WORKDIR.value) / "all_rejected.jsonl"
  kept.make_folder(file.parent)
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  config.data.source, config.data.path = "files", str(file)


def _swapped(config):
  config.data.swap_choices = 1.0


def _set(**changes) -> Callable[[config_lib.Config], None]:
  def change(config):
    for path, value in changes.items():
      *sections, name = path.split("__")
      holder = config
      for section in sections:
        holder = getattr(holder, section)
      setattr(holder, name, value)

  return change


BROKEN = {
  "rates ten times as high": _rates,
  "16 epochs of 80 comparisons, beta 0.1": _epochs,
  "beta 0.01": _tiny_beta,
  "chosen is what another prompt rejected": _all_rejected,
  "choices swapped": _swapped,
}
HEALTHY = {
  "seed 0": _set(),
  "seed 1": _set(seed=1),
  "seed 2": _set(seed=2),
  "clusters": _set(user__kind="cluster", user__num_clusters=4),
  "users' rate 1e-2": _set(train__user_learning_rate=1e-2),
  "beta 2": _set(loss__beta=2.0),
  "vanilla DPO": _set(user__kind="none"),
  "packed": _set(data__pack=True),
  "user ids shuffled": _set(data__shuffle_users=True),
  "two epochs at half the rates": _set(
    data__synthetic__train_per_worker=_PER_WORKER // 2,
    train__epochs=2,
    train__learning_rate=9e-4,
    train__user_learning_rate=2.5e-2,
  ),
}


@dataclasses.dataclass(frozen=True)
class Result:
  """Of a training; steps as shares of all.

  Attributes:
    warned: when training first warned of anything, and of what; None if never.
    accuracy: on held-out pairs at the end.
    broken: share of answers at the end.
    whole: when text was whole for the last time on the way; None if never.
    accuracy_then: on held-out pairs.
  """

  warned: tuple[float, str] | None
  accuracy: float
  broken: float
  whole: float | None
  accuracy_then: float | None

  def line(self, kind: str, name: str) -> str:
    """Of a table in Markdown."""
    then = "–" if self.whole is None else f"{self.whole:.0%}"
    accuracy = self.accuracy_then
    cells = (
      kind,
      name,
      "never" if self.warned is None else f"{self.warned[0]:.0%}",
      "" if self.warned is None else f"{self.warned[1][:60]}…",
      f"{self.accuracy:.1%}",
      f"{self.broken:.0%}",
      then,
      "–" if accuracy is None else f"{accuracy:.1%}",
    )
    return f"| {' | '.join(cells)} |"


def run(name: str, change: Callable[[config_lib.Config], None]) -> Result:
  config = quickstart.get_config()
  config.name = name.replace(" ", "_").replace("'", "").replace(",", "")
  config.workdir = str(pathlib.Path(_WORKDIR.value) / config.name)
  config.cache = str(pathlib.Path(_WORKDIR.value) / "cache")
  config.base.path = _BASE.value
  config.vanilla = False
  config.data.synthetic.train_per_worker = _PER_WORKER
  config.data.synthetic.heldout_per_worker = 16
  config.train.warmup_steps = 20
  config.train.eval_every, config.train.text_checks = 10, 7
  config.train.log_every = 5
  config.train.checkpoint_every = 1000
  config.answers.num_prompts, config.answers.num_users = 16, 3
  change(config)
  config_lib.validate(config)
  warned = []

  class Handler(logging.Handler):
    def emit(self, record):
      _, step, problem = record.args
      warned.append((step, problem))

  handler = Handler()
  diagnosis.logger.addHandler(handler)
  try:
    outcome = experiment.run(config)
  finally:
    diagnosis.logger.removeHandler(handler)
  folder = config.folder
  lines = [
    json.loads(line)
    for line in (folder / config.training_name / "metrics.jsonl")
    .read_text()
    .splitlines()
  ]
  total = lines[-1]["step"]
  answered = answers.read(folder / run_folder.ANSWERS)
  health = text_health.examine(
    answered.texts, answered.likelihoods, "S", config.answers.max_new_tokens
  )
  scores = outcome.scores[config.training_name]["heldout"]
  ratios = scores.ratios[~np.isnan(scores.ratios)]
  whole = [
    line["step"]
    for line in lines
    if "text_broken" in line and "text" not in diagnosis.problems(line)
  ]
  then = [
    line["heldout_reward_accuracy"]
    for line in lines
    if "heldout_loss" in line and whole and line["step"] <= whole[-1]
  ]
  return Result(
    (warned[0][0] / total, warned[0][1]) if warned else None,
    float(np.mean(ratios > 0)),
    float(np.mean([own.broken for who, own in health.items() if who != "S"])),
    whole[-1] / total if whole else None,
    then[-1] if then else None,
  )


def main() -> None:
  print(
    "| | training | warned at | of | accuracy | broken | whole until | then |"
  )
  print("|---|---|---|---|---|---|---|---|")
  found: dict[str, list[Result]] = {}
  for kind, runs in (("broken", BROKEN), ("healthy", HEALTHY)):
    for name, change in runs.items():
      if not _ONLY.value or name in _ONLY.value:
        result = run(name, change)
        found.setdefault(kind, []).append(result)
        print(result.line(kind, name), flush=True)
  for kind, results in found.items():
    early = [each for each in results if each.warned and each.warned[0] < 0.5]
    ever = [each for each in results if each.warned]
    print(
      f"{kind}: {len(early)} of {len(results)} warned before the half, "
      f"{len(ever)} at all"
    )


if __name__ == "__main__":
  command_line.run(main)
