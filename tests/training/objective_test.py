import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import layers, policy, user_model
from pdpo_jax.training import losses, step
from pdpo_jax.training import objective as objective_lib
from tests import golden_cases

MODEL, CASE = "llama", "individual"
GOLDEN = golden_cases.read(MODEL)
USERS = {3, 7, 12}  # of the golden examples, besides the generic one


def examples(rows=slice(None), **changes):
  batch = golden_cases.batch(GOLDEN, CASE, rows)
  return dataclasses.replace(batch, **changes)


def parts():
  """Definition, trained and frozen part of the golden policy."""
  return golden_cases.split_policy(MODEL, CASE)


@functools.cache
def differentiate(objective):
  graphdef = parts()[0]

  @jax.jit
  def run(trainable, frozen, batch):
    scales = objective_lib.pair_scales(batch, objective)

    def loss_of(trainable):
      made = nnx.merge(graphdef, trainable, frozen)
      return objective_lib.loss_and_metrics(made, batch, objective, scales)

    return jax.value_and_grad(loss_of, has_aux=True)(trainable)

  return run


def with_alpha(alpha):
  return dataclasses.replace(golden_cases.objective(), alpha=alpha)


def gradients(batch, objective=None):
  """Loss, metrics, and gradients by their golden names."""
  graphdef, trainable, frozen = parts()
  run = differentiate(objective or golden_cases.objective())
  (loss, metrics), found = run(trainable, frozen, batch)
  arch = nnx.merge(graphdef, trainable, frozen).lm.arch
  return loss, metrics, golden_cases.named(arch, found)


@pytest.mark.parametrize(("name", "case"), golden_cases.CASES)
def test_objective_equals_four_passes_with_peft(name, case):
  arrays = golden_cases.read(name)
  loss, _, found = golden_cases.golden_loss_and_gradients(name, case)
  assert abs(loss - arrays[f"{case}/loss/sigmoid"]) < 1e-5
  expected = golden_cases.section(arrays, f"{case}/gradients")
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    # What float32 leaves of sums over layers and tokens in another order.
    assert golden_cases.relative_difference(found[key], value) < 1e-4, key


@pytest.mark.parametrize(
  ("name", "case", "key", "seen"),
  [
    ("llama", "individual", "offsets", USERS),
    ("gptj", "individual", "offsets", USERS),
    # The generic user has cluster weights of its own.
    ("gptj", "cluster", "weights", USERS | {0}),
    ("llama_tied", "softmax", "weights", USERS | {0}),
  ],
)
def test_only_users_of_a_batch_get_a_gradient(name, case, key, seen):
  _, _, found = golden_cases.golden_loss_and_gradients(name, case)
  largest = np.abs(found[key]).reshape(len(found[key]), -1).max(-1)
  assert set(np.flatnonzero(largest)) == seen
  if case == "individual":
    assert np.abs(found["generic_prefix"]).min() > 0


def test_metrics_equal_those_of_the_log_probabilities():
  _, metrics, _ = golden_cases.golden_loss_and_gradients(MODEL, CASE)
  batch = golden_cases.batch(GOLDEN, CASE)
  weights = losses.pair_weights(batch.response_mask, batch.weight)
  reference = GOLDEN[f"{CASE}/logps/reference"]
  for name, prefix in (("user", ""), ("generic", "generic_")):
    rewards = golden_cases.BETA * (GOLDEN[f"{CASE}/logps/{name}"] - reference)
    ratios = (rewards[:, :1] - rewards[:, 1:]) / golden_cases.BETA
    share = np.average(ratios > 0, weights=weights)
    margin = np.average(golden_cases.BETA * ratios, weights=weights)
    assert 0 < share < 1
    found = metrics[f"{prefix}reward_accuracy"], metrics[f"{prefix}margin"]
    np.testing.assert_allclose(found, (share, margin), rtol=1e-4)
    # One weight a pair, which of the chosen is that of each of its pairs.
    chosen = np.broadcast_to(rewards[:, :1], weights.shape)
    for metric, values in (("chosen", chosen), ("rejected", rewards[:, 1:])):
      np.testing.assert_allclose(
        metrics[f"{prefix}{metric}_reward"],
        np.average(np.where(weights > 0, values, 0), weights=weights),
        rtol=1e-4,
        atol=1e-5,
      )
  np.testing.assert_allclose(
    metrics["example_loss"].sum(), metrics["loss"], rtol=1e-6
  )


