"""The training loop: steps, metrics, evaluations, checkpoints, interruptions.

It knows nothing of what is trained. Since a batch is a function of the step
and everything else is in the state, a run that is cut off and started again
ends bitwise as one that was not.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pdpo_jax.core import processes, structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.training import checkpoint, checkpoint_items, metrics, recipes

logger = logging.getLogger(__name__)


class Interrupted(Exception):
  """SIGTERM or SIGINT came, to any process; the state is saved."""


class NonFiniteLoss(ArithmeticError):
  """The loss or a gradient is not finite; the last good checkpoint is kept."""


@dataclasses.dataclass(frozen=True)
class Look:
  """Something that is found out on the way, and written with the metrics.

  Attributes:
    name: what the names of its scalars begin with.
    steps: after which it is done, if training is not done by then.
    find: `state -> scalars`.
    is_good: whether a state is, by its scalars. The last good one is kept, and
      training ends with it where the state after the last step is not good.
  """

  name: str
  steps: Collection[int]
  find: Callable[[structs.TrainState], dict[str, float]]
  is_good: Callable[[Mapping[str, float]], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Training:
  """One training, in the parts that differ between trainings.

  Attributes:
    name: of the progress bar.
    folder: gets metrics and checkpoints.
    state: where it starts.
    step: `(state, batch) -> (state, metrics)`, jitted; metrics are scalars
      and `example_loss` `[B]`.
    batch: of a step's number, from 0.
    total_steps: at which it ends.
    examples: a step.
    looks: on the way; what is done is looked at by whoever asked for it.
    notice: is told each line of metrics, and gives what is to be shown of it.
    describe: names the example of an index of a batch, for error messages.
    users: of the user table, None without one.
    meta: compared when a checkpoint is loaded.
  """

  name: str
  folder: pathlib.Path
  state: structs.TrainState
  step: Callable[[structs.TrainState, Any], tuple[structs.TrainState, dict]]
  batch: Callable[[int], Any]
  total_steps: int
  examples: int
  looks: Sequence[Look]
  notice: Callable[[int, Mapping[str, float]], str]
  describe: Callable[[int], str]
  users: users_lib.UserIndex | None
  meta: Mapping[str, Any]


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
  """Collects SIGTERM and SIGINT in place of dying from them."""
  caught: list[int] = []
  kinds = (signal.SIGTERM, signal.SIGINT)
  before = {}
  try:
    for kind in kinds:
      before[kind] = signal.signal(
        kind, lambda number, _: caught.append(number)
      )
  except ValueError:  # Not the main thread, which alone may handle signals.
    pass
  try:
    yield caught
  finally:
    for kind, handler in before.items():
      signal.signal(kind, handler)


def check_space(folder: pathlib.Path, state: Any, copies: int) -> None:
  """Fails before any work where checkpoints have no room.

  Raises:
    ValueError: if `copies` of `state` do not fit on the disk of `folder`.
  """
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  free = shutil.disk_usage(folder).free
  if free < copies * size:
    raise ValueError(
      f"run folder {str(folder)!r} has {free / 1e6:.1f} MB free, and "
      f"{copies} checkpoints need {copies * size / 1e6:.1f} MB; free some or "
      "choose another --config.workdir"
    )


def run(training: Training, cadence: recipes.TrainConfig) -> structs.TrainState:
  """Trains to the end, from the newest whole checkpoint if there is one.

  Raises:
    Interrupted: after SIGTERM or SIGINT; a checkpoint was saved before.
    NonFiniteLoss: naming the step and the examples.
    kept.Unwritable: if the run folder cannot be written; what was saved stays.
    ValueError: if a checkpoint there is of another base or other users.
  """
  folder = training.folder / "checkpoints"
  with checkpoint.Checkpoints(folder, cadence.keep_checkpoints) as saved:
    return _run(training, cadence, saved)


def _run(training, cadence, saved):
  state = checkpoint.restore(
    saved, training.state, training.users, training.meta
  )
  state = training.state if state is None else state
  start = int(state.step)
  if start > training.total_steps:
    raise ValueError(
      f"checkpoint {saved.folder / str(start)} is beyond the last step "
      f"{training.total_steps}; use another --config.workdir"
    )
  if start == training.total_steps:
    return state
  # The one being written comes on top of those that are kept.
  judged = any(look.is_good for look in training.looks)
  copies = cadence.keep_checkpoints + judged + 1 - len(saved.steps)
  check_space(training.folder, state, copies)
  writer = metrics.open_writer(training.folder, start)
  saved.preserve(
    processes.from_first(lambda: _last_good(training, writer.records, saved))
  )
  progress = metrics.Progress(
    training.name, start, training.total_steps, training.examples
  )
  mean = metrics.Mean()

  def settle():
    """Waits for the metrics of the last step and checks them."""
    nonlocal pending
    if pending is None:
      return
    (step, batch, values), pending = pending, None
    example_loss = values.pop("example_loss", None)
    values = jax.device_get(values)
    _check_finite(training, saved, step, batch, values, example_loss)
    mean.add({name: float(value) for name, value in values.items()})
    progress.step(step + 1)

  def write(step, values):
    writer.write(step, values)
    shown = training.notice(step, values)
    if shown:
      progress.say(shown)

  def save(step):
    writer.flush()
    items = checkpoint_items.of_state(state, training.users, training.meta)
    saved.save(step, items)

  looks = _Looks(training, saved, write)
  pending = None
  announcement = processes.Announcement()
  with (
    _signals() as caught,
    contextlib.closing(writer),
    contextlib.closing(progress),
  ):
    # One that was stopped may have been killed before it was looked at.
    if looks.take(start, state, _names(writer.records, start)):
      saved.preserve(start)
    for step in range(start, training.total_steps):
      saved.check()
      batch = training.batch(step)
      state, values = training.step(state, batch)
      # The metrics of the step before are read while this one runs.
      settle()
      pending = (step, batch, values)
      done = step + 1
      # Read once: a signal that comes later is for the next step. Where there
      # are several processes, it was announced a step before, and all stop.
      number = announcement.exchange(caught[0] if caught else 0)
      stop = number > 0 and done < training.total_steps
      last = stop or done == training.total_steps
      if last or done % cadence.log_every == 0:
        settle()
        means = mean.take()
        means["samples_per_second"] = progress.show(done, means)
        write(done, means)
      if stop:  # Whoever stops it may not wait for a look.
        save(done)
      if looks.take(done, state):
        saved.preserve(done)
      if done == training.total_steps:
        state = looks.last_good(state)
      if (
        last or saved.preserved == done or done % cadence.checkpoint_every == 0
      ):
        settle()
        save(done)
      if stop:
        saved.wait()
        raise Interrupted(
          f"stopped by {signal.Signals(number).name} at step {done} of "
          f"{training.total_steps}; the state is saved in {saved.folder}. Run "
          "the same command to go on"
        )
    saved.wait()
    # One that came too late for a step is for whatever comes next.
    numbers = processes.gather(caught[0] if caught else 0)
    if any(numbers):
      raise Interrupted(
        f"stopped by {signal.Signals(max(numbers)).name}; all "
        f"{training.total_steps} steps are done, and saved in {saved.folder}. "
        "Run the same command to go on with what comes after"
      )
  return state


def _names(records: Sequence[Mapping[str, Any]], step: int) -> set[str]:
  """Of the scalars that are there of a step."""
  return {
    name for record in records if record["step"] == step for name in record
  }


def _last_good(
  training: Training,
  records: Sequence[Mapping[str, Any]],
  saved: checkpoint.Checkpoints,
) -> int | None:
  """The last step that was found good and is still there, by its metrics."""
  steps = [
    record["step"]
    for record in records
    for look in training.looks
    if look.is_good
    and any(name.startswith(look.name) for name in record)
    and look.is_good(
      {name: float(value) for name, value in record.items() if name != "step"}
    )
  ]
  there = saved.steps
  return max((step for step in steps if step in there), default=None)


class _Looks:
  """Looks at a state, and chooses which one a training ends with."""

  def __init__(
    self,
    training: Training,
    saved: checkpoint.Checkpoints,
    write: Callable[[int, Mapping[str, float]], None],
  ):
    self._training = training
    self._saved = saved
    self._write = write

  def take(
    self, step: int, state: structs.TrainState, known: Collection[str] = ()
  ) -> bool:
    """Writes what is due at a step, but for scalars that are `known`.

    Returns:
      Whether the state is one that the training may end with.
    """
    if not 0 < step < self._training.total_steps:
      return False
    good = []
    for look in self._training.looks:
      if step in look.steps and not processes.from_first(
        lambda look=look: any(name.startswith(look.name) for name in known)
      ):
        good.append(self._take(step, look, state))
    return any(good)

  def _take(self, step: int, look: Look, state: structs.TrainState) -> bool:
    scalars = {
      f"{look.name}{name}": value for name, value in look.find(state).items()
    }
    self._write(step, scalars)
    return look.is_good is not None and processes.from_first(
      lambda: look.is_good(scalars)
    )

  def last_good(self, state: structs.TrainState) -> structs.TrainState:
    """What a training ends with: `state`, or what was kept if that is better.

    Args:
      state: after the last step.
    """
    training, saved = self._training, self._saved
    kept_step = saved.preserved
    judges = [look for look in training.looks if look.is_good]
    good = [self._take(training.total_steps, look, state) for look in judges]
    if all(good):
      saved.preserve(None)
      return state
    if kept_step is None:
      return state
    saved.wait()
    # It stays: where the last checkpoint is lost, training ends here again.
    try:
      earlier = checkpoint.restore(
        saved, state, training.users, training.meta, kept_step
      )
    except ValueError as error:
      logger.warning("%s ends with its last step: %s", training.name, error)
      return state
    logger.warning(
      "%s ends with what it was after step %d, the last that was good: after "
      "step %d it is not",
      training.name,
      kept_step,
      training.total_steps,
    )
    self._write(training.total_steps, {"ends_with_step": float(kept_step)})
    return dataclasses.replace(earlier, step=state.step)


def _check_finite(training, saved, step, batch, values, example_loss):
  """Raises `NonFiniteLoss` if the loss or a gradient norm is not finite."""
  names = [
    name
    for name, value in values.items()
    if (name == "loss" or name.startswith("grad_norm"))
    and not math.isfinite(value)
  ]
  if not names:
    return
  examples = ""
  if example_loss is not None:
    decisions = batch.decisions
    every = processes.fetch(
      batch.index if decisions is None else decisions.example
    )
    index = every[~np.isfinite(processes.fetch(example_loss))]
    # With finite losses it is a gradient that is not, and any may be to blame.
    if not index.size:
      index = every
    # Once each, in the batch's order.
    index = np.array([*dict.fromkeys(index[index >= 0].tolist())])
    shown = [training.describe(int(place)) for place in index[:5]]
    more = f" and {index.size - 5} more" if index.size > 5 else ""
    examples = f" Examples: {'; '.join(shown)}{more}."
  saved.wait()
  steps = saved.steps
  kept = f"step {steps[-1]} in {saved.folder}" if steps else "none yet"
  raise NonFiniteLoss(
    f"{', '.join(names)} is not finite at step {step}.{examples} The last good "
    f"checkpoint is kept ({kept}). Look at these examples, or lower "
    "train.learning_rate"
  )
