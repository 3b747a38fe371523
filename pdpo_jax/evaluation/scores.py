"""What a policy thinks of each held-out pair, kept with the run.

A line a sample, so that runs can be compared pair by pair without a model:

  {"sample": "9f0c…", "user_id": "4", "ratios": [1.25, -0.5]}

`ratios` are the log-ratio differences `d(chosen) - d(rejected)` in nats, one a
rejected response (arXiv:2305.18290, section 4).
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pdpo_jax import processes, structs


@dataclasses.dataclass(frozen=True)
class Scores:
  """Of one policy on one set of samples.

  Attributes:
    samples: the key of each, the same in every run.
    user_ids: whose choice it was.
    ratios: `[samples, M]`, NaN where a sample has no such pair.
  """

  samples: list[str]
  user_ids: list[str | None]
  ratios: np.ndarray


def sample_key(example: structs.PreferenceExample) -> str:
  """Sixteen digits that two different samples do not share."""
  fields = dataclasses.asdict(example)
  names = ("user_id", "user_text", "prompt", "chosen", "rejected")
  text = json.dumps({name: fields[name] for name in names}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def make(
  examples: Sequence[structs.PreferenceExample],
  ratios: Float[np.ndarray, "samples M"],
) -> Scores:
  """Scores of samples in their order."""
  return Scores(
    [sample_key(example) for example in examples],
    [example.user_id for example in examples],
    ratios,
  )


def file_of(folder: pathlib.Path, part: str, step: int) -> pathlib.Path:
  """Where the scores of a training's state after `step` are.

  Args:
    folder: of the training.
    part: "heldout" or "unseen".
  """
  return folder / "scores" / f"{part}_{step}.jsonl"


def write(file: pathlib.Path, scores: Scores) -> None:
  """Writes them, the whole file or nothing."""
  if not processes.is_first():
    return
  file.parent.mkdir(parents=True, exist_ok=True)
  partial = file.with_suffix(".partial")
  with partial.open("w") as out:
    for sample, user_id, row in zip(
      scores.samples, scores.user_ids, scores.ratios, strict=True
    ):
      ratios = [round(float(x), 6) for x in row[~np.isnan(row)]]
      line = {"sample": sample, "user_id": user_id, "ratios": ratios}
      out.write(json.dumps(line, ensure_ascii=False) + "\n")
  partial.rename(file)


def read(file: pathlib.Path) -> Scores:
  """What `write` wrote."""
  with file.open() as lines:
    rows = [json.loads(line) for line in lines]
  most = max(len(row["ratios"]) for row in rows)
  ratios = np.full((len(rows), most), np.nan, np.float32)
  for place, row in enumerate(rows):
    ratios[place, : len(row["ratios"])] = row["ratios"]
  return Scores(
    [row["sample"] for row in rows], [row["user_id"] for row in rows], ratios
  )


def check_same(ours: Scores, theirs: Scores, names: tuple[str, str]) -> None:
  """Checks that two runs can be compared pair by pair.

  Raises:
    ValueError: if they are not of the same samples.
  """
  mine, other = set(ours.samples), set(theirs.samples)
  if mine != other:
    raise ValueError(
      f"{names[0]} and {names[1]} were evaluated on different samples "
      f"({len(mine):,} and {len(other):,}, {len(mine & other):,} of them the "
      "same); compare runs with the same data, seed and limits"
    )
  other = _pairs(theirs)
  unlike = sum(other[key] != count for key, count in _pairs(ours).items())
  if unlike:
    raise ValueError(
      f"{names[0]} and {names[1]} were evaluated on different pairs of "
      f"{unlike:,} samples; compare runs with the same "
      "data.max_response_tokens and data.long_response"
    )


def _pairs(scores: Scores) -> dict[str, int]:
  """The number of each sample's pairs."""
  counts = (~np.isnan(scores.ratios)).sum(1)
  return dict(zip(scores.samples, counts.tolist(), strict=True))
