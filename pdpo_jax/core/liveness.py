"""How one of several processes sees that another has failed, or is gone."""

import itertools
import threading
from collections.abc import Callable
from typing import Any

# Between signs of life.
BEAT_SECONDS = 0.5
GO_ON = (
  "What was saved is whole: start all processes again to go on from the newest "
  "checkpoint"
)
FIRST_IS_GONE = (
  "process 0, through which all keep in touch, was killed, or its machine is "
  f"gone. {GO_ON}"
)


class Watch(threading.Thread):
  """Shows that this process lives, and ends it when another failed or died.

  Args:
    store: JAX's key-value store, which lies in process 0.
    index: of this process.
    count: of processes.
    timeout: seconds after which a process that gives no sign of life is gone.
    leave: ends this process, for a reason.
  """

  def __init__(
    self,
    store: Any,
    index: int,
    count: int,
    timeout: int,
    leave: Callable[[str], Any],
  ):
    super().__init__(name="watch", daemon=True)
    self._store = store
    self._index = index
    self._timeout = timeout
    self._leave = leave
    self._stopped = threading.Event()
    # Of each other process: its last sign, and how often it was seen again.
    # A process that was held up itself has not looked, and blames nobody.
    self._seen = {other: ("", 0) for other in range(count) if other != index}

  def stop(self) -> None:
    self._stopped.set()

  def silent(self, seconds: int | float) -> list[int]:
    """Processes that gave no sign of life for so long."""
    looks = seconds / BEAT_SECONDS
    return [other for other, (_, again) in self._seen.items() if again > looks]

  def run(self) -> None:
    beats = itertools.count()
    while not self._stopped.wait(BEAT_SECONDS):
      try:
        reason = self.look(next(beats))
      except Exception:  # The store is not there any more.
        reason = FIRST_IS_GONE
      if reason and not self._stopped.is_set():
        self._leave(reason)

  def look(self, beat: int) -> str | None:
    """Exchanges signs of life; returns why to leave, if there is a reason."""
    store = self._store
    store.key_value_set(f"alive/{self._index}", str(beat), allow_overwrite=True)
    signs = {
      int(key.rsplit("/", 1)[-1]): sign
      for key, sign in store.key_value_dir_get("alive")
    }
    for other, (last, again) in self._seen.items():
      sign = signs.get(other, "")
      self._seen[other] = (sign, again + 1 if sign == last else 0)
    failed = store.key_value_dir_get("failed")
    if failed:
      key, reason = failed[0]
      return f"process {key.rsplit('/', 1)[-1]} failed: {reason}"
    silent = self.silent(self._timeout)
    if silent:
      return (
        f"process {silent[0]} has given no sign of life for "
        f"{self._timeout} s: it was killed, or its machine is gone. {GO_ON}"
      )
    return None
