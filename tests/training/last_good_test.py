"""A training ends with the last state that was good, if its last is not."""

import dataclasses
import logging
import shutil

import pytest

from pdpo_jax.training import checkpoint, loop, metrics
from tests.training import checkpoint_test, loop_test

CADENCE = dataclasses.replace(loop_test.CADENCE, checkpoint_every=3)
AFTER = {2: 3.0, 4: 10.0, 6: 21.0, 7: 28.0}  # What is learnt by then.


def make_training(folder, good_steps, **changes):
  look = loop.Look(
    metrics.TEXT,
    {2, 4, 6},
    lambda state: {"sum": loop_test.total(state)},
    lambda values: values["text_sum"] in [AFTER[each] for each in good_steps],
  )
  looks = [loop_test.held_out_look(), look]
  return loop_test.make_training(folder, looks=looks, **changes)


@pytest.mark.parametrize(
  ("good_steps", "ends_with"),
  [
    ((), 7),
    ((2,), 2),
    ((4,), 4),
    ((2, 6), 6),
    ((2, 4), 4),
    ((2, 4, 6, 7), 7),
    ((2, 7), 7),
    ((7,), 7),
  ],
)
def test_the_last_good_state_is_what_a_training_ends_with(
  tmp_path, caplog, good_steps, ends_with
):
  caplog.set_level(logging.WARNING)
  state = loop.run(make_training(tmp_path, good_steps), CADENCE)
  assert loop_test.total(state) == AFTER[ends_with] and int(state.step) == 7
  assert (f"after step {ends_with}," in caplog.text) == (ends_with < 7)
  # Whoever reads the run, or asks for it again, gets that.
  again = loop.run(make_training(tmp_path, good_steps), CADENCE)
  assert loop_test.total(again) == AFTER[ends_with]
  told = [
    line for line in loop_test.lines(tmp_path) if "ends_with_step" in line
  ]
  assert [line["ends_with_step"] for line in told] == [ends_with][
    : ends_with < 7
  ]
  with checkpoint.Checkpoints(tmp_path / "checkpoints") as saved:
    # And what it ended with, but no other.
    assert saved.steps == sorted({6, 7} | ({ends_with} - {7}))


@pytest.mark.parametrize("killed_at", range(1, 7))
@pytest.mark.parametrize("good_steps", [(2,), (2, 4)])
def test_a_run_that_was_killed_ends_with_the_same(
  tmp_path, good_steps, killed_at
):
  class Killed(Exception):
    pass

  def kill(step):
    if step == killed_at:
      raise Killed

  with pytest.raises(Killed):
    loop.run(make_training(tmp_path, good_steps, at_step=kill), CADENCE)
  state = loop.run(make_training(tmp_path, good_steps), CADENCE)
  assert loop_test.total(state) == AFTER[good_steps[-1]]
  looked = [
    line["step"] for line in loop_test.lines(tmp_path) if "text_sum" in line
  ]
  assert looked == [2, 4, 6, 7]


@pytest.mark.parametrize("good_steps", [(2,), (4,), (2, 6), ()])
def test_where_the_last_checkpoint_is_lost_training_ends_with_the_same(
  tmp_path, good_steps
):
  first = loop.run(make_training(tmp_path, good_steps), CADENCE)
  shutil.rmtree(tmp_path / "checkpoints" / "7")
  again = loop.run(make_training(tmp_path, good_steps), CADENCE)
  assert loop_test.total(again) == loop_test.total(first)


def test_where_the_good_checkpoint_is_damaged_training_ends_with_its_last(
  tmp_path, caplog
):
  def damage(step):
    if step == 6:
      checkpoint_test.damage_user_data(tmp_path / "checkpoints" / "2")

  training = make_training(tmp_path, (2,), at_step=damage)
  state = loop.run(training, CADENCE)
  assert loop_test.total(state) == AFTER[7]
  assert "ends with its last step: " in caplog.text
  assert f"{tmp_path / 'checkpoints' / '2'} cannot be read" in caplog.text
  assert not any("ends_with_step" in line for line in loop_test.lines(tmp_path))
