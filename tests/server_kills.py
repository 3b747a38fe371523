"""Kills a server and who learns beside it, again and again, under load.

  python -m tests.server_kills [--kills=20] [--seed=0]
    [--database=postgresql+psycopg://user@host/people]

Several clients post choices, ask, come and are erased meanwhile. After each
kill the server is started again, and clients send again what was not answered.
At the end every choice that was acknowledged must be there, once; whoever was
erased must be nowhere; what was learnt must be what is learnt of these choices
in peace; and answers must be as before. Ends with status 1 otherwise.

The database, where one is named, has to be empty. Linux alone.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import pathlib
import random
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np

from pdpo_jax.runs import learning
from pdpo_jax.runs import run as run_lib
from tests.runs import people_run
from tests.serving import apart

_PROMPT = "TITLE: a cat\nPOST: it sat.\nTL;DR"
_CHOOSERS = 4
_NEWCOMERS = [f"newcomer-{number}" for number in range(6)]
_ASKED = (people_run.ANN, people_run.BEA, "nobody")
_LEARN_SECONDS = 120


@dataclasses.dataclass
class Ledger:
  """What clients were told.

  Attributes:
    sent: choices by person, acknowledged or not.
    kept: those that were acknowledged.
    erased: people who were, and for good.
    answers: of those who ask, in peace.
    wrong: what may not be.
  """

  sent: dict[str, set[str]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(set)
  )
  kept: dict[str, set[str]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(set)
  )
  erased: set[str] = dataclasses.field(default_factory=set)
  answers: dict[str, str] = dataclasses.field(default_factory=dict)
  wrong: list[str] = dataclasses.field(default_factory=list)
  asked: int = 0
  sent_again: int = 0
  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class Client:
  """Sends what was not answered again, as clients do."""

  def __init__(self, server: apart.Server, ledger: Ledger, seed: int):
    self._server, self._ledger = server, ledger
    self._rng = random.Random(seed)
    self._names = (f"{seed}-{number}" for number in itertools.count())
    self._left: tuple[str, str] | None = None
    self._leaver: str | None = None

  def choose(self) -> None:
    again = self._left is not None
    if not again:
      self._left = self._rng.choice(_NEWCOMERS), f"good {next(self._names)}"
    user_id, chosen = self._left
    with self._ledger.lock:
      self._ledger.sent[user_id].add(chosen)
      self._ledger.sent_again += again
    self._post(user_id, chosen)
    with self._ledger.lock:
      self._ledger.kept[user_id].add(chosen)
    self._left = None

  def _post(self, user_id: str, chosen: str) -> None:
    body = {"user": user_id, "prompt": _PROMPT, "chosen": chosen}
    status, told = self._server.ask(
      "POST", "/v1/choices", body | {"rejected": "bad"}
    )
    if status != 201:
      raise RuntimeError(f"a choice was answered with {status}: {told}")

  def ask(self) -> None:
    user_id = self._rng.choice(_ASKED)
    text = answer(self._server, user_id)
    with self._ledger.lock:
      self._ledger.asked += 1
      if text != self._ledger.answers[user_id]:
        self._ledger.wrong.append(f"{user_id} is answered with {text!r}")

  def come_and_go(self) -> None:
    if self._leaver is None:
      leaver = f"leaver-{next(self._names)}"
      self._post(leaver, f"good {leaver}")
      self._leaver = leaver
    path = apart.person_path(self._leaver)
    status, told = self._server.ask("DELETE", path)
    # 404 where the erasure before the kill was done, but not told.
    if status not in (200, 404):
      raise RuntimeError(f"erasing was answered with {status}: {told}")
    with self._ledger.lock:
      self._ledger.erased.add(self._leaver)
    self._leaver = None


def answer(server: apart.Server, user_id: str) -> str:
  status, told = server.ask(
    "POST",
    "/v1/chat/completions",
    {
      "model": "run",
      "user": user_id,
      "messages": [{"role": "user", "content": _PROMPT}],
      "max_tokens": 8,
      "temperature": 0,
    },
  )
  if status != 200:
    raise RuntimeError(f"a question was answered with {status}: {told}")
  return told["choices"][0]["message"]["content"]


def found_wrong(run: run_lib.Run, ledger: Ledger) -> list[str]:
  """What the database has that may not be, or lacks."""
  wrong = []
  shape = run.own.learner.population.shape
  # Clients may go on: what was acknowledged before is read, and what was sent
  # until after that.
  with ledger.lock:
    kept = {user_id: {*of} for user_id, of in ledger.kept.items()}
    erased = {*ledger.erased}
  people = run.people.all()
  choices = {user_id: run.people.choices(user_id) for user_id in kept}
  with ledger.lock:
    sent = {user_id: {*of} for user_id, of in ledger.sent.items()}
  for user_id, acknowledged in kept.items():
    there = [choice.chosen for choice in choices[user_id]]
    counts = collections.Counter(there)
    wrong += [f"lost: {x}" for x in acknowledged - {*there}]
    wrong += [f"doubled: {x}" for x, count in counts.items() if count > 1]
    wrong += [f"nobody's: {x}" for x in {*there} - sent[user_id]]
  wrong += [f"erased, and there: {x}" for x in erased & {*people}]
  for user_id, person in people.items():
    learnt = person.learnt
    if learnt is None or user_id in (people_run.DEE, people_run.EVE):
      continue
    if learnt.row.size != np.prod(shape) or not np.isfinite(learnt.row).all():
      wrong.append(f"the row of {user_id} is not whole")
    if learnt.num_choices > person.num_choices:
      wrong.append(f"{user_id} was learnt from more choices than there are")
  return wrong


def learnt_wrong(run: run_lib.Run, folder: pathlib.Path) -> list[str]:
  """Whose rows are not what their choices say."""
  there = run.people.all()
  url = f"sqlite:///{folder / 'in_peace.sqlite'}"
  in_peace = run_lib.Run.open(run.workdir, database=url)
  in_peace.people.add(
    [choice for user_id in _NEWCOMERS for choice in run.people.choices(user_id)]
  )
  expected = learning.learn_waiting(in_peace).people
  return [
    f"{user_id} is not what their choices say"
    for user_id, learnt in expected.items()
    if not np.allclose(
      there[user_id].learnt.row, learnt.row.ravel(), rtol=1e-3, atol=1e-4
    )
  ]


def kill_under_load(
  folder: pathlib.Path,
  database: str,
  kills: int,
  rng: random.Random,
  tell: Callable[[str], None] = print,
) -> list[str]:
  """Makes a run in `folder`, serves it, and kills that; what went wrong."""
  workdir = people_run.make(folder)
  server = apart.Server(workdir, database, folder / "log")
  run = run_lib.Run.open(workdir, database=database)
  if database and run.people.ids():
    raise ValueError("the database is not empty; name one that is")
  ledger = Ledger()
  wrong = found_wrong(run, ledger)  # Reads the model, before anything begins.
  killed = collections.Counter()
  server.start()
  server.wait()
  try:
    ledger.answers = {user_id: answer(server, user_id) for user_id in _ASKED}
    with apart.Threads() as threads:
      for number in range(_CHOOSERS):
        threads.again(Client(server, ledger, number).choose, 0.3)
      for number in range(2):
        threads.again(Client(server, ledger, 100 + number).ask, 0.1)
      threads.again(Client(server, ledger, 200).come_and_go, 0.3)
      for number in range(kills):
        what = rng.choice(["both", "both", "server", "learner"])
        time.sleep(rng.uniform(0, 6))
        server.kill(what)
        killed[what] += 1
        wrong += found_wrong(run, ledger)
        count = sum(map(len, ledger.kept.values()))
        tell(
          f"kill {number + 1} ({what}): {count:,} choices acknowledged, "
          f"{len(ledger.erased)} people erased, {len(wrong)} wrong"
        )
        if what != "learner":
          server.start()
          if rng.random() < 0.2:
            # In the midst of the start, too.
            time.sleep(rng.uniform(0, 8))
            server.kill()
            killed["start"] += 1
            server.start()
          server.wait()
      time.sleep(3)
    wrong += threads.errors + ledger.wrong
    deadline = time.monotonic() + _LEARN_SECONDS
    while run.people.waiting(run.own.shared_digest):
      if time.monotonic() > deadline:
        wrong.append("not everybody was learnt")
        break
      time.sleep(0.5)
    wrong += found_wrong(run, ledger)
    wrong += learnt_wrong(run, folder)
    wrong += [
      f"{user_id} is not answered as before"
      for user_id, text in ledger.answers.items()
      if answer(server, user_id) != text
    ]
  finally:
    server.stop()
  tell(
    json.dumps(
      {
        "kills": dict(killed),
        "choices": sum(map(len, ledger.kept.values())),
        "sent_again": ledger.sent_again,
        "answers": ledger.asked,
        "erased": len(ledger.erased),
        "people_learnt": len(_NEWCOMERS),
        "wrong": len(wrong),
      }
    )
  )
  return wrong


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--database", default="")
  parser.add_argument("--folder", type=pathlib.Path, help="Kept, if named.")
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as place:
    folder = flags.folder or pathlib.Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(flags.seed)
    wrong = kill_under_load(folder, flags.database, flags.kills, rng)
  if wrong:
    raise SystemExit("\n".join(["wrong:", *wrong[:20]]))
  print("nothing acknowledged is lost or doubled, and all rows are whole")


if __name__ == "__main__":
  main()
