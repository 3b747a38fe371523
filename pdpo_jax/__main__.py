"""The commands, each with a line of help, by one name.

  python -m pdpo_jax              lists them
  python -m pdpo_jax main --config=quickstart

The same as `python -m pdpo_jax.main --config=quickstart`, and, where the
package is installed, as `pdpo main --config=quickstart`.
"""

import ast
import pathlib
import runpy
import sys
from collections.abc import Sequence

COMMANDS = (
  "main", "generate", "serve", "evaluate", "users", "export", "preview",
  "plan", "convert",
)  # fmt: skip


def summary(command: str) -> str:
  """The first line of a command's docstring, which is not imported for it."""
  file = pathlib.Path(__file__).with_name(f"{command}.py")
  docstring = ast.get_docstring(ast.parse(file.read_text()))
  return docstring.splitlines()[0]


def overview(program: str) -> str:
  """What `--help` prints."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {summary(name)}" for name in COMMANDS]
  return "\n".join(
    [
      f"usage: {program} COMMAND [FLAGS]",
      "",
      *lines,
      "",
      f"{program} COMMAND --help lists the flags of a command.",
    ]
  )


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs a command as `python -m pdpo_jax.COMMAND` would.

  Args:
    arguments: of the command line, the program first; default: `sys.argv`.
  """
  called, *words = sys.argv if arguments is None else arguments
  installed = pathlib.Path(called).name != "__main__.py"
  program = "pdpo" if installed else "python -m pdpo_jax"
  if not words or words[0] in ("--help", "-help", "-h", "help"):
    print(overview(program))
    return
  command, *rest = words
  if command not in COMMANDS:
    known = ", ".join(COMMANDS)
    sys.exit(f"error: {command!r} is not a command; those are {known}")
  sys.argv = [called, *rest]
  runpy.run_module(f"pdpo_jax.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
