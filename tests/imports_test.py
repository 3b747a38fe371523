import ast
import importlib.metadata
import pathlib
import re
import sys

import pytest

from pdpo_jax import __main__ as commands

PACKAGE = pathlib.Path(__file__).parent.parent / "pdpo_jax"

# A part may import itself and those below it.
ORDER = (
  "core",
  "models",
  "data",
  "weights",
  "training",
  "inference",
  "exports",
  "planning",
  "runs",
  "evaluation",
  "serving",
)


def part_of(file: pathlib.Path) -> str:
  return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(file: pathlib.Path) -> set[str]:
  """Each part of each dotted name that is imported from or as."""
  names = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import | ast.ImportFrom):
      dotted = [alias.name for alias in node.names]
      dotted.append(getattr(node, "module", None) or "")
      names |= {part for name in dotted for part in name.split(".")}
  return names


def imported_parts(file: pathlib.Path) -> set[str]:
  parts = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == "pdpo_jax":
        parts |= {alias.name for alias in node.names}
      elif node.module.startswith("pdpo_jax."):
        parts.add(node.module.split(".")[1])
    elif isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith("pdpo_jax."):
          parts.add(alias.name.split(".")[1])
  return parts


@pytest.mark.parametrize(
  "file",
  [f for f in sorted(PACKAGE.rglob("*.py")) if part_of(f) in ORDER],
  ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_imports_point_one_way(file):
  below = ORDER[: ORDER.index(part_of(file)) + 1]
  assert imported_parts(file) <= {*below}


def test_no_part_below_runs_knows_the_whole_config():
  # A section's reader takes its section; what it cannot import, it may still
  # be given by somebody who does not say so.
  for part in ORDER[: ORDER.index("runs")]:
    for file in (PACKAGE / part).rglob("*.py"):
      for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.FunctionDef):
          continue
        arguments = [*node.args.args, *node.args.kwonlyargs]
        untyped = [
          each.arg
          for each in arguments
          if each.arg in ("config", "recipe") and each.annotation is None
        ]
        assert not untyped, f"{file}: {node.name}({', '.join(untyped)})"


def test_commands_alone_stand_on_top():
  beside = {"__init__", "__main__", "command_line"}
  files = {file.stem for file in PACKAGE.glob("*.py")}
  assert files == {*commands.COMMANDS} | beside
  folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
  assert folders == {*ORDER}


def test_torch_is_imported_only_to_read_and_to_write_its_files():
  users = {PACKAGE / "convert.py", PACKAGE / "inference" / "remote.py"}
  for file in PACKAGE.rglob("*.py"):
    assert ("torch" in imported_names(file)) == (file in users), file


def test_typed_dicts_are_those_that_pydantic_takes_with_any_python():
  for file in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module == "typing":
        names = {alias.name for alias in node.names}
        assert "TypedDict" not in names, f"{file}: use typing_extensions"


def test_what_is_imported_is_a_requirement():
  lines = (PACKAGE.parent / "requirements.txt").read_text().splitlines()
  required = {
    re.split(r"[>=<\[ ]", line)[0].lower().replace("_", "-")
    for line in lines
    if line and not line.startswith("#")
  }
  imported = set()
  for file in PACKAGE.rglob("*.py"):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.ImportFrom) and node.module:
        imported.add(node.module.partition(".")[0])
      elif isinstance(node, ast.Import):
        imported |= {alias.name.partition(".")[0] for alias in node.names}
  # The converter's, for whoever has it, and what comes with JAX for a TPU.
  imported -= {*sys.stdlib_module_names, "pdpo_jax", "torch", "libtpu"}
  packages = importlib.metadata.packages_distributions()
  for name in imported:
    names = {each.lower().replace("_", "-") for each in packages[name]}
    assert names & required, f"{name} is imported and not required"


def test_what_code_in_texts_imports_exists():
  """Scripts that tests start, notebooks, and what CI runs."""
  root = PACKAGE.parent
  for file in (
    *root.glob("tests/**/*.py"),
    *root.glob("benchmarks/*.py"),
    *root.glob("demos/*.ipynb"),
    root / ".ci" / "run",
  ):
    for module, names in re.findall(
      r"from (pdpo_jax[\w.]*) import ([a-z_]+(?:, [a-z_]+)*)", file.read_text()
    ):
      place = root.joinpath(*module.split("."))
      if not place.is_dir():
        assert place.with_suffix(".py").is_file(), f"{file}: {module}"
        continue
      for name in names.split(", "):
        there = (place / name).is_dir() or (place / f"{name}.py").is_file()
        assert there, f"{file}: {name} from {module}"
