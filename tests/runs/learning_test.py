"""People come after training, are asked, and are known to every command."""

import collections
import dataclasses
import json
import logging
import types

import jax.numpy as jnp
import numpy as np
import pytest

from pdpo_jax.core import structs
from pdpo_jax.runs import dossier, learning, people, trained
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import people as training_people
from tests.runs.people_run import ANN, BEA, CEM, DEE, EVE


@dataclasses.dataclass
class Choice:
  place: int
  user_id: str | None
  example: structs.PreferenceExample


class FakeLearner:
  """Learns how many choices somebody has, and is asked for long ones."""

  learnt: list[str]
  population = None

  def __init__(self):
    self.learnt = []

  def prepare(self, examples):
    counts = collections.Counter(
      getattr(x, "chosen", "") == "too long" for x in examples
    )
    if counts[True]:
      raise ValueError("a response is too long")
    choices = [Choice(n, x.user_id, x) for n, x in enumerate(examples)]
    return types.SimpleNamespace(choices=choices, counts=collections.Counter())

  def _person(self, count):
    """Whatever is known of a person, for real."""
    row = np.full((3, 16), count, np.float32)
    of_groups = np.zeros(2), np.zeros((2, 3)), np.zeros((2, 3, 3))
    numbers = count, -float(count), 4, True
    return training_people.Person(row, *of_groups, *numbers)

  def learn(self, choices, ids=()):
    counts = collections.Counter(choice.user_id for choice in choices)
    self.learnt += [*ids]
    return {user_id: self._person(counts[user_id]) for user_id in ids}

  def nobody(self):
    return self._person(0)

  def outlook(self, person, choices):
    lengths = [float(len(choice.example.chosen)) for choice in choices]
    return types.SimpleNamespace(
      information=np.array(lengths), probability=np.full(len(choices), 0.5)
    )


@pytest.fixture
def learner(monkeypatch):
  fake = FakeLearner()
  monkeypatch.setattr(trained.Trained, "learner", fake)
  return fake


def choice(user_id, prompt="p", chosen="good", rejected=("bad",)):
  return structs.PreferenceExample(prompt, chosen, rejected, user_id)


def test_choices_add_up_and_everyone_else_keeps_their_row(folder, learner):
  run = run_lib.Run.open(folder)
  lesson = learning.learn(run, [choice("flo"), choice("flo", "q")])
  assert (lesson.added, [*lesson.people]) == (2, ["flo"])
  learning.learn(run_lib.Run.open(folder), [choice("flo", "r")])
  assert learner.learnt == ["flo", "flo"]
  run = run_lib.Run.open(folder)
  assert {*run.own.users.ids} == {ANN, BEA, CEM, "flo", DEE, EVE}
  assert run.own.users.rows[:3] == (ANN, BEA, CEM)
  flo = people.People.of_run(folder).all()["flo"]
  assert flo.num_choices == flo.learnt.num_choices == 3
  assert flo.learnt.row[0] == 3
  # Nobody is left to learn.
  assert learning.learn(run).people == {}


def test_thumbs_are_kept_and_learnt_from_and_are_no_questions(folder, learner):
  run = run_lib.Run.open(folder)
  thumb = structs.Thumb("p", "good", True, "flo")
  lesson = learning.learn(run, [thumb, choice("flo", "q"), thumb])
  assert lesson.added == 2
  kept = people.People.of_run(folder).choices("flo")
  assert kept == [thumb, choice("flo", "q")]
  run = run_lib.Run.open(folder)
  with pytest.raises(ValueError, match="1 of 2 records have a single response"):
    learning.ask(run, "flo", [choice(None, "p"), thumb], 1)
  file = folder / "flo.json"
  file.write_text(json.dumps(dossier.make(run, "flo", None)))
  assert dossier.examples(dossier.read(file)) == kept


def test_whoever_was_learnt_with_other_weights_is_learnt_again(
  folder, learner, caplog
):
  database = people.People.of_run(folder)
  stale = dataclasses.replace(database.all()[DEE].learnt, policy="before")
  database.set_learnt({DEE: stale})
  run = run_lib.Run.open(folder)
  with caplog.at_level(logging.WARNING):
    assert DEE not in run.own.users and EVE in run.own.users
  assert "1 people of" in caplog.text and "learn" in caplog.text
  with pytest.raises(ValueError, match="are not learnt with the weights"):
    run.own.row_of(DEE)
  with pytest.raises(ValueError, match="is none of this run's"):
    run.own.row_of("nobody")
  assert [*learning.learn(run).people] == [DEE]
  assert run_lib.Run.open(folder).own.row_of(DEE) > 3


@pytest.mark.parametrize(
  ("examples", "message"),
  [
    ([choice(None), choice("flo")], "1 of 2 comparisons do not say whose"),
    ([choice("flo"), choice(ANN)], "train.start_from=.* goes on with both"),
    ([choice("flo", chosen="too long")], "too long"),
  ],
)
def test_choices_that_are_refused_are_not_kept(
  folder, learner, examples, message
):
  with pytest.raises(ValueError, match=message):
    learning.learn(run_lib.Run.open(folder), examples)
  assert {*people.People.of_run(folder).ids()} == {DEE, EVE}


