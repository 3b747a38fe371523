import gc
import logging
import os
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from pdpo_jax import structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import layers, user_model
from pdpo_jax.training import checkpoint

META = {"base": "abc", "num_users": 2}
USERS = users_lib.UserIndex(["ann", "bob"])


def make_state(step, fill):
  trainable = nnx.from_flat_state(
    [
      (("lm", "q_proj", "lora_a"), layers.LoraParam(jnp.full((5, 2), fill))),
      (("user_model", "offsets"), user_model.UserParam(jnp.full((3, 7), fill))),
    ]
  )
  opt_state = ({"mu": jnp.full((11,), fill)}, jnp.int32(step))
  return structs.TrainState(jnp.int32(step), trainable, opt_state)


def save(folder, *steps, meta=META):
  with checkpoint.Checkpoints(folder, keep=9) as saved:
    for step in steps:
      state = make_state(step, float(step))
      saved.save(step, checkpoint.state_items(state, USERS, meta))
      saved.wait()


def restore(folder, users=USERS, meta=META):
  with checkpoint.Checkpoints(folder, keep=9) as saved:
    return checkpoint.restore(saved, make_state(0, 0.0), users, meta)


def assert_is_step(state, step):
  assert int(state.step) == step
  for _, leaf in nnx.to_flat_state(state.trainable):
    assert np.all(np.asarray(leaf.get_value()) == step)
  assert np.all(np.asarray(state.opt_state[0]["mu"]) == step)
  assert int(state.opt_state[1]) == step


def test_the_newest_step_comes_back_whole(tmp_path):
  save(tmp_path, 3, 11)
  assert_is_step(restore(tmp_path), 11)


