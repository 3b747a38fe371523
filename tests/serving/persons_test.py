"""Choices are kept, people are shown, and leave, while a server runs."""

import dataclasses
import shutil
from concurrent import futures

import pytest

from pdpo_jax.core import structs
from pdpo_jax.runs import dossier, locks
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import questions, traits
from tests.runs import people_run
from tests.runs.learning_test import choice
from tests.runs.people_run import ANN, CEM, DEE, mark
from tests.serving import load_test, served
from tests.serving.served import PROMPT, TURNS, ask, person


@pytest.fixture(scope="module")
def at(whole, tmp_path_factory):
  folder = shutil.copytree(whole, tmp_path_factory.mktemp("served") / "run")
  with served.room_of(folder) as room, served.listening(room) as place:
    yield place


def choose(at, user, **values):
  body = {"user": user, "prompt": PROMPT, "chosen": "good", "rejected": "bad"}
  return ask(at, "POST", "/v1/choices", body | values)


def test_a_choice_is_kept_once_and_somebody_is_woken_to_learn_it(at):
  woken = at.room.lessons.woken
  status, told = choose(at, "flo")
  assert (status, told["new"], told["num_choices"]) == (201, True, 1)
  assert told["learns"] and at.room.lessons.woken == woken + 1
  assert not choose(at, "flo")[1]["new"]
  assert at.room.lessons.woken == woken + 1
  choose(at, "flo", prompt=TURNS, chosen="", rejected=["a", "b"])
  assert at.room.run.people.choices("flo") == [
    structs.PreferenceExample(PROMPT, "good", ("bad",), "flo"),
    structs.PreferenceExample(PROMPT, "", ("a", "b"), "flo"),
  ]
  status, told = ask(at, "GET", person("flo"))
  assert (told["known"], told["num_choices"]) == ("waiting", 2)


def test_choices_of_whoever_was_trained_wait_for_the_next_training(at):
  woken = at.room.lessons.woken
  status, told = choose(at, ANN)
  assert status == 201 and not told["learns"]
  assert at.room.lessons.woken == woken
  (kept,) = at.room.run.people.choices(ANN)
  assert kept.user_text == f"I am {mark(ANN)}."
  status, told = ask(at, "GET", person(ANN))
  assert (told["known"], told["num_choices"]) == ("trained", 1)


@pytest.mark.parametrize("thumb", ["up", "down"])
def test_a_thumb_is_kept_as_one(at, thumb):
  user = f"thumb {thumb}"
  body = {"user": user, "prompt": PROMPT, "response": "fine", "thumb": thumb}
  assert ask(at, "POST", "/v1/choices", body)[0] == 201
  (kept,) = at.room.run.people.choices(user)
  assert kept == structs.Thumb(PROMPT, "fine", thumb == "up", user)
  assert ask(at, "GET", person(user))[1]["traits"] == []
  too_long = body | {"response": "long " * 500}
  assert ask(at, "POST", "/v1/choices", too_long)[0] == 400


@pytest.mark.parametrize(
  "values",
  [
    {"user": ""},
    {"user": "a\x1bb"},
    {"prompt": ""},
    {"prompt": []},
    {"rejected": []},
    {"rejected": "good "},
    {"rejected": None},
    {"thumb": "up"},
    {"chosen": "long " * 500},
  ],
)
def test_a_choice_that_cannot_be_learnt_is_refused_and_not_kept(at, values):
  status, told = choose(at, **{"user": "gus"} | values)
  assert status == 400 and told["error"]["message"]
  assert at.room.run.people.get("gus") is None


BLANK = [" ", "\n\t", "\u200b", "\u2028\xa0"]
ASKED = {"role": "user", "content": "x"}


@pytest.mark.parametrize("blank", BLANK)
@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("last", [True, False])
def test_what_no_file_may_have_is_refused_as_a_prompt(at, blank, role, last):
  turns = [ASKED, {"role": role, "content": blank}, ASKED]
  if last:
    turns = [{"role": "user", "content": blank}]
  for prompt in (turns, *([blank] if last else [])):
    status, told = choose(at, "gus", prompt=prompt)
    assert status == 400 and "blank" in told["error"]["message"]
    assert told["error"]["param"] == "prompt"
  assert at.room.run.people.get("gus") is None
  # Nobody is to choose where the choice would be refused.
  body = {"model": "run", "messages": turns, "max_tokens": 1, "user": "gus"}
  status, told = ask(at, "POST", "/v1/pairs", body)
  assert status == 400 and told["error"]["param"] == "messages"


