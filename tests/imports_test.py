import ast
import importlib.metadata
import pathlib
import re
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "pdpo_jax"

# A part may import itself and the parts before it in its own row.
MAY_IMPORT = {
  "config": set(),
  "structs": set(),
  "messages": set(),
  "joining": set(),
  "processes": {"joining", "messages"},
  "kept": set(),
  "display": set(),
  "data": {"config", "structs", "kept", "display"},
  "models": {"structs"},
  "weights": {"config", "structs", "processes", "kept", "data", "models"},
  "training": {
    "config", "structs", "processes", "kept", "data", "models", "weights"
  },
  "inference": {
    "config", "structs", "processes", "data", "models", "weights", "training"
  },
  "planning": {"config", "structs", "models", "weights", "training"},
  "evaluation": {
    "config",
    "structs",
    "processes",
    "kept",
    "display",
    "data",
    "models",
    "weights",
    "training",
    "inference",
  },
}  # fmt: skip

# What a user calls stands above all parts, wherever it lies.
COMMANDS = {PACKAGE / "data" / "report.py"}


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
  [
    f
    for f in sorted(PACKAGE.rglob("*.py"))
    if part_of(f) in MAY_IMPORT and f not in COMMANDS
  ],
  ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_imports_point_one_way(file):
  part = part_of(file)
  assert imported_parts(file) <= MAY_IMPORT[part] | {part}


def test_torch_is_imported_by_nothing_but_its_converter():
  converter = PACKAGE / "weights" / "convert_torch.py"
  assert "torch" in imported_names(converter)
  for file in PACKAGE.rglob("*.py"):
    if file != converter:
      assert not {"torch", "convert_torch"} & imported_names(file), file


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