def test_loss_is_ln_2_at_zero_lora_without_prefix():
  bare = golden_cases.language_model(GOLDEN)
  lm = policy.make_language_model(
    bare.arch,
    lora=layers.LoraConfig(("q_proj", "down_proj"), 3),
    rngs=nnx.Rngs(0),
  )
  nnx.update(lm, nnx.state(bare))
  spec = user_model.UserConfig("none")
  table = lm.embed_tokens.weight[...]
  users = user_model.make_user_model(spec, 13, table, nnx.Rngs(0))
  made = policy.Policy(lm, users)
  loss, metrics = jax.jit(
    lambda batch: objective_lib.loss_and_metrics(
      made,
      batch,
      golden_cases.objective(),
      objective_lib.pair_scales(batch, golden_cases.objective()),
    )
  )(examples())
  # Reference log-probabilities are torch's: sums of nats, as far as rounding.
  assert float(loss) == pytest.approx(math.log(2), abs=1e-5)
  assert float(metrics["margin"]) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_packed_groups_have_the_same_loss_and_gradients(rows):
  batch = examples(slice(4))
  loss, metrics, found = gradients(batch)
  responses = batch.response_mask.sum((1, 2)).reshape(-1, rows).sum(1)
  both = responses + batch.prompt_mask.sum(1).reshape(-1, rows).sum(1)
  room = structs.Packed(rows, int(both.max()), int(responses.max()))
  packed = dataclasses.replace(batch, packed=room)
  packed_loss, packed_metrics, packed_found = gradients(packed)
  # Float32 sums in another order.
  np.testing.assert_allclose(packed_loss, loss, rtol=1e-6)
  for key, value in metrics.items():
    np.testing.assert_allclose(packed_metrics[key], value, rtol=1e-5)
  for key, value in found.items():
    difference = golden_cases.relative_difference(packed_found[key], value)
    assert difference < 1e-5, key


def test_a_group_without_enough_room_has_no_finite_loss():
  batch = examples(slice(4), packed=structs.Packed(4, 20, 10))
  assert not np.isfinite(gradients(batch)[0])


def filled_up():
  """The golden batch whose last row only fills it up, with garbage in it."""
  batch = examples()
  last = jnp.arange(5) == 4
  return dataclasses.replace(
    batch,
    index=jnp.where(last, -1, batch.index),
    user_row=jnp.where(last, 0, batch.user_row),
    prompt=jnp.where(last[:, None], 89, batch.prompt),
    prompt_mask=batch.prompt_mask & ~last[:, None],
    responses=jnp.where(last[:, None, None], 89, batch.responses),
    response_mask=batch.response_mask & ~last[:, None, None],
    weight=jnp.where(last, 0.0, batch.weight),
  )


def test_a_row_that_fills_up_changes_nothing():
  loss, metrics, found = gradients(filled_up())
  same, theirs, expected = gradients(examples(slice(4)))
  # Other shapes sum in another order.
  assert float(loss) == pytest.approx(float(same), abs=1e-6)
  for key in ("margin", "generic_margin", "reward_accuracy"):
    assert float(metrics[key]) == pytest.approx(float(theirs[key]), abs=1e-5)
  for key, value in expected.items():
    assert golden_cases.relative_difference(found[key], value) < 1e-5, key


def test_a_pair_that_does_not_exist_contributes_not_even_a_nan():
  batch = filled_up()
  expected = gradients(batch)
  missing = ~batch.response_mask.any(-1)
  poisoned = jnp.where(missing, jnp.nan, batch.reference_logps)
  found = gradients(dataclasses.replace(batch, reference_logps=poisoned))
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_generic_branch_knows_no_user():
  objective = with_alpha(0.0)
  loss, _, found = gradients(examples(), objective)
  np.testing.assert_array_equal(found["offsets"], 0.0)
  assert np.abs(found["generic_prefix"]).min() > 0
  others = examples(user_row=jnp.array([1, 2, 4, 5, 6], jnp.int32))
  assert gradients(others, objective)[0] == loss


def test_alpha_mixes_the_losses_of_the_branches():
  mixed, user, generic = (
    float(gradients(examples(), with_alpha(alpha))[0])
    for alpha in (golden_cases.ALPHA, 1.0, 0.0)
  )
  assert abs(user - generic) > 0.01
  expected = golden_cases.ALPHA * user + (1 - golden_cases.ALPHA) * generic
  assert mixed == pytest.approx(expected, abs=1e-5)


def test_the_chosen_response_is_held_likely_by_its_mean_over_tokens():
  batch = examples()
  plain = golden_cases.objective()
  graphdef, trainable, frozen = parts()
  logps = objective_lib.branch_logps(
    nnx.merge(graphdef, trainable, frozen), batch, plain
  )
  expected = 0.0
  for row, (weight, masks) in enumerate(
    zip(np.array(batch.weight), np.array(batch.response_mask), strict=True)
  ):
    pairs = weight * masks[1:].any(-1).sum()
    for name, share in (("user", 0.35), ("generic", 0.65)):
      expected -= share * pairs * float(logps[name][row, 0]) / masks[0].sum()
  expected /= float(
    losses.pair_weights(batch.response_mask, batch.weight).sum()
  )
  without, _, before = gradients(batch, plain)
  loss, metrics, after = gradients(
    batch, dataclasses.replace(plain, chosen_nll=0.7)
  )
  np.testing.assert_allclose(loss - without, 0.7 * expected, rtol=1e-5)
  np.testing.assert_allclose(metrics["example_loss"].sum(), loss, rtol=1e-6)
  assert np.abs(after["offsets"] - before["offsets"]).max() > 1e-3


