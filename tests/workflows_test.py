import pathlib
import re
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def jobs():
  text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
  return yaml.safe_load(text)["jobs"]


def test_both_versions_of_python_run_what_ci_runs(jobs):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  told = [
    found.group(1)
    for line in project["classifiers"]
    if (found := re.fullmatch(r".*Python :: (3\.\d+)", line))
  ]
  for job in ("checks", "wheel"):
    assert jobs[job]["strategy"]["matrix"]["python"] == told
  assert ".ci/run" in [step.get("run") for step in jobs["checks"]["steps"]]


def test_the_oldest_versions_and_other_engines_are_tested_beside_it(jobs):
  for job in ("oldest", "engines"):
    assert f"make {job}" in [step.get("run") for step in jobs[job]["steps"]]


def test_the_wheel_is_tried_without_a_clone(jobs):
  steps = jobs["wheel"]["steps"]
  assert not any("checkout" in step.get("uses", "") for step in steps)
  assert "pdpo main --config=quickstart:smoke" in [x.get("run") for x in steps]


def test_what_ci_runs_are_targets_of_the_makefile():
  script = (ROOT / ".ci" / "run").read_text()
  makefile = (ROOT / "Makefile").read_text()
  found = re.findall(r"^make (\w+)(?: &)?$", script, re.MULTILINE)
  assert found == ["lint", "test", "libtpu", "wheel", "parity"]
  for target in (*found, "oldest", "engines"):
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
