import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
  """Built from a copy, since setuptools writes beside what it builds."""
  copy = tmp_path_factory.mktemp("clone")
  for name in ("pdpo_jax", "configs"):
    hidden = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, copy / name, ignore=hidden)
  for name in (
    "pyproject.toml",
    "setup.py",
    "requirements.txt",
    "README.md",
    "LICENSE",
  ):
    shutil.copy(ROOT / name, copy)
  code = "from setuptools import build_meta as b; b.build_wheel('dist')"
  subprocess.run([sys.executable, "-c", code], cwd=copy, check=True)
  (file,) = (copy / "dist").glob("*.whl")
  return zipfile.ZipFile(file)


def test_the_wheel_has_all_code_configs_and_templates(wheel):
  files = {
    file.relative_to(ROOT).as_posix()
    for file in (ROOT / "pdpo_jax").rglob("*")
    if file.is_file() and "__pycache__" not in file.parts
  }
  assert {"pdpo_jax/py.typed", "pdpo_jax/runs/__init__.py"} <= files
  files |= {
    f"pdpo_jax/configs/{file.name}" for file in (ROOT / "configs").glob("*.py")
  }
  shipped = {x for x in wheel.namelist() if x.startswith("pdpo_jax/")}
  assert shipped == files


def test_the_wheel_says_how_it_is_licensed_and_called(wheel):
  (metadata,) = (x for x in wheel.namelist() if x.endswith("/METADATA"))
  folder = pathlib.PurePosixPath(metadata).parent
  text = wheel.read(metadata).decode()
  assert "License-Expression: Apache-2.0" in text
  requirements = (ROOT / "requirements.txt").read_text().splitlines()
  required = [x for x in requirements if x and not x.startswith("#")]
  assert text.count("Requires-Dist: ") == len(required) + 3  # The extras.
  entry_points = wheel.read(f"{folder}/entry_points.txt").decode()
  assert "pdpo = pdpo_jax.__main__:main" in entry_points
  licence = wheel.read(f"{folder}/licenses/LICENSE").decode()
  assert licence == (ROOT / "LICENSE").read_text()
