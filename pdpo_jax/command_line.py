"""What the commands share: flags, and errors that say what to do."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from pdpo_jax.core import display, processes, sections, structs
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.runs import again, run_folder
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import loop

_TRACEBACK = flags.DEFINE_bool(
  "traceback", False, "Show where in the code an error came from."
)
_INTERRUPTED_STATUS = flags.DEFINE_integer(
  "interrupted_status",
  0,
  "Exit status after SIGTERM or SIGINT in a training, when all is saved, and, "
  "where it is not 0, of a process that SIGTERM ends elsewhere; for schedulers "
  "that start again only what failed.",
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "One of several processes that work as one, each started with this command "
  "(launch/README.md). Cloud TPU, GKE and Slurm tell who is who; elsewhere the "
  "next three flags do.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT where process 0 listens and all others come."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Number of processes."
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Index of this process, from 0."
)
_SILENCE_TIMEOUT = flags.DEFINE_integer(
  "silence_timeout",
  60,
  "Seconds after which a process without a sign of life is taken for dead.",
  lower_bound=1,
)
_JOIN_TIMEOUT = flags.DEFINE_integer(
  "join_timeout",
  300,
  "Seconds until all processes must have joined.",
  lower_bound=1,
)


@functools.cache
def config_flag() -> flags.FlagHolder:
  """`--config`, which several commands have; tests import more than one."""
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment: a shipped config by name, as in quickstart or "
    "prism:authors, or a file, as in my/config.py or my/config.py:variant, or "
    "that of another run, as in runs/quickstart/config.json.",
  )


@functools.cache
def workdir_flag() -> flags.FlagHolder:
  """`--workdir`, likewise."""
  return flags.DEFINE_string("workdir", None, "Run folder of a training.")


@functools.cache
def database_flag() -> flags.FlagHolder:
  """`--database`, likewise."""
  return flags.DEFINE_string(
    "database",
    "",
    "Database of the people who came after training, as SQLAlchemy's address, "
    "e.g. postgresql+psycopg://user@host/people; default: a file in the run "
    "folder.",
  )


@functools.cache
def prompt_flag() -> flags.FlagHolder:
  """`--prompt`, likewise."""
  return flags.DEFINE_multi_string(
    "prompt",
    [],
    "A prompt, as text or as JSON messages, "
    '[{"role": "user", "content": "…"}, …]; may be given several times. \'-\' '
    "reads one from stdin.",
  )


@functools.cache
def user_flag() -> flags.FlagHolder:
  """`--user`, likewise."""
  return flags.DEFINE_multi_string(
    "user", [], "A user's id; may be given several times."
  )


def read_prompts() -> list[str]:
  """The texts of `--prompt`.

  Raises:
    ValueError: if one is empty.
  """
  texts = [
    sys.stdin.read() if prompt == "-" else prompt
    for prompt in prompt_flag().value
  ]
  if not all(text.strip() for text in texts):
    raise ValueError("--prompt is empty; give a text, or JSON messages")
  return texts


def parse_prompt(text: str) -> structs.Prompt:
  """A dialogue, where the text is a JSON list of messages, or the text.

  Raises:
    ValueError: if the content of a message is no text.
  """
  try:
    turns = [(each["role"], each["content"]) for each in json.loads(text)]
  except (ValueError, TypeError, KeyError):
    return text  # That only looks like JSON.
  if not all(isinstance(part, str) for turn in turns for part in turn):
    raise ValueError(
      f"--prompt {text[:60]!r}: the role and content of a message must be texts"
    )
  return tuple(structs.Message(*turn) for turn in turns) or text


@functools.cache
def judge_flag() -> flags.FlagHolder:
  """`--judge.kind` and the other knobs of a judge."""
  # Defining it reads the command line already.
  with _expected_errors():
    _check_fields(sys.argv)
    return config_flags.DEFINE_config_dataclass(
      "judge", judge_config.JudgeConfig(), "The judge; see docs/judge.md."
    )


def shipped_configs() -> dict[str, pathlib.Path]:
  """The files of configs/ by their names, in a clone or a wheel."""
  package = pathlib.Path(__file__).parent
  for folder in (package / "configs", package.parent / "configs"):
    if folder.is_dir():
      return {file.stem: file for file in sorted(folder.glob("*.py"))}
  return {}


def config_file(value: str) -> str:
  """The file that `--config` means, with the variant that it names.

  Args:
    value: a path, or the bare name of a shipped config; either may be followed
      by a colon and a variant. Or the `config.json` of a run.

  Raises:
    ValueError: if there is no such file.
  """
  run = pathlib.Path(value)
  if run.name == run_folder.CONFIG and run.is_file():
    return f"{again.__file__}:{run.parent}"
  name, colon, variant = value.partition(":")
  shipped = shipped_configs()
  if "/" not in name and not name.endswith(".py"):
    if name not in shipped:
      raise ValueError(
        f"--config {name!r} is none of the shipped configs, "
        f"{', '.join(shipped)}; name one of them, or a file that ends in .py"
      )
    return f"{shipped[name]}{colon}{variant}"
  file = pathlib.Path(name)
  if not file.is_file():
    hint = ""
    if file.stem in shipped:
      hint = f"; the shipped config is --config={file.stem}{colon}{variant}"
    raise ValueError(f"--config: there is no file {name}{hint}")
  return value


def _with_config_files(arguments: Sequence[str]) -> list[str]:
  """The command line with the config's file in place of its name."""
  resolved, is_next = [], False
  for argument in arguments:
    flag, equals, value = argument.partition("=")
    is_config = flag in ("--config", "-config")
    if is_config and equals:
      argument = f"{flag}={config_file(value)}"
    elif is_next:
      argument = config_file(argument)
    is_next = is_config and not equals
    resolved.append(argument)
  return resolved


