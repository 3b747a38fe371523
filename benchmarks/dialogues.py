"""Dialogues as PRISM has them, and what an epoch of them costs by layout.

All lengths are in tokens and drawn: PRISM's texts are not here. Its numbers
are: 1,396 people with 8,011 dialogues of about 3.4 turns, four responses to
choose from in a first turn and two later. Assumed are the spreads: log-normal
lengths with medians of 200 for a user's text, 20 for what they ask and 70 for
a response, the latter up to 300, and one to eight turns.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks import work
from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.models import policy as policy_lib

PEOPLE, DIALOGUES = 1396, 8011
# Of dialogues of one turn, of two, and so on.
TURNS = (0.12, 0.24, 0.22, 0.16, 0.11, 0.07, 0.05, 0.03)
# Median, spread of the logarithm, least and most.
TEXT, ASKED, RESPONSE = (
  (200, 0.45, 20, 500),
  (20, 0.6, 3, 120),
  (70, 0.8, 2, 300),
)
FIRST, LATER = 4, 2  # responses
BRANCHES = 2


def draw(
  count: int, limit: int, vocab_size: int = 128_000, seed: int = 0
) -> list[structs.TokenizedExample]:
  """The comparisons of so many dialogues.

  Args:
    limit: of a prompt; longer ones lose their oldest turns, as in `prompts`.
    vocab_size: random tokens, so that none go on from each other by chance.
    seed: of all that is drawn.
  """
  rng = np.random.default_rng(seed)

  def ids(median, spread, least, most):
    length = int(rng.lognormal(np.log(median), spread))
    size = min(max(length, least), most)
    return rng.integers(3, vocab_size, size, dtype=np.int32)

  texts = [ids(*TEXT)[: limit // 2] for _ in range(PEOPLE)]
  examples = []
  for number in range(count):
    user = number % PEOPLE
    turns = [ids(*ASKED)]
    for turn in range(rng.choice(len(TURNS), p=TURNS) + 1):
      responses = tuple(ids(*RESPONSE) for _ in range(LATER if turn else FIRST))
      kept = 0
      while len(texts[user]) + sum(map(len, turns[kept:])) > limit:
        kept += 2
      prompt = np.concatenate([texts[user], *turns[kept:]])
      bare = np.concatenate(turns[kept:])
      examples.append(
        structs.TokenizedExample(1 + user, prompt, bare, responses)
      )
      turns += [responses[0], ids(*ASKED)]
  return examples


@dataclasses.dataclass
class Run:
  """What an epoch runs in one branch of the policy.

  Attributes:
    positions: through the layers.
    seen: pairs of positions that see each other.
    predicted: positions with logits.
  """

  positions: int = 0
  seen: int = 0
  predicted: int = 0

  def add(self, prompt: int, behind: Sequence[tuple[int, int]], read: int):
    """A row.

    Args:
      prompt: positions, prefix included.
      behind: of each response behind it, the positions that it sees of the
        prompt, and its own.
      read: positions with logits.
    """
    self.positions += prompt + sum(size for _, size in behind)
    self.seen += prompt * (prompt + 1) // 2
    self.seen += sum(
      size * start + size * (size + 1) // 2 for start, size in behind
    )
    self.predicted += read

  def work(self, arch: policy_lib.Architecture, rank: int) -> work.Work:
    """Forward and backward, both branches; see `work.least_work`."""
    # Of one position that sees nothing, and has no logits.
    one = work.least_work(arch, 1, 0, 0, rank)
    return work.Work(
      one.linear * self.positions,
      one.lora * self.positions,
      one.attention * self.seen,
      BRANCHES * 4.0 * self.predicted * arch.width * arch.vocab_size,
    )

  def flops(self, arch: policy_lib.Architecture, rank: int) -> float:
    return self.work(arch, rank).total


LAYOUTS = ("trunks", "separate rows", "a row a response", "released code")


def runs(
  examples: Sequence[structs.TokenizedExample],
  batches: batching.PreferenceBatches,
  prefix: int,
) -> dict[str, Run]:
  """What each layout runs of the comparisons, padding aside.

  The released code's has a row for each response of each pair, and logits
  everywhere.
  """
  found = {name: Run() for name in LAYOUTS}
  for trunk in batches.trunks:
    row = [examples[place] for place in trunk]
    behind, read = [], 0
    for example in row:
      sizes = [*map(len, example.responses)]
      read += sum(sizes)
      own = sizes if example is row[-1] else sizes[1:]
      behind += [(prefix + len(example.prompt), size) for size in own]
    found["trunks"].add(prefix + len(row[-1].prompt), behind, read)
  for example in examples:
    prompt = prefix + len(example.prompt)
    chosen, *rejected = map(len, example.responses)
    found["separate rows"].add(
      prompt,
      [(prompt, size) for size in (chosen, *rejected)],
      chosen + sum(rejected),
    )
    for size in (chosen, *rejected):
      found["a row a response"].add(prompt, [(prompt, size)], size)
    for other in rejected:
      for size in (chosen, other):
        found["released code"].add(prompt, [(prompt, size)], prompt + size)
  return found
