"""The people of a run, by the command."""

import json
import shutil
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from pdpo_jax import users
from pdpo_jax.core import kept, structs
from pdpo_jax.runs import learning, locks, run_folder, trained
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs.erasure import erase
from tests.runs import learning_test
from tests.runs.people_run import ANN, BEA, CEM, DEE, EVE, mark


def call(folder, *words, **values):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["tests"])
  with flagsaver.flagsaver(workdir=str(folder), **values):
    users.main(words)


def test_everyone_is_listed_with_what_is_known_of_them(whole, capsys):
  call(whole, "list")
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[0] for line in lines] == [ANN, BEA, CEM, DEE, EVE]
  assert all("trained" in line for line in lines[:3])
  assert all("learnt from 8 of 8 choices" in line for line in lines[3:])


def test_a_person_is_shown_in_short(whole, capsys):
  call(whole, "show", ANN)
  shown = capsys.readouterr().out
  assert "row 1 of the trained table" in shown
  assert "8 train, 3 heldout" in shown
  assert "held-out pairs told right: 100%" in shown
  assert f"I am {mark(ANN)}." in shown and mark(BEA) not in shown
  call(whole, "show", DEE)
  shown = capsys.readouterr().out
  assert "-0.188 nats a choice" in shown and "trained table" not in shown


def test_a_person_gets_all_that_the_run_holds_of_them(whole, tmp_path, capsys):
  file = tmp_path / "bea.json"
  call(whole, "export", BEA, to=str(file))
  assert file.stat().st_mode & 0o077 == 0
  held = json.loads(file.read_text())
  assert (held["person"], len(held["row"])) == (BEA, 3 * 16)
  assert {k: len(v) for k, v in held["comparisons"].items()} == {
    "train": 8, "heldout": 3, "unseen": 0,
  }  # fmt: skip
  assert held["user_text"] == f"I am {mark(BEA)}."
  assert {*held["files"]} >= {run_folder.ANSWERS, run_folder.JOURNAL}
  for other in (ANN, CEM, DEE):
    assert other not in file.read_text()
  with pytest.raises(ValueError, match="name a new file"):
    call(whole, "export", BEA, to=str(file))
  capsys.readouterr()
  call(whole, "export", DEE)
  held = json.loads(capsys.readouterr().out)
  assert len(held["choices"]) == 8 and held["row"] is None
  assert held["learnt"]["policy"] == held["policy"]


def test_all_choices_are_a_file_for_the_next_training(whole, tmp_path, capsys):
  call(whole, "choices")
  file = tmp_path / "choices.jsonl"
  file.write_text(capsys.readouterr().out)
  run = run_lib.Run.open(whole)
  read = learning.read_choices(run, str(file))
  kept_ones = [*run.people.choices(DEE), *run.people.choices(EVE)]
  assert read == kept_ones and len(read) == 16


def test_choices_that_no_file_may_have_are_left_out_and_told_of(
  folder, tmp_path, capsys
):
  people = run_lib.Run.open(folder).people
  like_a_list = learning_test.choice("flo", chosen='["a", "b"]')
  blank = learning_test.choice("flo", chosen=" ")
  people.add([like_a_list, blank, structs.Thumb("p", "", True, "flo")])
  call(folder, "choices")
  printed = capsys.readouterr()
  assert "2 choices are left out" in printed.err
  assert "2 empty response" in printed.err
  file = tmp_path / "choices.jsonl"
  file.write_text(printed.out)
  run = run_lib.Run.open(folder)
  run.config.data.max_bad_share = 0.0
  read = learning.read_choices(run, str(file))
  assert [x for x in read if x.user_id == "flo"] == [like_a_list]
  call(folder, "choices")
  assert capsys.readouterr().out == printed.out


def test_whoever_leaves_is_told_what_cannot_be_undone(folder, capsys):
  call(folder, "erase", BEA, retrain=True)
  said = capsys.readouterr().out
  assert "was trained on 8 choices of theirs" in said
  assert "11 comparisons of theirs" in said and "train.jsonl:2" in said
  assert "stay with those: 1." in said
  assert f"pdpo_jax.evaluate --workdir={folder}" in said
  assert f"--config={folder}/config.json" in said
  call(folder, "list")
  assert BEA not in capsys.readouterr().out
  with pytest.raises(ValueError, match="is none of the people of"):
    call(folder, "erase", BEA)
  with pytest.raises(ValueError, match="is none of the people of"):
    call(folder, "show", BEA)


