r"""Answers people as themselves, by OpenAI's protocol and by a page.

  python -m pdpo_jax.serve --workdir=runs/quickstart

Then http://127.0.0.1:8000 is a page that learns somebody from clicks, and
http://127.0.0.1:8000/v1 is what OpenAI's clients call `base_url`. The field
`user` says who asks. PDPO_API_KEY in the environment is the key that they have
to bring (docs/serving.md).
"""

import contextlib
import functools
import ipaddress
import os
import pathlib
import socket
import sys
from collections.abc import Iterator, Sequence

import uvicorn
from absl import flags

from pdpo_jax import command_line
from pdpo_jax.core import together
from pdpo_jax.inference import engine as engine_lib
from pdpo_jax.inference import remote
from pdpo_jax.runs import locks, run_folder
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs.erasure import erase as erase_lib
from pdpo_jax.serving import app, guard, questions, service, speakers

_WORKDIR = command_line.workdir_flag()
_HOST = flags.DEFINE_string(
  "host", "127.0.0.1", "Address to listen at; 0.0.0.0 is for everybody."
)
_PORT = flags.DEFINE_integer(
  "port", 8000, "Port; 0 takes a free one.", lower_bound=0, upper_bound=65535
)
_ALLOW_HOST = flags.DEFINE_multi_string(
  "allow_host",
  [],
  "A further name that clients call this server by, such as that of a proxy "
  "before it; may be given several times.",
)
_DATABASE = command_line.database_flag()
_QUESTIONS = flags.DEFINE_string(
  "questions", None, "File of questions for newcomers, one a line."
)
_SLOTS = flags.DEFINE_integer(
  "slots", 16, "Answers that are made at once.", lower_bound=1
)
_QUEUE = flags.DEFINE_integer(
  "queue", 64, "Requests that may wait for a slot.", lower_bound=0
)
_ENGINE = flags.DEFINE_string(
  "engine",
  "jax",
  "Who answers: 'jax', which is here, or the address of vLLM's server "
  "(docs/serving.md).",
)
_POSITIONS = flags.DEFINE_integer(
  "positions",
  0,
  "Tokens of prefix, prompt and answer together, at most; 0: the longest of "
  "the training, with room for an answer twice as long.",
  lower_bound=0,
)
PDPO_API_KEY = "PDPO_API_KEY"
# Until answers that are being made at the end are broken off.
_PATIENCE_SECONDS = 5


def open_run(folder: pathlib.Path, database: str) -> run_lib.Run:
  """A run that people can be answered with.

  Raises:
    ValueError: if it is none.
  """
  if together.is_unfinished(folder):
    with locks.writing(folder):
      erase_lib.finish(folder)
    print("An erasure that was interrupted is finished.", file=sys.stderr)
  run = run_lib.Run.open(folder, database=database)
  if not run_folder.is_done(folder, run.config):
    raise ValueError(
      f"{folder} is not trained to its end; start its training again, with "
      f"--config={folder / run_folder.CONFIG}"
    )
  if not run.config.user.prefix_length:
    raise ValueError(
      f"{folder} has no user model (user.kind 'none'), so that everybody would "
      "be answered alike; `export` writes it for other servers"
    )
  run.own.check()
  if not run.own.table.ids:
    raise ValueError(
      f"{folder} has no users, and how people differ is learnt from them; "
      "train it on choices whose users are known"
    )
  run.people.make()
  return run


def bind(host: str, port: int) -> socket.socket:
  """A socket at which nobody listens yet.

  Raises:
    ValueError: if the address is none of this machine's, or in use.
  """
  with _socket_errors(host, port):
    family, *_, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(address)
    except OSError:
      listener.close()
      raise
  return listener


def listen(listener: socket.socket) -> None:
  """Lets clients in.

  Raises:
    ValueError: if another server took the address since it was bound.
  """
  host, port = listener.getsockname()[:2]
  with _socket_errors(host, port):
    listener.listen()


@contextlib.contextmanager
def _socket_errors(host: str, port: int) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise ValueError(
      f"--host {host} --port {port} cannot be listened at "
      f"({error.strerror or error}); choose another address or port, or stop "
      "whoever has it"
    ) from error


