"""Several processes that work as one: how they meet, talk, agree and end.

All run the same program, and each makes the same calls of this module in the
same order. What JAX computes is computed by the devices of all; files and
prints are the first process's. Without `start` there is one process, and
everything here is immediate.

No process waits forever. One that fails tells the others why before it leaves
(`fail`), one that is silent is missed (`liveness`), and the others then leave
by `os._exit`, since JAX's own way out waits for those who are gone.
"""

import contextlib
import ctypes
import dataclasses
import functools
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax import sharding as jax_sharding
from jax.experimental import multihost_utils

from pdpo_jax.core import joining, liveness, messages

T = TypeVar("T")

# JAX's own deadlines, at which it aborts the process with a stack trace, lie
# this far behind ours.
_BEHIND_SECONDS = 60
_STRANGERS = (
  "Whoever reaches the coordinator can write there: see that these processes "
  "alone do (launch/README.md)"
)
# For a value to arrive that is there.
_SEND_MILLISECONDS = 3_600_000


@dataclasses.dataclass
class _Group:
  """This process among the others."""

  index: int
  count: int
  store: Any  # JAX's key-value store
  calls: Iterator[int] = dataclasses.field(default_factory=itertools.count)
  watch: liveness.Watch | None = None


_group: _Group | None = None


def start(
  address: str | None,
  count: int | None,
  index: int | None,
  *,
  join_timeout: int,
  silence_timeout: int,
) -> None:
  """Joins the other processes; before JAX is used for anything.

  Cloud TPU, GKE and Slurm tell JAX who they are. Elsewhere all of the first
  three arguments are needed.

  Args:
    address: host and port of process 0, which listens there.
    count: of processes.
    index: of this one.
    join_timeout: seconds until all must have joined; then the process ends.
    silence_timeout: seconds after which a process that gives no sign of life
      is taken for dead, and the others end.

  Raises:
    ValueError: if no cluster is found and an argument is missing or wrong; if
      not all have joined in time, or one is there twice.
  """
  global _group
  # Its handler of SIGTERM would take the place of the training loop's.
  jax.config.update("jax_enable_preemption_service", False)
  waits_for = "a process waits to learn where it joins the others"
  with joining.Deadline(join_timeout, waits_for) as deadline:
    named = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    address, count, index = _find(named, count, index, join_timeout)
    joining.check_numbers(count, index)
    # Others may know this machine by an address that it does not: a cluster's
    # is none that a person named for it to listen at.
    everywhere = f"[::]:{joining.split_address(address)[1]}"
    listen = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    listen = listen or (address if named else everywhere)
    joining.meet(address, count, index, deadline, listen)
    deadline.waits_for = (
      f"process {index} waits for JAX to connect it; all {count} had come, and "
      f"one has ended since, or is kept from {address}"
    )
    try:
      jax.distributed.initialize(
        address,
        count,
        index,
        coordinator_bind_address=listen,
        initialization_timeout=join_timeout + _BEHIND_SECONDS,
        heartbeat_timeout_seconds=silence_timeout + _BEHIND_SECONDS,
      )
    except (ValueError, RuntimeError) as error:
      raise ValueError(
        f"JAX could not connect the processes: {error}"
      ) from error
  state = _jax_state()
  _group = _Group(state.process_id, state.num_processes, state.client)
  _group.watch = liveness.Watch(
    state.client, state.process_id, state.num_processes, silence_timeout, _leave
  )
  _group.watch.start()
  # Where no training waits for it, it ends all processes.
  signal.signal(signal.SIGTERM, _stop)
  # Python would never see it.
  ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)
  if not is_first():
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


class Stopped(SystemExit):
  """A signal came where no training waits for it; what is kept stays."""


def _stop(number: int, _: Any) -> NoReturn:
  raise Stopped(f"stopped by {signal.Signals(number).name}")


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_: int) -> None:
  """Ends a process that JAX aborts, which it does when process 0 is gone.

  JAX does so from a thread of its own, with a dump of all stacks to follow.
  """
  _leave(f"JAX aborted this process; most often, {liveness.FIRST_IS_GONE}")


def _jax_state() -> Any:
  # Has no public name; a single process does without it.
  from jax._src import distributed

  return distributed.global_state


def _find(
  address: str | None, count: int | None, index: int | None, timeout: int
) -> tuple[str, int, int]:
  """What is not given, as JAX finds it in a cluster."""
  problem = "JAX finds no cluster here"
  if None in (address, count, index):
    # Has no public name; `initialize` would find them, and tell nobody.
    from jax._src import clusters

    try:
      address, count, index, _ = (
        clusters.ClusterEnv.auto_detect_unset_distributed_params(
          address, count, index, None, None, timeout
        )
      )
    except (ValueError, RuntimeError, OSError) as error:
      problem = f"JAX could not find the others: {error}"
  if address is None or count is None or index is None:
    raise ValueError(
      f"--distributed could not begin: {problem}. It knows Cloud TPU, GKE and "
      "Slurm; elsewhere give --coordinator=HOST:PORT, --num_processes and "
      "--process_id, or use launch/local.sh"
    )
  return address, count, index


def several() -> bool:
  return _group is not None


def index() -> int:
  return _group.index if _group else 0


def is_first() -> bool:
  """Whether this process writes files, prints, and asks services."""
  return index() == 0


