"""The demos are what they say: their commands exist, and one is run whole."""

import dataclasses
import os
import pathlib
import re
import socket
import sys

import nbclient
import nbformat
import pytest

from pdpo_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
DEMOS = sorted((ROOT / "demos").glob("*.ipynb"))


def code_of(notebook) -> list[str]:
  return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def commands_of(notebook) -> list[str]:
  code = "\n".join(code_of(notebook)).replace("\\\n", " ")
  return re.findall(r"^!python -m (pdpo_jax\..*)", code, re.MULTILINE)


def has_field(path: str) -> bool:
  """Whether a config has such a field, e.g. "train.epochs"."""
  config = config_lib.Config()
  for name in path.split("."):
    if name not in {field.name for field in dataclasses.fields(config)}:
      return False
    config = getattr(config, name)
  return True


def flags_of(module: str) -> str:
  file = ROOT.joinpath(*module.split("."))
  text = file.with_suffix(".py").read_text()
  return text + (ROOT / "pdpo_jax" / "command_line.py").read_text()


@pytest.mark.parametrize("file", DEMOS, ids=lambda file: file.stem)
def test_a_demo_is_kept_clean_and_its_commands_exist(file):
  notebook = nbformat.read(file, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None
  commands = commands_of(notebook)
  assert commands
  for command in commands:
    known = flags_of(command.split()[0])
    for flag in re.findall(r"--([\w.]+)", command):
      section, _, field = flag.partition(".")
      if section == "config" and field:
        assert has_field(field), flag
      else:
        assert f'"{flag}"' in known, flag


@pytest.mark.slow
def test_the_quickstart_runs_to_its_end(tmp_path, monkeypatch):
  for name in ("pdpo_jax", "configs", "requirements.txt"):
    (tmp_path / name).symlink_to(ROOT / name)
  bin_folder = pathlib.Path(sys.prefix) / "bin"
  monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  notebook = nbformat.read(ROOT / "demos" / "quickstart.ipynb", as_version=4)
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  for cell in notebook.cells:
    cell.source = cell.source.replace("quickstart.py", "quickstart.py:smoke")
    cell.source = cell.source.replace(
      "runs/quickstart", "runs/quickstart-smoke"
    )
    cell.source = cell.source.replace("PORT = 8000", f"PORT = {port}")
  client = nbclient.NotebookClient(
    notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  said = "".join(
    output.get("text", "")
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
  )
  assert "Report: runs/quickstart-smoke/report" in said
  assert f"Open http://127.0.0.1:{port}" in said
  # A command's error does not stop a notebook.
  assert "rror:" not in said
  assert len(re.findall(r"^\d+% worker 4: .", said, re.MULTILINE)) == 6
