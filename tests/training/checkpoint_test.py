import gc
import itertools
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

from pdpo_jax.core import kept, structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import layers, user_model
from pdpo_jax.training import checkpoint, checkpoint_items, sums

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
      saved.save(step, checkpoint_items.of_state(state, USERS, meta))
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
        step, checkpoint_items.of_state(make_state(step, 1.0), USERS, META)
      )
      saved.wait()
    assert saved.steps == [2, 3]


def test_saves_leave_no_descriptor_and_no_thread_behind(tmp_path):
  def count():
    return len(os.listdir("/proc/self/fd")), threading.active_count()

  with checkpoint.Checkpoints(tmp_path, keep=2) as saved:
    counts = []
    for step in range(1, 13):
      items = checkpoint_items.of_state(make_state(step, 1.0), USERS, META)
      saved.save(step, items)
      if step % 4 == 0:
        saved.wait()
        counts.append(count())
  # The first few open what all share; what others left may be closed meanwhile.
  _, (files, threads), (files_later, threads_later) = counts
  assert files_later <= files and threads_later <= threads, counts


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


# Where one of several readings of Orbax fails, it awaits none of the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
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


def save_random(folder, step=3):
  """Saves values that do not compress; returns their state."""
  draws = itertools.count()
  state = jax.tree.map(
    lambda x: (
      jax.random.normal(jax.random.key(next(draws)), x.shape)
      if jnp.issubdtype(x.dtype, jnp.floating)
      else x
    ),
    make_state(step, 0.0),
  )
  with checkpoint.Checkpoints(folder, keep=9) as saved:
    saved.save(step, checkpoint_items.of_state(state, USERS, META))
  return state


