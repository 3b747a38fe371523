"""A server in a process of its own, and people who ask it without end."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
_START_SECONDS = 180


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


class Server:
  """A server's process, which may be started again at the same address.

  Args:
    folder: of the run.
    database: its address; empty: in the folder.
    log: a file that what it prints is added to.
    quick: whether programs are compiled for tiny models, which gain nothing
      from what that costs.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    database: str,
    log: pathlib.Path,
    quick: bool = True,
  ):
    self.port = free_port()
    self._log, self._quick = log, quick
    self._command = [
      sys.executable,
      "-m",
      "pdpo_jax.serve",
      f"--workdir={folder}",
      f"--port={self.port}",
      f"--database={database}",
    ]
    self._process: subprocess.Popen | None = None

  def start(self) -> None:
    """Starts it; `wait` says when it answers."""
    environment = {**os.environ}
    if self._quick:
      environment |= {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(self._log.with_name("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      }
    with self._log.open("a") as log:
      self._process = subprocess.Popen(
        self._command,
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
      )

  def wait(self) -> None:
    """Until it answers.

    Raises:
      RuntimeError: if it ends before that.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
      if self._process.poll() is not None:
        raise RuntimeError(f"it ended: {self._log.read_text()[-3000:]}")
      try:
        self.ask("GET", "/health")
        return
      except OSError:
        time.sleep(0.05)
    raise RuntimeError("it does not answer")

  def ask(
    self, method: str, path: str, body: Any = None, seconds: float = 60
  ) -> tuple[int, Any]:
    """A request's status and JSON.

    Raises:
      OSError: if nobody answers, or not to the end.
    """
    connection = http.client.HTTPConnection("127.0.0.1", self.port, seconds)
    try:
      content = None if body is None else json.dumps(body).encode()
      headers = {"content-type": "application/json"}
      connection.request(method, path, content, headers)
      answer = connection.getresponse()
      return answer.status, json.loads(answer.read())
    except (http.client.HTTPException, ValueError) as error:
      raise ConnectionError("the answer is cut off") from error
    finally:
      connection.close()

  def events(self, path: str, body: dict) -> Iterator[Any]:
    """What is streamed, "[DONE]" included.

    Raises:
      OSError: if nobody answers, or not to the end.
    """
    connection = http.client.HTTPConnection("127.0.0.1", self.port, 60)
    try:
      content = json.dumps(body | {"stream": True}).encode()
      headers = {"content-type": "application/json"}
      connection.request("POST", path, content, headers)
      answer = connection.getresponse()
      for line in answer:
        data = line.decode().strip().removeprefix("data: ")
        if data:
          yield data if data == "[DONE]" else json.loads(data)
    except (http.client.HTTPException, ValueError) as error:
      raise ConnectionError("the answer is cut off") from error
    finally:
      connection.close()

  def person(self, user_id: str) -> Any:
    """What it knows of somebody; None of somebody unknown."""
    status, told = self.ask("GET", person_path(user_id))
    return told if status == 200 else None

  @property
  def process(self) -> int:
    """Its number."""
    assert self._process is not None
    return self._process.pid

  @property
  def learners(self) -> list[int]:
    """Processes that learn beside it."""
    found = []
    for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
      with contextlib.suppress(OSError):
        _, parent = _state_of(file)
        if parent == self.process:
          found.append(int(file.parent.name))
    return found

  def kill(self, what: str = "both") -> None:
    """Kills the server, its learner, or both, and waits until they are gone."""
    learners = self.learners
    while what == "learner" and not learners:
      time.sleep(0.1)  # It is being started.
      learners = self.learners
    if what in ("server", "both"):
      self._process.kill()
    if what in ("learner", "both"):
      for learner in learners:
        os.kill(learner, signal.SIGKILL)
    if what != "learner":
      self._process.wait()
      # Without its server it ends by itself.
      deadline = time.monotonic() + 30
      while any(map(_is_there, learners)):
        if time.monotonic() > deadline:
          raise RuntimeError("who learns outlives the server")
        time.sleep(0.01)

  def stop(self) -> None:
    """Ends it, as whoever runs it does."""
    if self._process is not None and self._process.poll() is None:
      self._process.terminate()
      self._process.wait(60)


def person_path(user_id: str) -> str:
  return f"/v1/people/{urllib.parse.quote(user_id, safe='')}"


def _is_there(process: int) -> bool:
  """Whether it runs; of one that ended nobody may have heard yet."""
  try:
    state, _ = _state_of(pathlib.Path(f"/proc/{process}/stat"))
  except OSError:
    return False
  return state not in "ZX"


def _state_of(file: pathlib.Path) -> tuple[str, int]:
  """A process's state and the number of its parent, in Linux."""
  state, parent, *_ = file.read_text().rpartition(")")[2].split()
  return state, int(parent)


class Threads:
  """Runs functions again and again, until it is left.

  Attributes:
    errors: what went wrong that may not.
  """

  def __init__(self):
    self.errors: list[str] = []
    self._over = threading.Event()
    self._threads: list[threading.Thread] = []

  def __enter__(self):
    return self

  def again(self, act, pause: float) -> None:
    """Calls `act` until the end, with pauses.

    It may raise an OSError, as whoever is not answered.
    """

    def run():
      while not self._over.wait(pause):
        try:
          act()
        except OSError:
          pass
        except Exception as error:
          self.errors.append(repr(error))
          return

    self._threads.append(threading.Thread(target=run, daemon=True))
    self._threads[-1].start()

  def __exit__(self, *unused):
    self._over.set()
    for thread in self._threads:
      thread.join(120)
