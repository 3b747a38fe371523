"""Who learns beside a server, and what they do in between."""

import pathlib
import queue

from pdpo_jax.data import tokenize
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import learning, trained
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import lessons
from tests.runs.learning_test import FakeLearner, choice

NO_RUN = object.__new__(run_lib.Run)


def test_everyone_who_waits_is_learnt_but_whose_choices_cannot_be(
  folder, monkeypatch
):
  learner = FakeLearner()
  monkeypatch.setattr("pdpo_jax.runs.trained.Trained.learner", learner)
  run = run_lib.Run.open(folder)
  run.people.add(
    [choice("lea"), choice("max", chosen="too long"), choice("ned", "q")]
  )
  told, orders = [], queue.Queue()
  orders.put(None)
  lessons.work(run, orders, told.append, [])
  assert run.people.get("lea").learnt and run.people.get("ned").learnt
  assert run.people.get("max").learnt is None
  assert told[0] == {"failed": 1} and told[1]["learnt"] == 2
  assert run.people.waiting(run.own.shared_digest) == ["max"]


def test_a_failed_lesson_is_not_tried_before_something_new_comes(
  folder, monkeypatch
):
  tries = []
  monkeypatch.setattr(
    learning,
    "learn_waiting",
    lambda run, leave_out=(): tries.append({*leave_out}) or 1 / 0,
  )
  run = run_lib.Run.open(folder)
  run.people.add([choice("oda")])
  refused, told = {}, []
  lessons._learn(run, refused, told.append)
  before = len(tries)
  lessons._learn(run, refused, told.append)
  assert refused["oda"] == 1 and len(tries) == before + 1
  assert "oda" in tries[-1]
  run.people.add([choice("oda", "q")])
  lessons._learn(run, refused, told.append)
  assert refused["oda"] == 2


def test_lessons_come_before_rehearsals_and_these_before_questions(monkeypatch):
  done, orders = [], queue.Queue()

  def rehearse(run, asked, count):
    done.append(count)
    if count == 2:
      orders.put("learn")  # Somebody clicks.

  def rank(run, prompt, tell):
    done.append(prompt)
    if prompt == "b":
      orders.put(None)

  monkeypatch.setattr(lessons, "_learn", lambda *_: done.append("learn"))
  monkeypatch.setattr(lessons, "_rehearse", rehearse)
  monkeypatch.setattr(lessons, "_rank", rank)
  lessons.work(NO_RUN, orders, lambda _: None, ["a", "b"])
  assert done == ["learn", 1, 2, "learn", 3, 5, "a", "b"]


def test_a_rehearsal_that_takes_long_is_the_last(monkeypatch):
  done, orders = [], queue.Queue()
  monkeypatch.setattr(lessons, "_LONGEST_SECONDS", -1)
  monkeypatch.setattr(lessons, "_learn", lambda *_: None)
  monkeypatch.setattr(lessons, "_rehearse", lambda *_: done.append("rehearsed"))
  monkeypatch.setattr(lessons, "_rank", lambda *_: orders.put(None))
  lessons.work(NO_RUN, orders, lambda _: None, ["a"])
  assert done == ["rehearsed"]


def test_whoever_is_rehearsed_is_kept_nowhere(monkeypatch):
  learner = FakeLearner()
  tokenizer = tokenize.train_tokenizer(["some words of a question"], 280)
  config = config_lib.Config()
  config.answers.max_new_tokens, config.data.max_response_tokens = 9, 64
  run = run_lib.Run(pathlib.Path("nowhere"), config)  # Without a database.
  own = object.__new__(trained.Trained)
  vars(own)["learner"] = learner
  vars(run).update(tokenizer=tokenizer, trainings={config.training_name: own})
  prepared = []
  monkeypatch.setattr(
    learner,
    "prepare",
    lambda x: prepared.extend(x) or FakeLearner().prepare(x),
  )
  lessons._rehearse(run, ["some words", "a question"], 3)
  assert [x.prompt for x in prepared] == [
    "some words", "a question", "some words",
  ]  # fmt: skip
  assert len(tokenizer(prepared[0].rejected[0]).input_ids) == 9
  assert learner.learnt == ["nobody"]
