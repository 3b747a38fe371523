import dataclasses
import gc
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import checkpoint_manager

from pdpo_jax.core import kept, structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import user_model
from pdpo_jax.training import checkpoint, loop, metrics, recipes

ROOT = pathlib.Path(__file__).parents[2]
CADENCE = recipes.TrainConfig(
  log_every=2, checkpoint_every=2, keep_checkpoints=2
)


def held_out_look(find=lambda state: {"loss": float(state.step)}, every=3):
  return loop.Look(metrics.HELD_OUT, range(0, 10**9, every), find)


def make_training(folder, *, total_steps=7, at_step=None, **changes):
  """Adds each batch to the state; calls `at_step` before each step."""

  @jax.jit
  def add(state, batch):
    trainable = jax.tree.map(lambda x: x + batch.weight.sum(), state.trainable)
    values = {"loss": batch.weight.sum(), "example_loss": batch.weight}
    return structs.TrainState(
      state.step + 1, trainable, state.opt_state
    ), values

  def step(state, batch):
    if at_step is not None:
      at_step(int(state.step))
    return add(state, batch)

  def batch(step):
    weight = np.array([step, 1.0], np.float32)
    return structs.PreferenceBatch(np.array([step, -1]), *[None] * 6, weight)

  offsets = user_model.UserParam(jnp.zeros((2, 3)))
  trainable = nnx.from_flat_state([(("user_model", "offsets"), offsets)])
  training = loop.Training(
    name="test",
    folder=folder,
    state=structs.TrainState(jnp.int32(0), trainable, {"mu": jnp.zeros(5)}),
    step=step,
    batch=batch,
    total_steps=total_steps,
    examples=2,
    looks=[held_out_look()],
    notice=lambda step, values: "",
    describe=lambda index: f"example {index}",
    users=users_lib.UserIndex(["ann"]),
    meta={"base": "abc"},
  )
  return dataclasses.replace(training, **changes)


def total(state):
  return float(state.trainable["user_model"]["offsets"].get_value()[0, 0])