# Where one of several readings of Orbax fails, it awaits none of the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_changed_byte_of_a_checkpoint_passes_for_what_was_saved(tmp_path):
  state = save_random(tmp_path)
  wanted = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
  refused = passed = 0
  for file in sorted(tmp_path.rglob("*")):
    content = file.read_bytes() if file.is_file() else b""
    for place in range(len(content) // 3, len(content), 1 + len(content) // 2):
      changed = bytearray(content)
      changed[place] ^= 16
      file.write_bytes(changed)
      try:
        # As one that reads, which moves nothing away.
        with checkpoint.Checkpoints(tmp_path) as saved:
          loaded = checkpoint.restore(saved, make_state(0, 0.0), USERS, META)
      except ValueError as error:
        assert "can be read; step 3" in str(error)
        refused += 1
      else:
        passed += 1
        for old, new in zip(wanted, jax.tree.leaves(loaded), strict=True):
          np.testing.assert_array_equal(old, new)
      file.write_bytes(content)
  # Not all files matter: parts that were merged, notes of how arrays lay.
  assert refused > 20 and passed > 10


def test_an_array_of_another_checkpoint_is_refused(tmp_path):
  save(tmp_path / "here", 3)
  save_random(tmp_path / "there")
  for name in ("lora", "optimizer", "users", "meta"):
    folder = tmp_path / name
    shutil.copytree(tmp_path / "here", folder)
    shutil.rmtree(folder / "3" / name)
    shutil.copytree(tmp_path / "there" / "3" / name, folder / "3" / name)
    with pytest.raises(ValueError, match=r"\] is not what was saved"):
      restore(folder)


@pytest.mark.parametrize("keep", [None, 9])
def test_what_keeps_steps_from_being_listed_is_named(tmp_path, keep):
  save(tmp_path, 3, 11)
  file = tmp_path / "11" / "_CHECKPOINT_METADATA"
  for content in ("[]", '{"init_timestamp_nsecs": "x"}'):
    file.write_text(content)
    with pytest.raises(kept.Damaged, match=f"{file} is damaged .*; put it"):
      checkpoint.Checkpoints(tmp_path, keep)


def test_a_step_under_the_number_of_another_is_refused(tmp_path):
  save(tmp_path, 3)
  (tmp_path / "3").rename(tmp_path / "7")
  with pytest.raises(ValueError, match="step 7: it is step 3 under another"):
    restore(tmp_path)


def test_a_checkpoint_whose_sums_were_lost_is_refused(tmp_path):
  kept_sums = sums.add(3, {"meta": META})["meta"]
  for name in ("sums", "version"):
    meta = {key: value for key, value in kept_sums.items() if key != name}
    with pytest.raises(ValueError, match="has no sums of version 2"):
      sums.take(3, meta)
  assert sums.take(3, kept_sums)[0] == META


def test_a_checkpoint_of_an_earlier_version_is_read_as_it_is(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(sums, "add", lambda _, items: items)
  save(tmp_path, 3)
  assert_is_step(restore(tmp_path), 3)
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.users().ids == USERS.ids


def test_a_checkpoint_of_a_run_with_another_config_is_refused(tmp_path):
  there = {**META, "config": '{"seed": 0, "lora.rank": 8}'}
  save(tmp_path, 3, meta=there)
  assert_is_step(restore(tmp_path, meta=there), 3)
  # A field that there was not yet is as it was.
  more = {**META, "config": '{"seed": 0, "lora.rank": 8, "lora.new": 1}'}
  assert_is_step(restore(tmp_path, meta=more), 3)
  other = {**META, "config": '{"seed": 1, "lora.rank": 8}'}
  with pytest.raises(ValueError, match="seed is 0 there and 1 here"):
    restore(tmp_path, meta=other)


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
    items = load(*args)
    loaded.extend([items["users"]] if "users" in items else [])
    return items

  with (
    monkeypatch.context() as short,
    checkpoint.Checkpoints(tmp_path) as saved,
    pytest.raises(ValueError, match="step 3: RESOURCE_EXHAUSTED"),
  ):
    short.setattr(checkpoint.Checkpoints, "_load_items", out_of_memory)
    saved.users()
  with monkeypatch.context() as short:
    short.setattr(checkpoint.Checkpoints, "_load_items", recorded)
    with checkpoint.Checkpoints(tmp_path) as saved:
      assert saved.users().ids == USERS.ids
  (found,) = loaded
  assert set(found["table"].values()) == {ocp.PLACEHOLDER}
  damage_user_data(tmp_path / "3")
  with (
    checkpoint.Checkpoints(tmp_path) as saved,
    pytest.raises(ValueError, match="step 3: the table of users is damaged"),
  ):
    saved.users()


def out_of_memory(*_):
  raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")


def test_who_the_users_are_is_read_once_for_each_state(tmp_path, monkeypatch):
  save(tmp_path, 3)
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.users().ids == USERS.ids
  with (
    monkeypatch.context() as short,
    checkpoint.Checkpoints(tmp_path) as saved,
  ):
    short.setattr(checkpoint.Checkpoints, "_load_items", out_of_memory)
    assert saved.users().ids == USERS.ids
  # As an erasure does: the same step, written anew.
  shutil.rmtree(tmp_path / "3")
  monkeypatch.setattr(f"{__name__}.USERS", users_lib.UserIndex(["ann", None]))
  save(tmp_path, 3)
  with checkpoint.Checkpoints(tmp_path) as saved:
    assert saved.users().rows == ("ann", None)


# What other tests left is collected here, too.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_reading_who_the_users_are_loses_no_memory(tmp_path):
  """TensorStore never gives back what it tells of an array."""
  save(tmp_path, 3)

  def read():
    with checkpoint.Checkpoints(tmp_path) as saved:
      saved.users()
    gc.collect()
    return len(gc.get_objects())

  read()
  before = read()
  for _ in range(20):
    after = read()
  assert after < before + 100


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
    short.setattr(checkpoint.Checkpoints, "_load_items", fail)
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
  like = checkpoint_items.of_trainable(make_state(0, 0.0).trainable)
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
