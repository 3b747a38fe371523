"""Learns people beside a server, so that no answer waits for it.

On a CPU a process of its own does, which the system lets run when answers leave
it something. An accelerator cannot be shared by processes; there a thread does.
Choices are in the database before anybody is told to learn from them, so that
nothing is lost with whoever learns.

In between it rehearses lessons, so that their programs are compiled before the
first click, and then says which questions are answered most differently by the
people whom somebody new may be.
"""

import itertools
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import jax
import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.inference import asking
from pdpo_jax.runs import learning
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import questions

# More of the time goes to whoever answers.
_NICENESS = 10
# Between the starts of processes that end by themselves.
_PATIENCE_SECONDS = 5.0
_LEARN = "learn"
# Numbers of choices for which programs differ. After a rehearsal that takes so
# long there is none: what takes the time is not compiling.
_REHEARSED, _LONGEST_SECONDS = (1, 2, 3, 5), 20.0

logger = logging.getLogger(__name__)

# What was done, for instance {"learnt": 2, "seconds": 1.5}.
Tell = Callable[[dict[str, Any]], None]


def work(
  run: run_lib.Run,
  orders: "queue.Queue[str | None]",
  tell: Tell,
  asked: Sequence[structs.Prompt],
) -> None:
  """Learns whoever waits, at once and with each order, until one is None.

  Args:
    asked: is ranked in between.
  """
  refused: dict[str, int] = {}
  between = _between(run, tell, asked)
  for prompt in asked:
    tell({"question": questions.to_json(prompt), "information": 0.0})
  order: str | None = _LEARN
  while order is not None:
    _learn(run, refused, tell)
    while orders.empty() and next(between, False):
      pass
    order = orders.get()
    while order is not None and not orders.empty():
      order = orders.get()


def _learn(run: run_lib.Run, refused: dict[str, int], tell: Tell) -> None:
  """Learns all who wait, less those whose choices cannot be learnt from.

  Args:
    refused: with how many choices.
  """
  start = time.monotonic()
  leave_out = [
    user_id
    for user_id, count in refused.items()
    if (person := run.people.get(user_id)) and person.num_choices == count
  ]
  try:
    learnt = len(learning.learn_waiting(run, leave_out).people)
  except Exception as error:
    logger.debug("learning together failed", exc_info=error)
    learnt = _learn_each(run, refused, leave_out, tell)
  if learnt:
    tell({"learnt": learnt, "seconds": time.monotonic() - start})


def _learn_each(run, refused, leave_out, tell) -> int:
  """Learns one after another, since the choices of some cannot be."""
  learnt = 0
  waiting = [*run.people.waiting(run.own.shared_digest)]
  for user_id in waiting:
    if user_id in leave_out:
      continue
    try:
      others = [each for each in waiting if each != user_id]
      learnt += len(learning.learn_waiting(run, others).people)
    except Exception as error:
      # What people wrote may be in its message.
      logger.warning("somebody cannot be learnt (%s)", type(error).__name__)
      person = run.people.get(user_id)
      refused[user_id] = person.num_choices if person else 0
      tell({"failed": 1})
  return learnt


def _between(
  run: run_lib.Run, tell: Tell, asked: Sequence[structs.Prompt]
) -> Iterator[bool]:
  """Does a piece of what there is to do between lessons, again and again."""
  for count in _REHEARSED if asked else ():
    start = time.monotonic()
    _rehearse(run, asked, count)
    yield True
    if time.monotonic() - start > _LONGEST_SECONDS:
      break
  for prompt in asked:
    _rank(run, prompt, tell)
    yield True


def _rehearse(
  run: run_lib.Run, asked: Sequence[structs.Prompt], count: int
) -> None:
  """Learns somebody made up who chose so often, and forgets them."""
  # What is shorter needs no program of its own.
  asked = sorted(asked, key=lambda prompt: len(str(prompt)), reverse=True)
  # As long as an answer may be; what it says is no matter.
  size = min(
    run.config.answers.max_new_tokens, run.config.data.max_response_tokens - 2
  )
  words = itertools.cycle(run.tokenizer(str(asked[0])).input_ids)
  response = run.tokenizer.decode([*itertools.islice(words, size)])
  examples = [
    structs.PreferenceExample(prompt, "a", (response,), "nobody")
    for prompt in itertools.islice(itertools.cycle(asked), count)
  ]
  learner = run.own.learner
  try:
    learner.learn(learner.prepare(examples).choices, ["nobody"])
  except ValueError as error:
    logger.debug("a lesson cannot be rehearsed: %s", error)