def test_an_id_that_looks_like_somebodys_is_warned_of(folder, learner, caplog):
  run = run_lib.Run.open(folder)
  learning.learn(run, [choice("PERSON-dee-4"), choice("flo")])
  assert "'PERSON-dee-4' is new, and looks like 'person-dee-4'" in caplog.text
  assert "flo" not in caplog.text


def test_the_pair_that_tells_most_is_asked_and_none_twice(folder, learner):
  run = run_lib.Run.open(folder)
  learning.learn(run, [choice("flo", "p", "a long one", ("b",))])
  candidates = [
    choice(None, "p", "b", ("A  long ONE",)),  # They chose from it before.
    choice(None, "p", "alike", (" Alike\n",)),
    choice(None, "p", "longer", ("c", "b")),
    choice("bob", "q", "the longest of all", ("c",)),
    choice(None, "q", "c", ("the longest of all",)),  # The same pair.
  ]
  run = run_lib.Run.open(folder)
  questions = learning.ask(run, "new", candidates[:4], 9)
  assert [x.responses for x in questions] == [
    ("the longest of all", "c"),
    ("longer", "c"),
    ("longer", "b"),
    ("b", "A  long ONE"),
  ]
  assert len(learning.ask(run, "new", candidates, 9)) == 4
  assert len(learning.ask(run, "new", candidates, 2)) == 2
  with pytest.raises(ValueError, match="none of 1 comparisons is left"):
    learning.ask(run, "new", candidates[1:2], 1)
  with pytest.raises(ValueError, match="was trained on their choices"):
    learning.ask(run, ANN, candidates, 1)


def test_whoever_was_asked_before_is_not_asked_again(
  folder, learner, monkeypatch
):
  run = run_lib.Run.open(folder)
  learning.learn(run, [choice("flo", "p", "a long one", ("b",))])
  monkeypatch.setattr(learning, "person_of", lambda run, user_id: None)
  pairs = [choice(None, "p", "b", ("A  long ONE",)), choice(None, "q")]
  (question,) = learning.ask(run_lib.Run.open(folder), "flo", pairs, 9)
  assert question.prompt == "q"


def test_ids_are_changed_and_people_become_one(folder, learner, caplog):
  run = run_lib.Run.open(folder)
  assert learning.rename(run, DEE, " Dée ") == "Dée"
  run = run_lib.Run.open(folder)
  assert run.own.row_of("Dée") > 3
  lesson = learning.merge(run, EVE, "Dée")
  # They have made the same choices, up to what stands in them.
  assert lesson.people["Dée"].num_choices == 16
  assert EVE not in run_lib.Run.open(folder).own.users


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda run: learning.rename(run, ANN, "x"), "change the id there"),
    (lambda run: learning.rename(run, "x", "y"), "nobody's who came to"),
    (lambda run: learning.rename(run, "PERSON-dee-4", "y"), "near: 'person-d"),
    (lambda run: learning.rename(run, DEE, EVE), "is somebody's already"),
    (lambda run: learning.rename(run, DEE, ANN), "is somebody's already"),
    (lambda run: learning.rename(run, DEE, " "), "is none; name somebody"),
    (lambda run: learning.rename(run, DEE, "a\x07b"), "control character"),
    (lambda run: learning.merge(run, DEE, DEE), "with somebody else"),
    (lambda run: learning.merge(run, DEE, ANN), "change the id there"),
  ],
)
def test_changes_that_make_no_sense_are_refused(folder, change, message):
  with pytest.raises(ValueError, match=message):
    change(run_lib.Run.open(folder))
  assert {*people.People.of_run(folder).ids()} == {DEE, EVE}


def exported(folder, user_id, file):
  run = run_lib.Run.open(folder)
  held = dossier.make(run, user_id, run.dataset)
  file.write_text(json.dumps(held))
  return dossier.read(file)


def test_whom_a_run_exports_another_takes_up(whole, folder, learner, tmp_path):
  held = exported(whole, DEE, tmp_path / "dee.json")
  take_up = DEE, dossier.examples(held), dossier.learnt(held)
  with pytest.raises(ValueError, match="is known to"):
    dossier.take_up(run_lib.Run.open(folder), *take_up)
  before = people.People.of_run(folder).all()[DEE]
  people.People.of_run(folder).erase(lambda user_id: user_id == DEE)
  # The weights are the same.
  dossier.take_up(run_lib.Run.open(folder), *take_up)
  after = people.People.of_run(folder).all()[DEE]
  assert learner.learnt == []
  np.testing.assert_array_equal(after.learnt.row, before.learnt.row)
  assert after.learnt.learnt_at == before.learnt.learnt_at
  assert people.People.of_run(folder).choices(DEE) == dossier.examples(held)
  # With other weights, choices are all that counts.
  people.People.of_run(folder).erase(lambda user_id: user_id == DEE)
  other = dataclasses.replace(take_up[2], policy="another")
  dossier.take_up(run_lib.Run.open(folder), *take_up[:2], other)
  assert learner.learnt == [DEE]