def test_length_normalized_ipo_is_that_of_mean_log_probabilities():
  batch = examples()
  objective = dataclasses.replace(
    golden_cases.objective(), kind="ipo", length_normalized=True
  )
  lengths = np.maximum(np.asarray(batch.response_mask).sum(-1), 1)
  weights = losses.pair_weights(batch.response_mask, batch.weight)
  expected = 0.0
  for name, share in objective.branches():
    ratios = GOLDEN[f"{CASE}/logps/{name}"] - GOLDEN[f"{CASE}/logps/reference"]
    ratios = ratios / lengths
    ratios = ratios[:, :1] - ratios[:, 1:]
    pairs = (ratios - 1 / (2 * objective.beta)) ** 2
    expected += share * np.average(pairs, weights=weights)
  np.testing.assert_allclose(
    gradients(batch, objective)[0], expected, rtol=1e-5
  )


def test_a_branch_without_weight_is_not_run():
  rows = {}
  for alpha in (0.0, golden_cases.ALPHA, 1.0):
    graphdef, trainable, frozen = parts()

    def hidden_rows(trainable, alpha=alpha, graphdef=graphdef, frozen=frozen):
      made = nnx.merge(graphdef, trainable, frozen)
      return objective_lib.branch_logps(made, examples(), with_alpha(alpha))

    text = str(jax.make_jaxpr(hidden_rows)(trainable))
    width = f"{4 + 11 + 3 * 7},42]"  # T + P + N R positions of width 42
    rows[alpha] = {count for count in (5, 10) if f"f32[{count},{width}" in text}
  assert rows == {0.0: {5}, golden_cases.ALPHA: {10}, 1.0: {5}}


def test_parts_take_turns_in_a_batch_and_are_joined_again():
  shares = objective_lib.split_in_microbatches(jnp.arange(6), 3)
  np.testing.assert_array_equal(shares, [[0, 3], [1, 4], [2, 5]])
  np.testing.assert_array_equal(
    objective_lib.join_microbatches(shares), np.arange(6)
  )


def mixed_batch():
  """The golden batch, half of it rows of the generic user."""
  batch = examples()
  rows = jnp.array([3, 0, 12, 0, 0])
  return dataclasses.replace(batch, user_row=rows)


@pytest.mark.parametrize("microbatches", [1, 5])
def test_mixing_by_batch_weighs_the_means_of_users_and_generic_rows(
  microbatches,
):
  batch = mixed_batch()
  objective = objective_lib.LossConfig(alpha=0.25, mixing="batch")
  scales = np.asarray(objective_lib.pair_scales(batch, objective, microbatches))
  weights = np.asarray(losses.pair_weights(batch.response_mask, batch.weight))
  expected = np.zeros_like(weights)
  for rows in np.split(np.arange(5), microbatches):
    for share, own in ((0.25, batch.user_row > 0), (0.75, batch.user_row == 0)):
      mine = np.isin(np.arange(5), rows) & np.asarray(own)
      kind = np.where(mine[:, None], weights, 0.0)
      if kind.sum():
        expected += share * kind / kind.sum() / microbatches
  np.testing.assert_allclose(scales, expected, rtol=1e-6)


def test_mixing_by_sample_is_the_mean_over_pairs():
  batch = mixed_batch()
  scales = objective_lib.pair_scales(batch, golden_cases.objective(), 5)
  weights = losses.pair_weights(batch.response_mask, batch.weight)
  np.testing.assert_allclose(scales, weights / weights.sum(), rtol=1e-6)


def test_mixing_by_batch_runs_each_row_once_as_its_user():
  graphdef, trainable, frozen = parts()
  made = nnx.merge(graphdef, trainable, frozen)
  objective = dataclasses.replace(
    golden_cases.objective(), alpha=0.25, mixing="batch"
  )
  batch = mixed_batch()
  logps = jax.jit(lambda: objective_lib.branch_logps(made, batch, objective))()
  assert list(logps) == ["user"]
  score = step.make_score(graphdef, 45)(trainable, frozen, batch)
  np.testing.assert_allclose(logps["user"], score, rtol=1e-5, atol=1e-5)


def test_the_generic_branch_reads_the_bare_prompt():
  graphdef, trainable, frozen = parts()
  made = nnx.merge(graphdef, trainable, frozen)
  batch = examples()
  # Another prompt altogether: the last row's is the first's.
  bare = dataclasses.replace(
    batch,
    bare_prompt=batch.prompt[::-1],
    bare_prompt_mask=batch.prompt_mask[::-1],
  )
  swapped = dataclasses.replace(
    batch, prompt=batch.prompt[::-1], prompt_mask=batch.prompt_mask[::-1]
  )
  run = jax.jit(
    lambda batch: objective_lib.branch_logps(
      made, batch, golden_cases.objective()
    )
  )
  plain, both, other = map(run, (batch, bare, swapped))
  np.testing.assert_allclose(both["user"], plain["user"], rtol=1e-6)
  np.testing.assert_allclose(both["generic"], other["generic"], rtol=1e-6)
  assert np.abs(plain["generic"] - other["generic"]).max() > 0.1
