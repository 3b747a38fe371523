"""When to ask a service: so often a minute, and again after a failure."""

import random
import threading
import time

# Seconds between two tries: at first, and at most.
FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0


class Pace:
  """Keeps requests of all threads to so many a minute; 0 is no limit."""

  def __init__(self, per_minute: int):
    self._gap = 60 / per_minute if per_minute else 0.0
    self._lock = threading.Lock()
    self._next = 0.0

  def wait(self) -> None:
    with self._lock:
      now = time.monotonic()
      turn = max(now, self._next)
      self._next = turn + self._gap
    time.sleep(turn - now)


def seconds_after(error: Exception, attempt: int) -> float:
  """How long to wait after a failed try, counted from 0.

  Twice as long each time up to a minute, and never less than the service asks
  for, which may be less than it takes.
  """
  own = FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5)
  return max(min(own, _LONGEST_WAIT), _asked(error))


def _asked(error: Exception) -> float:
  """Seconds of the service's Retry-After; 0 without."""
  response = getattr(error, "response", None)
  try:
    return float(response.headers["retry-after"])
  except (AttributeError, KeyError, TypeError, ValueError):
    return 0.0
