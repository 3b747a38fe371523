"""The JSON files of a base, which others wrote."""

import json
import pathlib
from typing import Any

from pdpo_jax.core import kept
from pdpo_jax.models import hf_fields

_REMEDY = "download it again, or put it back from where the model came"


def read(file: pathlib.Path, kind: Any) -> Any:
  """The content of a file, as `hf_fields.parse` makes it.

  Raises:
    ValueError: if it is missing or no JSON, is not what was written where it
      has a sum, or has a field that is of no use.
  """
  text = kept.read_text(file, _REMEDY)
  try:
    fields = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise kept.Damaged(file, f"is no JSON ({error})", _REMEDY) from error
  return hf_fields.parse(kind, fields, file)
