import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.models import layers, user_model
from pdpo_jax.training import optimizer, recipes


def variables(lora, users):
  return nnx.State(
    {
      "lm": {"lora_a": layers.LoraParam(jnp.asarray(lora))},
      "user_model": {"offsets": user_model.UserParam(jnp.asarray(users))},
    }
  )


def values(state):
  return (
    np.asarray(state["lm"]["lora_a"][...]),
    np.asarray(state["user_model"]["offsets"][...]),
  )


def updates_of(gradients, trainable, steps=1, total_steps=10, **fields):
  """The last update of as many steps with the same gradient."""
  fields = {"warmup_steps": 0, "clip_norm": 0.0, "learning_rate": 0.1} | fields
  train = recipes.TrainConfig(**fields)
  transformation = optimizer.make_optimizer(train, total_steps)
  state = transformation.init(trainable)
  for _ in range(steps):
    updates, state = transformation.update(gradients, state, trainable)
  return values(updates)


def test_schedule_warms_up_linearly_and_falls_as_a_half_cosine():
  schedule = optimizer.cosine_schedule(2.0, warmup_steps=4, total_steps=12)
  by_hand = {0: 0.0, 1: 0.5, 3: 1.5, 4: 2.0, 8: 1.0, 12: 0.0, 15: 0.0}
  by_hand[6] = 2.0 * (1 + np.cos(np.pi / 4)) / 2
  for step, value in by_hand.items():
    assert float(schedule(step)) == pytest.approx(value, abs=1e-6), step


def test_schedule_of_a_run_shorter_than_its_warm_up_only_warms_up():
  schedule = optimizer.cosine_schedule(2.0, warmup_steps=10, total_steps=5)
  assert [float(schedule(step)) for step in (0, 3, 5)] == pytest.approx(
    [0.0, 0.6, 1.0]
  )


def test_labels_tell_users_from_lora():
  labels = optimizer.label(variables([1.0], [1.0]))
  assert jax.tree.leaves(labels) == ["lora", "users"]


def test_lora_and_users_have_learning_rates_of_their_own():
  trainable = gradients = variables([3.0, -5.0], [7.0])
  # Adam's first step is the learning rate against the gradient's sign.
  lora, users = updates_of(gradients, trainable, user_learning_rate=0.7)
  np.testing.assert_allclose(lora, [-0.1, 0.1], rtol=1e-5)
  np.testing.assert_allclose(users, [-0.7], rtol=1e-5)


def test_users_take_the_common_learning_rate_if_they_have_none():
  trainable = gradients = variables([3.0], [3.0])
  lora, users = updates_of(gradients, trainable)
  np.testing.assert_array_equal(lora, users)


def test_both_learning_rates_follow_the_schedule():
  trainable = gradients = variables([3.0], [7.0])
  lora, users = updates_of(
    gradients, trainable, steps=2, warmup_steps=4, user_learning_rate=0.7
  )
  np.testing.assert_allclose(lora, [-0.1 / 4], rtol=1e-4)
  np.testing.assert_allclose(users, [-0.7 / 4], rtol=1e-4)


def test_weight_decay_is_for_lora_only():
  trainable, gradients = variables([5.0], [5.0]), variables([0.0], [0.0])
  lora, users = updates_of(gradients, trainable, weight_decay=0.2)
  np.testing.assert_allclose(lora, [-0.1 * 0.2 * 5.0], rtol=1e-6)
  np.testing.assert_array_equal(users, [0.0])


def first_moments(clip_norm, gradients):
  """Adam's first moments after a step: a tenth of the gradients it saw."""
  train = recipes.TrainConfig(clip_norm=clip_norm)
  transformation = optimizer.make_optimizer(train, 10)
  trainable = variables([1.0], [1.0])
  state = transformation.init(trainable)
  _, state = transformation.update(gradients, state, trainable)
  moments = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if ".mu" in jax.tree_util.keystr(path)
  ]
  return 10 * np.concatenate(moments)


def test_clipping_scales_all_gradients_by_their_common_norm():
  # 3 and 4 have norm 5.
  found = first_moments(1.0, variables([3.0], [4.0]))
  np.testing.assert_allclose(found, [0.6, 0.8], rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 6.0])
def test_small_gradients_or_a_norm_of_zero_clip_nothing(clip_norm):
  found = first_moments(clip_norm, variables([3.0], [4.0]))
  np.testing.assert_allclose(found, [3.0, 4.0], rtol=1e-5)


def test_norms_are_told_apart_by_label():
  norms = optimizer.norms(variables([3.0, 4.0], [[2.0], [0.0]]))
  assert {key: float(norm) for key, norm in norms.items()} == pytest.approx(
    {"lora": 5.0, "users": 2.0}
  )
