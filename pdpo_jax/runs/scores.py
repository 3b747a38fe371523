"""What a policy thinks of each held-out pair, kept with the run.

A line an example, so that runs can be compared pair by pair without a model:

  {"sample": "9f0c…", "user_id": "4", "ratios": [1.25, -0.5]}

`ratios` are the log-ratio differences `d(chosen) - d(rejected)` in nats, one a
rejected response (arXiv:2305.18290, section 4).
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import NotRequired

import numpy as np
from jaxtyping import Float, Int
from typing_extensions import TypedDict

from pdpo_jax.core import kept, processes, structs
from pdpo_jax.data import batching
from pdpo_jax.training import policies, recipes, scoring

logger = logging.getLogger(__name__)


class Line(TypedDict):
  """Of a file of scores."""

  sample: str
  user_id: str | None
  ratios: list[float]
  # Not in older runs.
  chosen: NotRequired[float]
  chosen_tokens: NotRequired[int]


@dataclasses.dataclass(frozen=True)
class Scores:
  """Of one policy on one set of examples.

  Attributes:
    examples: the key of each, the same in every run.
    user_ids: whose choice it was.
    ratios: `[examples, M]`, NaN where an example has no such pair.
    chosen: `[examples]`, the chosen response's own log-ratio d, in nats, a sum
      over its tokens; None where an older run did not keep it.
    chosen_tokens: `[examples]`, of the chosen response, likewise.
  """

  examples: list[str]
  user_ids: list[str | None]
  ratios: np.ndarray
  chosen: np.ndarray | None = None
  chosen_tokens: np.ndarray | None = None

  @property
  def chosen_per_token(self) -> float | None:
    """As `scoring.HeldOut.chosen_per_token`."""
    if self.chosen is None:
      return None
    return float(self.chosen.sum() / self.chosen_tokens.sum())


def example_key(example: structs.PreferenceExample) -> str:
  """Sixteen digits that two different examples do not share."""
  fields = dataclasses.asdict(example)
  names = ("user_id", "user_text", "prompt", "chosen", "rejected")
  text = json.dumps({name: fields[name] for name in names}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def make(
  examples: Sequence[structs.PreferenceExample],
  ratios: Float[np.ndarray, "examples M"],
  chosen: Float[np.ndarray, " examples"] | None = None,
  chosen_tokens: Int[np.ndarray, " examples"] | None = None,
) -> Scores:
  """Scores of examples in their order; see `Scores`."""
  return Scores(
    [example_key(example) for example in examples],
    [example.user_id for example in examples],
    ratios,
    chosen,
    chosen_tokens,
  )


def compute(
  recipe: recipes.Recipe,
  policy: policies.SplitPolicy,
  batches: batching.PreferenceBatches,
  examples: Sequence[structs.PreferenceExample],
  file: pathlib.Path,
) -> Scores:
  """Scores examples with a policy, and keeps them in `file`.

  Args:
    batches: of `examples`.
  """
  scored = scoring.score_held_out(policy, batches, recipe.train.logits_chunk)
  scores = make(
    examples,
    scored.differences(recipe.loss.length_normalized),
    scored.log_ratios[:, 0],
    scored.lengths[:, 0],
  )
  write(file, scores)
  return scores


def file_of(
  folder: pathlib.Path, split: str, step: int, digest: str
) -> pathlib.Path:
  """Where the scores of a trained policy are.

  Args:
    folder: of the training.
    split: "heldout" or "unseen".
    step: of the policy.
    digest: of its values: two trainings have the same steps.
  """
  return folder / "scores" / f"{split}_{step}_{digest}.jsonl"


def write(file: pathlib.Path, scores: Scores) -> None:
  """Writes them, the whole file or nothing."""
  if processes.is_first():
    kept.write_jsonl(file, _lines(scores))


def _lines(scores: Scores) -> Iterator[Line]:
  for place, ratios in enumerate(scores.ratios):
    line = Line(
      sample=scores.examples[place],
      user_id=scores.user_ids[place],
      # The fewest digits that are read back as the same float32.
      ratios=[float(str(x)) for x in ratios[~np.isnan(ratios)]],
    )
    if scores.chosen is not None:
      line["chosen"] = float(str(scores.chosen[place]))
      line["chosen_tokens"] = int(scores.chosen_tokens[place])
    yield line


def read(file: pathlib.Path) -> list[Line] | None:
  """What `write` wrote; None where that is not there, or damaged."""
  if not kept.was_written(file):
    return None
  try:
    return kept.read_jsonl(file, Line, "scores are computed again")
  except kept.Damaged as problem:
    logger.warning("%s", problem)
    return None


def from_lines(lines: Sequence[Line]) -> Scores:
  """Scores as they were before `write`."""
  most = max(len(line["ratios"]) for line in lines)
  ratios = np.full((len(lines), most), np.nan, np.float32)
  for place, line in enumerate(lines):
    ratios[place, : len(line["ratios"])] = line["ratios"]
  chosen = tokens = None
  if all("chosen" in line for line in lines):
    chosen = np.array([line["chosen"] for line in lines], np.float32)
    tokens = np.array([line["chosen_tokens"] for line in lines], np.int32)
  return Scores(
    [line["sample"] for line in lines],
    [line["user_id"] for line in lines],
    ratios,
    chosen,
    tokens,
  )


def check_same(ours: Scores, theirs: Scores, names: tuple[str, str]) -> None:
  """Checks that two runs can be compared pair by pair.

  Raises:
    ValueError: if they are not of the same examples.
  """
  mine, other = set(ours.examples), set(theirs.examples)
  if mine != other:
    raise ValueError(
      f"{names[0]} and {names[1]} were evaluated on different examples "
      f"({len(mine):,} and {len(other):,}, {len(mine & other):,} of them the "
      "same); compare runs with the same data, seed and limits"
    )
  other = _pairs(theirs)
  unlike = sum(other[key] != count for key, count in _pairs(ours).items())
  if unlike:
    raise ValueError(
      f"{names[0]} and {names[1]} were evaluated on different pairs of "
      f"{unlike:,} examples; compare runs with the same "
      "data.max_response_tokens and data.long_response"
    )


def _pairs(scores: Scores) -> dict[str, int]:
  """The number of each example's pairs."""
  counts = (~np.isnan(scores.ratios)).sum(1)
  return dict(zip(scores.examples, counts.tolist(), strict=True))
