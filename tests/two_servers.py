"""Two servers of one run and one database, and whoever leaves them under load.

  python -m tests.two_servers [--people=10] [--leavers=10]
    [--database=postgresql+psycopg://user@host/people]

A person brings a choice to one server, and both are asked, again and again,
until they know them: by how much is the other one later? Then people are erased
while answers to them are streamed, choices of theirs are on their way, and they
are exported: nothing of that may come after the erasure was answered, and
neither server may know anything afterwards. Ends with status 1 otherwise.

Without a database they share a file in the run folder.
"""

import argparse
import json
import pathlib
import random
import tempfile
import threading
import time

import numpy as np

from pdpo_jax.runs import run as run_lib
from tests.runs import people_run
from tests.serving import apart

_PROMPT = "TITLE: a cat\nPOST: it sat.\nTL;DR"
_LATE_SECONDS = 2.0
_LEARN_SECONDS = 120
# What was sent before may be read so much later than an erasure's answer.
_LAG_SECONDS = 0.1


def choice(user_id: str, number: int) -> dict:
  return {
    "user": user_id,
    "prompt": _PROMPT,
    "chosen": f"good {number}",
    "rejected": "bad",
  }


def question(user_id: str, most: int) -> dict:
  return {
    "model": "run",
    "user": user_id,
    "messages": [{"role": "user", "content": _PROMPT}],
    "max_tokens": most,
    "temperature": 0,
  }


def known_at(server: apart.Server, user_id: str, times: dict) -> None:
  """Notes when a server first says that somebody is learnt."""
  deadline = time.monotonic() + _LEARN_SECONDS
  while time.monotonic() < deadline:
    told = server.person(user_id)
    if told is not None and told["known"] == "learnt":
      times[server] = time.monotonic()
      return
    time.sleep(0.01)


def lateness(
  servers: list[apart.Server], user_id: str, wrong: list[str]
) -> float:
  """Seconds from one server's knowing somebody to the other's."""
  first, other = servers
  start, times = time.monotonic(), {}
  status, told = first.ask("POST", "/v1/choices", choice(user_id, 0))
  if status != 201:
    raise RuntimeError(f"a choice was answered with {status}: {told}")
  threads = [
    threading.Thread(target=known_at, args=(server, user_id, times))
    for server in servers
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  if len(times) < 2:
    wrong.append(f"{user_id} was not learnt")
    return float("inf")
  answers = [
    server.ask("POST", "/v1/chat/completions", question(user_id, 8))[1]
    for server in servers
  ]
  texts = [each["choices"][0]["message"]["content"] for each in answers]
  if texts[0] != texts[1] or not all(x["person"]["known"] for x in answers):
    wrong.append(f"{user_id} is answered differently by the two")
  print(
    f"{user_id}: learnt after {times[first] - start:.2f} s, known by the other "
    f"{times[other] - times[first]:+.3f} s later",
    flush=True,
  )
  return max(0.0, times[other] - times[first])


class Leaver:
  """Somebody who is erased while requests of theirs are on their way."""

  def __init__(self, servers: list[apart.Server], user_id: str):
    self._servers, self._user_id = servers, user_id
    self._path = apart.person_path(user_id)
    self.erased_at: float | None = None
    self.late: list[str] = []
    self.on_their_way = self.broken_off = 0
    self._lock = threading.Lock()

  def _note(self, what: str) -> None:
    with self._lock:
      self.on_their_way += 1
      if self.erased_at and time.monotonic() > self.erased_at + _LAG_SECONDS:
        self.late.append(f"{what} of {self._user_id} after the erasure")

  def stream(self) -> None:
    body = question(self._user_id, 40)
    known = False
    for event in self._servers[0].events("/v1/chat/completions", body):
      if "error" in event:
        self.broken_off += event["error"]["code"] == "person_erased"
        return
      if event == "[DONE]":
        return
      known = event["person"]["known"]
      if known and any(x["delta"].get("content") for x in event["choices"]):
        self._note("a piece")

  def whole(self) -> None:
    body = question(self._user_id, 20)
    status, told = self._servers[0].ask("POST", "/v1/chat/completions", body)
    self.broken_off += status == 409
    if status == 200 and told["person"]["known"]:
      self._note("an answer")

  def choose(self) -> None:
    number = random.randrange(10**9)
    self._servers[0].ask("POST", "/v1/choices", choice(self._user_id, number))

  def export(self) -> None:
    for server in self._servers:
      status, _ = server.ask("GET", f"{self._path}/export")
      if status == 200:
        self._note("an export")

  def leave(self, seconds: float) -> None:
    """Erases them after some time, with all of this on its way."""
    over = threading.Event()

    def again(act):
      while not over.is_set():
        act()

    acts = [self.stream, self.stream, self.whole, self.choose, self.export]
    threads = [threading.Thread(target=again, args=(act,)) for act in acts]
    for thread in threads:
      thread.start()
    time.sleep(seconds)
    # Nothing begins any more; what has begun is on its way.
    over.set()
    status, told = self._servers[0].ask("DELETE", self._path)
    self.erased_at = time.monotonic()
    if status != 200:
      self.late.append(f"erasing was answered with {status}: {told}")
    for thread in threads:
      thread.join()
    for server in self._servers:
      for path in (self._path, f"{self._path}/export"):
        status, _ = server.ask("GET", path)
        if status != 404:
          self.late.append(f"{path} is answered with {status}")


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--people", type=int, default=10)
  parser.add_argument("--leavers", type=int, default=10)
  parser.add_argument("--database", default="")
  flags = parser.parse_args()
  wrong: list[str] = []
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    workdir = people_run.make(folder)
    servers = [
      apart.Server(workdir, flags.database, folder / f"log{number}")
      for number in range(2)
    ]
    try:
      for server in servers:
        server.start()
      for server in servers:
        server.wait()
      seconds = [
        # Either one may be the first.
        lateness(servers[:: 1 if n % 2 else -1], f"comer-{n}", wrong)
        for n in range(flags.people)
      ]
      if max(seconds) > _LATE_SECONDS:
        wrong.append(f"known {max(seconds):.1f} s late")
      rng = random.Random(0)
      leavers = [
        Leaver(servers, f"leaver-{number}") for number in range(flags.leavers)
      ]
      for number, leaver in enumerate(leavers):
        lateness(servers, f"leaver-{number}", wrong)
        leaver.leave(rng.uniform(0.2, 1.5))
        wrong += leaver.late
      left = run_lib.Run.open(workdir, database=flags.database).people.ids()
      wrong += [f"{x} is there" for x in left if x.startswith("leaver")]
    finally:
      for server in servers:
        server.stop()
  print(
    json.dumps(
      {
        "people": len(seconds),
        "seconds_late": {
          "p50": round(float(np.median(seconds)), 3),
          "most": round(max(seconds), 3),
        },
        "erased": len(leavers),
        "answers_and_exports": sum(x.on_their_way for x in leavers),
        "broken_off": sum(x.broken_off for x in leavers),
        "wrong": len(wrong),
      }
    )
  )
  if wrong:
    raise SystemExit("\n".join(["wrong:", *wrong[:20]]))
  print("both know everybody, and nobody who was erased")


if __name__ == "__main__":
  main()
