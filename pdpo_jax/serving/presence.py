"""Who is being answered, so that whoever is erased is gone at once.

Without it, an answer that began before an erasure would go on after it, and a
choice that came just before would bring the person back.
"""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Callable

from starlette import types

from pdpo_jax.serving import protocol

# Stands for whoever answers in the place of somebody else: one of the run.
ANYBODY = ""
_VISITS = "pdpo_visits"
_PATIENCE_SECONDS = 60


class Visit:
  """A request of a person's, until it is answered.

  Attributes:
    is_over: whether the person was erased meanwhile.
  """

  def __init__(self):
    self.is_over = False
    self.ended = asyncio.Event()
    self._break_off: Callable[[], None] | None = None

  def may_be_broken_off(self, break_off: Callable[[], None]) -> None:
    """An erasure does not wait for this any more, but calls `break_off`.

    Raises:
      protocol.ApiError: if there was one already.
    """
    self._break_off = break_off
    self.check()

  def is_given_out(self) -> None:
    """An erasure waits again, until what there is has been sent.

    Raises:
      protocol.ApiError: as `check`.
    """
    self.check()
    self._break_off = None

  def check(self) -> None:
    """To be called before something of the person is sent.

    Raises:
      protocol.ApiError: if they were erased meanwhile.
    """
    if self.is_over:
      if self._break_off is not None:
        self._break_off()
      raise erased()

  async def leave(self) -> None:
    """The person is erased: breaks it off, or waits until it is answered."""
    self.is_over = True
    if self._break_off is not None:
      self._break_off()
      return
    # Whoever does not read an answer does not keep anybody from leaving.
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(self.ended.wait(), _PATIENCE_SECONDS)


class Presence:
  """The visits of all people to a server; in its event loop alone."""

  def __init__(self):
    self._visits: dict[str, set[Visit]] = collections.defaultdict(set)
    self._leaving: dict[str, asyncio.Event] = {}

  async def enter(
    self, scope: types.Scope, *ids: str | None, writes: bool = False
  ) -> Visit:
    """Notes that a request is about people, once they are not being erased.

    Args:
      scope: of the request, which leaves at its end, by `visiting`.
      writes: whether it keeps something. It was sent before the erasure was
        told, and does not wait for its end.

    Raises:
      protocol.ApiError: then.
    """
    named = [user_id for user_id in ids if user_id is not None]
    if writes and any(user_id in self._leaving for user_id in named):
      raise erased()
    while left := [x for x in named if x in self._leaving]:
      await self._leaving[left[0]].wait()
    visit = Visit()
    for user_id in named:
      self._visits[user_id].add(visit)
    scope[_VISITS].append((visit, named))
    return visit

  @contextlib.contextmanager
  def visiting(self, scope: types.Scope):
    """Around a request: those who entered leave, however it ends."""
    scope[_VISITS] = []
    try:
      yield
    finally:
      for visit, named in scope[_VISITS]:
        visit.ended.set()
        for user_id in named:
          self._visits[user_id].discard(visit)
          if not self._visits[user_id]:
            del self._visits[user_id]

  @contextlib.asynccontextmanager
  async def leaving(self, *ids: str) -> AsyncIterator[None]:
    """While nothing of these people is sent or kept.

    Requests that are there are broken off or waited for, and those that come
    wait.
    """
    while left := [x for x in ids if x in self._leaving]:
      await self._leaving[left[0]].wait()
    over = asyncio.Event()
    self._leaving |= dict.fromkeys(ids, over)
    try:
      there = {visit for x in ids for visit in self._visits.get(x, ())}
      await asyncio.gather(*(visit.leave() for visit in there))
      yield
    finally:
      for user_id in ids:
        del self._leaving[user_id]
      over.set()


def erased() -> protocol.ApiError:
  return protocol.ApiError(
    409,
    "this person was erased meanwhile; ask again, as somebody new",
    "user",
    "person_erased",
  )
