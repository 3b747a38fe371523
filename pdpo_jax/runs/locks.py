"""One writer a run folder.

Whoever writes to a run folder holds `lock` there. A process on the same machine
that was killed has lost it at once. One elsewhere, which nobody can look for,
is taken for dead when it has not touched the file for two minutes. `lock.json`
says who it is.
"""

import contextlib
import datetime
import json
import logging
import os
import pathlib
import shlex
import socket
import sys
import time
from collections.abc import Iterable, Iterator

import filelock

from pdpo_jax.core import kept, processes

logger = logging.getLogger(__name__)

LOCK, HOLDER = "lock", "lock.json"
# Silence after which a process on another machine is dead, and how often one
# that lives shows it.
_SILENT_SECONDS, _BEAT_SECONDS = 120.0, 10.0
# To try; what is stale is put aside in a first try, and taken in a second.
_TRY_SECONDS = 1.0


@contextlib.contextmanager
def writing(
  folder: pathlib.Path,
  others: Iterable[pathlib.Path] = (),
  command: str | None = None,
) -> Iterator[None]:
  """Is the one command that writes to a run folder, or to several.

  A command that loses a folder on the way, since it was removed or somebody
  removed the lock, ends at once.

  Args:
    folder: made if it is missing.
    others: left alone where they cannot be written.
    command: what others are told of this one; default: its command line.

  Raises:
    ValueError: if another process has one of them, naming it.
    kept.Unwritable: if `folder` cannot be written.
  """
  with contextlib.ExitStack() as stack:
    processes.from_first(lambda: _take_all(stack, folder, others, command))
    yield


def _take_all(stack, folder, others, command) -> None:
  kept.make_folder(folder)
  resolved = folder.resolve()
  # In the same order everywhere, so that no two wait for each other.
  for place in sorted({resolved, *(other.resolve() for other in others)}):
    if place != resolved and not place.is_dir():
      continue
    try:
      stack.enter_context(_holding(place, command))
    except kept.Unwritable:
      if place == resolved:
        raise


@contextlib.contextmanager
def _holding(folder: pathlib.Path, command: str | None) -> Iterator[None]:
  lease = filelock.SoftFileLease(
    folder / LOCK,
    mode=0o600,
    lease_duration=_SILENT_SECONDS,
    heartbeat_interval=_BEAT_SECONDS,
    on_compromise=_end,
    thread_local=False,
  )
  holder = folder / HOLDER
  try:
    _take(lease, holder)
    try:
      with kept.writing(holder, summed=False) as out:
        out.write(
          json.dumps(_describe_self(command), indent=2).encode() + b"\n"
        )
    except BaseException:
      lease.release()
      raise
  except OSError as error:
    raise kept.Unwritable(folder / LOCK, error) from error
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      holder.unlink()
    with contextlib.suppress(OSError):
      lease.release()


def _take(lease: filelock.SoftFileLease, holder: pathlib.Path) -> None:
  """Takes a lock; waits only for a sign of life from another machine."""
  deadline = time.monotonic() + _SILENT_SECONDS + 3 * _TRY_SECONDS
  sign = None
  while True:
    try:
      lease.acquire(timeout=_TRY_SECONDS, poll_interval=0.05)
      return
    except filelock.Timeout:
      pass
    except filelock.LeaseSettingsMismatch as error:
      raise ValueError(_describe_other(lease, holder)) from error
    owner, last, sign = lease.owner, sign, _touched(lease)
    if owner is None:  # Let go meanwhile, or damaged.
      lives = False
      if last is not None and last == sign and _is_empty(lease):
        # Its process was killed before it wrote who it was.
        lease.force_break()
    elif owner.hostname == socket.gethostname():
      lives = True
    else:
      lives = last is not None and sign != last
      if last is None:
        logger.warning(
          "%s was being written by process %d on %s; waiting for a sign of "
          "life from it, at most %.0f s",
          holder.parent,
          owner.pid,
          owner.hostname,
          _SILENT_SECONDS,
        )
    if lives or time.monotonic() > deadline:
      raise ValueError(_describe_other(lease, holder))


def _touched(lease: filelock.SoftFileLease) -> int:
  try:
    return os.stat(lease.lock_file).st_mtime_ns
  except OSError:
    return 0


def _is_empty(lease: filelock.SoftFileLease) -> bool:
  try:
    return os.stat(lease.lock_file).st_size == 0
  except OSError:
    return False


def _describe_self(command: str | None) -> dict[str, str | int]:
  return {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "command": command or shlex.join(sys.orig_argv),
    "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
  }


def _describe_other(lease: filelock.SoftFileLease, holder: pathlib.Path) -> str:
  """Who has a folder, and what to do."""
  owner = lease.owner
  who = f"process {owner.pid} on {owner.hostname}" if owner else "a process"
  try:
    note = json.loads(holder.read_bytes())
    if owner and (note["pid"], note["host"]) == (owner.pid, owner.hostname):
      who += f", since {note['since']}: {note['command']}"
  except (OSError, ValueError, KeyError, TypeError):
    pass  # It says no more than the lock does.
  return (
    f"run folder {str(holder.parent)!r} is being written by another command "
    f"({who}); wait until it ends, or stop it, or choose another folder. If "
    f"that process is gone, remove {lease.lock_file}"
  )


def _end(lost: filelock.LeaseCompromise) -> None:
  """Ends this process, whose folder is no longer its own."""
  file = pathlib.Path(lost.lock_file)
  with contextlib.suppress(OSError):
    if f"token={lost.token}\n".encode() in file.read_bytes():
      # A file system whose files do not keep their numbers.
      logger.warning("%s is ours, but cannot be kept fresh", file)
      return
  folder = file.parent
  if lost.reason == "refresh-failed":
    problem = f"cannot be reached any more ({lost.error})"
  elif lost.reason == "owner-changed":
    problem = "was taken over by another command"
  else:
    problem = "was removed, or its lock was, while this command wrote to it"
  processes.fail(
    f"run folder {str(folder)!r} {problem}; see to it, and start the same "
    "command again"
  )
