"""Dialogues as one row each, against a row a comparison."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.models import gptj, layers, llama, policy, user_model
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.training import optimizer, recipes
from pdpo_jax.training import step as step_lib
from tests import dialogues

TOKENS = 3
VOCABULARY, USERS = dialogues.VOCABULARY, dialogues.USERS

ARCHITECTURES = {
  "llama": llama.Architecture(VOCABULARY, 26, 2, 4, 2, 10, 47),
  "gptj": gptj.PRESETS["gptj-tiny"],
}


@functools.cache
def split_policy(name, kind, place):
  """A policy whose LoRA and users are no longer as they begin."""
  arch = dataclasses.replace(ARCHITECTURES[name], vocab_size=VOCABULARY)
  lora = layers.LoraConfig(("v_proj", "q_proj"), 3, 7.0)
  with jax.ensure_compile_time_eval():
    lm = policy.make_language_model(arch, lora=lora, rngs=nnx.Rngs(0))
    spec = user_model.UserConfig(kind, TOKENS, 2)
    table = lm.embed(jnp.arange(VOCABULARY))
    users = user_model.make_user_model(spec, USERS + 1, table, nnx.Rngs(1))
    made = policy.Policy(lm, users, place)
    graphdef, trainable, frozen = nnx.split(made, policy.trainable, ...)
    leaves, tree = jax.tree.flatten(trainable)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
      leaf + 0.3 * jax.random.normal(key, leaf.shape)
      for leaf, key in zip(leaves, keys, strict=True)
    ]
    # Larger than at the start, so that every position matters.
    frozen = jax.tree.map(lambda x: 4 * x, frozen)
  return graphdef, jax.tree.unflatten(tree, leaves), frozen


def make_batches(examples, *, share_trunks, **options):
  options = {"batch_size": len(examples), "with_bare_prompt": True} | options
  widest = max(len(example.responses) for example in examples)
  reference = np.random.default_rng(9).normal(size=(len(examples), widest))
  return batching.PreferenceBatches(
    examples,
    reference.astype(np.float32),
    seed=0,
    prefix_length=TOKENS,
    max_shapes=1,
    share_trunks=share_trunks,
    **options,
  )


@functools.cache
def differentiate(name, kind, place, objective):
  graphdef = split_policy(name, kind, place)[0]

  @jax.jit
  def run(trainable, frozen, batch):
    scales = objective_lib.pair_scales(batch, objective)

    def loss_of(trainable):
      made = nnx.merge(graphdef, trainable, frozen)
      return objective_lib.loss_and_metrics(made, batch, objective, scales)

    (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
      trainable
    )
    logps = objective_lib.branch_logps(
      nnx.merge(graphdef, trainable, frozen), batch, objective
    )
    return metrics, gradients, logps

  return run


def logps_of_examples(batch, values):
  """By example and branch, the chosen response first."""
  found = {}
  examples = np.broadcast_to(batch.examples, values.shape)
  for row, column in zip(*np.nonzero(batch.response_mask.any(-1)), strict=True):
    found.setdefault(int(examples[row, column]), []).append(values[row, column])
  return found


OBJECTIVES = {
  "both branches": objective_lib.LossConfig(beta=0.3, alpha=0.4),
  "likelihoods a token": objective_lib.LossConfig(
    kind="ipo", beta=0.3, alpha=0.7, chosen_nll=0.2, length_normalized=True
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "kind", "place", "with_text", "objective"),
  [
    ("llama", "individual", "front", True, "both branches"),
    ("llama", "cluster", "after_bos", True, "likelihoods a token"),
    ("gptj", "individual", "after_bos", False, "both branches"),
    ("gptj", "cluster", "front", True, "both branches"),
  ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_dialogues_have_the_losses_and_gradients_of_separate_rows(
  name, kind, place, with_text, objective, bare
):
  objective = OBJECTIVES[objective]
  examples = dialogues.make(3, with_text)
  _, trainable, frozen = split_policy(name, kind, place)
  run = differentiate(name, kind, place, objective)
  found = []
  for share_trunks in (True, False):
    batches = make_batches(
      examples, share_trunks=share_trunks, with_bare_prompt=bare
    )
    assert batches.num_batches == 1
    batch = batches.batch(0)
    metrics, gradients, logps = run(trainable, frozen, batch)
    values = {
      branch: logps_of_examples(batch, np.asarray(value))
      for branch, value in logps.items()
    }
    found.append((metrics, gradients, values, batch))
  (metrics, gradients, logps, batch), (_, expected, separate, _) = found
  assert len(batch.index) == 6
  assert batch.decisions.on_trunk == 5
  for branch, by_example in separate.items():
    assert by_example.keys() == logps[branch].keys() == {*range(len(examples))}
    for index, values in by_example.items():
      # Sums of up to eight tokens' log-probabilities, in nats.
      np.testing.assert_allclose(
        logps[branch][index], values, atol=1e-5, rtol=1e-6
      )
  for metric, value in found[1][0].items():
    if metric != "example_loss":
      np.testing.assert_allclose(metrics[metric], value, atol=1e-5, rtol=1e-5)
  flat = zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True)
  for ours, theirs in flat:
    assert np.abs(theirs).max() > 0
    difference = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert difference < 1e-4


def step_of(batches, microbatches):
  """Trained values after an epoch, and each step's loss."""
  split = split_policy("llama", "individual", "front")
  graphdef, trainable, frozen = jax.tree.map(jnp.copy, split)
  transformation = optimizer.make_optimizer(recipes.TrainConfig(), 10)
  step = step_lib.make_train_step(
    graphdef,
    OBJECTIVES["both branches"],
    transformation,
    accumulation_steps=microbatches,
  )
  state = structs.TrainState(
    jnp.zeros((), jnp.int32), trainable, transformation.init(trainable)
  )
  state, metrics = step(state, frozen, batches.batch(0))
  return metrics


