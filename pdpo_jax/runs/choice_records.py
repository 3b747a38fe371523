"""Choices that are kept, as records that a training reads as they were.

A text that a reader of files would take for messages, or for a list, is written
as one message, whose content is not looked into.
"""

import collections
import json
from collections.abc import Iterator
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import comparisons, records
from pdpo_jax.data.sources import preference_records, turns
from pdpo_jax.runs import run as run_lib


def of_run(
  run: run_lib.Run, left_out: collections.Counter[str]
) -> Iterator[records.Record]:
  """All that are kept in a run, each as its reader of files takes it.

  Args:
    left_out: is told of how many choices there is no such record, by reason.
  """
  files = run.config.data.files
  columns = files.user_column, files.prompt_column
  for user_id in run.people.ids():
    for example in run.people.choices(user_id):
      record = _record(example, user_id, *columns)
      tally = records.Tally()
      reader = preference_records.Reader(*columns, tally)
      if reader.read("choices", record):
        yield record
      else:
        left_out.update(tally.broken + tally.dropped)


def _record(
  example: structs.Feedback, user_id: str, user_column: str, prompt_column: str
) -> records.Record:
  fields = json.loads(comparisons.to_json(example))
  prompt = fields.pop("prompt")
  if isinstance(prompt, str):
    prompt = _text(prompt, "user")
  for name in ("chosen", "response"):
    if name in fields:
      fields[name] = _text(fields[name], "assistant")
  if "rejected" in fields:
    fields["rejected"] = [_text(x, "assistant") for x in fields["rejected"]]
  return {user_column: user_id, prompt_column: prompt} | fields


def _text(text: str, role: str) -> Any:
  """A text, or a message of it where it would be read as something else."""
  try:
    stays = turns.unpack(text, collections.Counter()) == text
  except records.BrokenRecord:
    stays = False
  # A list of texts is no prompt.
  if role == "user" and isinstance(turns.read_written(text), list):
    stays = False
  return text if stays else [{"role": role, "content": text}]