def test_the_next_command_finishes_what_was_interrupted(
  folder, capsys, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(erase, "finish", lambda folder: None)
    call(folder, "erase", DEE)
  with pytest.raises(ValueError, match="finishes it"):
    run_lib.Run.open(folder)
  capsys.readouterr()
  call(folder, "list")
  printed = capsys.readouterr()
  assert "interrupted is finished" in printed.err
  assert DEE not in printed.out and EVE in printed.out


def test_others_are_told_which_command_writes_and_not_of_whom(
  folder, monkeypatch
):
  told = []

  def note(run, user_id):
    told.append((run.workdir / locks.HOLDER).read_text())
    with pytest.raises(ValueError, match=r"users --workdir=.* erase"):
      call(folder, "erase", DEE)

  monkeypatch.setattr(sys, "orig_argv", ["python", "erase", DEE])
  command = users._COMMANDS["erase"]._replace(run=note)
  monkeypatch.setitem(users._COMMANDS, "erase", command)
  call(folder, "erase", DEE)
  assert len(told) == 1 and DEE not in told[0]


@pytest.mark.parametrize(
  "words", [(), ("list", "x"), ("erase",), ("show", "a", "b"), ("remove", "a")]
)
def test_words_that_are_no_command_are_an_error(whole, words):
  with pytest.raises(ValueError, match="it has list, show ID"):
    call(whole, *words)


def test_a_folder_that_is_no_run_is_an_error_and_stays_as_it_is(tmp_path):
  with pytest.raises(ValueError, match="is no run folder"):
    call(tmp_path / "none", "erase", "ann")
  assert not (tmp_path / "none").exists()


def test_a_run_without_users_has_none_and_half_a_run_says_so(folder, capsys):
  config = json.loads((folder / "config.json").read_text())
  config["user"]["kind"] = "none"
  kept.write_json(folder / "config.json", config)
  (folder / run_folder.PEOPLE).unlink()
  call(folder, "list")
  assert "knows nobody" in capsys.readouterr().out
  # Their choices were trained on all the same.
  call(folder, "erase", BEA)
  assert "trained on 8 choices" in capsys.readouterr().out
  shutil.rmtree(folder / "vanilla")
  with pytest.raises(ValueError, match="no checkpoint"):
    call(folder, "list")


def test_people_come_are_asked_and_move(folder, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(trained.Trained, "learner", learning_test.FakeLearner())
  choices = tmp_path / "choices.jsonl"
  lines = [
    {"user_id": "flo", "prompt": "p", "chosen": "a", "rejected": "b"},
    {"user_id": "flo", "prompt": "q", "chosen": "a", "rejected": "b"},
  ]
  choices.write_text("".join(json.dumps(line) + "\n" for line in lines))
  call(folder, "learn", data=str(choices))
  said = capsys.readouterr().out
  assert "flo: learnt from 2 choices" in said and "2 new choices" in said
  call(folder, "learn")
  assert "0 new choices kept, 0 people learnt" in capsys.readouterr().out
  call(folder, "ask", " FLO ", data=str(choices))
  asked = capsys.readouterr()
  assert json.loads(asked.out)["user_id"] == "FLO"
  with pytest.raises(ValueError, match="name somebody"):
    call(folder, "ask", "", data=str(choices))
  call(folder, "ask", "somebody", data=str(choices), count=2)
  first, _ = map(json.loads, capsys.readouterr().out.splitlines())
  assert (first["prompt"], first["responses"]) == ("p", ["a", "b"])
  pair = structs.PreferenceExample("r", "one", ("other",))
  monkeypatch.setattr(
    learning.asking, "make_candidates", lambda *arguments, seed: [pair]
  )
  monkeypatch.setattr(trained.Trained, "split_policy", None)
  call(folder, "ask", "somebody", prompt=["r"])
  assert json.loads(capsys.readouterr().out)["responses"] == ["one", "other"]
  monkeypatch.setattr(
    learning.asking, "make_candidates", lambda *arguments, seed: []
  )
  with pytest.raises(ValueError, match="gives them the same answers"):
    call(folder, "ask", "somebody", prompt=["r"])
  for others in ({}, {"data": str(choices), "prompt": ["p"]}):
    with pytest.raises(ValueError, match="either comparisons to choose from"):
      call(folder, "ask", "flo", **others)
  call(folder, "export", "flo", to=str(tmp_path / "flo.json"))
  call(folder, "rename", "flo", "flora")
  call(folder, "import", str(tmp_path / "flo.json"))
  call(folder, "merge", "flo", "flora")
  # Who is both has the same choices, which count once.
  assert "0 people learnt" in capsys.readouterr().out
  call(folder, "list")
  assert "learnt from 2 of 2 choices" in capsys.readouterr().out


def test_ids_with_commands_for_a_terminal_are_shown_as_text(folder, capsys):
  database = users.people_lib.People.of_run(folder)
  database.rename(DEE, "dee\x1b[31m<b>\u202e")
  call(folder, "list")
  assert r"dee\x1b[31m<b>\u202e" in capsys.readouterr().out
