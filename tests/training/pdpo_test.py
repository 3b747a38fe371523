import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from pdpo_jax import processes
from pdpo_jax.training import pdpo
from pdpo_jax.weights import base as base_lib
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished tiny run: config, parts, base weights before, result."""
  config = tiny.tiny_config(tmp_path_factory.mktemp("run"))
  config.train.epochs = 1
  parts = tiny.tiny_parts(config)
  before = jax.tree.map(np.array, nnx.state(parts[0].lm))
  return config, parts, before, tiny.train(config, parts)


def leaves(tree):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_training_leaves_the_base_bitwise_as_it_was(run):
  _, parts, before, split = run
  for tree in (nnx.state(parts[0].lm), split.frozen):
    for old, new in zip(leaves(before), leaves(tree), strict=True):
      np.testing.assert_array_equal(old, new)
  assert base_lib.fingerprint(parts[0].lm) == parts[0].fingerprint


def test_a_loaded_policy_is_the_trained_one(run):
  config, parts, _, split = run
  loaded, users, _ = pdpo.load(config, parts[0], config.folder / "pdpo")
  assert users.ids == parts[1].ids
  for old, new in zip(
    leaves(split.trainable), leaves(loaded.trainable), strict=True
  ):
    np.testing.assert_array_equal(old, new)


def test_a_policy_does_not_load_onto_another_base(run):
  config, parts, _, _ = run
  other = tiny.tiny_base(parts[4], seed=1)
  with pytest.raises(ValueError, match=r"base is '\w+' there and '\w+' here"):
    pdpo.load(config, other, config.folder / "pdpo")


def test_a_loaded_policy_says_of_which_step_it_is(run, tmp_path):
  config, parts, *_ = run
  newest = pdpo.load(config, parts[0], config.folder / "pdpo").step
  copy = tmp_path / "pdpo"
  shutil.copytree(config.folder / "pdpo", copy)
  shutil.rmtree(copy / "checkpoints" / str(newest) / "lora")
  assert pdpo.load(config, parts[0], copy).step < newest


def test_a_warm_up_that_never_ends_is_told(tmp_path, caplog):
  config = tiny.tiny_config(tmp_path)
  config.train.epochs = 1
  parts = tiny.tiny_parts(config)
  tiny.train(config, parts)
  assert "warmup_steps" not in caplog.text
  config.train.warmup_steps = parts[2].num_batches
  tiny.train(config, parts)
  assert "never reach their peak" in caplog.text


def test_loading_from_a_folder_without_checkpoints_is_an_error(run, tmp_path):
  config, parts, _, _ = run
  with pytest.raises(ValueError, match="has no checkpoints; train first"):
    pdpo.load(config, parts[0], tmp_path)


def test_heldout_ratios_have_a_row_for_each_sample(run):
  config, parts, _, split = run
  ratios = pdpo.heldout_ratios(split, parts[3], config.train.logits_chunk)
  assert ratios.shape == (len(parts[4].heldout), 1)
  assert np.isfinite(ratios).all()


def test_a_host_table_is_refused_where_there_are_several_processes(
  run, monkeypatch
):
  config, parts, *_ = run
  train = dataclasses.replace(
    config.train, sparse_users=True, users_on_host=True
  )
  config = dataclasses.replace(config, train=train)
  monkeypatch.setattr(processes, "several", lambda: True)
  with pytest.raises(ValueError, match=r"users_on_host .* one process"):
    pdpo.make_policy(config, parts[0], parts[1].num_rows)
