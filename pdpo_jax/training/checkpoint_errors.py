"""What Orbax and its storage raise, told in one line."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from pdpo_jax.core import kept, processes

# How TensorStore says why a disk refused.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


def is_not_orbax(record: logging.LogRecord) -> bool:
  """Keeps out what Orbax logs: what failed, many times over, and raises too."""
  return "/orbax/checkpoint/" not in record.pathname


def os_error(folder: pathlib.Path, error: BaseException) -> OSError:
  """The refusal of the disk that `error` came from."""
  if not folder.is_dir():
    number = errno.ENOENT
  elif isinstance(error, OSError) and error.errno:
    number = error.errno
  else:
    number = _OS_ERROR.search(str(error))
    number = number and int(number[1])
  if number:
    return OSError(number, os.strerror(number))
  return OSError(first_line(error))


@contextlib.contextmanager
def listing(folder: pathlib.Path) -> Iterator[None]:
  """Names the file that keeps Orbax from listing the steps of a folder."""
  try:
    yield
  except Exception as error:
    for file in sorted(folder.glob("*/_CHECKPOINT_METADATA")):
      try:
        times = json.loads(file.read_bytes())
        whole = times is None or all(
          isinstance(time, int | None)
          for name, time in times.items()
          if name.endswith("_nsecs")
        )
      except (OSError, AttributeError, ValueError):
        whole = False
      if not whole:
        raise kept.Damaged(
          file,
          f"is damaged ({first_line(error)})",
          "put it back from a copy, or move the folder that it is in away, to "
          "go on from an earlier step",
        ) from error
    raise


def first_line(error: BaseException) -> str:
  text = str(error.args[0] if isinstance(error, KeyError) else error)
  return (text.strip() or type(error).__name__).splitlines()[0][:200]


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
  """What `read` gives, and what was wrong if it failed for any process."""
  value, problem = None, ""
  try:
    value = read()
  except Exception as error:  # Orbax raises what its storage raises.
    problem = first_line(error)
  return value, next(filter(None, processes.gather(problem)), "")