def _rank(run: run_lib.Run, prompt: structs.Prompt, tell: Tell) -> None:
  """How much the answer to a prompt's best pair would tell of a newcomer."""
  learner = run.own.learner
  nobody = learner.nobody()
  information = 0.0
  try:
    pairs = asking.make_candidates(
      run.own.split_policy,
      run.base,
      nobody,
      learner.population,
      [structs.PromptExample(prompt)],
      run.config.answers,
      run.config.data,
      directions=1,
      seed=run.config.seed,
    )
    choices = learner.prepare(pairs).choices if pairs else []
    if choices:
      information = float(np.max(learner.outlook(nobody, choices).information))
  except ValueError as error:
    logger.warning("a question cannot be asked: %s", error)
    return
  tell({"question": questions.to_json(prompt), "information": information})


class Lessons:
  """Learns beside until it is closed.

  Args:
    run: that people are learnt with.
    database: its address, as for `run`.
    asked: what newcomers may be asked; None for what `questions.of_run` has.
    tell: is called by another thread.
  """

  def __init__(
    self,
    run: run_lib.Run,
    database: str,
    asked: Sequence[structs.Prompt] | None,
    tell: Tell,
  ):
    self._run, self._tell = run, tell
    self._orders: dict[str, Any] = {
      "workdir": str(run.workdir),
      "database": database,
      "questions": asked and [questions.to_json(prompt) for prompt in asked],
    }
    self._apart = jax.default_backend() == "cpu"
    self._queue: queue.Queue[str | None] = queue.Queue()
    self._process: subprocess.Popen | None = None
    self._closing = False
    self._lock = threading.Lock()
    target = self._attend if self._apart else self._work_here
    self._thread = threading.Thread(target=target, name="lessons", daemon=True)
    self._thread.start()

  def wake(self) -> None:
    """Somebody waits to be learnt."""
    if not self._apart:
      self._queue.put(_LEARN)
      return
    self._write(_LEARN)

  def begin_again(self) -> None:
    """Forgets what it has in memory, since somebody was erased."""
    with self._lock:
      if self._process is not None:
        self._process.kill()

  def close(self) -> None:
    self._closing = True
    self._queue.put(None)
    self.begin_again()
    self._thread.join(10)

  def _write(self, line: str) -> None:
    with self._lock:
      if self._process is not None:
        try:
          self._process.stdin.write(line + "\n")
          self._process.stdin.flush()
        except OSError:
          pass  # It has ended, and the next one learns whoever waits.

  def _work_here(self) -> None:
    asked = questions.of_run(self._run, self._orders["questions"])
    work(self._run, self._queue, self._tell, asked)

  def _attend(self) -> None:
    """Starts the process, as often as it takes, and hears what it says."""
    while not self._closing:
      began = time.monotonic()
      with self._lock:
        self._process = subprocess.Popen(
          [sys.executable, "-m", __spec__.name],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          text=True,
        )
      # Its password is in no list of processes.
      self._write(json.dumps(self._orders))
      for line in self._process.stdout:
        self._tell(json.loads(line))
      status = self._process.wait()
      if not self._closing and status not in (0, -9):
        logger.warning("who learns people ended with status %d", status)
        time.sleep(max(0.0, began + _PATIENCE_SECONDS - time.monotonic()))


def main(orders: TextIO, told: TextIO) -> None:
  """Works as a process, until whoever started it is gone."""
  os.nice(_NICENESS)
  described = json.loads(orders.readline())
  received: queue.Queue[str | None] = queue.Queue()

  def read() -> None:
    for line in orders:
      received.put(line.strip())
    received.put(None)
    # Nobody hears the rest of what is being learnt.
    os._exit(0)

  def tell(event: dict[str, Any]) -> None:
    told.write(json.dumps(event) + "\n")
    told.flush()

  threading.Thread(target=read, daemon=True).start()
  run = run_lib.Run.open(described["workdir"], database=described["database"])
  asked = questions.of_run(run, described["questions"])
  work(run, received, tell, asked)


if __name__ == "__main__":
  # What libraries print is no event.
  told = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  main(sys.stdin, told)