def gather(value: T) -> list[T]:
  """Every process's value, in their order; returns once all have come.

  Raises:
    ValueError: if the value is none that `messages` can carry, or another's
      is not.
  """
  if _group is None:
    return [value]
  message = messages.encode(value)
  number, store = next(_group.calls), _group.store
  try:
    store.key_value_set_bytes(f"gather/{number}/{_group.index}", message)
    store.key_value_set(f"ready/{number}/{_group.index}", "")
  except jax.errors.JaxRuntimeError as error:
    if "ALREADY_EXISTS" not in str(error):
      raise
    raise ValueError(
      f"somebody wrote in place of process {_group.index}. {_STRANGERS}"
    ) from error
  values = [
    value if other == _group.index else _receive(number, other)
    for other in range(_group.count)
  ]
  if number:  # All who came to this call have read what the last one left.
    for kind in ("gather", "ready"):
      store.key_value_delete(f"{kind}/{number - 1}/{_group.index}")
  return values


def _receive(number: int, other: int) -> Any:
  try:
    return messages.decode(_wait_for(f"{number}/{other}"))
  except ValueError as error:
    raise ValueError(
      f"process {other} sent what cannot be read ({error}). {_STRANGERS}"
    ) from error


def _wait_for(name: str) -> bytes:
  """A value of the store, however long it takes."""
  while True:
    try:
      # In pieces, since no signal is handled meanwhile. The value itself is
      # not: what a deadline cuts off is sent from its beginning again.
      _group.store.blocking_key_value_get(f"ready/{name}", 1000)
      break
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise
  return _group.store.blocking_key_value_get_bytes(
    f"gather/{name}", _SEND_MILLISECONDS
  )


def wait_for_all() -> None:
  """Returns once every process has come here."""
  gather(None)


def from_first(make: Callable[[], T]) -> T:
  """What `make` returns on the first process, where alone it is called.

  Raises:
    Exception: on every process, what `make` raised; on the others with type
      and text, as `messages` has it.
  """
  if _group is None:
    return make()
  value, error = None, None
  if is_first():
    try:
      value = make()
    except Exception as raised:
      error = raised
  value, error = gather((value, error))[0]
  if error is not None:
    raise error
  return value


def agree(subject: str, values: Mapping[str, Any]) -> None:
  """Checks that all processes have the same values.

  Raises:
    ValueError: on every process, naming what differs, and where.
  """
  by_process = gather(dict(values))
  names = dict.fromkeys(
    name for values_there in by_process for name in values_there
  )
  differences = [
    f"{name} is {values_there.get(name)!r} on process {place} and "
    f"{by_process[0].get(name)!r} on process 0"
    for name in names
    for place, values_there in enumerate(by_process)
    if values_there.get(name) != by_process[0].get(name)
  ]
  if differences:
    raise ValueError(
      f"the processes do not agree on {subject}: {'; '.join(differences)}. "
      "Start all with the same command, files and versions"
    )


def fetch(array: Any) -> np.ndarray:
  """The values of an array that may lie on the devices of all processes."""
  if (
    not isinstance(array, jax.Array)
    or array.is_fully_addressable
    or array.is_fully_replicated
  ):
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


class Announcement:
  """The largest number that any process announces, told to all a call later.

  One call a training step. The numbers meet on the devices, behind the step
  that was begun before, so that nobody waits; all processes learn the same at
  the same step.
  """

  def __init__(self):
    self._announced: jax.Array | None = None

  def exchange(self, number: int) -> int:
    """Announces `number`; returns what was announced before, 0 for nothing.

    A single process hears itself at once.
    """
    if _group is None:
      return number
    heard = self._announced
    self._announced = _largest(number)
    return 0 if heard is None else int(heard)


def _largest(number: int) -> jax.Array:
  maximum, split = _make_maximum()
  local, shape = np.full(1, number, np.int32), (jax.device_count(),)
  return maximum(jax.make_array_from_callback(shape, split, lambda _: local))


@functools.cache
def _make_maximum() -> tuple[Callable, jax_sharding.Sharding]:
  mesh = jax_sharding.Mesh(np.array(jax.devices()), "all")
  spec = jax_sharding.PartitionSpec
  split = jax_sharding.NamedSharding(mesh, spec("all"))
  whole = jax_sharding.NamedSharding(mesh, spec())
  return jax.jit(lambda x: x.max(), out_shardings=whole), split


def finish() -> None:
  """Lets all processes end together, the first last."""
  global _group
  if _group is None:
    return
  wait_for_all()
  _group.watch.stop()
  jax.distributed.shutdown()
  _group = None


def fail(reason: str, status: int = 1) -> NoReturn:
  """Ends this process, from any thread, and the others with its reason."""
  if _group is not None:
    _group.watch.stop()
    with contextlib.suppress(Exception):  # The store may be what failed.
      _group.store.key_value_set(f"failed/{_group.index}", reason)
  _leave(reason, status)


def is_broken_off(error: BaseException) -> bool:
  """Whether it is what a common computation raises when a process goes.

  JAX has no type of its own for it.
  """
  text = str(error)
  of_runtime = isinstance(error, jax.errors.JaxRuntimeError)
  return "Gloo" in text or (of_runtime and "RESOURCE_EXHAUSTED" not in text)


def fail_together(error: BaseException) -> NoReturn:
  """As `fail`, for an error in what all do together.

  When a process goes, the others' common computation breaks off, with an error
  that says nothing of the cause; who knows it will say so within moments.
  """
  time.sleep(6 * liveness.BEAT_SECONDS)
  silent = _group.watch.silent(4 * liveness.BEAT_SECONDS)
  who = f"process {silent[0]} is gone" if silent else "another may be gone"
  fail(
    f"process {index()} broke off a common computation: {who}. "
    f"{liveness.GO_ON}. JAX says: {str(error).splitlines()[0]}"
  )


def _leave(reason: str, status: int = 1) -> NoReturn:
  joining.say_last(reason)
  # The store is in the first process, and goes with it.
  if _group is not None and is_first():
    time.sleep(4 * liveness.BEAT_SECONDS)
  os._exit(status)