@pytest.mark.parametrize(
  "spoil",
  [
    lambda x: x["row"].pop(),
    lambda x: x["row"].__setitem__(0, 1e300),
    lambda x: x["posterior"].pop("z"),
    lambda x: x["posterior"].update(z=[[1], [1, 2]]),
    lambda x: x["posterior"]["groups"].pop(),
    lambda x: x["posterior"].update(z=[["a"] * 3] * 2),
    lambda x: x["posterior"].update(z=[[float("nan")] * 3] * 2),
    lambda x: x.update(num_choices=x["num_choices"] + 1),
  ],
)
def test_what_is_spoilt_of_an_export_is_learnt_again(
  whole, folder, learner, tmp_path, spoil
):
  held = exported(whole, DEE, tmp_path / "dee.json")
  spoil(held["learnt"])
  people.People.of_run(folder).erase(lambda user_id: user_id == DEE)
  run = run_lib.Run.open(folder)
  examples, learnt = dossier.examples(held), dossier.learnt(held)
  # The id is as files have it, so that servers find them.
  dossier.take_up(run, f" {DEE} ", examples, learnt)
  assert learner.learnt == [DEE]


@pytest.mark.parametrize(
  "choice",
  [
    {"chosen": "a", "rejected": ["b"]},
    {"prompt": "p", "chosen": 5, "rejected": ["b"]},
    {"prompt": "p", "chosen": "a", "rejected": "b"},
    {"prompt": "p", "chosen": "a", "rejected": []},
    {"prompt": "p", "response": "a", "label": "down"},
    {"prompt": [{"role": "x", "content": "y"}], "response": "a", "label": True},
  ],
)
def test_an_export_with_a_spoilt_choice_is_an_error(whole, tmp_path, choice):
  held = exported(whole, DEE, tmp_path / "dee.json")
  (tmp_path / "x.json").write_text(json.dumps({**held, "choices": [choice]}))
  with pytest.raises(ValueError, match=r"choices\.0\."):
    dossier.read(tmp_path / "x.json")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "is none that `export` wrote"),
    ('{"format": 1}', "is none that `export` wrote"),
    ("[]", "is none that `export` wrote"),
  ],
)
def test_a_file_that_is_no_persons_is_an_error(tmp_path, text, message):
  (tmp_path / "x.json").write_text(text)
  with pytest.raises(ValueError, match=message):
    dossier.read(tmp_path / "x.json")
  with pytest.raises(ValueError, match="cannot be read"):
    dossier.read(tmp_path / "none.json")


@pytest.mark.slow
def test_people_are_learnt_and_answered_and_nobody_elses_prefix_moves(folder):
  run = run_lib.Run.open(folder)
  people.People.of_run(folder).erase(lambda user_id: True)
  before = run_lib.Run.open(folder, base=run.base).own.policy.user_model
  dataset = run.dataset
  of_ann = [x for x in dataset.train if x.user_id == ANN]
  flo = [dataclasses.replace(x, user_id="flo") for x in of_ann]
  learning.learn(run, flo)
  again = run_lib.Run.open(folder, base=run.base)
  after = again.own.policy.user_model
  rows = jnp.arange(4)
  np.testing.assert_array_equal(after(rows), before(rows))
  row = again.own.row_of("flo")
  assert row == 4
  learnt = people.People.of_run(folder).all()["flo"].learnt
  expected = before.generic() + learnt.row.reshape(3, 16)
  np.testing.assert_array_equal(after(jnp.array([row]))[0], expected)
  # A newcomer and somebody who is known are asked.
  for user_id in ("flo", "new"):
    (question,) = learning.ask(again, user_id, dataset.heldout, 1)
    assert question.information >= 0 and 0 < question.probability < 1


def test_what_users_chose_of_held_out_pairs_calibrates_the_learner(
  whole, monkeypatch, caplog
):
  (file,) = (whole / "pdpo/scores").glob("heldout_*.jsonl")
  ratios = [
    ratio
    for line in map(json.loads, file.read_text().splitlines())
    for ratio in line.get("ratios", ())
  ]
  found = run_lib.Run.open(whole).own.learner.calibration
  assert found.pairs == len(ratios) > 0
  assert "log odds" not in caplog.text
  # Of another checkpoint than the newest, nothing is taken.
  monkeypatch.setattr(trained.Trained, "step", 1)
  found = run_lib.Run.open(whole).own.learner.calibration
  assert (found.scale, found.lapse, found.pairs) == (1.0, 0.0, 0)
  assert "log odds" in caplog.text