def lines(folder):
  text = (folder / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_metrics_are_means_between_lines_and_evaluations_have_their_own(
  tmp_path,
):
  state = loop.run(make_training(tmp_path), CADENCE)
  assert int(state.step) == 7
  assert total(state) == sum(range(7)) + 7
  losses = {
    row["step"]: row["loss"] for row in lines(tmp_path) if "loss" in row
  }
  assert losses == {2: 1.5, 4: 3.5, 6: 5.5, 7: 7.0}
  heldout = [row["step"] for row in lines(tmp_path) if "heldout_loss" in row]
  assert heldout == [3, 6]
  assert list((tmp_path / "tensorboard").iterdir())


def test_a_finished_training_is_only_loaded(tmp_path):
  loop.run(make_training(tmp_path), CADENCE)

  def fail(step):
    raise AssertionError(f"ran step {step} again")

  state = loop.run(make_training(tmp_path, at_step=fail), CADENCE)
  assert total(state) == 28


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_state_and_the_next_start_goes_on(tmp_path, number):
  def at_step(step):
    if step == 4:
      os.kill(os.getpid(), number)

  with pytest.raises(loop.Interrupted, match=r"at step 5 of 7; the state is"):
    loop.run(make_training(tmp_path, at_step=at_step), CADENCE)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  seen = []
  state = loop.run(make_training(tmp_path, at_step=seen.append), CADENCE)
  assert seen == [5, 6]
  assert total(state) == 28


def test_a_signal_at_a_step_of_an_evaluation_loses_none_of_it(tmp_path):
  def at_step(step):
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  def held_out():
    return [row["step"] for row in lines(tmp_path) if "heldout_loss" in row]

  with pytest.raises(loop.Interrupted, match="at step 3 of 7"):
    loop.run(make_training(tmp_path, at_step=at_step), CADENCE)
  assert held_out() == [3]
  # Killed before it was written.
  file = tmp_path / "metrics.jsonl"
  kept_lines = file.read_text().splitlines(keepends=True)
  file.write_text("".join(x for x in kept_lines if "heldout" not in x))
  text = loop.Look(metrics.TEXT, {3}, lambda state: {"ended": 1.0})
  for total_steps, looks in ((5, [held_out_look(), text]), (7, None)):
    training = make_training(tmp_path, total_steps=total_steps)
    if looks:
      training = dataclasses.replace(training, looks=looks)
    loop.run(training, CADENCE)
  assert held_out() == [3, 6]
  assert [x["step"] for x in lines(tmp_path) if "text_ended" in x] == [3]


def test_what_is_noticed_of_a_line_is_shown(tmp_path, capsys):
  seen = []

  def notice(step, values):
    seen.append((step, [*values]))
    return f"noticed {step}" if "heldout_loss" in values else ""

  loop.run(make_training(tmp_path, total_steps=5, notice=notice), CADENCE)
  assert (3, ["heldout_loss"]) in seen
  assert [step for step, _ in seen] == [2, 3, 4, 5]
  assert "noticed 3\n" in capsys.readouterr().out


def test_a_signal_saves_before_it_evaluates(tmp_path):
  def at_step(step):
    if step == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  def evaluate(state):
    deadline = time.monotonic() + 30
    while not (tmp_path / "checkpoints" / "3").is_dir():
      assert time.monotonic() < deadline, "nothing was saved"
      time.sleep(0.05)
    return {"loss": 0.0}

  with pytest.raises(loop.Interrupted, match="at step 3 of 7"):
    looks = [held_out_look(evaluate)]
    loop.run(make_training(tmp_path, at_step=at_step, looks=looks), CADENCE)


def test_a_step_is_counted_once_its_metrics_were_read(tmp_path, monkeypatch):
  counted, read = [], []
  monkeypatch.setattr(
    loop.jax, "device_get", lambda values: read.append(0) or values
  )

  class Progress(metrics.Progress):
    def step(self, step):
      counted.append((step, len(read)))
      super().step(step)

  monkeypatch.setattr(metrics, "Progress", Progress)
  loop.run(make_training(tmp_path), CADENCE)
  assert counted == [(step, step) for step in range(1, 8)]


def test_a_signal_at_the_last_step_is_for_what_comes_after(tmp_path):
  def at_step(step):
    if step == 6:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(loop.Interrupted, match="all 7 steps are done"):
    loop.run(make_training(tmp_path, at_step=at_step), CADENCE)
  seen = []
  state = loop.run(make_training(tmp_path, at_step=seen.append), CADENCE)
  assert seen == []
  assert total(state) == 28


def test_metrics_beyond_the_checkpoint_are_dropped_when_going_on(tmp_path):
  class Died(Exception):
    pass

  def at_step(step):
    if step == 6:
      raise Died

  with pytest.raises(Died):
    loop.run(make_training(tmp_path, at_step=at_step), CADENCE)
  shutil.rmtree(tmp_path / "checkpoints" / "6", ignore_errors=True)
  with (tmp_path / "metrics.jsonl").open("a") as out:
    out.write('{"step": 6, "lo')  # Cut off while it was written.
  loop.run(make_training(tmp_path), CADENCE)
  steps = [row["step"] for row in lines(tmp_path) if "loss" in row]
  assert steps == [2, 4, 6, 7]


def test_a_non_finite_loss_stops_and_names_step_and_example(tmp_path):
  def batch(step):
    weight = np.array([1.0, np.nan if step == 5 else 1.0], np.float32)
    return structs.PreferenceBatch(np.array([40, 41]), *[None] * 6, weight)

  with pytest.raises(loop.NonFiniteLoss) as error:
    loop.run(make_training(tmp_path, batch=batch), CADENCE)
  assert "loss is not finite at step 5" in str(error.value)
  assert "Examples: example 41." in str(error.value)
  assert f"step 4 in {tmp_path / 'checkpoints'}" in str(error.value)
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
    assert saved.steps == [2, 4]
    items = saved.load_as_saved(4, ("users",))
  assert np.isfinite(items["users"]["table"]["user_model.offsets"]).all()


def test_a_non_finite_loss_names_each_comparison_of_its_dialogue(tmp_path):
  example = np.array([[3, 7, 3, 7], [9, -1, 9, -1]])
  decisions = structs.Decisions(example, None, None, on_trunk=1)

  def batch(step):
    weight = np.array([np.nan if step == 1 else 1.0, 1.0], np.float32)
    return structs.PreferenceBatch(
      np.array([7, 9]), *[None] * 6, weight, decisions=decisions
    )

  training = make_training(tmp_path, batch=batch)
  with pytest.raises(
    loop.NonFiniteLoss, match="Examples: example 3; example 7"
  ):
    loop.run(training, CADENCE)


def test_a_non_finite_state_is_never_saved(tmp_path):
  # Non-finite at the very step after which a checkpoint is due.
  def batch(step):
    weight = np.array([1.0, np.inf if step == 3 else 1.0], np.float32)
    return structs.PreferenceBatch(np.array([40, 41]), *[None] * 6, weight)

  with pytest.raises(loop.NonFiniteLoss):
    loop.run(make_training(tmp_path, batch=batch), CADENCE)
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
    assert saved.steps == [2]


def test_too_little_space_is_an_error_before_the_first_step(
  tmp_path, monkeypatch
):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))

  def fail(step):
    raise AssertionError("a step was run")

  with pytest.raises(ValueError, match=r"0.0 MB free, and 3 checkpoints need"):
    loop.run(make_training(tmp_path, at_step=fail), CADENCE)


def test_checkpoints_that_are_there_need_no_more_space(tmp_path, monkeypatch):
  training = make_training(tmp_path, total_steps=4)
  loop.run(training, CADENCE)
  copy = sum(leaf.nbytes for leaf in jax.tree.leaves(training.state))
  usage = shutil.disk_usage(tmp_path)._replace(free=int(1.5 * copy))
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
  # Two are kept, and there is room for the one being written.
  assert total(loop.run(make_training(tmp_path), CADENCE)) == 28
  usage = usage._replace(free=0)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
  # Nothing is left to write.
  assert total(loop.run(make_training(tmp_path), CADENCE)) == 28