# Flags that are defined here; those of several processes are not shown.
_SHARED = (
  "config", "workdir", "prompt", "user", "database", "judge", _TRACEBACK.name
)  # fmt: skip
_SECTIONS = {"config": config_lib.Config, "judge": judge_config.JudgeConfig}
_PARSERS = {
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  str: flags.ArgumentParser(),
}


def _register_types(section: sections.Section) -> None:
  """Has flags read fields whose types have limits, as `sections.Count`."""
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    kind = sections.base_type(field.type)
    if isinstance(value, sections.Section):
      _register_types(value)
    elif kind is not field.type:
      config_flags.register_flag_parser_for_type(field.type, _PARSERS[kind])


for _section in _SECTIONS.values():
  _register_types(_section())


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
    message = error.args[0] if isinstance(error, KeyError) else str(error)
    if "Traceback (most recent call last)" in message:
      # Of a config file; its last line says what is wrong.
      message = message.strip().splitlines()[-1].partition(": ")[2]
    sys.exit(f"error: {display.visible(message)}")


def _parse(arguments: Sequence[str]) -> list[str]:
  # `--help` shows the flags of the command's own file, and these as well.
  for name in _SHARED:
    if name in flags.FLAGS:
      flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
  with _expected_errors():
    _check_fields(arguments)
    words = flags.FLAGS(_with_config_files(arguments))
    _check_given()
    return words


# Texts that may say nothing.
_MAY_BE_EMPTY = ("user_text",)


def _check_given() -> None:
  """Raises a ValueError for a flag without a value, as of an unset variable."""
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    may_be_empty = "." in name or name in _MAY_BE_EMPTY
    if flag.present and flag.value == "" != flag.default and not may_be_empty:
      raise ValueError(f"--{name} is empty; give it a value, or leave it out")


def run(
  main: Callable[..., None],
  *,
  distributed: bool = False,
  takes_words: bool = False,
) -> None:
  """Runs a command; expected errors end it with one line and status 1.

  Args:
    main: is called with the words of the command line, if it takes any.
    distributed: whether several processes can run it as one.
    takes_words: whether there may be words between the flags and behind them;
      after `--`, all are.
  """
  # Flags may come after words.
  flags.FLAGS.set_gnu_getopt(takes_words)

  def guarded(arguments):
    if len(arguments) > 1 and not takes_words:
      sys.exit(f"error: unexpected argument {arguments[1]!r}; flags begin '--'")
    logging.set_verbosity(logging.WARNING)
    # What a run knows of people is its owner's alone, whoever writes the file.
    os.umask(0o077)
    _show_harmlessly()
    status = 0
    try:
      if _DISTRIBUTED.value:
        _join(distributed)
      main(*([arguments[1:]] if takes_words else []))
    except loop.Interrupted as stop:
      status = _INTERRUPTED_STATUS.value
      if processes.is_first():
        print(stop, file=sys.stderr)
    except BaseException as error:
      _end(error)
    processes.finish()
    sys.exit(status)

  app.run(guarded, flags_parser=_parse)


class _Visible(logging.PythonFormatter):
  """Names in what is logged are data, as everywhere."""

  def format(self, record):
    return display.visible(super().format(record))


def _show_harmlessly() -> None:
  logging.get_absl_handler().setFormatter(_Visible())
  # A result must not be lost to a terminal that lacks a character for it.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")


def _join(supported: bool) -> None:
  if not supported:
    raise ValueError("--distributed: this command runs as a single process")
  processes.start(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    join_timeout=_JOIN_TIMEOUT.value,
    silence_timeout=_SILENCE_TIMEOUT.value,
  )
  # The config is compared field by field, where it is used.
  apart = ("config", _PROCESS_ID.name)
  flag_values = {
    f"--{name}": _public(name, flags.FLAGS[name].value)
    for name in flags.FLAGS
    if flags.FLAGS[name].present and not name.startswith(apart)
  }
  processes.agree("the flags", flag_values)


def _public(name: str, value: Any) -> Any:
  """A flag's value without secrets; processes exchange and show it."""
  if name == "judge.base_url":
    return judge_config.public_address(value)
  return value


def _end(error: BaseException) -> None:
  """Ends a command that failed, with those that work with it."""
  expected = isinstance(error, ValueError | OSError | loop.NonFiniteLoss)
  plain = expected and not _TRACEBACK.value
  if not processes.several():
    if plain:
      sys.exit(f"error: {display.visible(str(error))}")
    raise error
  if isinstance(error, processes.Stopped):
    # Not at its end: never status 0.
    processes.fail(str(error), _INTERRUPTED_STATUS.value or 1)
  if processes.is_broken_off(error):
    processes.fail_together(error)
  if not plain and not isinstance(error, SystemExit):
    traceback.print_exception(error)
  processes.fail(display.visible(str(error)) or type(error).__name__)
