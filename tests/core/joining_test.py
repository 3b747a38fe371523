"""How processes find each other, as threads of one; no JAX."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import pytest

from pdpo_jax.core import joining

# More than any of this takes, where it does not wait for the end of it.
PATIENCE = 30


@pytest.fixture
def address() -> str:
  with socket.create_server(("127.0.0.1", 0)) as server:
    return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def pool():
  with futures.ThreadPoolExecutor(8) as threads:
    yield threads


def meet(address, count, index, seconds=PATIENCE) -> None:
  # Never entered, a deadline ends no process.
  deadline = joining.Deadline(seconds, "")
  joining.meet(address, count, index, deadline, address)


def reason(call: futures.Future) -> str:
  with pytest.raises(ValueError) as error:
    call.result(timeout=PATIENCE)
  return str(error.value)


def connect(address: str) -> socket.socket:
  """A connection to process 0, once that listens."""
  place = joining.split_address(address)
  for _ in range(200):
    with contextlib.suppress(ConnectionRefusedError):
      return socket.create_connection(place, timeout=PATIENCE)
    time.sleep(0.05)
  raise AssertionError("process 0 does not listen")


def greet(address: str, line: bytes) -> socket.socket:
  connection = connect(address)
  connection.sendall(line)
  return connection


def test_all_return_once_all_have_come_and_the_port_is_free(address, pool):
  calls = [pool.submit(meet, address, 3, index) for index in (1, 0)]
  time.sleep(0.3)
  assert not any(call.done() for call in calls)
  meet(address, 3, 2)
  for call in calls:
    call.result(timeout=PATIENCE)
  # For JAX's coordinator.
  with socket.create_server(joining.split_address(address)):
    pass


def test_one_process_waits_for_nobody(address):
  meet(address, 1, 0, seconds=0)


def test_who_waits_in_vain_says_for_whom_and_how_long(address, pool):
  calls = [
    pool.submit(meet, address, 4, 2, PATIENCE),
    pool.submit(meet, address, 4, 0, 3),
  ]
  for call in calls:
    assert (
      f"process 0 waits at {address} for processes 1, 3. That took 3 s; "
      "--join_timeout sets it"
    ) in reason(call)


def test_where_nobody_listens_a_process_says_so(address):
  begin = time.monotonic()
  with pytest.raises(
    ValueError,
    match=f"process 1 waits for process 0 at {address}: nobody listens there; "
    r".* That took 1 s; --join_timeout sets it",
  ):
    meet(address, 2, 1, seconds=1)
  assert time.monotonic() - begin < PATIENCE / 2


def test_a_process_waits_for_process_0_to_listen(address, pool):
  call = pool.submit(meet, address, 2, 1)
  time.sleep(0.2)
  meet(address, 2, 0)
  call.result(timeout=PATIENCE)


@contextlib.contextmanager
def answering(address: str, answer: bytes, stays: bool):
  """Listens, and answers everybody the same; closes or stays silent then."""
  connections = []

  def serve():
    with contextlib.suppress(OSError):
      while True:
        connection, _ = server.accept()
        connection.sendall(answer)
        connections.append(connection)
        if not stays:
          connection.close()

  with socket.create_server(joining.split_address(address)) as server:
    threading.Thread(target=serve, daemon=True).start()
    yield
  for connection in connections:
    connection.close()


@pytest.mark.parametrize(
  ("answer", "stays"),
  [
    (b"", True),
    (b"", False),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
    (b"\x00\x00\x12\x04\x00\n", True),  # of gRPC
    (b"[1]\n", True),
    (b"[" * 9999 + b"\n", True),
    (b'{"pdpo_jax": 1}\n', True),
    (b"x" * 9999, True),
  ],
)
def test_another_program_in_place_of_process_0_is_told_apart(
  address, answer, stays
):
  with (
    answering(address, answer, stays),
    pytest.raises(ValueError, match="what listens there is another program"),
  ):
    meet(address, 2, 1, seconds=1)


def test_who_loses_process_0_before_all_have_come_ends_at_once(address):
  line = joining._line("wait", why="process 0 waits for process 2")
  with (
    answering(address, line, stays=False),
    pytest.raises(ValueError, match="was there and ended before all had come"),
  ):
    meet(address, 3, 1)


def test_a_process_that_went_is_waited_for_again(address, pool):
  call = pool.submit(meet, address, 3, 0)
  with greet(address, joining._line("join", process=1, of=3)) as first:
    assert b"wait" in first.recv(4096)
  time.sleep(0.2)
  others = [pool.submit(meet, address, 3, 2)]
  time.sleep(0.3)
  assert not call.done()
  others.append(pool.submit(meet, address, 3, 1))
  for each in (call, *others):
    each.result(timeout=PATIENCE)


@pytest.mark.parametrize(
  ("count", "index", "why"),
  [
    (2, 1, "it has --num_processes=2, and process 0 has --num_processes=3"),
    (4, 3, "it has --num_processes=4, and process 0 has --num_processes=3"),
    (3, 1, r"there is a process 1 already, from 127\.0\.0\.1"),
  ],
)
def test_a_process_with_wrong_numbers_is_refused_and_others_are_not(
  address, pool, count, index, why, capfd
):
  calls = [pool.submit(meet, address, 3, 0)]
  first = greet(address, joining._line("join", process=1, of=3))
  assert b"wait" in first.recv(4096)
  with pytest.raises(ValueError, match=f"refused process {index} of .*: {why}"):
    meet(address, count, index)
  meet(address, 3, 2)
  for call in calls:
    call.result(timeout=PATIENCE)
  assert f"process 0 refused process {index} of" in capfd.readouterr().err
  first.close()


@pytest.mark.parametrize(
  "line",
  [
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\xff\xfe\n",
    b"\n",
    b"[" * 9999 + b"\n",
    b"x" * 99999,
    b'{"pdpo_jax": "join"}\n',
    b'{"pdpo_jax": "join", "process": true, "of": 2}\n',
    b'{"pdpo_jax": "join", "process": "1", "of": 2}\n',
    b'{"pdpo_jax": "join", "process": 0, "of": 2}\n',
    b'{"pdpo_jax": "join", "process": -1, "of": 2}\n',
    b'{"pdpo_jax": "join", "process": 1, "of": [2]}\n',
  ],
)
def test_a_stranger_keeps_nobody_from_joining(address, pool, line):
  call = pool.submit(meet, address, 2, 0)
  with greet(address, line), connect(address):
    time.sleep(0.1)
    assert not call.done()
    meet(address, 2, 1)
    call.result(timeout=PATIENCE)


def test_a_port_that_is_taken_is_an_error_at_once(address):
  with (
    socket.create_server(joining.split_address(address)),
    pytest.raises(ValueError, match=r"cannot listen at .* choose another port"),
  ):
    meet(address, 2, 0)


def test_two_that_are_process_0_are_an_error(address, pool):
  call = pool.submit(meet, address, 2, 0)
  connect(address).close()
  with pytest.raises(ValueError, match="or another run; choose another port"):
    meet(address, 2, 0)
  meet(address, 2, 1)
  call.result(timeout=PATIENCE)


def test_process_0_listens_at_the_named_address_alone(address, pool):
  call = pool.submit(meet, address, 2, 0)
  connect(address).close()
  _, port = joining.split_address(address)
  with pytest.raises(ConnectionRefusedError):
    socket.create_connection(("127.0.0.2", port), timeout=5)
  meet(address, 2, 1)
  call.result(timeout=PATIENCE)


def test_process_0_listens_everywhere_where_it_shall(address, pool):
  _, port = joining.split_address(address)
  call = pool.submit(
    joining.meet,
    address,
    2,
    0,
    joining.Deadline(PATIENCE, ""),
    f"[::]:{port}",
  )
  meet(f"127.0.0.2:{port}", 2, 1)
  call.result(timeout=PATIENCE)


def test_an_address_of_another_machine_is_an_error_at_once():
  # Of documentation (RFC 5737); nobody has it.
  with pytest.raises(
    ValueError, match=r"its own machine.*JAX_COORDINATOR_BIND_ADDRESS='\[::\]:"
  ):
    meet("192.0.2.1:1234", 2, 0)


def test_a_name_that_is_not_known_is_said(monkeypatch):
  def fail(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

  monkeypatch.setattr(socket, "getaddrinfo", fail)
  with pytest.raises(ValueError, match="does not know the name 'nowhere'"):
    meet("nowhere:1234", 2, 0)
  with pytest.raises(
    ValueError, match=r"process 0 at nowhere:1234: Name or service not known"
  ):
    meet("nowhere:1234", 2, 1, seconds=1)


@pytest.mark.parametrize(
  "address",
  [
    "",
    "localhost",
    "localhost:",
    ":1234",
    "localhost:abc",
    "localhost:0",
    "localhost:65536",
    "localhost:1234 ",
    "http://localhost:1234",
    "::1:1234",
    "localhost:1234/x",
  ],
)
def test_what_is_no_address_is_an_error(address):
  with pytest.raises(ValueError, match=r"--coordinator=.* is not HOST:PORT"):
    joining.split_address(address)


def test_addresses_have_host_and_port():
  assert joining.split_address("node-1.x:80") == ("node-1.x", 80)
  assert joining.split_address("[::1]:65535") == ("::1", 65535)


@pytest.mark.parametrize("numbers", [(2, 2), (2, -1), (0, 0), (-1, 0)])
def test_a_process_that_cannot_be_is_an_error(numbers):
  with pytest.raises(ValueError, match="numbered from 0 to"):
    joining.check_numbers(*numbers)


def test_a_wait_that_heeds_no_time_is_ended_with_what_it_waits_for():
  wait = (
    "import time; from pdpo_jax.core import joining\n"
    "with joining.Deadline(1, 'process 1 waits for a name'): time.sleep(60)"
  )
  ended = subprocess.run(
    [sys.executable, "-c", wait],
    capture_output=True,
    text=True,
    timeout=PATIENCE,
  )
  assert ended.returncode == 1
  assert ended.stderr.strip() == (
    "error: process 1 waits for a name. That took 1 s; --join_timeout sets it"
  )


def test_a_process_says_now_and_then_what_it_waits_for(monkeypatch, capfd):
  monkeypatch.setattr(joining, "_SAY_SECONDS", 0.01)
  errors = ""
  with joining.Deadline(PATIENCE, "process 1 waits for a name") as deadline:
    while "\n" not in errors and deadline.left():
      time.sleep(0.05)
      errors += capfd.readouterr().err
    time.sleep(0.1)  # in which it is not said again
  errors += capfd.readouterr().err
  assert errors.count("process 1 waits for a name (") == 1
