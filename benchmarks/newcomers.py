r"""How many choices does it take to know somebody who comes later?

  python -m pdpo_jax.main --config=configs/quickstart.py
  python -m benchmarks.newcomers --workdir=runs/quickstart

Twelve people whom the run has never seen, half of whom prefer the shorter
summary, make 1, 2, 4, … choices each. All that learns is a row a person
(`train.learn` "users"); the rest is the run's. What is measured is held-out
reward accuracy, beside that of the same people as unknown users. CPU, about
ten minutes.
"""

import dataclasses
import functools
import json
import pathlib
import tempfile

import matplotlib
import numpy as np

matplotlib.use("Agg")

from absl import flags
from matplotlib import pyplot

from pdpo_jax import command_line
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out, tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.data.sources import synthetic
from pdpo_jax.evaluation import accuracy
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import earlier, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.training import branch_batches, pdpo, policies, scoring

_WORKDIR = command_line.workdir_flag()
_JSON = flags.DEFINE_string("json", None, "Also write the figures there.")
_FIGURE = flags.DEFINE_string("figure", None, "Also draw them there, as PNG.")
_CHOICES = (1, 2, 4, 8, 16, 32, 64)
_HELDOUT = 40
_PEOPLE = tuple(f"new{place}" for place in range(1, 13))
_SHORT = _PEOPLE[::2]
_STEPS, _BATCH = 60, 16
# Of posts that the run did not draw.
_SEED = 1_000


def make_dataset(choices: int) -> dataset_lib.Dataset:
  """So many choices of each of the people, and held-out ones.

  The held-out ones are always the same, and fewer choices are a part of more.
  """
  most = max(_CHOICES)
  posts = synthetic.make_posts(len(_PEOPLE) * (most + _HELDOUT), _SEED)
  cut = len(_PEOPLE) * most
  train = synthetic.comparisons(posts[:cut], _PEOPLE, _SHORT, _SEED)
  heldout = synthetic.comparisons(posts[cut:], _PEOPLE, _SHORT, _SEED + 1)
  own = {
    person: [each for each in train if each.user_id == person][:choices]
    for person in _PEOPLE
  }
  return dataset_lib.Dataset(
    [each for few in own.values() for each in few],
    heldout,
    prompts=[],
    short_users=_SHORT,
  )


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError("--workdir is missing, e.g. --workdir=runs/quickstart")
  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  config = run_folder.read_config(workdir)
  config = dataclasses.replace(
    config,
    vanilla=False,
    train=dataclasses.replace(
      config.train,
      start_from=str(workdir),
      learn="users",
      batch_size=_BATCH,
      warmup_steps=5,
      eval_every=10 * _STEPS,
      checkpoint_every=10 * _STEPS,
    ),
  )
  before = run_folder.read_held_out(workdir)
  rows = []
  print("choices   before   after, mean over people   short   long")
  with tempfile.TemporaryDirectory() as folder:
    config = dataclasses.replace(
      config, workdir=folder, cache=f"{folder}/cache"
    )
    config = earlier.resolve(config)
    base = run_lib.read_base(config, workdir)
    learn = functools.partial(learn_people, base, pathlib.Path(folder))
    for choices in _CHOICES:
      dataset = held_out.keep_apart(make_dataset(choices), before, 0, 0)
      row = {"choices": choices} | learn(config, dataset)
      rows.append(row)
      low, high = row["interval"]
      print(
        f"{choices:7}   {row['before']:6.3f}   {row['after']:6.3f} "
        f"[{low:.3f}, {high:.3f}]     {row['short']:5.3f}  {row['long']:5.3f}",
        flush=True,
      )
  if _JSON.value:
    text = json.dumps(rows, indent=2) + "\n"
    pathlib.Path(_JSON.value).write_text(text)
  if _FIGURE.value:
    draw(pathlib.Path(_FIGURE.value), rows)


def learn_people(base, folder, config: config_lib.Config, dataset) -> dict:
  """Held-out accuracy before and after a training of their rows."""
  config = dataclasses.replace(
    config,
    train=dataclasses.replace(
      config.train,
      epochs=-(-_STEPS * _BATCH // len(dataset.train)),
    ),
  )
  users = users_lib.UserIndex.of_dataset(dataset, config.data)
  users = earlier.users(config, config.folder, users)
  data = tokenized.tokenize_dataset(dataset, config.data, base.tokenizer, users)
  batches = {
    name: branch_batches.with_reference(
      config.recipe, base, split, config.cache_folder
    )
    for name, split in data.splits.items()
  }
  earlier_one = policies.load(
    config.recipe, base, config.start / "pdpo", of_run=False
  )
  before = policies.begin_as(
    policies.make_policy(config.recipe, base, users.num_rows),
    earlier_one.policy,
    earlier_one.users,
  )
  after = pdpo.train(
    config.recipe,
    base,
    users,
    batches["train"],
    None,
    data.splits["train"].examples,
    folder / str(len(dataset.train)) / "pdpo",
  )
  found = []
  for policy in (before, after):
    scored = scoring.score_held_out(
      policy, batches["heldout"], config.train.logits_chunk
    )
    examples = data.splits["heldout"].examples
    found.append(
      accuracy.of_scores(scores_lib.make(examples, scored.differences()))
    )
  return {
    "before": found[0].users,
    "after": found[1].users,
    "interval": found[1].interval(),
    "short": found[1].of(_SHORT),
    "long": found[1].of(set(_PEOPLE) - set(_SHORT)),
  }


def draw(file: pathlib.Path, rows: list[dict]) -> None:
  """Accuracy by choices, as PNG."""
  chart, axes = pyplot.subplots(figsize=(6.4, 3.6), dpi=150)
  choices = [row["choices"] for row in rows]
  means = np.array([row["after"] for row in rows])
  ends = np.array([row["interval"] for row in rows]).T
  axes.fill_between(choices, *ends, color="#3c78b4", alpha=0.2, linewidth=0)
  axes.plot(choices, means, "o-", color="#3c78b4", label="after learning a row")
  axes.plot(
    choices,
    [row["before"] for row in rows],
    "--",
    color="#888888",
    label="as unknown users",
  )
  axes.set_xscale("log", base=2)
  axes.set_xticks(choices, map(str, choices))
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
