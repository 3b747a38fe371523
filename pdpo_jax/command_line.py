"""What the commands share: flags, and errors that say what to do."""

import functools
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from pdpo_jax import config as config_lib
from pdpo_jax.training import loop

_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show where in the code an error came from."
)


@functools.cache
def config_flag() -> flags.FlagHolder:
  """`--config`, which several commands have; tests import more than one."""
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment: configs/<name>.py, or configs/<name>.py:variant",
  )


@functools.cache
def workdir_flag() -> flags.FlagHolder:
  """`--workdir`, likewise."""
  return flags.DEFINE_string("workdir", None, "Run folder of a training.")


def _parse(arguments: Sequence[str]) -> list[str]:
  try:
    for argument in arguments[1:]:
      override = re.match(r"--?config\.([^=]+)", argument)
      if override:
        config_lib.check_field(override[1])
    return flags.FLAGS(arguments)
  # What a config file raises, and what an override of it raises.
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
  ) as error:
    message = error.args[0] if isinstance(error, KeyError) else error
    sys.exit(f"error: {message}")


def run(main: Callable[[], None]) -> None:
  """Runs a command; expected errors end it with one line and status 1."""

  def guarded(arguments):
    if len(arguments) > 1:
      sys.exit(f"error: unexpected argument {arguments[1]!r}; flags begin '--'")
    logging.set_verbosity(logging.WARNING)
    try:
      main()
    except loop.Interrupted as stop:
      print(stop, file=sys.stderr)
    except (ValueError, OSError, loop.NonFiniteLoss) as error:
      if _TRACEBACK.value:
        raise
      sys.exit(f"error: {error}")

  app.run(guarded, flags_parser=_parse)
