"""What all sections of a configuration have in common."""

import dataclasses
import difflib
import math
import types
import typing
from typing import Annotated, Any, Literal


class Section:
  """A dataclass whose unknown fields are errors that name the near ones."""

  def __setattr__(self, name: str, value: Any) -> None:
    names = [field.name for field in dataclasses.fields(self)]
    if name not in names:
      raise AttributeError(unknown_field(type(self).__name__, name, names))
    object.__setattr__(self, name, value)

  def check_together(self) -> None:
    """Checks how fields go together, where a section has something to say.

    Raises:
      ValueError: with the fields, their values and what to do.
    """


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


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers that a field may have, in its annotation.

  Attributes:
    least: the smallest one.
    most: the largest one.
    above: what all are above.
    below: what all are below.
  """

  least: int | float | None = None
  most: int | float | None = None
  above: int | float | None = None
  below: int | float | None = None

  def holds(self, value: int | float) -> bool:
    return (
      (self.least is None or value >= self.least)
      and (self.most is None or value <= self.most)
      and (self.above is None or value > self.above)
      and (self.below is None or value < self.below)
    )

  def __str__(self) -> str:
    if self.below == math.inf:
      return f"{dataclasses.replace(self, below=None)}, and finite"
    if self.most is None and self.below is None:
      if self.least is None:
        return f"above {self.above}"
      return f"{self.least} or more"
    first, last = f"from {self.least}", f"{self.most}"
    if self.least is None:
      first = f"above {self.above}"
    if self.most is None:
      last = f"below {self.below}"
    return f"{first} to {last}"


# Numbers of things, of which there must be one, or may be none.
Count = Annotated[int, Range(least=1)]
CountOrNone = Annotated[int, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]
ShareBelowOne = Annotated[float, Range(least=0, below=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]


def base_type(hint: Any) -> Any:
  """What of an annotation is a type: of `Literal["a"]` and `Count`, too."""
  if typing.get_origin(hint) is Annotated:
    hint = typing.get_args(hint)[0]
  if typing.get_origin(hint) is Literal:
    return type(typing.get_args(hint)[0])
  return hint


def check(section: Section, path: str = "") -> None:
  """Checks a section, and those in it, by what their annotations say.

  An int is taken where a float is meant, and one item where several are.

  Args:
    path: of the section, with a dot at its end; empty for the whole.

  Raises:
    ValueError: with the field, its value and what is allowed.
  """
  hints = typing.get_type_hints(type(section), include_extras=True)
  for field in dataclasses.fields(section):
    name, hint = path + field.name, hints[field.name]
    value = getattr(section, field.name)
    if isinstance(value, Section):
      check(value, f"{name}.")
    else:
      setattr(section, field.name, _checked(value, hint, name))
  section.check_together()


def _checked(value: Any, hint: Any, name: str) -> Any:
  kind = base_type(hint)
  if isinstance(kind, types.GenericAlias):
    return _checked_items(value, typing.get_args(kind)[0], name)
  if typing.get_origin(hint) is Literal:
    choices = typing.get_args(hint)
    require(value in choices, name, value, f"one of {choices}")
    return value
  if kind is float and type(value) is int:
    value = float(value)
  if type(value) is not kind:
    raise ValueError(f"{name} {value!r} must be of type {kind.__name__}")
  for limits in getattr(hint, "__metadata__", ()):
    require(limits.holds(value), name, value, str(limits))
  return value


def _checked_items(value: Any, hint: Any, name: str) -> tuple:
  kind = base_type(hint)
  if kind is str:
    # A command line makes numbers of ids that look like some.
    if type(value) is int:
      value = (value,)
    if isinstance(value, tuple | list):
      value = tuple(str(x) if type(x) is int else x for x in value)
  if not isinstance(value, tuple | list) or not all(
    isinstance(item, kind) for item in value
  ):
    raise ValueError(f"{name} {value!r} must be a tuple of {kind.__name__}")
  if kind is str and len(value) == 1:
    # How a command line gives several.
    value = [item.strip() for item in value[0].split(",")]
  if typing.get_origin(hint) is Literal:
    choices = typing.get_args(hint)
    require({*value} <= {*choices}, name, value, f"some of {choices}")
  return tuple(value)


def require(holds: bool, name: str, value: Any, allowed: str) -> None:
  if not holds:
    raise ValueError(f"{name} {value!r} must be {allowed}")
