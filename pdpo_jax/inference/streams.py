"""What somebody who asked reads their answer from, while it is being made."""

import asyncio
import collections
import dataclasses
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclasses.dataclass(frozen=True)
class Token:
  """One of an answer.

  Attributes:
    logprob: in nats, of the model before temperature and filters; None where
      nobody asked.
    top: the likeliest tokens and theirs, the likeliest first.
  """

  id: int
  logprob: float | None = None
  top: tuple[tuple[int, float], ...] = ()


class Stream(Iterator[Token], AsyncIterator[Token]):
  """An answer's tokens as they come, for one reader.

  To be iterated over by a thread, which then waits, or by a coroutine, which
  then lets others run. The token that ends an answer is not among them.

  Attributes:
    finish_reason: why it ended: "stop" at a token that ends answers, "length"
      at its most tokens, "cancelled"; None before the end was read.
  """

  def __init__(self):
    self.finish_reason: FinishReason | None = None
    self.cancelled = False
    self._changed = threading.Condition()
    self._items: collections.deque[Token] = collections.deque()
    # What comes after the items: why it ended, or what went wrong.
    self._end: FinishReason | BaseException | None = None
    self._wake: Callable[[], object] | None = None

  def cancel(self) -> None:
    """Nobody will read on; what was made until now can still be read."""
    self.cancelled = True
    self.finish("cancelled")

  def put(self, token: Token) -> None:
    """For the engine; a token of an answer that has ended is dropped."""
    with self._changed:
      if self._end is None:
        self._items.append(token)
      self._notify()

  def finish(self, end: FinishReason | BaseException) -> None:
    """For the engine; an exception is raised by whoever reads. Once only."""
    with self._changed:
      if self._end is None:
        self._end = end
      self._notify()

  @property
  def ended(self) -> bool:
    return self._end is not None

  def _notify(self):
    self._changed.notify_all()
    wake, self._wake = self._wake, None
    if wake is not None:
      try:
        wake()
      except RuntimeError:  # The reader's event loop is closed.
        self.cancelled = True

  def _take(self) -> Token | None:
    """The next token, None after the last; there must be an item or an end."""
    if self._items:
      return self._items.popleft()
    if isinstance(self._end, BaseException):
      raise self._end
    self.finish_reason = self._end
    return None

  def __iter__(self) -> "Stream":
    return self

  def __next__(self) -> Token:
    with self._changed:
      self._changed.wait_for(lambda: self._items or self._end is not None)
      token = self._take()
    if token is None:
      raise StopIteration
    return token

  def __aiter__(self) -> "Stream":
    return self

  async def __anext__(self) -> Token:
    loop = asyncio.get_running_loop()
    while True:
      with self._changed:
        if self._items or self._end is not None:
          token = self._take()
          break
        event = asyncio.Event()
        self._wake = functools.partial(loop.call_soon_threadsafe, event.set)
      await event.wait()
    if token is None:
      raise StopAsyncIteration
    return token
