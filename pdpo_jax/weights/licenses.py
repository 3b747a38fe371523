"""The licence of a base, as far as its files say."""

import pathlib
from collections.abc import Mapping

import huggingface_hub

from pdpo_jax.weights import gguf, hub

# As in the head of a card on the hub.
_FIELDS = ("license", "license_name", "license_link")


def read(path: str) -> Mapping[str, str]:
  """The fields of a licence that the head of a card has, or none.

  Args:
    path: of a base, as `hub.find` understands it.
  """
  place = hub.find(path)
  if place.suffix == ".gguf":
    file = gguf.open_file(place)
    fields = {
      name: file.get(f"general.{name.replace('_', '.')}", str)
      for name in _FIELDS
    }
  else:
    fields = _of_card(place / "README.md")
  return {
    name: value
    for name in _FIELDS
    if isinstance(value := fields.get(name), str) and value
  }


def _of_card(card: pathlib.Path) -> Mapping[str, object]:
  """The head of a card; it is somebody's text, and may be anything."""
  try:
    head = huggingface_hub.metadata_load(card)
  except Exception:  # No YAML, or none that the library takes.
    return {}
  return head if isinstance(head, dict) else {}
