"""A run folder that version 0.1.0 made before its parts got their rooms.

`tests/golden/run_of_127366c.tar.gz` is what `python -m tests.tiny_run` wrote at
that commit, less figures, TensorBoard and the checkpoints of its base.
"""

import dataclasses
import json
import pathlib
import shutil
import tarfile

import numpy as np
import pytest

from pdpo_jax import export, main
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.report import report
from pdpo_jax.runs import answers, run_folder, scores
from pdpo_jax.runs import run as run_lib

pytestmark = pytest.mark.slow
ARCHIVE = pathlib.Path(__file__).parents[1] / "golden/run_of_127366c.tar.gz"


@pytest.fixture
def folder(tmp_path):
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(tmp_path, filter="data")
  return tmp_path / "run"


def test_it_is_evaluated_as_it_was_and_nothing_is_made_again(
  folder, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)  # Where its cache is, by a relative path.
  before = json.loads((folder / "report/report.json").read_text())
  run = run_lib.Run.open(folder)
  monkeypatch.setattr(scores, "write", None)
  judge = judge_config.JudgeConfig(
    kind="rule", against=("base", "chosen"), num_users=1, samples_per_user=1
  )
  journal = (folder / run_folder.JOURNAL).read_bytes()
  responses = {
    file: file.read_bytes() for file in folder.rglob("responses/*.jsonl")
  }
  report.make_report(folder, (), run.base, run.dataset, judge)
  after = json.loads((folder / "report/report.json").read_text())
  # The first version rounded what it kept, and not what it told.
  for old, new in zip(before["accuracy"], after["accuracy"], strict=True):
    for margins in (old, new):
      margins.pop("margin_by_user")
    # Nor did it count choices, or tell pairs apart.
    assert new.pop("examples_by_user").keys() == new["by_user"].keys()
    assert new.pop("interval_by_user").keys() == new["by_user"].keys()
    assert old.pop("margin") == pytest.approx(new.pop("margin"), abs=1e-5)
  for name in ("familiarity", "length_control"):
    assert after.pop(name).keys() == {"heldout"}
  assert {each["part"] for each in after.pop("untrained")} == {"heldout"}
  assert len(after.pop("contenders")) == 4
  assert [*after.pop("costs")] == ["S", "V", "G", "1", "2", "3"]
  assert {each["part"] for each in after.pop("beyond_length")} == {"heldout"}
  assert after == before
  assert (folder / run_folder.JOURNAL).read_bytes() == journal
  assert responses == {file: file.read_bytes() for file in responses}


def test_it_is_exported(folder, tmp_path):
  export.export_run(folder, tmp_path / "out")
  described = json.loads(
    (tmp_path / "out" / "users" / "users.json").read_text()
  )
  assert described["users"] == [None, "1", "2", "3"]


def test_its_training_goes_on_to_what_it_ended_with(folder):
  lines = {
    name: scores.read(next((folder / name / "scores").glob("heldout_3_*")))
    for name in ("vanilla", "pdpo")
  }
  said = answers.read(folder / run_folder.ANSWERS)
  for name in lines:
    shutil.rmtree(folder / name / "checkpoints" / "3")
    shutil.rmtree(folder / name / "scores")
  for name in (run_folder.ANSWERS, run_folder.HELD_OUT):
    (folder / name).unlink()
  config = dataclasses.replace(
    run_folder.read_config(folder),
    workdir=str(folder),
    cache=str(folder.parent / "cache"),
  )
  main.train_and_answer(config)
  for name, before in lines.items():
    (file,) = (folder / name / "scores").glob("heldout_3_*")
    after = scores.from_lines(scores.read(file))
    expected = scores.from_lines(before)
    assert after.examples == expected.examples
    # Tests compile without LLVM's optimizations, which that run had.
    np.testing.assert_allclose(after.ratios, expected.ratios, atol=1e-4)
  again = answers.read(folder / run_folder.ANSWERS)
  assert (again.prompts, again.texts) == (said.prompts, said.texts)
  assert said.likelihoods is None  # It kept none.
  assert again.likelihoods.keys() == again.texts.keys()
