"""Comparisons and thumbs as JSON, without whose they are."""

import dataclasses
import json

from pdpo_jax.core import structs


def to_json(example: structs.Feedback) -> str:
  """A record, as people's files have them."""
  prompt = example.prompt
  if not isinstance(prompt, str):
    prompt = [dataclasses.asdict(message) for message in prompt]
  if isinstance(example, structs.Thumb):
    fields = {
      "prompt": prompt,
      "response": example.response,
      "label": example.is_up,
    }
  else:
    fields = {
      "prompt": prompt,
      "chosen": example.chosen,
      "rejected": list(example.rejected),
    }
  if example.user_text:
    fields["user_text"] = example.user_text
  return json.dumps(fields, ensure_ascii=False)


def from_json(text: str, user_id: str) -> structs.Feedback:
  """What `to_json` wrote, as somebody's."""
  fields = json.loads(text)
  prompt = fields["prompt"]
  if not isinstance(prompt, str):
    prompt = tuple(structs.Message(**message) for message in prompt)
  user_text = fields.get("user_text", "")
  if "response" in fields:
    return structs.Thumb(
      prompt, fields["response"], fields["label"], user_id, user_text
    )
  return structs.PreferenceExample(
    prompt, fields["chosen"], tuple(fields["rejected"]), user_id, user_text
  )
