"""Answers to the same prompts as different users, kept as JSONL."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import NotRequired

import numpy as np
from typing_extensions import TypedDict

from pdpo_jax.core import kept, processes, structs
from pdpo_jax.inference import likelihoods as likelihoods_lib

# Who answers besides the users, by the name in `answers.jsonl` and Figure 3.
OTHERS = {"S": "the base", "V": "vanilla DPO", "G": "the generic user"}


class Line(TypedDict):
  """Of a file of answers."""

  speaker: str
  prompt: structs.Prompt
  user_text: str
  answer: str
  seed: int
  # Under the base, in nats, and of how many tokens; older runs have neither.
  log_likelihood: NotRequired[float | None]
  tokens: NotRequired[int]


@dataclasses.dataclass(frozen=True)
class Answers:
  """What speakers answered to the same prompts.

  Attributes:
    prompts: in the order of their seeds.
    texts: by speaker, in the order of the prompts.
    likelihoods: under the base, by speaker; None where they were not kept.
  """

  prompts: list[structs.PromptExample]
  texts: dict[str, list[str]]
  likelihoods: dict[str, likelihoods_lib.Likelihoods] | None


def write(
  file: pathlib.Path,
  prompts: Sequence[structs.PromptExample],
  answers: Mapping[str, Sequence[str]],
  likelihoods: Mapping[str, likelihoods_lib.Likelihoods],
  seed: int,
) -> None:
  """One line an answer: speaker, prompt (with its user text), answer, seed.

  The file is there when it is whole.
  """
  if processes.is_first():
    kept.write_jsonl(
      file,
      (
        {
          "speaker": speaker,
          **dataclasses.asdict(prompt),
          "answer": text,
          "seed": seed + place,
          "log_likelihood": None if np.isnan(total) else round(float(total), 3),
          "tokens": int(tokens),
        }
        for speaker, texts in answers.items()
        for place, (prompt, text, total, tokens) in enumerate(
          zip(
            prompts,
            texts,
            likelihoods[speaker].sums,
            likelihoods[speaker].tokens,
            strict=True,
          )
        )
      ),
    )


def read(file: pathlib.Path) -> Answers:
  """What `write` wrote.

  Raises:
    ValueError: if there is no such file, or it is damaged.
  """
  remedy = (
    "start its training command again, which goes on where it was and "
    "writes it anew"
  )
  if not kept.was_written(file):
    raise kept.Damaged(
      file, "is missing: the run has not generated any answers yet", remedy
    )
  prompts: dict[int, structs.PromptExample] = {}
  lines: dict[str, dict[int, Line]] = {}
  for line in kept.read_jsonl(file, Line, remedy):
    prompts[line["seed"]] = structs.PromptExample(
      line["prompt"], line["user_text"]
    )
    lines.setdefault(line["speaker"], {})[line["seed"]] = line
  for speaker, answered in lines.items():
    if answered.keys() != prompts.keys():
      raise kept.Damaged(
        file, f"lacks lines: not all prompts are answered by {speaker}", remedy
      )
  if "S" not in lines:
    raise kept.Damaged(file, f"lacks the answers of {OTHERS['S']}", remedy)
  order = sorted(prompts)
  likelihoods = None
  if all(
    "tokens" in line for known in lines.values() for line in known.values()
  ):
    likelihoods = {
      speaker: likelihoods_lib.Likelihoods(
        np.array([known[seed]["log_likelihood"] for seed in order], float),
        np.array([known[seed]["tokens"] for seed in order]),
      )
      for speaker, known in lines.items()
    }
  return Answers(
    [prompts[seed] for seed in order],
    {
      speaker: [known[seed]["answer"] for seed in order]
      for speaker, known in lines.items()
    },
    likelihoods,
  )
