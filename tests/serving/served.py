"""A server of a tiny run of three people, in a thread of the tests' process."""

import contextlib
import http.client
import json
import socket
import threading
import types
import urllib.parse

import pytest
import uvicorn

from pdpo_jax.inference import engine as engine_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import app, lessons, service, speakers

POSITIONS = 128
PROMPT = "TITLE: a cat\nPOST: it sat.\nTL;DR"
TURNS = [{"role": "user", "content": PROMPT}]


class Idle:
  """In the place of who learns beside; notes that they were called."""

  def __init__(self, run, database, asked, tell):
    self.woken = self.begun = 0
    self.tell = tell

  def wake(self):
    self.woken += 1

  def begin_again(self):
    self.begun += 1

  def close(self):
    pass


def make_engine(policy, **settings):
  return engine_lib.Engine(policy, **{"piece": 16} | settings)


@contextlib.contextmanager
def room_of(folder, make=make_engine, **sizes):
  """A service whose people are not learnt by themselves.

  Args:
    make: an engine of a policy and settings.
  """
  run = run_lib.Run.open(folder)
  people = speakers.Speakers(run)
  encoder = service.encoder_of(run)
  with make(
    people.policy,
    stop_tokens=[*run.base.stop_tokens, encoder.end_id],
    positions=POSITIONS,
    **{"slots": 4, "queue": 4} | sizes,
  ) as engine:
    with pytest.MonkeyPatch.context() as monkeypatch:
      monkeypatch.setattr(lessons, "Lessons", Idle)
      room = service.Service(run, "", people, engine, POSITIONS)
    yield room
    room.close()


@contextlib.contextmanager
def listening(room, key="", hosts=()):
  """Where it can be called."""
  listener = socket.socket()
  listener.bind(("127.0.0.1", 0))
  listener.listen()
  config = uvicorn.Config(
    app.make_app(room, key, hosts),
    access_log=False,
    log_level="critical",
    ws="none",
    lifespan="off",
  )
  server = uvicorn.Server(config)
  thread = threading.Thread(
    target=server.run, kwargs={"sockets": [listener]}, daemon=True
  )
  thread.start()
  try:
    yield types.SimpleNamespace(
      url=f"http://127.0.0.1:{listener.getsockname()[1]}", room=room
    )
  finally:
    server.should_exit = True
    thread.join(20)


def chat(client, **values):
  return client.chat.completions.create(
    **{"model": "run", "messages": TURNS, "temperature": 0, "max_tokens": 8}
    | values
  )


def call(at, method, path, body=None, **headers):
  """A request as bytes, and the answer's status, body and headers."""
  parts = urllib.parse.urlsplit(at.url)
  connection = http.client.HTTPConnection(parts.hostname, parts.port, 20)
  if body is not None and not isinstance(body, bytes):
    body = json.dumps(body).encode()
  given = {"content-type": "application/json"} | {
    name.replace("_", "-"): value for name, value in headers.items()
  }
  connection.request(method, path, body, given)
  answer = connection.getresponse()
  content = answer.read()
  connection.close()
  return answer.status, content, answer.headers


def ask(at, method, path, body=None):
  """A request, and the answer's status and JSON."""
  status, content, _ = call(at, method, path, body)
  return status, json.loads(content)


def person(user_id):
  return f"/v1/people/{urllib.parse.quote(user_id, safe='')}"
