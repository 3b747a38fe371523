"""Asks a server for an hour, and watches what it takes.

  python -m tests.server_load [--minutes=60] [--json=FILE]

Clients ask for answers whole and streamed, go away in the midst of them, ask
for what cannot be, choose between two answers, look at what is known of them,
download it, and are forgotten. Each few seconds the memory, descriptors and
threads of the server and of who learns beside it are noted. Ends with status 1
where a request failed that may not, an answer was not as in peace, the log has
a traceback, or either process grew from the second quarter to the last. Linux
alone.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

from tests.runs import people_run
from tests.serving import apart

_PROMPT = "TITLE: a cat\nPOST: it sat.\nTL;DR"
_ASKED = (people_run.ANN, people_run.BEA, "nobody")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
# From the second quarter to the last. Caches of programs and of allocators
# still fill in the first.
_GROWTH_MB, _GROWTH_COUNT = 10, 4


@dataclasses.dataclass(frozen=True)
class Use:
  """What a process takes."""

  memory_mb: float
  descriptors: int
  threads: int

  @classmethod
  def of(cls, process: int) -> "Use":
    folder = pathlib.Path(f"/proc/{process}")
    pages = int((folder / "statm").read_text().split()[1])
    return cls(
      pages * _PAGE_KB / 1024,
      len(os.listdir(folder / "fd")),
      len(os.listdir(folder / "task")),
    )


class Client:
  """Does what people do, one thing after another."""

  def __init__(self, server: apart.Server, seed: int, answers: dict[str, str]):
    self._server, self._answers = server, answers
    self._rng = random.Random(seed)
    self._names = (f"visitor-{seed}-{number}" for number in itertools.count())
    self._visitor = next(self._names)
    self.done: collections.Counter[str] = collections.Counter()
    self._acts = (
      self.ask,
      self.read_stream,
      self.leave_stream,
      self.sample,
      self.ask_in_vain,
      self.choose,
      self.look,
      self.be_forgotten,
    )

  def act(self) -> None:
    act = self._rng.choice(self._acts)
    try:
      act()
    except OSError as error:  # `apart.Threads` lets it pass, as after kills.
      raise RuntimeError(f"{act.__name__} was not answered: {error}") from error
    self.done[act.__name__] += 1

  def _expect(self, expected: int, method: str, path: str, body=None):
    status, told = self._server.ask(method, path, body)
    if status != expected:
      raise RuntimeError(f"{method} {path}: {status} for {expected}: {told}")
    return told

  def _question(self, user_id: str, **fields):
    question = [{"role": "user", "content": _PROMPT}]
    body = {"model": "run", "user": user_id, "messages": question}
    return body | {"max_tokens": 8, "temperature": 0} | fields

  def _check(self, user_id: str, text: str) -> None:
    if text != self._answers[user_id]:
      raise RuntimeError(f"{user_id} is answered with {text!r}")

  def ask(self) -> None:
    user_id = self._rng.choice(_ASKED)
    self._check(user_id, answer(self._server, self._question(user_id)))

  def read_stream(self) -> None:
    user_id = self._rng.choice(_ASKED)
    *events, end = self._server.events(
      "/v1/chat/completions", self._question(user_id)
    )
    if end != "[DONE]":
      raise RuntimeError(f"a stream ended with {end}")
    parts = [c["delta"].get("content") for e in events for c in e["choices"]]
    self._check(user_id, "".join(filter(None, parts)))

  def leave_stream(self) -> None:
    question = self._question(
      self._visitor, max_tokens=200, temperature=1.5, n=self._rng.randint(1, 3)
    )
    events = self._server.events("/v1/chat/completions", question)
    with contextlib.closing(events):
      for _ in itertools.islice(events, self._rng.randint(0, 5)):
        pass

  def sample(self) -> None:
    question = self._question(
      self._visitor,
      n=2,
      temperature=1,
      seed=self._rng.getrandbits(31),
      logprobs=True,
      top_logprobs=3,
    )
    self._expect(200, "POST", "/v1/chat/completions", question)

  def ask_in_vain(self) -> None:
    wrong = self._rng.choice([{"temperature": -1}, {"n": "2"}, {"messages": 1}])
    question = self._question("nobody") | wrong
    self._expect(400, "POST", "/v1/chat/completions", question)

  def choose(self) -> None:
    chosen = f"good {self._rng.getrandbits(31)}"
    body = {"user": self._visitor, "prompt": _PROMPT, "chosen": chosen}
    self._expect(201, "POST", "/v1/choices", body | {"rejected": "bad"})

  def look(self) -> None:
    path = apart.person_path(people_run.ANN)
    self._expect(200, "GET", path)
    self._expect(200, "GET", f"{path}/export")
    self._expect(200, "GET", "/v1/models")

  def be_forgotten(self) -> None:
    path = apart.person_path(self._visitor)
    status, told = self._server.ask("DELETE", path)
    if status not in (200, 404):  # Who never chose is not known.
      raise RuntimeError(f"erasing was answered with {status}: {told}")
    self._visitor = next(self._names)


def answer(server: apart.Server, question) -> str:
  status, told = server.ask("POST", "/v1/chat/completions", question)
  if status != 200:
    raise RuntimeError(f"a question was answered with {status}: {told}")
  return told["choices"][0]["message"]["content"]


def growth(uses: Sequence[Use]) -> dict[str, tuple[float, float]]:
  """Medians of the second and of the last quarter, by what is used."""
  quarter = max(1, len(uses) // 4)
  parts = uses[quarter : 2 * quarter] or uses, uses[-quarter:]
  return {
    field.name: tuple(
      statistics.median(getattr(use, field.name) for use in part)
      for part in parts
    )
    for field in dataclasses.fields(Use)
  }


def grown(uses: Sequence[Use]) -> list[str]:
  """What grew more than it may."""
  return [
    f"{name} grew from {before:,.0f} to {after:,.0f}"
    for name, (before, after) in growth(uses).items()
    if after - before > (_GROWTH_MB if name == "memory_mb" else _GROWTH_COUNT)
  ]


def load(
  folder: pathlib.Path,
  seconds: float,
  clients: int = 8,
  tell: Callable[[str], None] = print,
) -> tuple[dict, list[str]]:
  """Makes a run in `folder`, serves it, and asks it for so many seconds.

  Returns:
    Figures, and what went wrong.
  """
  log = folder / "log"
  server = apart.Server(people_run.make(folder), "", log)
  uses: dict[str, list[Use]] = {"server": [], "learner": []}
  learners: set[int] = set()
  server.start()
  server.wait()
  try:
    peace = Client(server, -1, {})
    answers = {
      user_id: answer(server, peace._question(user_id)) for user_id in _ASKED
    }
    everybody = [Client(server, seed, answers) for seed in range(clients)]
    start = told = time.monotonic()
    with apart.Threads() as threads:
      for client in everybody:
        threads.again(client.act, 0.3)
      while (now := time.monotonic()) < start + seconds:
        if threads.errors:
          break
        time.sleep(min(5.0, seconds / 40))
        of_learner = server.learners
        learners.update(of_learner)
        with contextlib.suppress(OSError):  # One may end meanwhile.
          uses["server"].append(Use.of(server.process))
          for process in of_learner:
            uses["learner"].append(Use.of(process))
        if now - told > 60:
          told = now
          done = sum(sum(client.done.values()) for client in everybody)
          minutes, use = (now - start) / 60, uses["server"][-1]
          tell(f"{minutes:.0f} min: {done:,} done, {use}")
    wrong = list(threads.errors)
    elapsed = time.monotonic() - start
  finally:
    server.stop()
  done = sum((client.done for client in everybody), collections.Counter())
  if "Traceback" in log.read_text():
    wrong.append(log.read_text()[-3000:])
  for name, of in uses.items():
    wrong += [f"{name}: {problem}" for problem in grown(of)] if of else []
  figures = {
    "seconds": elapsed,
    "done": done,
    "learners": len(learners),
    "growth": {name: growth(of) for name, of in uses.items() if of},
  }
  return figures, wrong


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--minutes", type=float, default=60)
  parser.add_argument("--clients", type=int, default=8)
  parser.add_argument("--json", type=pathlib.Path)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as place:
    figures, wrong = load(
      pathlib.Path(place),
      60 * flags.minutes,
      flags.clients,
      lambda line: print(line, flush=True),
    )
  print(json.dumps(figures, indent=1))
  if flags.json:
    flags.json.write_text(json.dumps(figures, indent=2) + "\n")
  if wrong:
    raise SystemExit("\n".join(["wrong:", *wrong[:20]]))
  print(f"{figures['done'].total():,} done, none of which failed; nothing grew")


if __name__ == "__main__":
  main()