def test_a_run_folder_that_goes_stops_the_training_at_the_next_line(tmp_path):
  folder, gone = tmp_path / "run", tmp_path / "gone"

  def at_step(step):
    if step == 7:
      folder.rename(gone)
    assert step < 10, "it went on"

  with pytest.raises(kept.Unwritable, match="its folder is not there; make it"):
    loop.run(
      make_training(folder, total_steps=50, at_step=at_step),
      dataclasses.replace(CADENCE, checkpoint_every=30),
    )
  assert not folder.exists()


def test_a_save_that_fails_stops_the_training_at_once(tmp_path, monkeypatch):
  seen = []

  def at_step(step):
    seen.append(step)
    if step == 5:
      time.sleep(1.0)  # Until the save of step 4 has failed.

  def fail(*_):
    raise ValueError("Error writing \"x\": [os_error_code='28']")

  # Orbax's last step, in the background.
  monkeypatch.setattr(
    checkpoint_manager.CheckpointManager, "_finalize_checkpoint", fail
  )
  cadence = dataclasses.replace(CADENCE, checkpoint_every=4)
  with pytest.raises(kept.Unwritable, match=r"checkpoints/4 .*free some space"):
    loop.run(make_training(tmp_path, total_steps=60, at_step=at_step), cadence)
  assert seen[-1] < 7


# Orbax leaves a directory listing open where it fails; it is collected within
# this test, lest the warning meets another one.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_stops_with_a_clear_error_and_keeps_what_was_saved(
  tmp_path, capfd, caplog
):
  folder = tmp_path / "small"
  folder.mkdir()
  mount = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder],
    capture_output=True,
  )
  if mount.returncode:
    pytest.skip("needs the right to mount a file system of a fixed size")
  try:

    def at_step(step):
      if step == 4:  # Something else fills the disk.
        with (folder / "other").open("wb") as out, pytest.raises(OSError):
          out.write(b"x" * 2_000_000)

    message = rf"^{folder}/.* \(No space left on device\): free some space on"
    with pytest.raises(kept.Unwritable, match=message):
      loop.run(make_training(folder, at_step=at_step), CADENCE)
    # The error alone helps: nothing but the progress bar stands beside it.
    assert not caplog.records
    _, errors = capfd.readouterr()
    assert errors.count("\n") <= 1 and "Traceback" not in errors
    (folder / "other").unlink()
    assert total(loop.run(make_training(folder), CADENCE)) == 28
  finally:
    gc.collect()
    subprocess.run(["umount", "--lazy", folder], check=True)


def start_tiny(folder, cache):
  environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
  return subprocess.Popen(
    [sys.executable, "-m", "tests.tiny", folder],
    cwd=ROOT,
    env=environment,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow
def test_killed_three_times_the_final_state_is_that_of_one_run(tmp_path):
  cache = tmp_path / "cache"
  whole = start_tiny(tmp_path / "whole", cache)
  _, errors = whole.communicate(timeout=300)
  assert whole.returncode == 0, errors
  rng = random.Random(0)
  killed = tmp_path / "killed"
  metrics = killed / "pdpo" / "metrics.jsonl"
  # A step in each third, so that each start gets further than the last.
  for low in (1, 5, 9):
    target = low + rng.randrange(3)
    process = start_tiny(killed, cache)
    while process.poll() is None:
      if metrics.exists() and f'"step": {target},' in metrics.read_text():
        process.send_signal(signal.SIGKILL)
        break
      time.sleep(0.005)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, (
      "it ended before it was killed"
    )
  last = start_tiny(killed, cache)
  _, errors = last.communicate(timeout=300)
  assert last.returncode == 0, errors
  assert (killed / "digest").read_text() == (
    tmp_path / "whole" / "digest"
  ).read_text()


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_status_0(tmp_path):
  command = [
    sys.executable,
    "-m",
    "pdpo_jax.main",
    "--config=configs/quickstart.py:smoke",
    f"--config.workdir={tmp_path / 'run'}",
    "--config.train.epochs=1000",
  ]
  process = subprocess.Popen(
    command, cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  metrics = tmp_path / "run" / "vanilla" / "metrics.jsonl"
  while process.poll() is None:
    if metrics.exists() and '"step": 3,' in metrics.read_text():
      process.send_signal(signal.SIGTERM)
      break
    time.sleep(0.05)
  _, errors = process.communicate(timeout=300)
  assert process.returncode == 0, errors
  assert "stopped by SIGTERM at step" in errors
  assert "Traceback" not in errors
  steps = [
    int(each.name)
    for each in (tmp_path / "run" / "vanilla" / "checkpoints").iterdir()
  ]
  assert max(steps) >= 3
