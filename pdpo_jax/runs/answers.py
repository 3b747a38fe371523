"""Answers to the same prompts as different users, kept as JSONL."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from typing_extensions import TypedDict

from pdpo_jax.core import kept, processes, structs

# Who answers besides the users, by the name in `answers.jsonl` and Figure 3.
OTHERS = {"S": "the base", "V": "vanilla DPO", "G": "the generic user"}


class Line(TypedDict):
  """Of a file of answers."""

  speaker: str
  prompt: structs.Prompt
  user_text: str
  answer: str
  seed: int


def write(
  file: pathlib.Path,
  prompts: Sequence[structs.PromptExample],
  answers: Mapping[str, Sequence[str]],
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
        }
        for speaker, texts in answers.items()
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
      ),
    )


def read(
  file: pathlib.Path,
) -> tuple[list[structs.Prompt], dict[str, list[str]]]:
  """The prompts, and each speaker's answers to them, as `write` wrote them.

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
  prompts: dict[int, structs.Prompt] = {}
  texts: dict[str, dict[int, str]] = {}
  for line in kept.read_jsonl(file, Line, remedy):
    prompts[line["seed"]] = line["prompt"]
    texts.setdefault(line["speaker"], {})[line["seed"]] = line["answer"]
  for speaker, answered in texts.items():
    if answered.keys() != prompts.keys():
      raise kept.Damaged(
        file, f"lacks lines: not all prompts are answered by {speaker}", remedy
      )
  if "S" not in texts:
    raise kept.Damaged(file, f"lacks the answers of {OTHERS['S']}", remedy)
  order = sorted(prompts)
  return (
    [prompts[seed] for seed in order],
    {name: [known[seed] for seed in order] for name, known in texts.items()},
  )
