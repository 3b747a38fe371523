"""How processes find each other, before JAX connects them.

JAX's coordinator waits without a word, takes whatever number a process says it
has, and where that is amiss it aborts with a stack trace. So process 0 listens
first itself, where the coordinator will be, and lets JAX begin once all have
come. They speak in lines of JSON:

  process 1: {"pdpo_jax": "join", "process": 1, "of": 3}
  process 0: {"pdpo_jax": "wait", "why": "process 0 waits at … for process 2"}
  process 0: {"pdpo_jax": "begin", "why": ""}, or "refuse" with its reason

Who goes meanwhile closes its connection, which the other end sees at once.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

# When a process that waits first says what for, and how often again.
_SAY_SECONDS = 10
_TRY_SECONDS = 0.5
# For what listens to say that it is process 0.
_ANSWER_SECONDS = 5
# Of a stranger's.
_LINE_BYTES = 4096
_KEY = "pdpo_jax"


class Deadline:
  """The time that joining may take, and what is waited for meanwhile.

  Where the wait is in code that heeds no time, looking up a name or JAX's own,
  the process is ended from a thread.
  """

  def __init__(self, seconds: int, waits_for: str):
    self.seconds = seconds
    self.waits_for = waits_for
    self._end = time.monotonic() + seconds
    self._done = threading.Event()

  def __enter__(self) -> "Deadline":
    threading.Thread(target=self._watch, name="join", daemon=True).start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._done.set()

  def left(self) -> float:
    """Seconds, 0 when it is over."""
    return max(0.0, self._end - time.monotonic())

  def reason(self) -> str:
    """Why it is over."""
    return (
      f"{self.waits_for}. That took {self.seconds} s; --join_timeout sets it"
    )

  def _watch(self) -> None:
    wait, announced = _SAY_SECONDS, ""
    # Who heeds the time says why to others before.
    while not self._done.wait(min(wait, self.left() + 0.5)):
      if not self.left():
        say_last(self.reason())
        os._exit(1)
      if self.waits_for != announced:
        announced = self.waits_for
        print(
          f"{announced} ({self.left():.0f} s left)", file=sys.stderr, flush=True
        )


def say_last(reason: str) -> None:
  """Prints why a process ends that does so by `os._exit`."""
  with contextlib.suppress(Exception):
    sys.stdout.flush()
  # Below a progress bar.
  print(f"\nerror: {reason}", file=sys.stderr, flush=True)


def split_address(address: str) -> tuple[str, int]:
  """Host and port.

  Raises:
    ValueError: if it is not HOST:PORT.
  """
  match = re.fullmatch(r"(\[[^][]+\]|[^][:/\s]+):(\d{1,5})", address)
  if not match or not 0 < int(match[2]) < 65536:
    raise ValueError(
      f"--coordinator={address!r} is not HOST:PORT, as node1:1234 or "
      "[::1]:1234, with a port from 1 to 65535"
    )
  return match[1].strip("[]"), int(match[2])


def check_numbers(count: int, index: int) -> None:
  """Raises a ValueError if there is no such process."""
  if count < 1 or not 0 <= index < count:
    raise ValueError(
      f"--process_id={index} is not one of --num_processes={count}: they are "
      f"numbered from 0 to {max(count, 1) - 1}"
    )


def meet(
  address: str, count: int, index: int, deadline: Deadline, listen: str
) -> None:
  """Returns in each process once all have come.

  Args:
    address: of process 0, host and port.
    listen: the address to which process 0 binds.

  Raises:
    ValueError: if that takes longer than `deadline`; if process 0 cannot listen
      there, or goes; if it does not want this process.
  """
  if count == 1:
    return
  if index == 0:
    with contextlib.ExitStack() as stack:
      _Host(address, count, deadline, stack).wait(listen)
  else:
    _join(address, count, index, deadline)


def _line(verdict: str, **fields: Any) -> bytes:
  return json.dumps({_KEY: verdict, **fields}).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
  """What a line says; nothing if it is none of this program."""
  with contextlib.suppress(ValueError, RecursionError):
    fields = json.loads(line)
    if isinstance(fields, dict) and isinstance(fields.get(_KEY), str):
      return fields
  return {}


@dataclasses.dataclass(eq=False)
class _Guest:
  """A connection to process 0; `index` once it has greeted."""

  connection: socket.socket
  address: str
  received: bytes = b""
  index: int | None = None

  def send(self, line: bytes) -> None:
    # Its buffer takes these few lines; who is gone is noticed when read.
    with contextlib.suppress(OSError):
      self.connection.send(line)


class _Host:
  """Process 0, until all have come."""

  def __init__(
    self,
    address: str,
    count: int,
    deadline: Deadline,
    stack: contextlib.ExitStack,
  ):
    self._address = address
    self._count = count
    self._deadline = deadline
    self._stack = stack
    self._selector = stack.enter_context(selectors.DefaultSelector())
    self._guests: dict[int, _Guest] = {}
    self._refused: list[str] = []

  def wait(self, listen: str) -> None:
    for server in _servers(listen, self._stack):
      self._selector.register(server, selectors.EVENT_READ)
    self._tell_all()
    while len(self._guests) < self._count - 1:
      if not self._deadline.left():
        reason = self._deadline.reason()
        self._send_all(_line("refuse", why=f"process 0 gave up: {reason}"))
        raise ValueError(reason)
      for key, _ in self._selector.select(min(1.0, self._deadline.left())):
        if key.data is None:
          self._accept(key.fileobj)
        else:
          self._read(key.data)
    self._send_all(_line("begin", why=""))

  def _accept(self, server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # Who is gone again.
      connection, peer = server.accept()
      self._stack.enter_context(connection)
      connection.setblocking(False)
      guest = _Guest(connection, peer[0])
      self._selector.register(connection, selectors.EVENT_READ, guest)

  def _read(self, guest: _Guest) -> None:
    try:
      received = guest.connection.recv(_LINE_BYTES)
    except BlockingIOError:
      return
    except OSError:
      received = b""
    guest.received += received
    if guest.index is not None:
      if not received:
        self._leave(guest)
        del self._guests[guest.index]
        self._tell_all()
    elif b"\n" in guest.received:
      self._greet(guest)
    elif not received or len(guest.received) > _LINE_BYTES:
      self._leave(guest)

  def _leave(self, guest: _Guest) -> None:
    self._selector.unregister(guest.connection)
    guest.connection.close()

  def _greet(self, guest: _Guest) -> None:
    greeting = _parse(guest.received.partition(b"\n")[0])
    index, count = greeting.get("process"), greeting.get("of")
    if greeting.get(_KEY) != "join" or type(index) is not int:
      self._leave(guest)
      return
    why = ""
    if count != self._count:
      why = (
        f"it has --num_processes={count!r}, and process 0 has "
        f"--num_processes={self._count}"
      )
    elif index in self._guests or not 0 < index < self._count:
      other = self._guests.get(index)
      where = f"from {other.address}" if other else "and cannot come"
      why = f"there is a process {index} already, {where}"
    if why:
      why = f"process 0 refused process {index} of {guest.address}: {why}"
      print(why, file=sys.stderr, flush=True)
      self._refused.append(why)
      guest.send(_line("refuse", why=why))
      self._leave(guest)
    else:
      guest.index = index
      self._guests[index] = guest
    self._tell_all()

  def _tell_all(self) -> None:
    """Says who is missing."""
    missing = sorted(set(range(1, self._count)) - self._guests.keys())
    numbers = ", ".join(map(str, missing[:10]))
    numbers += f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    words = "process" if len(missing) == 1 else "processes"
    waits_for = f"process 0 waits at {self._address} for {words} {numbers}"
    if self._refused:
      waits_for += f" (the last that came: {self._refused[-1]})"
    self._deadline.waits_for = waits_for
    self._send_all(_line("wait", why=waits_for))

  def _send_all(self, line: bytes) -> None:
    for guest in self._guests.values():
      guest.send(line)


def _servers(
  listen: str, stack: contextlib.ExitStack
) -> Iterator[socket.socket]:
  """Sockets that listen at each address of a host, as JAX's coordinator will.

  Its own shares a port with any other that does as well, and so would be told
  nothing of another run there.
  """
  host, port = split_address(listen)
  try:
    places = socket.getaddrinfo(
      None if host == "::" else host,
      port,
      type=socket.SOCK_STREAM,
      flags=socket.AI_PASSIVE,
    )
  except OSError as error:
    raise ValueError(
      f"process 0 does not know the name {host!r} of --coordinator "
      f"({error.strerror}); give the name or address of its own machine"
    ) from error
  problem = None
  servers = []
  for family, kind, protocol, _, place in dict.fromkeys(places):
    try:
      server = stack.enter_context(socket.socket(family, kind, protocol))
      server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      if family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
      server.bind(place)
      server.listen(1024)
      server.setblocking(False)
      servers.append(server)
    except OSError as error:
      problem = error
      if error.errno == errno.EADDRINUSE:
        break
  if servers and (problem is None or problem.errno != errno.EADDRINUSE):
    return iter(servers)
  if problem.errno == errno.EADDRINUSE:
    why = "another program has that port, or another run; choose another port"
  else:
    why = (
      "it must be an address of its own machine. Where the others reach it by "
      f"another, set JAX_COORDINATOR_BIND_ADDRESS='[::]:{port}' for process 0, "
      "which then listens at all of its addresses"
    )
  raise ValueError(
    f"process 0 cannot listen at {listen} ({problem.strerror}): {why}"
  ) from problem


def _join(address: str, count: int, index: int, deadline: Deadline) -> None:
  host, port = split_address(address)
  waits_for = f"process {index} waits for process 0 at {address}"
  while deadline.left():
    try:
      with socket.create_connection(
        (host, port), timeout=min(_ANSWER_SECONDS, deadline.left() + 0.1)
      ) as connection:
        connection.sendall(_line("join", process=index, of=count))
        if _heed(connection, address, index, deadline):
          return
    except ConnectionRefusedError:
      deadline.waits_for = (
        f"{waits_for}: nobody listens there; it was not started, or has "
        "another address"
      )
    except TimeoutError:
      deadline.waits_for = (
        f"{waits_for}: that machine does not answer; it is down, or a "
        "firewall is between"
      )
    except OSError as error:
      deadline.waits_for = f"{waits_for}: {error.strerror or error}"
    time.sleep(min(_TRY_SECONDS, deadline.left()))
  raise ValueError(deadline.reason())


def _heed(
  connection: socket.socket, address: str, index: int, deadline: Deadline
) -> bool:
  """Follows process 0 until all have come; False if it is somebody else.

  Raises:
    ValueError: if process 0 goes, or refuses this one.
  """
  met = False
  with connection.makefile("rb") as lines:
    while True:
      wait = deadline.left() if met else min(_ANSWER_SECONDS, deadline.left())
      # A little longer than process 0, which says why it gives up.
      connection.settimeout(wait + 0.2)
      try:
        fields = _parse(lines.readline(_LINE_BYTES))
      except OSError:
        fields = {}
      if not fields:
        break
      met, why = True, str(fields.get("why"))
      if fields[_KEY] == "begin":
        return True
      if fields[_KEY] == "refuse":
        raise ValueError(why)
      deadline.waits_for = f"process {index} has joined; {why}"
  if met and deadline.left():
    raise ValueError(
      f"process 0 at {address} was there and ended before all had come; it "
      "says why. Start all processes again"
    )
  if not met:
    deadline.waits_for = (
      f"process {index} waits for process 0 at {address}: what listens there "
      "is another program, or a run that has begun already"
    )
  return False
