"""How long does it take to learn people from five choices each?

  python -m benchmarks.learning --workdir=runs/smollm2

On any run that was trained with a user model: a person alone, and a hundred at
once, with a prompt of 40 tokens and two responses of as many in each choice.
Their words are drawn, so that only the time says something. Compiling is told
apart: it happens once for each shape of a batch.
"""

import random
import time

from absl import flags

from pdpo_jax import command_line
from pdpo_jax.core import structs
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import people as people_lib

_WORKDIR = command_line.workdir_flag()
_PEOPLE = flags.DEFINE_multi_integer(
  "people", [1, 100], "How many are learnt at once."
)
_CHOICES = flags.DEFINE_integer("choices", 5, "Of each person.", lower_bound=1)
_TOKENS = flags.DEFINE_integer(
  "tokens", 40, "Of a prompt and of each response.", lower_bound=4
)
_REPEATS = flags.DEFINE_integer(
  "repeats", 3, "Times that count.", lower_bound=1
)
_WORDS = (
  "a the some many few old new red green small large cat dog house garden "
  "river stone bread sings finds keeps opens counts near under after before"
).split()


def draw_text(tokenizer, rng: random.Random) -> str:
  """Words that are about as many tokens as they should be."""
  words = []
  while len(tokenizer(" ".join(words))["input_ids"]) < _TOKENS.value:
    words.append(rng.choice(_WORDS))
  return " ".join(words)


def draw_choices(
  tokenizer, people: int, seed: int
) -> list[structs.PreferenceExample]:
  rng = random.Random(seed)

  def text():
    return draw_text(tokenizer, rng)

  return [
    structs.PreferenceExample(text(), text(), (text(),), f"person {number}")
    for number in range(people)
    for _ in range(_CHOICES.value)
  ]


def seconds(
  learner: people_lib.Learner, examples: list[structs.PreferenceExample]
) -> tuple[float, float]:
  """Of the clock and of all cores, from texts to rows."""
  clock, cpu = time.perf_counter(), time.process_time()
  people = learner.learn(learner.prepare(examples).choices)
  passed = time.perf_counter() - clock, time.process_time() - cpu
  owners = {example.user_id for example in examples}
  if set(people) != owners:
    raise ValueError(
      f"{len(owners - set(people))} people were not learnt; data.max_prompt_"
      f"tokens and max_response_tokens of the run have to hold {_TOKENS.value}"
    )
  return passed


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError("--workdir is missing, e.g. --workdir=runs/smollm2")
  run = run_lib.Run.open(_WORKDIR.value)
  learner = run.own.learner
  population = learner.population
  print(
    f"{population.users} users in {population.groups} groups, "
    f"{population.size} directions",
    flush=True,
  )
  for people in _PEOPLE.value:
    drawn = [
      draw_choices(run.tokenizer, people, seed)
      for seed in range(1 + _REPEATS.value)
    ]
    first, _ = seconds(learner, drawn[0])
    found = sorted(seconds(learner, examples) for examples in drawn[1:])
    clock, cpu = found[len(found) // 2]
    print(
      f"{people} with {_CHOICES.value} choices each: {clock:.2f} s "
      f"({cpu:.2f} CPU s; the first time {first:.1f} s)",
      flush=True,
    )


if __name__ == "__main__":
  command_line.run(main)