@pytest.mark.parametrize("blank", ["", *BLANK])
def test_a_blank_system_message_is_none(at, blank):
  user = f"len {blank!r}"
  turns = [{"role": "system", "content": blank}, ASKED]
  assert choose(at, user, prompt=turns)[0] == 201
  (kept,) = at.room.run.people.choices(user)
  assert kept.prompt == "x"


def test_more_choices_than_can_be_learnt_are_refused(at, monkeypatch):
  monkeypatch.setattr("pdpo_jax.serving.persons._MOST_CHOICES", 1)
  assert choose(at, "hal")[0] == 201
  assert choose(at, "hal", chosen="more")[0] == 409


def test_what_was_learnt_is_told_and_answered_with_at_once(at):
  learnt = people_run.learnt(at.room.run.workdir, 1)
  nobody = at.room.speakers._nobody
  posterior = {
    "groups": nobody.groups,
    "z": nobody.z,
    "covariance": nobody.covariance / 4,
  }
  database = at.room.run.people
  choose(at, "ida", chosen="a much longer text")
  database.set_learnt({"ida": dataclasses.replace(learnt, posterior=posterior)})
  _, told = ask(at, "GET", person("ida"))
  assert told["known"] == "learnt" and told["learnt"]["num_choices"] == 1
  # Where there is one group, it is the covariance's.
  if at.room.speakers._population.groups == 1:
    assert told["learnt"]["certainty"] == pytest.approx(0.75)
  assert 0 < told["learnt"]["certainty"] <= 0.75
  assert told["traits"] == [{"took": "longer", "times": 1, "of": 1}]
  found = at.room.speakers.find("ida")
  assert abs(found.prefix - at.room.speakers.generic).max() > 0.1


@pytest.mark.parametrize("user", ["</script>/<b>ü %2F", "flo/export", "/"])
def test_ids_with_marks_are_data(at, user):
  assert choose(at, user)[0] == 201
  assert ask(at, "GET", person(user))[1]["id"] == user
  assert ask(at, "DELETE", person(user))[0] == 200
  assert ask(at, "GET", person(user))[0] == 404


HALF = "an emoji cut in the midst \ud83d"


@pytest.mark.parametrize(
  "path, values",
  [
    *(
      ("choices", {name: HALF})
      for name in ("user", "prompt", "chosen", "rejected")
    ),
    ("choices", {"rejected": ["a", HALF]}),
    ("choices", {"prompt": [{"role": "user", "content": HALF}]}),
    ("completions", {"prompt": HALF}),
    ("completions", {"prompt": [HALF]}),
    *(("chat/completions", {name: HALF}) for name in ("model", "user", "stop")),
    ("chat/completions", {"messages": [{"role": "user", "content": HALF}]}),
    (
      "chat/completions",
      {
        "messages": [
          {"role": "user", "content": [{"type": "text", "text": HALF}]}
        ]
      },
    ),
  ],
)
def test_texts_with_half_a_character_are_refused(at, path, values):
  body = {"model": at.room.model}
  if path == "choices":
    body = {"user": "flo", "prompt": "a", "chosen": "b", "rejected": "c"}
  status, told = ask(at, "POST", f"/v1/{path}", body | values)
  assert status == 400, told
  # The field, and not what else the body lacks.
  assert told["error"]["param"] in values


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_of_nobody_nothing_is_known(at, method):
  for path in (person("nobody"), f"{person('nobody')}/export"):
    if method == "GET" or "export" not in path:
      status, told = ask(at, method, path)
      assert status == 404 and told["error"]["code"] == "person_not_found"


@pytest.mark.parametrize("user_id", [ANN, CEM])
def test_a_person_gets_all_that_is_held_of_them(at, user_id):
  status, held = ask(at, "GET", f"{person(user_id)}/export")
  assert status == 200 and held["person"] == user_id
  assert len(held["row"]) == 3 * 16 and len(held["comparisons"]["train"]) == 8
  # What a server has in memory is what the command reads from the files.
  run = run_lib.Run.open(at.room.run.workdir)
  assert held == dossier.make(run, user_id, run.dataset)


