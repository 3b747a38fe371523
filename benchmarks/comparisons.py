"""Comparisons as token ids in a file that all contenders read.

Imports NumPy alone, so that peers may have a Python of their own.
"""

from collections.abc import Sequence

import numpy as np

# A user's number, a prompt, and its responses, the chosen one first.
Comparison = tuple[int, np.ndarray, list[np.ndarray]]


def write(file: str, comparisons: Sequence[Comparison]) -> None:
  """Writes arrays that are padded on the right where lengths differ."""
  _, prompts, responses = zip(*comparisons, strict=True)
  widest = max(map(len, responses))
  longest = max(len(each) for own in responses for each in own)
  padded = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
  answers = np.zeros((len(prompts), widest, longest), np.int32)
  lengths = np.zeros(answers.shape[:2], np.int32)
  for row, (prompt, own) in enumerate(zip(prompts, responses, strict=True)):
    padded[row, : len(prompt)] = prompt
    for column, response in enumerate(own):
      answers[row, column, : len(response)] = response
      lengths[row, column] = len(response)
  np.savez(
    file,
    users=np.array([user for user, *_ in comparisons], np.int32),
    prompts=padded,
    prompt_lengths=np.array([*map(len, prompts)], np.int32),
    responses=answers,
    response_lengths=lengths,
  )


def read(file: str) -> list[Comparison]:
  with np.load(file) as arrays:
    return [
      (
        int(user),
        prompt[:length],
        [each[:size] for each, size in zip(own, sizes, strict=True) if size],
      )
      for user, prompt, length, own, sizes in zip(
        *(
          arrays[name]
          for name in (
            "users",
            "prompts",
            "prompt_lengths",
            "responses",
            "response_lengths",
          )
        ),
        strict=True,
      )
    ]
