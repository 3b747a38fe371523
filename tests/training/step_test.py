import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import layers, policy
from pdpo_jax.training import step
from tests import golden_cases

MODEL, CASE = "llama", "individual"
GOLDEN = golden_cases.read(MODEL)
EXAMPLES = golden_cases.batch(GOLDEN, CASE)
FOUR = golden_cases.batch(GOLDEN, CASE, slice(4))


def parts():
  """Definition, trained and frozen part of the golden policy."""
  return golden_cases.split_policy(MODEL, CASE)


def test_score_reads_every_example_with_its_own_prefix():
  graphdef, trainable, frozen = parts()
  found = step.make_score(graphdef, 45)(trainable, frozen, EXAMPLES)
  # Sums of up to 40 nats.
  np.testing.assert_allclose(
    found, GOLDEN[f"{CASE}/logps/user"], rtol=1e-5, atol=1e-5
  )


def fresh_state(transformation):
  trainable = jax.tree.map(jnp.copy, parts()[1])  # the step gives up its own
  return structs.TrainState(
    jnp.zeros((), jnp.int32), trainable, transformation.init(trainable)
  )


def test_accumulation_of_packed_parts_changes_no_update():
  graphdef, _, frozen = parts()
  transformation = optax.sgd(0.1)
  both = FOUR.prompt_mask.sum(1) + FOUR.response_mask.sum((1, 2))
  responses = FOUR.response_mask.sum((1, 2))
  # Room for examples 0 and 2, and 1 and 3, and for no other two.
  pairs = [x[:2] + x[2:] for x in (both, responses)]
  packed = structs.Packed(2, *(int(each.max()) for each in pairs))
  assert (both[0] + both[1]).max() != packed.positions
  found = []
  for count, room in ((1, None), (2, packed)):
    train_step = step.make_train_step(
      graphdef,
      golden_cases.objective(),
      transformation,
      accumulation_steps=count,
    )
    own = dataclasses.replace(FOUR, packed=room)
    state, metrics = train_step(fresh_state(transformation), frozen, own)
    found.append((jax.tree.leaves(state.trainable), metrics))
  for ours, theirs in zip(found[1][0], found[0][0], strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
  np.testing.assert_allclose(
    found[1][1]["example_loss"], found[0][1]["example_loss"], atol=1e-5
  )


def test_accumulation_changes_no_update():
  graphdef, _, frozen = parts()
  # The plain gradient: Adam would turn rounding into signs.
  transformation = optax.sgd(0.1)
  found = {}
  for count in (1, 2, 4):
    train_step = step.make_train_step(
      graphdef,
      golden_cases.objective(),
      transformation,
      accumulation_steps=count,
    )
    state, metrics = train_step(fresh_state(transformation), frozen, FOUR)
    assert int(state.step) == 1
    found[count] = jax.tree.leaves(state.trainable), metrics
  moved = [
    np.abs(new - old).max()
    for new, old in zip(found[1][0], jax.tree.leaves(parts()[1]), strict=True)
  ]
  assert min(moved) > 1e-4
  for count in (2, 4):
    for ours, theirs in zip(found[count][0], found[1][0], strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert found[count][1].keys() == found[1][1].keys()
    for key, value in found[1][1].items():
      np.testing.assert_allclose(
        found[count][1][key], value, rtol=1e-4, atol=1e-5, err_msg=key
      )


def test_training_lowers_the_loss_and_leaves_the_base_bitwise_as_it_was():
  graphdef, _, frozen = parts()
  before = [np.array(leaf) for leaf in jax.tree.leaves(frozen)]
  transformation = optax.adam(1e-2)
  train_step = step.make_train_step(
    graphdef, golden_cases.objective(), transformation
  )
  state, seen = fresh_state(transformation), []
  for _ in range(6):
    state, metrics = train_step(state, frozen, EXAMPLES)
    seen.append(float(metrics["loss"]))
  assert seen[-1] < 0.7 * seen[0]
  after = jax.tree.leaves(frozen)
  for old, new in zip(before, after, strict=True):
    np.testing.assert_array_equal(new, old)
  assert metrics["grad_norm_lora"] > 0
  assert metrics["grad_norm_users"] > 0


def test_dropout_follows_seed_and_step():
  made = golden_cases.make_policy(GOLDEN, MODEL, CASE)
  for _, module in nnx.iter_modules(made):
    if isinstance(module, layers.Linear):
      module.lora_dropout = 0.5
  graphdef, _, frozen = nnx.split(made, policy.trainable, ...)
  transformation = optax.sgd(0.0)
  train_step = step.make_train_step(
    graphdef, golden_cases.objective(), transformation, dropout=True
  )
  state, first = train_step(fresh_state(transformation), frozen, EXAMPLES)
  _, again = train_step(fresh_state(transformation), frozen, EXAMPLES)
  _, later = train_step(state, frozen, EXAMPLES)
  still = golden_cases.golden_loss_and_gradients(MODEL, CASE)[0]
  assert first["loss"] == again["loss"]
  assert first["loss"] != later["loss"]
  assert first["loss"] != still
