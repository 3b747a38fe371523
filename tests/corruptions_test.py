"""Every file of a run, damaged in every way, and what the commands say."""

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from pdpo_jax import main
from pdpo_jax.core import kept
from pdpo_jax.runs import locks, run_folder, scores
from pdpo_jax.runs import run as run_lib
from tests import corruptions, tiny_run
from tests.evaluation.report import report_test

pytestmark = [
  pytest.mark.slow,
  # Orbax leaves tasks behind that failed to read what is damaged.
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return tiny_run.make(tmp_path_factory.mktemp("whole")).folder


@pytest.fixture(scope="module")
def subject(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("damaged")
  other = tiny_run.make(folder / "other", seed=1).folder
  return corruptions.Subject(run, other, folder / "run")


def test_every_file_of_a_run_is_in_the_list(run):
  unknown = [
    name
    for name in corruptions.files_of(run)
    if not any(fnmatch.fnmatchcase(name, each) for each in run_folder.FILES)
  ]
  assert not unknown


def test_files_with_what_people_wrote_or_their_ids_are_named_as_such(run):
  (said, *_) = (
    json.loads(line)["prompt"]
    for line in (run / run_folder.ANSWERS).read_text().splitlines()
  )
  # As it stands in JSON, in a page, and in a text; and what names users.
  signs = [said.splitlines()[2].encode(), b'"user_id"', b'"by_user"']
  holds = {
    name
    for name in corruptions.files_of(run)
    if any(sign in (run / name).read_bytes() for sign in signs)
  }
  named = {
    name
    for name in corruptions.files_of(run)
    if any(fnmatch.fnmatchcase(name, each) for each in run_folder.PERSONAL)
  }
  assert holds >= {"answers.jsonl", "judgements.jsonl", "results.json"}
  assert holds <= named
  # Orbax compresses what it writes.
  assert any(name.startswith("pdpo/checkpoints/") for name in named)


# One of each kind: another step, digest or process has the same readers.
NAMES = (
  "config.json",
  "versions.json",
  "held_out.json",
  "answers.jsonl",
  "judgements.jsonl",
  "checksums.json",
  "responses/base_*.jsonl",
  "responses/checksums.json",
  "base/data.txt",
  "base/config.json",
  "base/generation_config.json",
  "base/tokenizer.json",
  "base/tokenizer_config.json",
  "base/model.safetensors",
  "pdpo/metrics.jsonl",
  "pdpo/checkpoints/3/lora/d/*",
  "pdpo/checkpoints/3/users/d/*",
  "pdpo/checkpoints/3/meta/_strings.json",
  "pdpo/scores/heldout_*.jsonl",
  "pdpo/scores/checksums.json",
  "pdpo/responses/*.jsonl",
)


@pytest.mark.parametrize("pattern", NAMES)
def test_a_damaged_file_is_an_error_or_made_again_or_changes_nothing(
  subject, pattern
):
  names = fnmatch.filter(subject.names, pattern)
  assert names
  # Policies take a second each to load.
  slow = pattern.startswith("base/") or "/checkpoints/" in pattern
  few = ("flipped", "emptied", "another run's")
  for kind in few if slow else corruptions.KINDS:
    for command, outcome in subject.outcomes(names[0], kind, 0).items():
      what = f"{names[0]} {kind}: {command}: {outcome.text}"
      assert outcome.kind in ("error", "said", "untouched"), what
      if outcome.kind == "error":
        assert re.search(r"[\w/]+\.\w+|/run", outcome.text), what


def damaged_copy(run, folder):
  """A run whose newest checkpoint of P-DPO cannot be read."""
  shutil.copytree(run, folder)
  file = next((folder / "pdpo/checkpoints/3/lora/d").iterdir())
  corruptions.damage(file, "truncated", 0)
  return folder


def test_scores_are_filed_under_the_step_that_was_read(run, tmp_path):
  folder = damaged_copy(run, tmp_path / "run")
  before = (folder / "pdpo/scores").iterdir()
  before = {file: file.read_bytes() for file in before}
  config = run_folder.read_config(folder)
  base = run_lib.read_base(config, folder)
  dataset = run_lib.load_dataset(config, base.tokenizer, folder)
  policy = run_lib.Run.open(folder, base=base).own
  policy.scores(dataset)
  assert policy.step == 2
  files = {file.name.rsplit("_", 1)[0] for file in before}
  after = {*(folder / "pdpo/scores").iterdir()} - {*before}
  assert [file.name.rsplit("_", 1)[0] for file in after] == ["heldout_2"]
  assert "heldout_3" in files
  for file, content in before.items():
    assert file.name == kept.CHECKSUMS or file.read_bytes() == content


def test_scores_of_another_policy_of_the_same_step_are_not_taken(run, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(run, folder)
  kept_scores = folder / "pdpo/scores"
  mine = next(kept_scores.glob("heldout_3_*"))
  theirs = scores.file_of(folder / "pdpo", "heldout", 3, "0" * 16)
  lines = scores.read(mine)
  kept.remove(mine)
  scores.write(theirs, scores.from_lines(lines))
  config = run_folder.read_config(folder)
  base = run_lib.read_base(config, folder)
  policy = run_lib.Run.open(folder, base=base).own
  dataset = run_lib.load_dataset(config, base.tokenizer, folder)
  policy.scores(dataset)
  # Made again.
  assert scores.read(mine) == lines


@pytest.mark.parametrize("command", ["main", "evaluate"])
def test_a_command_that_writes_waits_for_no_other_and_says_so(run, command):
  with locks.writing(run), pytest.raises(ValueError, match="another command"):
    if command == "main":
      main.train_and_answer(run_folder.read_config(run))
    else:
      report_test.call(run)


def test_what_a_command_writes_is_its_owners_alone(tmp_path):
  code = (
    "import pathlib\n"
    "from pdpo_jax import command_line\n"
    "command_line.run(lambda: pathlib.Path('text').write_text('x'))\n"
  )
  subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    check=True,
    env=os.environ | {"PYTHONPATH": os.getcwd()},
  )
  assert (tmp_path / "text").stat().st_mode & 0o077 == 0
