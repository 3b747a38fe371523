"""What somebody new may be asked first.

Prompts in a run's data are what people wrote, and are shown to nobody else but
where they were made up.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.runs import run as run_lib

_OF_DATA = 12
_COMMON = (
  "I have an evening to myself. What could I do with it?",
  "Explain to me why the sky is blue.",
  "How do I get better at sleeping?",
  "I want to learn to cook. Where should I start?",
  "My friend and I had a fight. What should I say to her?",
  "What should I think about before I get a dog?",
  "Give me tips for a job interview.",
  "Is it better to rent or to buy a home?",
  "Tell me something about the moon.",
  "How can I spend less time on my phone?",
)


def of_run(
  run: run_lib.Run, given: Sequence[Any] | None = None
) -> list[structs.Prompt]:
  """Questions for newcomers.

  Args:
    given: in place of those that there are, as JSON has them.
  """
  if given:
    return [*map(of_json, given)]
  if run.config.data.source == "synthetic":
    prompts = dict.fromkeys(x.prompt for x in run.dataset.heldout)
    return [*prompts][:_OF_DATA]
  return [*_COMMON]


def read(file: pathlib.Path) -> list[structs.Prompt]:
  """A question a line: a text, or as JSON a text or messages.

  Raises:
    ValueError: naming the line, if it is none.
  """
  try:
    lines = file.read_text().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"--questions {file} cannot be read ({error})") from error
  prompts = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      value = json.loads(line) if line.lstrip()[0] in '["' else line.strip()
      prompts.append(of_json(value))
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f"{file}:{number} is no question ({error}); write a text, or messages "
        'as [{"role": "user", "content": "…"}]'
      ) from error
  if not prompts:
    raise ValueError(f"--questions {file} has no question")
  return prompts


def to_json(prompt: structs.Prompt) -> Any:
  if isinstance(prompt, str):
    return prompt
  return [dataclasses.asdict(message) for message in prompt]


def of_json(value: Any) -> structs.Prompt:
  if isinstance(value, str):
    return value
  return tuple(
    structs.Message(str(each["role"]), str(each["content"])) for each in value
  )
