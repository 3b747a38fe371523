"""Answers whoever asks, whenever they do: continuous batching.

A fixed number of requests run at once, each in a slot: with its own prompt,
person, settings and seed. One that comes joins between two steps, and one that
is done makes room. Prompts are run in pieces, between which everybody else
goes on. Few programs are compiled, all of them at the start.

A thread does it all. Nothing else touches the cache, and what others share with
it lies behind one lock.
"""

import collections
import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdpo_jax.core import processes
from pdpo_jax.inference import programs, requests, sampling, streams
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.models import stack
from pdpo_jax.training import sharding

# Of prompts, before a step.
_MOST_PIECES = 4

logger = logging.getLogger(__name__)

MAX_TOP_LOGPROBS = programs.TOP
Request = requests.Request
Stream = streams.Stream
Token = streams.Token


class Full(Exception):
  """As many requests wait as may."""


class Stopped(Exception):
  """The engine was closed, or died of `__cause__`."""


@dataclasses.dataclass(frozen=True)
class Status:
  """How busy an engine is, and how much it has done since its start."""

  slots: int
  running: int
  waiting: int
  prompt_tokens: int
  new_tokens: int


@runtime_checkable
class Answering(Protocol):
  """What a server needs of an engine, here or elsewhere (`remote`)."""

  failure: BaseException | None

  def submit(self, request: Request) -> Stream: ...

  def status(self) -> Status: ...


