"""What all sections of a configuration have in common."""

import dataclasses
import difflib
import types
import typing
from typing import Any


class Section:
  """A dataclass whose unknown fields are errors that name the near ones."""

  def __setattr__(self, name: str, value: Any) -> None:
    names = [field.name for field in dataclasses.fields(self)]
    if name not in names:
      raise AttributeError(unknown_field(type(self).__name__, name, names))
    object.__setattr__(self, name, value)


def unknown_field(owner: str, name: str, names: list[str]) -> str:
  """The message for a field that does not exist."""
  near = difflib.get_close_matches(name, names, 3, 0.5)
  if near:
    hint = f"did you mean {' or '.join(map(repr, near))}?"
  else:
    hint = f"it has {', '.join(names)}"
  return f"{owner} has no field {name!r}; {hint}"


def check_field(owner: Section, flag: str, path: str) -> None:
  """Checks that a section has the field of a dotted path such as "loss.beta".

  Args:
    flag: what the section is called on the command line.

  Raises:
    ValueError: naming the near ones.
  """
  holder: Any = owner
  for place, name in enumerate(path.split(".")):
    names = [field.name for field in dataclasses.fields(holder)]
    if name not in names:
      section = ".".join([flag, *path.split(".")[:place]])
      raise ValueError(unknown_field(section, name, names))
    holder = getattr(holder, name)
    if not dataclasses.is_dataclass(holder):
      rest = path.split(".")[place + 1 :]
      if rest:
        raise ValueError(f"{flag}.{path}: {name!r} has no fields")
      return


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """`{"loss": {"beta": 1}}` as `{"loss.beta": 1}`."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def fill(section: Section, tree: Any, path: str = "") -> None:
  """Sets a section's fields to what a tree, as JSON has it, says of them.

  Raises:
    ValueError: if the tree has fields that the section has not, or something
      else in the place of a section.
  """
  if not isinstance(tree, dict):
    raise ValueError(
      f"{path.rstrip('.') or 'a configuration'} must have fields, and is "
      f"{tree!r:.60}"
    )
  names = [field.name for field in dataclasses.fields(section)]
  for name, value in tree.items():
    if name not in names:
      owner = path.rstrip(".") or "the configuration"
      raise ValueError(unknown_field(owner, name, names))
    if isinstance(getattr(section, name), Section):
      fill(getattr(section, name), value, f"{path}{name}.")
    else:
      setattr(section, name, tuple(value) if isinstance(value, list) else value)


def check_types(section: Section, path: str = "") -> None:
  hints = typing.get_type_hints(type(section))
  for field in dataclasses.fields(section):
    value, hint = getattr(section, field.name), hints[field.name]
    name = path + field.name
    if isinstance(value, Section):
      check_types(value, f"{name}.")
    elif hint is float and type(value) is int:
      setattr(section, field.name, float(value))
    elif isinstance(hint, types.GenericAlias):
      item = typing.get_args(hint)[0]
      if item is str:
        # A command line makes numbers of ids that look like some.
        if type(value) is int:
          value = (value,)
        if isinstance(value, tuple | list):
          value = tuple(str(x) if type(x) is int else x for x in value)
      if not isinstance(value, tuple | list) or not all(
        isinstance(each, item) for each in value
      ):
        raise ValueError(f"{name} {value!r} must be a tuple of {item.__name__}")
      if item is str and len(value) == 1:
        # How a command line gives several.
        value = [each.strip() for each in value[0].split(",")]
      setattr(section, field.name, tuple(value))
    elif type(value) is not hint:
      raise ValueError(f"{name} {value!r} must be of type {hint.__name__}")


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
  if not holds:
    raise ValueError(f"{name} {value!r} must be {allowed}")


def check_integers(section: Section, path: str) -> None:
  """Counts are 1 or more, or 0 or more where 0 has a meaning."""
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if field.type not in (int, "int"):
      continue
    zero = field.name in _MAY_BE_ZERO
    require(
      value >= (0 if zero else 1),
      f"{path}.{field.name}",
      value,
      "0 or more" if zero else "1 or more",
    )


_MAY_BE_ZERO = {
  "logits_chunk",
  "warmup_steps",
  "max_new_tokens",
  "min_new_tokens",
  "top_k",
  "no_repeat_ngram",
  "top_aspects",
  "max_users",
  "max_per_user",
  "max_heldout_per_user",
  "num_users",
  "num_examples",
  "requests_per_minute",
  "retries",
  "data",
}
