"""A server of a tiny run of three people, in a thread of the tests' process."""

import contextlib
import socket
import threading
import types

import uvicorn

from pdpo_jax.inference import engine as engine_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import app, lessons, service, speakers

POSITIONS = 128


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


@contextlib.contextmanager
def room_of(folder, monkeypatch, **sizes):
  """A service whose people are not learnt by themselves."""
  monkeypatch.setattr(lessons, "Lessons", Idle)
  run = run_lib.Run.open(folder)
  people = speakers.Speakers(run)
  encoder = service.encoder_of(run)
  with engine_lib.Engine(
    people.policy,
    stop_tokens=[*run.base.stop_tokens, encoder.end_id],
    positions=POSITIONS,
    **{"slots": 4, "queue": 4, "piece": 16} | sizes,
  ) as engine:
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
