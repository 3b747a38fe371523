"""Rows of newcomers as a training makes them, for `benchmarks.newcomers`.

All that learns is a row a person (`train.learn` "users"), for 60 to 96 steps of
16 examples; the rest is the run's.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out, tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.data.sources import synthetic
from pdpo_jax.evaluation import accuracy
from pdpo_jax.runs import earlier, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.training import branch_batches, pdpo, scoring

_STEPS, _BATCH = 60, 16
_SEED = 1_000


def measure(
  run: run_lib.Run,
  people: Sequence[str],
  short: Sequence[str],
  counts: Sequence[int],
  heldout: int,
  folder: str,
  show: Callable[[str, dict[str, Any]], None],
) -> list[dict[str, Any]]:
  """Held-out accuracy after so many choices each.

  Args:
    heldout: comparisons of each person.
    folder: where trainings are kept.
    show: is told of each row.
  """
  most = max(counts)
  posts = synthetic.make_posts(len(people) * (most + heldout), _SEED)
  cut = len(people) * most
  train = synthetic.comparisons(posts[:cut], people, short, _SEED)
  held = synthetic.comparisons(posts[cut:], people, short, _SEED + 1)
  config = dataclasses.replace(
    run.config,
    vanilla=False,
    workdir=folder,
    cache=f"{folder}/cache",
    train=dataclasses.replace(
      run.config.train,
      start_from=str(run.workdir),
      learn="users",
      batch_size=_BATCH,
      warmup_steps=5,
      eval_every=10 * _STEPS,
      checkpoint_every=10 * _STEPS,
    ),
  )
  config = earlier.resolve(config)
  base = run_lib.read_base(config, run.workdir)
  before = run_folder.read_held_out(run.workdir)
  rows = []
  for count in counts:
    if not count:
      continue
    own = {
      person: [x for x in train if x.user_id == person][:count]
      for person in people
    }
    dataset = dataset_lib.Dataset(
      [each for few in own.values() for each in few],
      held,
      prompts=[],
      short_users=short,
    )
    dataset = held_out.keep_apart(dataset, before, 0, 0)
    found = _train(config, base, dataset, pathlib.Path(folder) / str(count))
    row = {
      "choices": count,
      "accuracy": found.users,
      "interval": found.interval(),
      "short": found.of(short),
      "long": found.of(set(people) - set(short)),
    }
    rows.append(row)
    show("trained", row)
  return rows


def _train(config, base, dataset, folder):
  """Accuracy after a training of newcomers' rows."""
  config = dataclasses.replace(
    config,
    train=dataclasses.replace(
      config.train, epochs=-(-_STEPS * _BATCH // len(dataset.train))
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
  policy = pdpo.train(
    config.recipe,
    base,
    users,
    batches["train"],
    None,
    data.splits["train"].examples,
    folder / "pdpo",
  )
  scored = scoring.score_held_out(
    policy, batches["heldout"], config.train.logits_chunk
  )
  examples = data.splits["heldout"].examples
  return accuracy.of_scores(scores_lib.make(examples, scored.differences()))