def is_loopback(host: str) -> bool:
  if host == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False


def hosts_of(host: str, further: Sequence[str]) -> tuple[str, ...]:
  """The names that clients may call a server of this machine alone by.

  Args:
    host: that it listens at.
    further: names besides.

  Raises:
    ValueError: if one is no name.
  """
  for name in further:
    if not name or guard.name_of(name) != name.lower():
      raise ValueError(
        f"--allow_host {name!r} is no name of a host; give it without scheme, "
        "port and path"
      )
  return "localhost", "127.0.0.1", "::1", host, *map(str.lower, further)


def positions_of(run: run_lib.Run, positions: int) -> int:
  """Room for a request: what the training had, with an answer twice as long.

  Args:
    positions: in place of that; 0: none.

  Raises:
    ValueError: if no request fits in, or the model has fewer.
  """
  config, arch = run.config, run.base.lm.arch
  if positions:
    least = config.user.prefix_length + 2  # A token asks, and one answers.
    if not least <= positions <= arch.max_positions:
      raise ValueError(
        f"--positions {positions} must be {least}, for a prefix and a token "
        f"each of prompt and answer, to the model's {arch.max_positions}"
      )
    return positions
  answer = max(config.answers.max_new_tokens, config.data.max_response_tokens)
  needed = config.user.prefix_length + config.data.max_prompt_tokens
  return min(arch.max_positions, needed + 2 * answer)


@contextlib.contextmanager
def serving(run: run_lib.Run) -> Iterator[service.Service]:
  """All that requests are answered with, until it is left."""
  asked = None
  if _QUESTIONS.value:
    asked = questions.read(pathlib.Path(_QUESTIONS.value).expanduser())
  people = speakers.Speakers(run)
  positions = positions_of(run, _POSITIONS.value)
  make = engine_lib.Engine
  if _ENGINE.value != "jax":
    make = functools.partial(remote.RemoteEngine, _ENGINE.value)
  with make(
    people.policy,
    stop_tokens=stop_tokens(run),
    slots=_SLOTS.value,
    positions=positions,
    queue=_QUEUE.value,
  ) as engine:
    room = service.Service(
      run, _DATABASE.value, people, engine, positions, asked
    )
    try:
      yield room
    finally:
      room.close()


def stop_tokens(run: run_lib.Run) -> list[int]:
  """What ends an answer: of the base, and of the template."""
  encoder = service.encoder_of(run)
  return sorted({*run.base.stop_tokens, encoder.end_id})


def read_key() -> str:
  """What clients have to bring; empty: nothing.

  Raises:
    ValueError: if there is to be a key, and it is empty.
  """
  key = os.environ.get(PDPO_API_KEY)
  if key is not None and not key.strip():
    raise ValueError(
      f"{PDPO_API_KEY} is set but empty, and would let everybody in; give it a "
      "key, or unset it"
    )
  return (key or "").strip()


def main() -> None:
  if _WORKDIR.value is None:
    raise ValueError("--workdir is needed, e.g. --workdir=runs/quickstart")
  folder = pathlib.Path(_WORKDIR.value).expanduser()
  key = read_key()
  local = is_loopback(_HOST.value)
  listener = bind(_HOST.value, _PORT.value)
  run = open_run(folder, _DATABASE.value)
  host, port = listener.getsockname()[:2]
  hosts = hosts_of(host, _ALLOW_HOST.value)
  with serving(run) as room:
    config = uvicorn.Config(
      app.make_app(room, key, hosts if local and not key else ()),
      access_log=False,
      log_level="warning",
      ws="none",
      lifespan="off",
      timeout_graceful_shutdown=_PATIENCE_SECONDS,
    )
    listen(listener)
    shown = f"[{host}]" if ":" in host else host
    print(f"{room.model}: http://{shown}:{port}", flush=True)
    if not local and not key:
      print(
        "Whoever reaches this machine may ask, and erase people; set "
        f"{PDPO_API_KEY} to have clients bring a key.",
        file=sys.stderr,
      )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
  command_line.run(main)