class Engine:
  """Answers requests until it is closed.

  Args:
    policy: who answers; its user table is not read, prefixes come with
      requests.
    stop_tokens: what ends an answer.
    slots: how many requests run at once.
    positions: of prefix, prompt and answer together, at most.
    queue: how many requests may wait for a slot.
    piece: how many inputs of a prompt are run at once.

  Raises:
    ValueError: if a size cannot be.
  """

  def __init__(
    self,
    policy: policy_lib.Policy,
    *,
    stop_tokens: Sequence[int],
    slots: int = 16,
    positions: int = 1024,
    queue: int = 64,
    piece: int = 64,
  ):
    arch = policy.lm.arch
    for name, value, least in (
      ("slots", slots, 1),
      ("positions", positions, 1),
      ("queue", queue, 0),
      ("piece", piece, 1),
    ):
      if value < least:
        raise ValueError(f"{name} {value} must be {least} or more")
    if positions > arch.max_positions:
      raise ValueError(
        f"positions {positions} are more than the model's "
        f"{arch.max_positions}; lower them"
      )
    if processes.several():
      raise ValueError(
        "an engine is of one process, and there are several; start it on one "
        "of them alone"
      )
    self._limits = requests.Limits.of(policy, positions)
    self._stop_tokens = frozenset(map(int, stop_tokens))
    self._queue, self._piece = queue, piece
    graphdef, state = nnx.split(policy.lm)
    mesh = sharding.mesh_of(state)
    # XLA's CPU backend copies some columns before it reads them, and not all.
    most = None
    if stack.can_be_apart(state):
      graphdef, state = nnx.split(stack.without_lora(policy.lm))
      state, most = stack.apart(state, policy.lm.stacked), positions // 3
    self._weights = graphdef, state
    self._cache = programs.make_cache(*self._weights, slots, positions, mesh)
    # A step's attention takes its part of the time, a piece's is little of it.
    self._step_extents = programs.extents(positions, 128, 2, most)
    self._piece_extents = programs.extents(positions, 256, 4)
    self._no_vectors = {
      size: jnp.zeros((size, arch.width)) for size in (piece, slots)
    }
    self._slots: list[requests.Run | None] = [None] * slots
    self._waiting: collections.deque[requests.Run] = collections.deque()
    self._changed = threading.Condition()
    self._closing = False
    self.failure: BaseException | None = None
    self._requests = self._prompt_tokens = self._new_tokens = 0
    self._warm_up()
    self._thread = threading.Thread(
      target=self._serve, name="engine", daemon=True
    )
    self._thread.start()

  def __enter__(self) -> "Engine":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def close(self) -> None:
    """Ends all streams with `Stopped`, and then the thread."""
    with self._changed:
      self._closing = True
      self._changed.notify_all()
    self._thread.join()

  def submit(self, request: Request) -> Stream:
    """Lets a request wait for a slot; from any thread.

    Raises:
      Full: if as many wait as may.
      Stopped: if the engine was closed or died.
      ValueError: if the request can never be answered.
    """
    run = self._limits.run(request)
    if request.max_new_tokens == 0:
      run.stream.finish("length")
      return run.stream
    with self._changed:
      self._raise_if_stopped()
      self._forget_cancelled()
      busy = len(self._waiting) + self._running()
      if busy >= len(self._slots) + self._queue:
        raise Full(
          f"{self._queue} requests wait for one of {len(self._slots)} slots "
          "already; ask again later"
        )
      run.number = self._requests
      self._requests += 1
      self._waiting.append(run)
      self._changed.notify_all()
    return run.stream

  def status(self) -> Status:
    with self._changed:
      return Status(
        slots=len(self._slots),
        running=self._running(),
        waiting=len(self._waiting),
        prompt_tokens=self._prompt_tokens,
        new_tokens=self._new_tokens,
      )

  def _running(self):
    return sum(run is not None for run in self._slots)

  def _raise_if_stopped(self):
    if self.failure is not None:
      raise Stopped(
        f"the engine died: {self.failure!r}; start it again"
      ) from self.failure
    if self._closing:
      raise Stopped("the engine was closed")

  # What follows is of the engine's thread.

  def _warm_up(self):
    """Compiles all programs, by running each on no slot at all."""
    nothing = np.int32(0)
    for extent in self._piece_extents:
      self._cache = programs.run_piece(
        *self._weights,
        self._cache,
        np.zeros(self._piece, np.int32),
        self._no_vectors[self._piece],
        nothing,
        nothing,
        nothing,
        extent=extent,
      )
    for extent in self._step_extents:
      self._advance([], extent)

  def _serve(self):
    try:
      while self._admit():
        self._feed()
        self._step()
    except BaseException as error:  # Whoever waits is told.
      logger.exception("the engine died")
      self._end(error)
    else:
      self._end(None)

  def _end(self, failure):
    with self._changed:
      self.failure, self._closing = failure, True
      runs = [run for run in self._slots if run is not None]
      runs += self._waiting
      self._slots = [None] * len(self._slots)
      self._waiting.clear()
      self._cache = None
    for run in runs:
      try:
        self._raise_if_stopped()
      except Stopped as stopped:
        run.stream.finish(stopped)

  def _forget_cancelled(self):
    self._waiting = collections.deque(
      run for run in self._waiting if not run.stream.cancelled
    )

  def _admit(self):
    """Fills free slots; waits while nobody asks. False when all is over."""
    with self._changed:
      while not self._closing:
        self._forget_cancelled()
        for slot, run in enumerate(self._slots):
          if run is not None and run.stream.cancelled:
            self._slots[slot] = run = None
          if run is None and self._waiting:
            self._slots[slot] = self._waiting.popleft()
        if self._running():
          return True
        self._changed.wait()
    return False

  def _feed(self):
    """Runs pieces of prompts that are not fed yet, the oldest request's first.

    There are several before the next step, which takes as long for few as for
    many.
    """
    behind = [
      (run.number, slot)
      for slot, run in enumerate(self._slots)
      if run is not None and run.behind
    ]
    for _, slot in sorted(behind)[:_MOST_PIECES]:
      self._run_piece(slot, self._slots[slot])

  def _run_piece(self, slot, run):
    inputs, given = run.piece(min(self._piece, run.behind))
    tokens = np.zeros(self._piece, np.int32)
    tokens[: len(inputs)] = inputs
    vectors = self._no_vectors[self._piece]
    if given is not None:
      vectors = np.zeros(vectors.shape, np.float32)
      vectors[: len(inputs)] = given
    self._cache = programs.run_piece(
      *self._weights,
      self._cache,
      tokens,
      vectors,
      np.int32(slot),
      np.int32(run.fed),
      np.int32(len(inputs)),
      extent=_least(self._piece_extents, run.fed),
    )
    run.fed += len(inputs)
    self._prompt_tokens += len(inputs)

  def _step(self):
    """A token for each whose prompt is fed."""
    going = [
      (slot, run)
      for slot, run in enumerate(self._slots)
      if run is not None and not run.behind
    ]
    if not going:
      return
    extent = _least(self._step_extents, max(run.fed for _, run in going))
    chosen = self._advance(going, extent)
    if any(run.request.top_logprobs is not None for _, run in going):
      chosen = jax.device_get(chosen)
    tokens = np.asarray(chosen.tokens).tolist()
    for slot, run in going:
      self._give(slot, run, tokens[slot], chosen)

  def _advance(self, going, extent):
    size = len(self._slots)
    tokens, positions, counts, top_k = np.zeros((4, size), np.int32)
    temperature, top_p = np.zeros(size, np.float32), np.ones(size, np.float32)
    seed, active = np.zeros(size, np.uint32), np.zeros(size, bool)
    vectors = self._no_vectors[size]
    for slot, run in going:
      request = run.request
      tokens[slot] = run.last if run.count else run.inputs[-1]
      positions[slot], counts[slot] = run.fed, run.count
      temperature[slot] = request.temperature
      top_p[slot] = request.top_p
      top_k[slot] = request.top_k
      seed[slot] = request.seed
      active[slot] = True
      if tokens[slot] < 0:  # A prompt of one token, and the prefix behind it.
        vectors = np.array(vectors)
        vectors[slot] = request.prefix[-1]
    wanted = any(run.request.top_logprobs is not None for _, run in going)
    self._cache, chosen = programs.step(
      *self._weights,
      self._cache,
      tokens,
      vectors,
      positions,
      active,
      counts,
      sampling.RowSettings(temperature, top_p, top_k, seed),
      np.asarray(wanted),
      extent=extent,
    )
    return chosen

  def _give(self, slot, run, token, chosen):
    """Hands a token to who asked for it, and frees the slot after the last."""
    self._prompt_tokens += run.count == 0
    run.fed += 1
    run.count += 1
    run.last = token
    end = None
    if token in self._stop_tokens:
      end = "stop"
    else:
      self._new_tokens += 1
      run.stream.put(run.token(slot, token, chosen))
      if run.count == run.request.max_new_tokens:
        end = "length"
    if end is not None:
      with self._changed:
        self._slots[slot] = None
      run.stream.finish(end)


def _least(extents, columns):
  return next(extent for extent in extents if extent >= columns)
