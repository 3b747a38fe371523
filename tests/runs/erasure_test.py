"""Whoever is erased is nowhere in a run, and nobody else's answers move."""

import fnmatch
import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

from pdpo_jax import main
from pdpo_jax.core import kept, together
from pdpo_jax.runs import answers, locks, people, roster, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.runs.erasure import erase, files
from pdpo_jax.training import checkpoint, rows
from tests.runs import people_run
from tests.runs.people_run import ANN, BEA, CEM, DEE, EVE, mark

# What takes the place of a row, and of its moments.
ITEMS = ("lora", "users", "optimizer")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return people_run.make(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def without_bea(whole, tmp_path_factory):
  folder = tmp_path_factory.mktemp("erased") / "run"
  shutil.copytree(whole, folder)
  erased = erase.erase(run_lib.Run.open(folder), BEA)
  return folder, erased


@pytest.fixture(scope="module")
def committed(whole, tmp_path_factory):
  """A run from which somebody is being erased, who is in all its parts."""
  folder = tmp_path_factory.mktemp("committed") / "run"
  shutil.copytree(whole, folder)
  dataset = run_lib.Run.open(folder).dataset
  database = people.People.of_run(folder)
  database.add(x for x in dataset.train if x.user_id == BEA)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(erase, "finish", lambda folder: None)
    erase.erase(run_lib.Run.open(folder), BEA)
  return folder


def holds(folder: pathlib.Path, user_id: str) -> list[str]:
  """Names of files with an id or a text of somebody's."""
  signs = [user_id.encode(), mark(user_id).encode()]
  signs.append(json.dumps(user_id)[1:-1].encode())
  return [
    name
    for name in sorted(map(str, folder.rglob("*")))
    if pathlib.Path(name).is_file()
    and any(sign in pathlib.Path(name).read_bytes() for sign in signs)
  ]


def arrays_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of all checkpoints, and strings."""
  arrays = {}
  for place in sorted(folder.glob("*/checkpoints")):
    with checkpoint.Checkpoints(place) as saved:
      for step in saved.steps:
        items = saved.load_as_saved(step, ITEMS)
        for path, leaf in jax.tree_util.tree_leaves_with_path(items):
          name = f"{place.parent.name} {step} {jax.tree_util.keystr(path)}"
          arrays[name] = leaf if isinstance(leaf, str) else np.asarray(leaf)
  return arrays


def test_the_run_of_these_tests_has_something_of_somebody_in_every_file(whole):
  names = {
    pathlib.Path(x).relative_to(whole).as_posix() for x in holds(whole, BEA)
  }
  for pattern in run_folder.PERSONAL:
    if "unseen" in pattern or "vanilla" in pattern:
      continue
    # Of the roster, and of people who came later, others are.
    later = run_folder.ROSTER, run_folder.PEOPLE
    if "*" not in pattern and not pattern.startswith(later):
      assert pattern in names, pattern
  assert holds(whole, DEE) == [str(whole / run_folder.PEOPLE)]


def test_every_kind_of_file_with_people_in_it_has_its_erasure():
  assert {*files.HANDLERS, *files.BESIDES} == {*run_folder.PERSONAL}


def test_every_kind_of_file_is_told_of(whole):
  text = (pathlib.Path(__file__).parents[2] / "docs/privacy.md").read_text()
  for pattern in run_folder.PERSONAL:
    name = pathlib.PurePath(pattern).name
    if name == "*":
      name = pathlib.PurePath(pattern).parent.name
    assert f"`{name}`" in text or f"/{name}`" in text, pattern


def test_nothing_is_left_of_whoever_was_erased(without_bea):
  folder, erased = without_bea
  assert holds(folder, BEA) == []
  assert not [x for x in arrays_of(folder).values() if BEA in str(x)]
  assert (erased.trained, erased.shared, erased.knows_data) == (8, 1, True)
  assert len(erased.places) == 11
  assert "train.jsonl" in erased.places[0]
  assert not erased.removed and not erased.unknown
  assert BEA not in run_lib.Run.open(folder).own.users


def test_no_number_of_others_changes_and_the_row_and_its_moments_are_empty(
  whole, without_bea
):
  before, after = arrays_of(whole), arrays_of(without_bea[0])
  assert before.keys() == after.keys()
  emptied = 0
  for name, values in before.items():
    if isinstance(values, str):
      continue
    new = after[name]
    if "user_model" in name and "offsets" in name:
      emptied += 1
      assert values[2].any() and not new[2].any(), name
      values, new = np.delete(values, 2, 0), np.delete(new, 2, 0)
    np.testing.assert_array_equal(values, new, err_msg=name)
  # The table and two moments, of two steps.
  assert emptied == 6


def test_what_is_kept_of_others_is_kept(whole, without_bea):
  folder, _ = without_bea
  run = run_lib.Run.open(folder)
  assert run.own.table.rows == (ANN, None, CEM)
  assert run.user_texts.keys() == {ANN, CEM}
  assert run_folder.read_held_out(folder).users == {ANN, CEM}
  assert people.People.of_run(folder).ids() == [DEE, EVE]
  assert run.config.answers.users == (ANN,)
  said = answers.read(folder / run_folder.ANSWERS)
  assert said.texts.keys() == {"S", "V", "G", ANN, CEM}
  results = json.loads((folder / run_folder.RESULTS).read_text())
  assert results["words"].keys() == {"S", "V", "G", ANN, CEM}
  accuracy = results["reward_accuracy"]["pdpo"]
  assert accuracy["of_whatever"].keys() == {ANN, CEM}
  assert accuracy["heldout"]["pairs"] > 0 and accuracy["of_whom"] == [ANN]
  assert len(said.prompts) == 1 and mark(ANN) in said.prompts[0].prompt
  for name in ("pdpo", "vanilla"):
    (before,) = (whole / name / "scores").glob("heldout_*")
    (after,) = (folder / name / "scores").glob("heldout_*")
    left = [x for x in before.read_text().splitlines() if BEA not in x]
    assert after.read_text().splitlines() == left


def test_scores_are_those_of_the_policy_that_is_there_now(without_bea):
  folder, _ = without_bea
  run = run_lib.Run.open(folder)
  assert run.own.described["data"] == run.dataset.digest
  with checkpoint.Checkpoints(folder / "pdpo/checkpoints") as saved:
    items = saved.load_as_saved(3, ITEMS)
  (file,) = (folder / "pdpo" / "scores").glob("heldout_*")
  assert file.name == f"heldout_3_{rows._digest(items)}.jsonl"


def test_data_that_still_has_somebody_brings_nobody_back(without_bea):
  folder, _ = without_bea
  dataset = run_lib.Run.open(folder).dataset
  assert roster.ids_of(dataset) == {ANN, CEM}
  assert BEA not in str(dataset) and mark(BEA) not in str(dataset)
  config = run_folder.read_config(folder)
  config.workdir = str(folder)
  with pytest.raises(ValueError, match="people were erased from"):
    main.train_and_answer(config)


def test_a_run_that_still_knows_somebody_is_compared_without_them(
  whole, without_bea, monkeypatch
):
  folder, _ = without_bea
  dataset = run_lib.Run.open(folder).dataset
  monkeypatch.setattr(scores_lib, "compute", None)  # All are kept.
  ours, theirs = (
    run_lib.Run.open(each).own.scores(dataset)["heldout"]
    for each in (folder, whole)
  )
  assert ours.user_ids == theirs.user_ids and BEA not in ours.user_ids
  np.testing.assert_array_equal(ours.ratios, theirs.ratios)
  scores_lib.check_same(ours, theirs, ("ours", "theirs"))


@pytest.mark.parametrize("name", ["S", "pairs"])
def test_somebody_with_the_name_of_something_else_takes_only_theirs(
  name, tmp_path
):
  kept.write_json(
    tmp_path / "results.json",
    {
      "words": {"S": 1, "V": 2, "G": 3, "ann": 4},
      "heldout": {"pairs": 1, "by_user": {"ann": 1, name: 1}},
    },
  )
  leaver = files.Leaver(name, {"ann", name})
  handle = files.HANDLERS[run_folder.RESULTS]
  assert json.loads(handle(tmp_path / "results.json", leaver)) == {
    "words": {"S": 1, "V": 2, "G": 3, "ann": 4},
    "heldout": {"pairs": 1, "by_user": {"ann": 1}},
  }


def test_whoever_is_not_there_or_no_more_is_an_error(without_bea):
  folder, _ = without_bea
  for user_id in (BEA, "nobody", ""):
    with pytest.raises(ValueError, match="is none of the people of"):
      erase.erase(run_lib.Run.open(folder), user_id)


def test_somebody_who_came_later_leaves_the_rest_as_it_is(whole, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  erase.erase(run_lib.Run.open(folder), DEE)
  assert holds(folder, DEE) == []
  assert people.People.of_run(folder).ids() == [EVE]
  assert len(people.People.of_run(folder).choices(EVE)) == 8
  for file in sorted(whole.rglob("*")):
    name = file.relative_to(whole)
    if file.is_file() and name.name != run_folder.PEOPLE:
      assert (folder / name).read_bytes() == file.read_bytes(), name


def test_without_the_data_what_may_be_theirs_goes_as_a_whole(whole, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  (whole.parent / "train.jsonl").rename(whole.parent / "away.jsonl")
  try:
    erased = erase.erase(run_lib.Run.open(folder), BEA)
  finally:
    (whole.parent / "away.jsonl").rename(whole.parent / "train.jsonl")
  assert not erased.knows_data and erased.removed == [run_folder.ANSWERS]
  assert holds(folder, BEA) == []
  assert roster.read(folder)["people"] == sorted([ANN, CEM])


def test_damaged_files_go_as_a_whole_and_unknown_ones_are_named(
  whole, tmp_path
):
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)
  (folder / "results.json").write_text('{"words": ')
  (folder / "notes.txt").write_text("of somebody else's")
  (folder / "pdpo/.scores.jsonl.1.part").write_text(BEA)
  erased = erase.erase(run_lib.Run.open(folder), BEA)
  assert erased.removed == ["results.json"]
  assert erased.unknown == ["notes.txt"]
  assert holds(folder, BEA) == []


class Kill(BaseException):
  """As a process is killed: nothing that follows happens."""


def operations(patch, at: int) -> list[str]:
  """Has the file operation number `at` be the last thing that happens."""
  done = []

  def killing(module, name):
    real = getattr(module, name)

    def operate(*arguments, **others):
      if len(done) == at:
        raise Kill
      done.append(name)
      return real(*arguments, **others)

    patch.setattr(module, name, operate)

  for name in ("rename", "replace", "unlink", "mkdir", "open", "fsync"):
    killing(os, name)
  killing(shutil, "rmtree")
  killing(people.People, "erase")
  return done


def test_an_erasure_that_is_killed_anywhere_is_finished_by_the_next_command(
  committed, tmp_path
):
  # Some of them; `core/together_test.py` has all.
  for at in (0, 1, 20, 41):
    folder = tmp_path / str(at) / "run"
    shutil.copytree(committed, folder)
    with pytest.raises(ValueError, match="python -m pdpo_jax"):
      run_lib.Run.open(folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Kill):
      operations(patch, at)
      erase.finish(folder)
    erase.finish(folder)
    assert holds(folder, BEA) == [], f"operation {at}"
    assert not (folder / together.FOLDER).exists()
  run = run_lib.Run.open(folder)
  assert run.own.table.rows == (ANN, None, CEM)
  assert people.People.of_run(folder).ids() == [DEE, EVE]
  assert roster.read(folder)["erased"] == 1


def test_an_erasure_that_is_killed_before_it_is_decided_never_happened(
  whole, tmp_path, monkeypatch
):
  folder = tmp_path / "run"
  shutil.copytree(whole, folder)

  def write_without(config, place, target, *others):
    # Of some parts the checkpoints are written already.
    shutil.copytree(place, target)
    return []

  monkeypatch.setattr(erase.rows, "write_without", write_without)
  run = run_lib.Run.open(folder)
  _ = run.dataset
  ids = erase._ids_in_files(folder)
  monkeypatch.setattr(erase, "_ids_in_files", lambda folder: ids)
  monkeypatch.setattr(erase, "finish", lambda folder: None)
  for at in (3, 40, 150, 400):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Kill):
      operations(patch, at)
      erase.erase(run, BEA)
    assert not together.is_unfinished(folder)
    for file in sorted(whole.rglob("*")):
      name = file.relative_to(whole)
      if file.is_file():
        assert (folder / name).read_bytes() == file.read_bytes(), name


def test_with_a_damaged_database_nothing_is_begun(folder):
  (folder / run_folder.PEOPLE).write_text("no database" * 100)
  with pytest.raises(kept.Damaged, match=r"people\.sqlite cannot be used"):
    erase.erase(run_lib.Run.open(folder), BEA)
  assert not (folder / together.FOLDER).exists()
  assert BEA in run_lib.Run.open(folder).own.table.rows


def test_nobody_is_erased_while_another_command_writes(whole):
  with (
    locks.writing(whole),
    pytest.raises(ValueError, match="being written by another command"),
    locks.writing(whole),
  ):
    pass


def test_files_of_a_run_are_all_in_the_list(without_bea):
  folder, _ = without_bea
  assert not [
    name
    for name in erase.files_of(folder)
    if not any(fnmatch.fnmatchcase(name, each) for each in run_folder.FILES)
  ]
