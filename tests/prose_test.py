"""Documents name only what exists: paths, modules, options and commands."""

import ast
import dataclasses
import functools
import pathlib
import re
import tomllib

import pytest
import yaml

from pdpo_jax import __main__ as commands
from pdpo_jax.core import sections
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "pdpo_jax"
DOCUMENTS = sorted(
  [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "launch" / "README.md",
  ]
)
FOLDERS = (
  "pdpo_jax", "tests", "configs", "docs", "benchmarks", "launch", "demos",
  ".ci", ".github",
)  # fmt: skip
FILE_ENDINGS = {
  "py", "json", "jsonl", "txt", "html", "md", "parquet", "sqlite"
}  # fmt: skip
# A file that stands for any.
PLACEHOLDERS = {"FILE.py"}
# Names in other people's code.
OF_OTHERS = {
  "HF_TOKEN",
  "JAX_COORDINATOR_BIND_ADDRESS",
  "JAX_MTLS_CA_FILE",
  "JAX_MTLS_CERT_FILE",
  "JAX_MTLS_KEY_FILE",
  "LlamaTokenizerFast",
  "ReadWriteMany",
}


def all_documents(function):
  return pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT))
  )(function)


def prose(document: pathlib.Path) -> str:
  """The text, with the lines of a command joined."""
  return document.read_text().replace("\\\n", " ")


def code_spans(document: pathlib.Path) -> list[str]:
  return re.findall(r"`([^`\n]+)`", prose(document))


def exists(path: str) -> bool:
  """Whether there is such a file or folder, here or where launchers are."""
  starts = (ROOT, PACKAGE, ROOT / "launch")
  return any((start / path).exists() for start in starts)


@functools.cache
def names_in(file: pathlib.Path) -> frozenset[str]:
  """Functions, classes and variables of a module."""
  names = set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(
      node.ctx, ast.Store
    ):
      names.add(node.id if isinstance(node, ast.Name) else node.attr)
  return frozenset(names)


@functools.cache
def owners() -> dict[str, list[pathlib.Path]]:
  """Modules by their names and by those of the classes in them."""
  found: dict[str, list[pathlib.Path]] = {}
  for file in PACKAGE.rglob("*.py"):
    names = {file.stem} if file.parent != PACKAGE else set()
    for node in ast.parse(file.read_text()).body:
      if isinstance(node, ast.ClassDef):
        names.add(node.name)
    for name in names:
      found.setdefault(name, []).append(file)
  return found


def is_option(path: str) -> bool:
  """Whether `loss.beta` or `judge.kind` is a knob."""
  section, _, field = path.partition(".")
  try:
    if section == "judge":
      sections.check_field(judge_config.JudgeConfig(), "judge", field)
    else:
      sections.check_field(config_lib.Config(), "config", path)
  except ValueError:
    return False
  return True


@all_documents
def test_paths_in_documents_exist(document):
  text = prose(document)
  for path in re.findall(
    rf"(?<![\w/.-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*\w)", text
  ):
    assert exists(path.rstrip(".")), path
  for path in re.findall(r"(?<![\w/.-])([\w/]+\.(?:py|sh))\b", text):
    beside = (document.parent / path).exists()
    assert path in PLACEHOLDERS or beside or exists(path), path


@all_documents
def test_links_between_documents_lead_somewhere(document):
  for target in re.findall(r"\]\(([^)#]+)\)", prose(document)):
    if not re.match(r"https?:", target):
      assert (document.parent / target).exists(), target


@all_documents
def test_modules_in_documents_exist(document):
  for module in re.findall(
    r"\b((?:pdpo_jax|benchmarks|tests)\.[a-z_.]*[a-z_])", prose(document)
  ):
    path = ROOT.joinpath(*module.split("."))
    assert path.is_dir() or path.with_suffix(".py").is_file(), module


@all_documents
def test_commands_in_documents_exist(document):
  text = prose(document)
  found = re.findall(r"\bpdpo ([a-z]+)\b", text)
  found += re.findall(r"python -m pdpo_jax ([a-z]+)\b", text)
  assert {*found} <= {*commands.COMMANDS}
  makefile = (ROOT / "Makefile").read_text()
  for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
    assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@all_documents
def test_options_in_documents_exist(document):
  text = prose(document)
  for flag, path in re.findall(r"--(config|judge)\.([a-z_.]*[a-z_])", text):
    assert is_option(path if flag == "config" else f"judge.{path}"), path
  known = {field.name for field in dataclasses.fields(config_lib.Config)}
  for span in code_spans(document):
    if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", span):
      first, *_, last = span.split(".")
      if last in FILE_ENDINGS or first in owners():
        continue
      if first in known | {"judge"}:
        assert is_option(span), span


@all_documents
def test_names_of_code_in_documents_exist(document):
  for span in code_spans(document):
    if re.fullmatch(r"\w+\.\w+", span) and not is_option(span):
      owner, name = span.split(".")
      files = owners().get(owner, [])
      if files and name not in FILE_ENDINGS:
        assert any(name in names_in(file) for file in files), span
    elif re.fullmatch(r"[A-Z][a-z]+[A-Z]\w+|[A-Z]+_[A-Z_]+", span):
      # A class, or a table such as USER_MODELS.
      files = PACKAGE.rglob("*.py")
      known = span in OF_OTHERS or any(span in names_in(each) for each in files)
      assert known, span


@all_documents
def test_each_row_of_a_table_has_all_its_columns(document):
  text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
  tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
  for table in tables:
    rows = table.splitlines()
    # A code span may have a bar.
    counts = [re.sub(r"`[^`]*`|\\\|", "", row).count("|") for row in rows]
    assert len({*counts}) == 1, table


def test_the_readme_is_at_most_150_lines():
  assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_citation_has_paper_and_software_of_this_version():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert citation["version"] == project["version"]
  assert citation["license"] == project["license"]
  assert [{"name": citation["authors"][0]["name"]}] == project["authors"]
  assert "2402.05133" in citation["preferred-citation"]["url"]