def test_whoever_came_leaves_at_once(at):
  status, told = ask(at, "DELETE", person(DEE))
  assert (status, told["deleted"]) == (200, True)
  assert not at.room.speakers.find(DEE).is_known
  file = at.room.run.workdir / "people.sqlite"
  assert DEE.encode() not in file.read_bytes()


def test_whoever_was_trained_leaves_the_runs_files_too(at):
  begun = at.room.lessons.begun
  assert at.room.speakers.find(ANN).known == "trained"
  assert ANN in at.room.run.user_texts
  choose(at, ANN)
  status, told = ask(at, "DELETE", person(ANN))
  assert (status, told["trained_choices"]) == (200, 8)
  assert at.room.lessons.begun == begun + 1
  assert not at.room.speakers.find(ANN).is_known
  assert ANN not in at.room.run.user_texts
  assert at.room.speakers.find(CEM).known == "trained"
  for file in at.room.run.workdir.rglob("*"):
    if file.is_file():
      content = file.read_bytes()
      assert ANN.encode() not in content, file
      # Others were asked what they were, and chose of it.
      if file.name != "people.sqlite":
        assert mark(ANN).encode() not in content, file
  # What is chosen from now on is somebody new's.
  assert choose(at, ANN)[1]["learns"]


def test_whoever_cannot_be_erased_now_is_there_still(at):
  choose(at, CEM)
  with locks.writing(at.room.run.workdir, command="a training"):
    status, told = ask(at, "DELETE", person(CEM))
  assert status == 409 and "a training" in told["error"]["message"]
  assert at.room.speakers.find(CEM).known == "trained"
  assert at.room.run.people.choices(CEM)


def test_whoever_leaves_does_not_answer_for_somebody_else_to_the_end(
  at, monkeypatch
):
  load_test.slow_down(at.room.engine, 0.05, monkeypatch)
  body = {"messages": TURNS, "unlike": True, "max_tokens": 60, "seed": 1}
  path = "/v1/chat/completions"
  with futures.ThreadPoolExecutor(1) as pool:
    answer = pool.submit(ask, at, "POST", path, body | {"model": "run"})
    load_test.wait_until(lambda: at.room.engine.status().running)
    assert ask(at, "DELETE", person(CEM))[0] == 200
    status, told = answer.result(60)
  assert status == 409 and told["error"]["code"] == "person_erased"


def test_questions_come_in_the_order_of_what_they_tell(at):
  for text, information in (("a", 0.1), ("b", 0.3), ("c", 0.2), ("a", 0.5)):
    at.room.lessons.tell({"question": text, "information": information})
  assert ask(at, "GET", "/v1/questions")[1]["data"] == ["a", "b", "c"]
  choose(at, "jo", prompt="a")
  path = "/v1/questions?user=jo"
  assert ask(at, "GET", path)[1]["data"] == ["b", "c", "a"]


def test_a_database_that_is_damaged_is_a_503(at):
  file = at.room.run.workdir / "people.sqlite"
  content = file.read_bytes()
  file.write_bytes(b"no database" * 100)
  try:
    status, told = choose(at, "kim")
    assert status == 503 and "read" in told["error"]["message"]
  finally:
    file.write_bytes(content)


def test_choices_have_in_common_what_was_taken_more_often_than_left():
  choices = [
    choice("pia", chosen="- a\n- b", rejected=("a and b and c",)),
    choice("pia", chosen="yes!", rejected=("yes, of course?", "x y")),
  ]
  assert traits.of_choices(choices) == [
    {"took": "shorter", "times": 3, "of": 3},
    {"took": "warmer", "times": 2, "of": 2},
    {"took": "more lists", "times": 1, "of": 1},
    {"took": "fewer questions", "times": 1, "of": 1},
  ]


def test_questions_are_read_from_a_file(tmp_path):
  file = tmp_path / "questions"
  turns = '[{"role": "user", "content": "c"}]'
  file.write_text(f'a b\n\n"with\\nlines"\n{turns}\n')
  assert questions.read(file) == [
    "a b", "with\nlines", (structs.Message("user", "c"),),
  ]  # fmt: skip
  for text in ("", "[1]\n", '"open\n'):
    file.write_text(text)
    with pytest.raises(ValueError, match="question"):
      questions.read(file)
  with pytest.raises(ValueError, match="cannot be read"):
    questions.read(tmp_path / "none")
