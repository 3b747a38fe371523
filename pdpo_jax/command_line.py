"""What the commands share: flags, and errors that say what to do."""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from pdpo_jax import config as config_lib
from pdpo_jax.config import judge as judge_config
from pdpo_jax.config import sections
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


@functools.cache
def judge_flag() -> flags.FlagHolder:
  """`--judge.kind` and the other knobs of a judge."""
  # Defining it reads the command line already.
  with _expected_errors():
    _check_fields(sys.argv)
    return config_flags.DEFINE_config_dataclass(
      "judge", judge_config.JudgeConfig(), "The judge; see docs/judge.md."
    )


_SECTIONS = {"config": config_lib.Config, "judge": judge_config.JudgeConfig}


def _check_fields(arguments: Sequence[str]) -> None:
  """Raises a ValueError for an override of a field that there is not."""
  for argument in arguments[1:]:
    override = re.match(r"--?(config|judge)\.([^=]+)", argument)
    if override:
      flag, path = override.groups()
      sections.check_field(_SECTIONS[flag](), flag, path)


@contextlib.contextmanager
def _expected_errors() -> Iterator[None]:
  """Ends with one line for what config files, and overrides of them, raise."""
  try:
    yield
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


def _parse(arguments: Sequence[str]) -> list[str]:
  with _expected_errors():
    _check_fields(arguments)
    return flags.FLAGS(arguments)


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
