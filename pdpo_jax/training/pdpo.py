"""P-DPO: what is minimised, by which step, and the training of a policy."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.data import users as users_lib
from pdpo_jax.training import (
  diagnosis,
  host_users,
  loop,
  losses,
  metrics,
  optimizer,
  policies,
  recipes,
  scoring,
  sharding,
)
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.training import step as step_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)


def make_objective(recipe: recipes.Recipe) -> objective_lib.LossConfig:
  """The objective of a training: `loss`, as far as its users go with it."""
  changes = {}
  if recipe.user.kind == "none" and recipe.loss.mixing == "batch":
    # Of the two rows of an example, which are the same, one counts.
    changes = {"alpha": 0.0}
  elif not recipe.learns_generic:
    # Without prefixes the two branches are the same; and the generic one
    # teaches users' rows nothing.
    changes = {"alpha": 1.0, "mixing": "sample"}
  return dataclasses.replace(recipe.loss, **changes)


def make_step(
  recipe: recipes.Recipe,
  graphdef: Any,
  objective: objective_lib.LossConfig,
  logits_chunk: int,
  transformation: optax.GradientTransformation,
  places: Any,
) -> Callable:
  """The train step of a configuration; see `step.make_train_step`."""
  on_host = recipe.train.users_on_host
  sparse = recipe.train.sparse_users and recipe.user.kind != "none"
  step = step_lib.make_train_step(
    graphdef,
    objective,
    transformation,
    logits_chunk=logits_chunk,
    accumulation_steps=recipe.train.accumulation_steps,
    # Of LoRA that learns.
    dropout=recipe.lora.dropout > 0 and recipe.train.learn == "all",
    sparse_users=sparse and not on_host,
    learn=recipe.train.learn,
    seed=recipe.seed,
    places=places,
  )
  return host_users.make_step(step) if sparse and on_host else step


def held_out_metrics(
  scored: scoring.HeldOut, objective: objective_lib.LossConfig
) -> dict[str, float]:
  """The user branch on held-out pairs, each of which counts the same.

  `loss` is without `chosen_nll`. For the others see
  `objective.loss_and_metrics` and `scoring.HeldOut`.
  """
  ratios = scored.differences(objective.length_normalized)
  rewards = objective.beta * (
    scored.per_token if objective.length_normalized else scored.log_ratios
  )
  pair_loss = losses.LOSSES[objective.kind](
    jnp.asarray(ratios), objective.beta, objective.label_smoothing
  )
  return {
    "loss": float(np.nanmean(pair_loss)),
    "reward_accuracy": float(np.mean(ratios[~np.isnan(ratios)] > 0)),
    "margin": objective.beta * float(np.nanmean(ratios)),
    "chosen_reward": float(np.nanmean(rewards[:, 0])),
    "rejected_reward": float(np.nanmean(rewards[:, 1:])),
    "chosen_per_token": scored.chosen_per_token,
    "pairs": float(np.sum(~np.isnan(ratios))),
  }


def train(
  recipe: recipes.Recipe,
  base: base_lib.Base,
  users: users_lib.UserIndex,
  batches: batching.PreferenceBatches,
  heldout: batching.PreferenceBatches | None,
  examples: Sequence[structs.PreferenceExample],
  folder: pathlib.Path,
  data: str = "",
  check_text: Callable[[policies.SplitPolicy], dict[str, float]] | None = None,
) -> policies.SplitPolicy:
  """Trains a policy, or goes on where this run was cut off.

  Args:
    recipe: `user`, `lora`, `loss` and `train` apply.
    base: frozen.
    users: rows of the user table.
    batches: with reference log-probabilities.
    heldout: likewise, for evaluation during training; None for none.
    examples: what `batches` was made of, to name examples in errors.
    folder: gets metrics and checkpoints.
    data: names the data set; a training only goes on with the same.
    check_text: `train.text_checks` times and at the end, what a policy's text
      is like. Where it is broken at the end, and was whole before, the policy
      is the last whose text was whole.

  Raises:
    ValueError: besides `loop.run`'s, if `train.start_from` cannot be started
      from.
  """
  train_config = recipe.train
  policy = policies.make_policy(recipe, base, users.num_rows)
  if recipe.train.start and not policies.is_begun(folder):
    place = recipe.train.start / folder.name
    earlier = policies.load(recipe, base, place, of_run=False)
    policy = policies.begin_as(policy, earlier.policy, earlier.users)
  total_steps = train_config.epochs * batches.num_batches
  if train_config.warmup_steps >= total_steps:
    logger.warning(
      "train.warmup_steps %d is not below the run's %d steps, so that learning "
      "rates never reach their peak; lower it, or train more epochs",
      train_config.warmup_steps,
      total_steps,
    )
  transformation = optimizer.make_optimizer(train_config, total_steps)
  mesh = sharding.mesh_of(policy.frozen)
  objective = make_objective(recipe)
  state = structs.TrainState(
    jnp.zeros((), jnp.int32),
    policy.trainable,
    transformation.init(policy.trainable),
  )
  if train_config.users_on_host and recipe.user.kind != "none":
    state, places = host_users.settle(state)
  else:
    places = sharding.pinned(state)
    if places is not None:
      state = jax.device_put(state, places)
  train_step = make_step(
    recipe,
    policy.graphdef,
    objective,
    sharding.logits_chunk(train_config.logits_chunk, mesh),
    transformation,
    places,
  )
  place = sharding.batch_placer(mesh)

  def policy_of(state):
    return dataclasses.replace(policy, trainable=state.trainable)

  def evaluate(state):
    trained, chunk = policy_of(state), train_config.logits_chunk
    scored = scoring.score_held_out(trained, heldout, chunk)
    return held_out_metrics(scored, objective)

  looks = []
  if heldout:
    steps = range(0, total_steps, train_config.eval_every)
    looks.append(loop.Look(metrics.HELD_OUT, steps, evaluate))
  if check_text and train_config.text_checks:
    # Parts of the same length, between which it is looked at.
    parts = train_config.text_checks + 1
    steps = {round(part * total_steps / parts) for part in range(1, parts)}
    looks.append(
      loop.Look(
        metrics.TEXT,
        steps,
        lambda state: check_text(policy_of(state)),
        diagnosis.is_whole,
      )
    )

  def describe(index):
    # Generic rows, where they are examples of their own, come after the others.
    example = examples[index % len(examples)]
    return f"#{index} of user {example.user_id!r} ({example.prompt[:40]!r}…)"

  state = loop.run(
    loop.Training(
      name=folder.name,
      folder=folder,
      state=state,
      step=lambda state, batch: train_step(state, policy.frozen, batch),
      batch=lambda number: place(batches.batch(number)),
      total_steps=total_steps,
      examples=train_config.batch_size,
      looks=looks,
      notice=diagnosis.Diagnosis(folder.name).notice,
      describe=describe,
      users=users,
      meta=policies.meta(recipe, base, users) | {"data": data},
    ),
    train_config,
  )
  return dataclasses.replace(policy, trainable=state.trainable)
