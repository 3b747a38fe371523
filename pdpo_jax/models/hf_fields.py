"""Fields of the JSON files that come with a model: their types and ranges."""

import functools
from typing import Annotated, Any

import pydantic

# Fields that are not named are somebody else's; of those that are, "1" is no
# number, nor is true, and NaN is none that anything can be made of.
STRICT = pydantic.ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

Size = Annotated[int, pydantic.Field(ge=1, le=2**31 - 1)]
# Some count layers from one to the number that they are told.
Layers = Annotated[int, pydantic.Field(ge=1, le=10_000)]
TokenId = Annotated[int, pydantic.Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, pydantic.Field(gt=0, le=1e15)]
Epsilon = Annotated[float, pydantic.Field(gt=0, le=1)]
# Where all but one is not supported.
One = Annotated[float, pydantic.Field(ge=1, le=1)]


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter:
  return pydantic.TypeAdapter(kind)


def parse(kind: Any, fields: Any, place: object) -> Any:
  """`fields` as `kind` has them, a pydantic model or a type.

  Args:
    place: where they stand, for the error.

  Raises:
    ValueError: naming the first field that is missing or cannot be used, its
      value, and what is allowed.
  """
  try:
    return _adapter(kind).validate_python(fields, strict=True)
  except pydantic.ValidationError as error:
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "missing":
      name = ".".join(map(str, first["loc"]))
      raise ValueError(f"{place}: {name} is missing") from error
    name = _named(fields, first["loc"])
    value = f"{first['input']!r:.80}"
    allowed = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "model_type":
      allowed = "input should be an object"
    raise ValueError(
      f"{place}: {name} {value} is not supported; {allowed}"
    ) from error


def _named(fields: Any, place: tuple[str | int, ...]) -> str:
  """The name of a place in JSON, less what the library adds of types."""
  names = []
  for part in place:
    if not isinstance(fields, dict | list):
      break
    if isinstance(fields, dict) != isinstance(part, str):
      break
    if isinstance(fields, dict) and part not in fields:
      break
    names.append(str(part))
    fields = fields[part]
  return ".".join(names) or "the whole"
