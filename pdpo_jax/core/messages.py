"""What processes tell each other, as bytes from which nothing can be run.

Whoever reaches the store that processes talk through can put bytes there. So
they are msgpack of plain values, of which a stranger can forge any, but only
values: None, bool, int, float, str, bytes, lists, tuples and dicts, and besides
these paths, numpy arrays and scalars, dataclasses of this package, and
exceptions by type and text.
"""

import builtins
import dataclasses
import io
import pathlib
import sys
from typing import Any

import msgpack
import numpy as np

# Of msgpack's extensions.
_TUPLE, _PATH, _ARRAY, _SCALAR, _DATACLASS, _ERROR = range(1, 7)
# Of arrays: numbers and text, whose bytes are all there is to them.
_KINDS = "biufcSU"
_PACKAGE = __name__.partition(".")[0]
# Types of exceptions that keep their type; others become RuntimeErrors.
_ERRORS = {
  name: kind
  for name, kind in vars(builtins).items()
  if isinstance(kind, type)
  and (kind is ValueError or issubclass(kind, OSError))
}
# Text may have what UTF-8 has no bytes for.
_TEXT = {"unicode_errors": "surrogatepass"}


def encode(value: Any) -> bytes:
  """The bytes of a value.

  Raises:
    ValueError: if the value, or something in it, is of another type than the
      above.
  """
  return msgpack.packb(value, default=_extend, strict_types=True, **_TEXT)


def decode(message: bytes) -> Any:
  """The value of `encode`.

  Raises:
    ValueError: if the bytes are of no such value.
  """
  try:
    return msgpack.unpackb(
      message, ext_hook=_restore, strict_map_key=False, **_TEXT
    )
  except Exception as error:  # A stranger's bytes can be anything.
    raise ValueError(f"not a message of this program ({error})") from error


def _extend(value: Any) -> msgpack.ExtType:
  """What msgpack has no type of its own for."""
  if type(value) is tuple:
    return msgpack.ExtType(_TUPLE, encode(list(value)))
  if isinstance(value, pathlib.Path):
    return msgpack.ExtType(_PATH, encode(str(value)))
  if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _KINDS:
    code = _ARRAY if isinstance(value, np.ndarray) else _SCALAR
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=False)
    return msgpack.ExtType(code, buffer.getvalue())
  if isinstance(value, Exception):
    names = [each.__name__ for each in type(value).__mro__]
    return msgpack.ExtType(_ERROR, encode([names, str(value)]))
  kind = type(value)
  if dataclasses.is_dataclass(value) and _is_ours(kind.__module__):
    fields = {
      field.name: getattr(value, field.name)
      for field in dataclasses.fields(value)
    }
    name = [kind.__module__, kind.__qualname__]
    return msgpack.ExtType(_DATACLASS, encode([name, fields]))
  large = ": it has more than 64 bits" if kind is int else ""
  raise ValueError(
    f"processes cannot tell each other a {kind.__module__}."
    f"{kind.__qualname__}{large}; pdpo_jax/core/messages.py has what they can"
  )


def _restore(code: int, data: bytes) -> Any:
  if code == _TUPLE:
    return tuple(decode(data))
  if code == _PATH:
    return pathlib.Path(decode(data))
  if code in (_ARRAY, _SCALAR):
    array = np.load(io.BytesIO(data), allow_pickle=False)
    return array if code == _ARRAY else array[()]
  if code == _ERROR:
    names, text = decode(data)
    for name in names:
      if name in _ERRORS:
        return _ERRORS[name](text)
    return RuntimeError(f"{names[0]}: {text}")
  if code == _DATACLASS:
    (module, name), fields = decode(data)
    # Nothing is imported for a message: both run the same program.
    kind = getattr(sys.modules.get(module), name, None)
    known = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    if not known or not _is_ours(kind.__module__):
      raise ValueError(f"{module}.{name} is no dataclass of this program")
    return kind(**fields)
  raise ValueError(f"no type has the code {code}")


def _is_ours(module: str) -> bool:
  return module.partition(".")[0] == _PACKAGE
