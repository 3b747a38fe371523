import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.core import processes, structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.training import pdpo, policies, scoring
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
  _, parts, before, policy = run
  for tree in (nnx.state(parts[0].lm), policy.frozen):
    for old, new in zip(leaves(before), leaves(tree), strict=True):
      np.testing.assert_array_equal(old, new)
  assert base_lib.fingerprint(parts[0].lm) == parts[0].fingerprint


def test_a_loaded_policy_is_the_trained_one(run):
  config, parts, _, policy = run
  loaded, users, step = policies.load(
    config.recipe, parts[0], config.folder / "pdpo"
  )
  assert users.ids == parts[1].ids
  assert step == config.train.epochs * parts[2].num_batches
  assert loaded.digest() == policy.digest()
  for old, new in zip(
    leaves(policy.trainable), leaves(loaded.trainable), strict=True
  ):
    np.testing.assert_array_equal(old, new)


def test_a_policy_does_not_load_onto_another_base(run):
  config, parts, _, _ = run
  other = tiny.tiny_base(parts[4], seed=1)
  with pytest.raises(ValueError, match=r"base is '\w+' there and '\w+' here"):
    policies.load(config.recipe, other, config.folder / "pdpo")


def test_a_loaded_policy_says_of_which_step_it_is(run, tmp_path):
  config, parts, *_ = run
  newest = policies.load(config.recipe, parts[0], config.folder / "pdpo").step
  copy = tmp_path / "pdpo"
  shutil.copytree(config.folder / "pdpo", copy)
  shutil.rmtree(copy / "checkpoints" / str(newest) / "lora")
  assert policies.load(config.recipe, parts[0], copy).step < newest


def test_a_warm_up_that_never_ends_is_told(tmp_path, caplog):
  config = tiny.tiny_config(tmp_path)
  config.train.epochs = 1
  parts = tiny.tiny_parts(config)
  tiny.train(config, parts)
  assert "warmup_steps" not in caplog.text
  config.train.warmup_steps = parts[2].num_batches
  config.workdir += "_long"
  tiny.train(config, parts)
  assert "never reach their peak" in caplog.text


def test_loading_from_a_folder_without_checkpoints_is_an_error(run, tmp_path):
  config, parts, _, _ = run
  with pytest.raises(ValueError, match="has no checkpoints; train first"):
    policies.load(config.recipe, parts[0], tmp_path)


def test_vanilla_weighs_generic_rows_alone_where_mixing_is_by_batch(run):
  config = dataclasses.replace(
    run[0], user=dataclasses.replace(run[0].user, kind="none")
  )
  assert pdpo.make_objective(config.recipe).branches() == [("user", 1.0)]
  loss = dataclasses.replace(config.loss, mixing="batch")
  objective = pdpo.make_objective(dataclasses.replace(config, loss=loss).recipe)
  assert objective.branches() == [("user", 1.0)]
  batch = structs.PreferenceBatch(
    index=jnp.arange(6),
    user_row=jnp.array([3, 0, 0, 1, 2, 0]),
    prompt=None,
    prompt_mask=None,
    responses=None,
    response_mask=jnp.ones((6, 2, 1), bool),
    reference_logps=None,
    weight=jnp.ones(6),
  )
  # In microbatches of one row, as the released code's scripts have it.
  scales = objective_lib.pair_scales(batch, objective, 6)
  np.testing.assert_allclose(scales[:, 0], np.array([0, 1, 1, 0, 0, 1]) / 6)
  objective = dataclasses.replace(objective, alpha=0.25)
  scales = objective_lib.pair_scales(batch, objective, 6)
  expected = np.array([0.25, 0.75, 0.75, 0.25, 0.25, 0.75]) / 6
  np.testing.assert_allclose(scales[:, 0], expected)


@pytest.mark.parametrize("kind", ["individual", "cluster"])
def test_new_users_take_the_place_of_rows_that_were_nobodys(run, kind):
  config, parts, *_ = run
  user = dataclasses.replace(
    config.user, kind=kind, offset_init="vocabulary", init_std=1.0
  )
  config = dataclasses.replace(config, user=user)
  known = users_lib.UserIndex(["1", "2"], spare=3)
  both = known.extended(users_lib.UserIndex(["2", "x"]))
  before, new = (
    policies.make_policy(config.recipe, parts[0], each.num_rows)
    for each in (known, both)
  )
  after = policies.begin_as(new, before, known).merge().user_model
  before = before.merge().user_model
  rows = jnp.arange(3)
  np.testing.assert_array_equal(after(rows), before(rows))
  (stranger,) = after(jnp.array([both.row_of("x")]))
  np.testing.assert_allclose(stranger, before.generic(), atol=1e-6)


def test_metrics_have_rewards_apart_and_what_text_is_like(tmp_path):
  config = tiny.tiny_config(tmp_path)
  config.train.epochs = 2
  config.train.text_checks = 2
  parts = tiny.tiny_parts(config)
  base, users, batches, heldout, dataset = parts
  seen = []

  def check_text(policy):
    seen.append(policy.digest())
    names = ("log_likelihood", "repetition", "ended", "empty")
    values = dict.fromkeys((*names, *(f"base_{n}" for n in names)), 0.5)
    return values | {"broken": 0.25}

  folder = config.folder / "pdpo"
  pdpo.train(
    config.recipe,
    base,
    users,
    batches,
    heldout,
    dataset.train,
    folder,
    check_text=check_text,
  )
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  lines = [*map(json.loads, lines)]
  total = config.train.epochs * batches.num_batches
  checked = [line["step"] for line in lines if "text_broken" in line]
  assert checked == [round(total / 3), round(2 * total / 3), total]
  assert len({*seen}) == 3
  evaluated = [line for line in lines if "heldout_loss" in line]
  assert evaluated
  for line in evaluated:
    assert line["heldout_margin"] == pytest.approx(
      line["heldout_chosen_reward"] - line["heldout_rejected_reward"], abs=1e-5
    )
    assert abs(line["heldout_chosen_per_token"]) < 1
  # The same quotient, of the examples of a step; at first there is but noise.
  for line in lines:
    if abs(line.get("chosen_reward", 0.0)) > 1e-4:
      share = line["chosen_per_token"] / line["chosen_reward"]
      assert 0 < share < 1 / config.loss.beta


def test_held_out_ratios_have_a_row_for_each_example(run):
  config, parts, _, policy = run
  scored = scoring.score_held_out(policy, parts[3], config.train.logits_chunk)
  assert scored.log_ratios.shape == (len(parts[4].heldout), 2)
  assert np.isfinite(scored.log_ratios).all()
  ratios = scored.differences()
  assert ratios.shape == (len(parts[4].heldout), 1)
  np.testing.assert_array_equal(
    ratios[:, 0], scored.log_ratios[:, 0] - scored.log_ratios[:, 1]
  )
  np.testing.assert_allclose(
    scored.differences(length_normalized=True)[:, 0],
    scored.per_token[:, 0] - scored.per_token[:, 1],
  )
  np.testing.assert_allclose(
    scored.per_token * scored.lengths, scored.log_ratios, rtol=1e-6
  )


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
    policies.make_policy(config.recipe, parts[0], parts[1].num_rows)
