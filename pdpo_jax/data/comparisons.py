"""Comparisons as JSON, without whose they are."""

import dataclasses
import json

from pdpo_jax.core import structs


def to_json(example: structs.PreferenceExample) -> str:
  """A record of a comparison, as files of comparisons have them."""
  prompt = example.prompt
  if not isinstance(prompt, str):
    prompt = [dataclasses.asdict(message) for message in prompt]
  fields = {
    "prompt": prompt,
    "chosen": example.chosen,
    "rejected": list(example.rejected),
  }
  if example.user_text:
    fields["user_text"] = example.user_text
  return json.dumps(fields, ensure_ascii=False)


def from_json(text: str, user_id: str) -> structs.PreferenceExample:
  """The comparison of `to_json`, as somebody's."""
  fields = json.loads(text)
  prompt = fields["prompt"]
  if not isinstance(prompt, str):
    prompt = tuple(structs.Message(**message) for message in prompt)
  return structs.PreferenceExample(
    prompt,
    fields["chosen"],
    tuple(fields["rejected"]),
    user_id,
    fields.get("user_text", ""),
  )
