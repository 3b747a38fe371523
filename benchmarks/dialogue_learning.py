r"""Do dialogues that share a trunk teach what their rows apart teach?

  python -m pdpo_jax.main --config=configs/quickstart.py \
    --config.sft.max_positions=768 --config.workdir=runs/long-quickstart
  python -m benchmarks.dialogue_learning --base=runs/long-quickstart/base

Ten workers of the quickstart's language talk with an assistant: each of one to
five turns is a post, and a summary that the worker chose of two; 4, 5 and 6
prefer the shorter one. The base learns what was chosen first, and then P-DPO
learns the same comparisons twice, with `data.share_trunks` on and off, for each
seed of dialogues, order and weights. Some minutes a seed on two cores alone.
Written are accuracies on pairs of held-out dialogues in percent: over users,
and of the user whose accuracy is lowest.
"""

import dataclasses
import pathlib
import random
import statistics

from absl import flags

from configs import quickstart
from pdpo_jax import command_line
from pdpo_jax.core import kept
from pdpo_jax.data import tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.data.sources import synthetic
from pdpo_jax.evaluation import accuracy
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import experiment, run_folder
from pdpo_jax.training import branch_batches

_BASE = flags.DEFINE_string("base", None, "A quickstart's base.", required=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/dialogue-learning", "Gets the runs."
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many.", lower_bound=1)
_WORKERS = [str(number) for number in range(1, 11)]
_SHORT = ("4", "5", "6")
_TURNS = (1, 5)  # least and most of a dialogue
_TRAIN, _HELD_OUT = 64, 16  # dialogues a worker
_POSITIONS = 700  # of a prompt
_NAMES = {True: "trunks", False: "rows"}
_TEMPLATE = (
  "{% for message in messages %}"
  "{% if message.role == 'user' %}{{ message.content }}"
  "{% else %} {{ message.content }}{{ eos_token }}{% endif %}"
  "{% endfor %}"
)


def write_dialogues(file: pathlib.Path, count: int, seed: str) -> int:
  """Writes a preference file of so many dialogues a worker.

  Returns:
    How many comparisons it has.
  """
  rng = random.Random(seed)
  # Comparisons with an empty summary are passed over, and some turns need more.
  posts = synthetic.make_posts(
    count * len(_WORKERS) * _TURNS[1] * 2, rng.getrandbits(32)
  )
  pairs: dict[str, list] = {worker: [] for worker in _WORKERS}
  for each in synthetic.comparisons(
    posts, _WORKERS, _SHORT, rng.getrandbits(32)
  ):
    if each.chosen and each.rejected[0]:
      pairs[each.user_id].append(each)
  records = []
  for worker, own in pairs.items():
    for _ in range(count):
      history: list[dict[str, str]] = []
      for _ in range(rng.randint(*_TURNS)):
        pair = own.pop()
        history = [*history, {"role": "user", "content": pair.prompt}]
        records.append(
          {
            "prompt": history,
            # Around turns there is no space but what the template puts.
            "chosen": pair.chosen.strip(),
            "rejected": pair.rejected[0].strip(),
            "user_id": worker,
          }
        )
        answer = {"role": "assistant", "content": pair.chosen.strip()}
        history = [*history, answer]
  kept.write_jsonl(file, records)
  return len(records)


@dataclasses.dataclass(frozen=True)
class Learnt:
  """What a training found.

  Attributes:
    heldout: accuracy on held-out pairs.
    saved: share of the positions of separate rows that were not run.
    seconds: of the training itself.
  """

  heldout: accuracy.Accuracy
  saved: float
  seconds: float


def learn(seed: int, share_trunks: bool) -> Learnt:
  folder = _folder(seed)
  config = quickstart.get_config()
  config.seed = seed
  config.name = _NAMES[share_trunks]
  config.workdir = str(folder / config.name)
  config.cache = str(folder / "cache")
  # The second one trains on the very base that the first one taught.
  taught = folder / _NAMES[True] / run_folder.BASE
  if share_trunks:
    config.sft.path = _BASE.value
    config.sft.steps = 200
    config.sft.learning_rate = 1e-3
  else:
    config.base.path = str(taught)
  config.vanilla = False
  config.data.source = "files"
  config.data.path = str(folder / "train.jsonl")
  config.data.files.heldout_path = str(folder / "heldout.jsonl")
  config.data.template = _TEMPLATE
  config.data.max_prompt_tokens = _POSITIONS
  config.data.pack = True
  config.data.share_trunks = share_trunks
  config.answers.num_prompts = 4
  config.answers.num_users = 5
  config_lib.validate(config)
  outcome = experiment.run(config)
  name = config.training_name
  return Learnt(
    accuracy.of_scores(outcome.scores[name]["heldout"]),
    _positions_saved(config, outcome),
    outcome.clock.seconds[name],
  )


def _positions_saved(
  config: config_lib.Config, outcome: experiment.Outcome
) -> float:
  users = users_lib.UserIndex.from_examples(outcome.dataset.train)
  data = tokenized.tokenize_dataset(
    outcome.dataset, config.data, outcome.base.tokenizer, users
  )
  train = data.splits[tokenized.TRAIN]
  batches = branch_batches.make_batches(
    config.recipe,
    train,
    branch_batches.example_rows(config.recipe, train),
    None,
    trained=True,
  )
  return 1 - batches.positions / batches.separate_positions


def main() -> None:
  print("| seed | comparisons | positions saved | trunks | rows | seconds |")
  print("|---|---|---|---|---|---|")
  means: dict[bool, list[float]] = {True: [], False: []}
  for seed in range(_SEEDS.value):
    counts = [
      write_dialogues(_folder(seed) / f"{name}.jsonl", count, f"{name} {seed}")
      for name, count in (("train", _TRAIN), ("heldout", _HELD_OUT))
    ]
    both = {each: learn(seed, each) for each in (True, False)}
    saved = both[True].saved
    if not saved:
      raise RuntimeError("no turn shares a trunk, so nothing is compared")
    cells = [f"{counts[0]:,}, {counts[1]:,} held out", f"{saved:.0%}"]
    for share_trunks, learnt in both.items():
      users = [100 * each for each in learnt.heldout.by_user.values()]
      means[share_trunks].append(statistics.fmean(users))
      cells.append(f"{means[share_trunks][-1]:.1f} ({min(users):.1f})")
    cells.append(" / ".join(f"{each.seconds:.0f}" for each in both.values()))
    print(f"| {seed} | {' | '.join(cells)} |", flush=True)
  differences = [on - off for on, off in zip(*means.values(), strict=True)]
  print(f"trunks minus rows: {statistics.fmean(differences):+.2f} points")
  for share_trunks, values in means.items():
    spread = f"from {min(values):.1f} to {max(values):.1f}"
    print(f"{_NAMES[share_trunks]}: {spread} over seeds")


def _folder(seed: int) -> pathlib.Path:
  folder = pathlib.Path(_WORKDIR.value) / f"seed{seed}"
  kept.make_folder(folder)
  return folder


if __name__ == "__main__":
  command_line.run(main)