def test_nothing_is_restored_from_an_empty_folder(tmp_path):
  assert restore(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
    for step in (1, 2, 3):
      saved.save(
        step, checkpoint.state_items(make_state(step, 1.0), USERS, META)
      )
      saved.wait()
    assert saved.steps == [2, 3]


def test_saves_leave_no_descriptor_and_no_thread_behind(tmp_path):
  def count():
    return len(os.listdir("/proc/self/fd")), threading.active_count()

  with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
    counts = []
    for step in range(1, 13):
      items = checkpoint.state_items(make_state(step, 1.0), USERS, META)
      saved.save(step, items)
      if step % 4 == 0:
        saved.wait()
        counts.append(count())
  # The first few open what all share.
  assert counts[1] == counts[2]


def damage_user_data(step_folder):
  shutil.rmtree(step_folder / "users" / "ocdbt.process_0")
  shutil.rmtree(step_folder / "users" / "d")


def damage_lora_data(step_folder):
  shutil.rmtree(step_folder / "lora" / "ocdbt.process_0")
  shutil.rmtree(step_folder / "lora" / "d")


def empty_step(step_folder):
  shutil.rmtree(step_folder)
  step_folder.mkdir()


def drop_optimizer(step_folder):
  shutil.rmtree(step_folder / "optimizer")


@pytest.mark.parametrize(
  "damage", [damage_lora_data, damage_user_data, empty_step, drop_optimizer]
)
def test_a_damaged_step_is_passed_over_with_a_warning(tmp_path, caplog, damage):
  folder = tmp_path / "saved"
  save(folder, 3, 11)
  for number in range(2):
    damage(folder / "11")
    with caplog.at_level(logging.WARNING):
      assert_is_step(restore(folder), 3)
    assert f"{folder / '11'} cannot be read and is passed over" in caplog.text
    assert (tmp_path / "saved_unreadable" / f"11_{number}").is_dir()
    # It is out of the way, so that training can write step 11 again.
    save(folder, 11)
    assert_is_step(restore(folder), 11)
  gc.collect()  # A reading that was begun and not awaited would warn.


def test_what_is_damaged_in_the_newest_step_is_read_from_the_one_before(
  tmp_path,
):
  save(tmp_path, 3, 11)
  shutil.rmtree(tmp_path / "11" / "users")
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.described() == (11, META)
    assert saved.users().ids == USERS.ids
  shutil.rmtree(tmp_path / "11" / "meta")
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.described() == (3, META)
  assert (tmp_path / "11").is_dir()


def test_who_the_users_are_is_read_without_their_table(tmp_path, monkeypatch):
  save(tmp_path, 3)
  load, loaded = checkpoint.Checkpoints._load_items, []

  def recorded(*args):
    loaded.append(load(*args)["users"])
    return {"users": loaded[-1]}

  with monkeypatch.context() as short:
    short.setattr(checkpoint.Checkpoints, "_load_items", recorded)
    with checkpoint.Checkpoints(tmp_path) as saved:
      assert saved.users().ids == USERS.ids
  (found,) = loaded
  assert set(found["table"].values()) == {ocp.PLACEHOLDER}

  def fail(*_):
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

  monkeypatch.setattr(checkpoint.Checkpoints, "_load_items", fail)
  with (
    checkpoint.Checkpoints(tmp_path) as saved,
    pytest.raises(ValueError, match="step 3: RESOURCE_EXHAUSTED"),
  ):
    saved.users()
  damage_user_data(tmp_path / "3")
  with (
    checkpoint.Checkpoints(tmp_path) as saved,
    pytest.raises(ValueError, match="step 3: the table of users is damaged"),
  ):
    saved.users()


def test_a_table_is_read_into_the_hosts_memory(tmp_path):
  save(tmp_path, 3)
  host = jax.local_devices(backend="cpu")[0]
  with checkpoint.Checkpoints(tmp_path) as saved:
    table = saved.load_as_saved(3, ("users",))["users"]["table"]
  assert {each.device for each in table.values()} == {host}


def test_where_no_step_can_be_read_none_is_lost(tmp_path, monkeypatch):
  folder = tmp_path / "saved"
  save(folder, 3, 11)

  def fail(*_):
    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

  with (
    monkeypatch.context() as short,
    pytest.raises(ValueError, match="step 11: RESOURCE_EXHAUSTED"),
  ):
    short.setattr(checkpoint.Checkpoints, "load", fail)
    restore(folder)
  assert [each.name for each in tmp_path.iterdir()] == ["saved"]
  assert_is_step(restore(folder), 11)


def test_a_step_cut_off_while_it_was_written_is_not_seen(tmp_path):
  save(tmp_path, 3)
  shutil.copytree(tmp_path / "3", tmp_path / "11.orbax-checkpoint-tmp")
  assert_is_step(restore(tmp_path), 3)


def test_a_reader_leaves_what_is_being_written_alone(tmp_path):
  save(tmp_path, 3)
  part = tmp_path / "11.orbax-checkpoint-tmp"
  shutil.copytree(tmp_path / "3", part)
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.users().ids == USERS.ids
  assert part.is_dir()


def test_users_load_without_lora_and_lora_without_users(tmp_path):
  save(tmp_path, 5)
  like = checkpoint.trainable_items(make_state(0, 0.0).trainable)
  users = {"users": {"table": like["users"], "ids": ""}}
  shutil.move(tmp_path / "5" / "lora", tmp_path / "lora_away")
  with checkpoint.Checkpoints(tmp_path) as saved:
    found = saved.load(5, users)["users"]
  assert found["ids"] == '["ann", "bob"]'
  assert np.all(found["table"]["user_model.offsets"] == 5)
  shutil.move(tmp_path / "lora_away", tmp_path / "5" / "lora")
  shutil.rmtree(tmp_path / "5" / "users")
  with checkpoint.Checkpoints(tmp_path) as saved:
    found = saved.load(5, {"lora": like["lora"]})["lora"]
  assert np.all(found["lm.q_proj.lora_a"] == 5)


def test_a_checkpoint_of_another_base_is_an_error(tmp_path):
  save(tmp_path, 3)
  with pytest.raises(ValueError, match="base is 'abc' there and 'xyz' here"):
    restore(tmp_path, meta={"base": "xyz", "num_users": 2})


def test_a_checkpoint_of_another_number_of_users_is_an_error(tmp_path):
  save(tmp_path, 3)
  more = users_lib.UserIndex(["ann", "bob", "eve"])
  with pytest.raises(ValueError, match="num_users is 2 there and 3 here"):
    restore(tmp_path, more, {"base": "abc", "num_users": 3})


def test_a_checkpoint_of_other_users_is_an_error(tmp_path):
  save(tmp_path, 3)
  others = users_lib.UserIndex(["ann", "eve"])
  with pytest.raises(ValueError, match="has the users of other data"):
    restore(tmp_path, others)