@pytest.mark.parametrize("microbatches", [1, 3])
def test_microbatches_of_dialogues_add_up_to_the_step_of_separate_rows(
  microbatches,
):
  examples = dialogues.make(4)
  shared, alone = (
    step_of(
      make_batches(
        examples,
        share_trunks=microbatches > 0,
        microbatches=max(1, microbatches),
      ),
      max(1, microbatches),
    )
    for microbatches in (microbatches, 0)
  )
  for name in shared.keys() - {"example_loss"}:
    # Float32 sums in another order.
    np.testing.assert_allclose(shared[name], alone[name], rtol=1e-4, atol=1e-5)


def test_a_response_depends_on_what_stands_before_it_and_nothing_else():
  ids = iter(range(1, VOCABULARY))

  def new(count):
    return np.array([next(ids) for _ in range(count)], np.int32)

  # Each token occurs once, so that its embedding's gradient is the position's.
  first, second, third = (
    tuple(new(count) for count in counts)
    for counts in ((4, 3, 2), (3, 4, 1, 5), (2, 3))
  )
  asked = new(2)
  prompts = [asked]
  for answers in (first, second):
    prompts.append(np.concatenate([prompts[-1], answers[0], new(2)]))
  examples = [
    structs.TokenizedExample(1, prompt, prompt, responses)
    for prompt, responses in zip(prompts, (first, second, third), strict=True)
  ]
  batches = make_batches(examples, share_trunks=True, with_bare_prompt=False)
  batch = jax.tree.map(jnp.asarray, batches.batch(0))
  assert batch.decisions.on_trunk == 2
  graphdef, trainable, frozen = split_policy("llama", "individual", "front")
  made = nnx.merge(graphdef, trainable, frozen)
  table = made.lm.embed_tokens.weight[...]

  @jax.jit
  @jax.jacobian
  def influence(table):
    policy_ = nnx.clone(made)
    policy_.lm.embed_tokens.weight[...] = table
    prefix = policy_.user_model(jnp.asarray(batch.user_row))
    return objective_lib.response_logps(policy_, batch, prefix, 128)

  found = np.abs(influence(table)[0]).sum(-1)  # [N, V]
  for index, example in enumerate(examples):
    columns = np.flatnonzero(batch.examples[0] == index)
    for column, response in zip(columns, example.responses, strict=True):
      seen = {*example.prompt.tolist(), *response[:-1].tolist()}
      assert {*np.flatnonzero(found[column]).tolist()} == seen
