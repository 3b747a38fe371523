r"""What share of the positions that a step runs on is padding.

  python -m benchmarks.padding
  python -m benchmarks.padding --samples=40000 --batch_size=16

Examples with lengths as PRISM, TL;DR and UKP have them, in at most four shapes:
as a rectangle of rows, which has to hold the longest prompt, the most responses
and the longest response; and packed, by how many examples run together. A
batch's rows are divided by devices and by microbatches, and what is run
together is what is left. Dialogues that share a trunk follow, of lengths as in
`benchmarks/dialogues.py`, by how many comparisons run together. Writes
`benchmarks/padding.json`.
"""

import numpy as np
from absl import app, flags

from benchmarks import dialogues, side_by_side
from pdpo_jax.core import structs
from pdpo_jax.data import batching

_EXAMPLES = flags.DEFINE_integer("samples", 5000, "Of each kind.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Examples of a batch.")

# Median, spread of the logarithm, and limit of prompts and of responses, in
# tokens; how many responses. PRISM's first turns have four of them and later
# ones two, TL;DR's posts are cut, UKP's arguments are all there is.
KINDS = {
  "prism": ((200, 0.45, 500), (130, 0.6, 300), (2, 2, 4)),
  "tldr": ((330, 0.35, 540), (38, 0.25, 60), (2,)),
  "ukp": ((52, 0.15, 70), (57, 0.6, 168), (2,)),
}
_SHAPES, _MULTIPLE, _PREFIX = 4, 8, 10
# Of a dialogue's prompt, in tokens; none is cut.
PROMPTS = 2000


def draw(kind: str, count: int) -> list[structs.TokenizedExample]:
  """Examples of lengths as of real data; all tokens are 0."""
  rng = np.random.default_rng(0)
  prompt, response, counts = KINDS[kind]

  def ids(median, spread, most):
    length = int(rng.lognormal(np.log(median), spread))
    return np.zeros(min(max(length, 8), most), np.int32)

  return [
    structs.TokenizedExample(
      1,
      ids(*prompt),
      np.zeros(0, np.int32),
      tuple(ids(*response) for _ in range(rng.choice(counts))),
    )
    for _ in range(count)
  ]


def batches_of(
  examples: list[structs.TokenizedExample],
  batch_size: int,
  together: int,
  *,
  share_trunks: bool = False,
) -> batching.PreferenceBatches:
  return batching.PreferenceBatches(
    examples,
    None,
    batch_size,
    0,
    _PREFIX,
    pad_multiple=_MULTIPLE,
    max_shapes=_SHAPES,
    microbatches=batch_size // together,
    share_trunks=share_trunks,
  )


def of_dialogues(batch_size: int) -> list[side_by_side.Facts]:
  """Padding of dialogues, by how many comparisons run together."""
  examples = dialogues.draw(dialogues.DIALOGUES, PROMPTS)
  rows = []
  for together in (8, 16, 32):
    if batch_size % together:
      continue
    batches = batches_of(examples, batch_size, together, share_trunks=True)
    groups = batches.num_batches * batches.layout.groups
    rows.append(
      {
        "together": together,
        "dialogues": len(batches.trunks) / groups,
        "padding": batches.padding_share,
        "shapes": len(batches.shapes),
      }
    )
  return rows


def rectangle_share(batches: batching.PreferenceBatches) -> float:
  """Padding if rows were run as they lie in the batch's arrays."""
  real = padded = 0
  for batch in batches.in_order():
    for mask in (batch.prompt_mask, batch.response_mask):
      real += mask.sum()
      padded += mask.size
  return 1 - real / padded


def main(argv) -> None:
  del argv
  size = _BATCH.value
  together = [each for each in (1, 2, 4, 8, size) if size % each == 0]
  rows = []
  for kind in KINDS:
    examples = draw(kind, _EXAMPLES.value)
    made = {each: batches_of(examples, size, each) for each in together}
    rows.append(
      {
        "lengths": kind,
        "rectangle": rectangle_share(made[1]),
        "packed": {each: made[each].padding_share for each in together},
        "shapes": max(len(each.shapes) for each in made.values()),
      }
    )
  print(
    side_by_side.table(
      ("padding", "rectangle", *(f"{each} packed" for each in together)),
      [
        (
          row["lengths"],
          f"{row['rectangle']:.1%}",
          *(f"{share:.1%}" for share in row["packed"].values()),
        )
        for row in rows
      ],
    )
  )
  shared = of_dialogues(size)
  print(f"\n{dialogues.DIALOGUES:,} dialogues")
  print(
    side_by_side.table(
      ("comparisons together", "dialogues", "padding", "shapes"),
      [
        (
          row["together"],
          f"{row['dialogues']:.1f}",
          f"{row['padding']:.1%}",
          row["shapes"],
        )
        for row in shared
      ],
    )
  )
  side_by_side.write(__file__, {"rows": rows, "dialogues": shared})


if __name__ == "__main__":
  app.run(main)
