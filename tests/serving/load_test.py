"""More requests than there is room for, and whoever goes in the midst."""

import asyncio
import http.client
import json
import threading
import time
import urllib.parse
from concurrent import futures

import openai
import pytest

from pdpo_jax.core import structs
from pdpo_jax.runs import dossier
from pdpo_jax.serving import presence, protocol
from tests.runs import people_run
from tests.serving import served

pool = futures.ThreadPoolExecutor(4)


def wait_until(condition):
  deadline = time.monotonic() + 15
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def slow_down(engine, seconds, monkeypatch):
  """Has each step take its time, so that slots stay taken."""
  step = engine._step

  def slow():
    time.sleep(seconds)
    step()

  monkeypatch.setattr(engine, "_step", slow)


def test_too_many_requests_are_told_to_wait(at, client, monkeypatch):
  engine = at.room.engine
  slow_down(engine, 0.2, monkeypatch)
  streams = [
    served.chat(client, stream=True, n=4, max_tokens=40, seed=1)
    for _ in range(2)
  ]
  with pytest.raises(openai.RateLimitError) as error:
    served.chat(client)
  assert error.value.response.headers["retry-after"] == "1"
  # Whoever goes makes room, in the queue as well.
  for stream in streams:
    stream.close()
  monkeypatch.undo()
  wait_until(lambda: engine.status().running + engine.status().waiting == 0)
  assert served.chat(client).choices


def test_whoever_goes_makes_room_while_nothing_is_streamed(at, monkeypatch):
  engine = at.room.engine
  slow_down(engine, 0.1, monkeypatch)
  parts = urllib.parse.urlsplit(at.url)
  connection = http.client.HTTPConnection(parts.hostname, parts.port)
  body = {"model": "run", "messages": served.TURNS, "max_tokens": 60, "seed": 1}
  headers = {"content-type": "application/json"}
  connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
  wait_until(lambda: engine.status().running == 1)
  before = engine.status().new_tokens
  connection.close()
  wait_until(lambda: engine.status().running == 0)
  assert engine.status().new_tokens < before + 50


@pytest.fixture
def kim(at):
  """Somebody whose choice was learnt."""
  example = structs.PreferenceExample(served.PROMPT, "good", ("bad",), "kim")
  people = at.room.run.people
  people.add([example], people_run.learnt(at.room.run.workdir, 1))
  return "kim"


def test_whoever_is_erased_is_not_answered_to_the_end(
  at, client, kim, monkeypatch
):
  slow_down(at.room.engine, 0.05, monkeypatch)
  values = {"user": kim, "max_tokens": 60, "seed": 1}
  stream = iter(served.chat(client, stream=True, **values))
  next(stream)
  whole = pool.submit(served.chat, client, **values)
  wait_until(lambda: at.room.engine.status().running == 2)
  assert served.ask(at, "DELETE", served.person(kim))[0] == 200
  # What was on its way before.
  with pytest.raises(openai.APIError, match="was erased") as error:
    for count, _ in enumerate(stream):
      assert count < 20
  assert error.value.code == "person_erased"
  with pytest.raises(openai.ConflictError, match="was erased"):
    whole.result(20)
  wait_until(lambda: at.room.engine.status().running == 0)
  assert served.chat(client, user=kim).person["known"] is False


def test_whoever_another_server_erased_is_not_answered_to_the_end(
  at, client, kim, monkeypatch
):
  monkeypatch.setattr("pdpo_jax.serving.completions._LOOK_SECONDS", 0.2)
  slow_down(at.room.engine, 0.05, monkeypatch)
  values = {"user": kim, "max_tokens": 60, "seed": 1}
  stream = iter(served.chat(client, stream=True, **values))
  next(stream)
  whole = pool.submit(served.chat, client, **values | {"max_tokens": 20})
  wait_until(lambda: at.room.engine.status().running == 2)
  at.room.run.people.erase(lambda user_id: user_id == kim)
  with pytest.raises(openai.APIError, match="was erased"):
    for count, _ in enumerate(stream):
      assert count < 40
  with pytest.raises(openai.ConflictError, match="was erased"):
    whole.result(20)


def test_an_export_that_another_server_overtook_is_of_nobody(
  at, kim, monkeypatch
):
  make = dossier.make

  def overtaken(*args):
    held = make(*args)
    at.room.run.people.erase(lambda user_id: user_id == kim)
    return held

  monkeypatch.setattr(dossier, "make", overtaken)
  path = f"{served.person(kim)}/export"
  assert served.ask(at, "GET", path)[0] == 404


def test_a_choice_on_its_way_does_not_bring_back_whoever_is_erased(
  at, kim, monkeypatch
):
  add, began = at.room.run.people.add, threading.Event()

  def slow_add(examples):
    began.set()
    time.sleep(0.5)
    return add(examples)

  monkeypatch.setattr(at.room.run.people, "add", slow_add)
  body = {"user": kim, "prompt": "p", "chosen": "good", "rejected": "bad"}
  choice = pool.submit(served.ask, at, "POST", "/v1/choices", body)
  assert began.wait(20)
  erased = pool.submit(served.ask, at, "DELETE", served.person(kim))
  wait_until(lambda: at.room.presence._leaving)
  # What comes meanwhile is of somebody new.
  later = pool.submit(served.ask, at, "GET", served.person(kim))
  status, told = served.ask(at, "POST", "/v1/choices", body)
  assert (status, told["error"]["code"]) == (409, "person_erased")
  assert choice.result(20)[0] == 201
  assert erased.result(20)[0] == 200
  assert later.result(20)[0] == 404
  assert at.room.run.people.get(kim) is None
  assert not at.room.presence._visits and not at.room.presence._leaving


def test_whoever_answers_for_somebody_else_may_be_erased_too():
  async def check():
    visitors, scope = presence.Presence(), {}
    with visitors.visiting(scope):
      visit = await visitors.enter(scope, "ann", presence.ANYBODY)
      broken_off = []
      visit.may_be_broken_off(lambda: broken_off.append(True))
      async with visitors.leaving("bob"):
        assert not visit.is_over
      async with visitors.leaving("bob", presence.ANYBODY):
        assert visit.is_over and broken_off
      with pytest.raises(protocol.ApiError):
        visit.check()

  asyncio.run(check())


def test_whoever_does_not_read_keeps_nobody_from_leaving(monkeypatch):
  monkeypatch.setattr(presence, "_PATIENCE_SECONDS", 0.1)

  async def check():
    visitors, scope = presence.Presence(), {}
    with visitors.visiting(scope):
      await visitors.enter(scope, "ann")
      async with visitors.leaving("ann"):
        pass

  asyncio.run(check())
