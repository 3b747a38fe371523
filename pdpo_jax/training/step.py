"""One optimizer step of the P-DPO objective, and scores by its policy.

Axes: B examples, N responses (0 is the chosen one).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.training import optimizer
from pdpo_jax.training import sparse_users as sparse_users_lib


def make_train_step(
  graphdef: Any,
  objective: objective_lib.LossConfig,
  transformation: optax.GradientTransformation,
  *,
  logits_chunk: int = 128,
  accumulation_steps: int = 1,
  dropout: bool = False,
  sparse_users: bool = False,
  learn: str = "all",
  seed: int = 0,
  places: Any = None,
) -> Callable:
  """The jitted step `(state, frozen, batch) -> (state, metrics)`.

  The old state's buffers are given up. Randomness depends on `seed` and the
  state's step alone, so a resumed run repeats an uninterrupted one.

  Args:
    graphdef: of the policy, from `nnx.split`.
    objective: what is minimised.
    transformation: the optimizer.
    logits_chunk: positions with logits at a time.
    accumulation_steps: microbatches that a batch is run in, one after the
      other; B must be a multiple.
    dropout: whether LoRA's dropout is on.
    sparse_users: whether a step touches its own users' rows alone; see
      `training/sparse_users.py`.
    learn: what of the policy learns, as `recipes.TrainConfig.learn`.
    seed: of dropout.
    places: where the new state lies, as `sharding.pinned`; anywhere without.
  """

  def gradients_of(trainable, frozen, microbatch, scales, key):
    def loss_of(trainable):
      trainable = optimizer.kept_apart(trainable, learn)
      policy = nnx.merge(graphdef, trainable, frozen)
      return objective_lib.loss_and_metrics(
        policy, microbatch, objective, scales, key, logits_chunk
      )

    (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
      trainable
    )
    return gradients, metrics

  def train_step(state, frozen, batch):
    scales = objective_lib.pair_scales(batch, objective, accumulation_steps)
    key = None
    if dropout:
      key = jax.random.fold_in(jax.random.key(seed), state.step)
    if accumulation_steps == 1:
      gradients, metrics = gradients_of(
        state.trainable, frozen, batch, scales, key
      )
      example_loss = metrics.pop("example_loss")
    else:
      gradients, metrics, example_loss = _accumulate(
        lambda microbatch, place: gradients_of(
          state.trainable,
          frozen,
          *microbatch,
          None if key is None else jax.random.fold_in(key, place),
        ),
        (batch, scales),
        accumulation_steps,
      )
    metrics["chosen_per_token"] = metrics.pop("chosen_log_ratio") / jnp.maximum(
      metrics.pop("chosen_tokens"), 1e-6
    )
    for name, norm in optimizer.norms(gradients).items():
      metrics[f"grad_norm_{name}"] = norm
    updates, opt_state = transformation.update(
      gradients, state.opt_state, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    state = structs.TrainState(state.step + 1, trainable, opt_state)
    return state, metrics | {"example_loss": example_loss}

  def sparse_step(state, frozen, batch):
    num_rows = sparse_users_lib.num_rows(state.trainable)
    rows, places = sparse_users_lib.batch_rows(batch.user_row, num_rows)
    small, metrics = train_step(
      sparse_users_lib.take(state, rows),
      frozen,
      dataclasses.replace(batch, user_row=places),
    )
    return sparse_users_lib.put(state, small, rows), metrics

  return jax.jit(
    sparse_step if sparse_users else train_step,
    donate_argnums=0,
    out_shardings=None if places is None else (places, None),
  )


def _accumulate(gradients_of, inputs, microbatches):
  """Sums gradients and metrics over so many microbatches."""
  shares = jax.tree.map(
    lambda x: objective_lib.split_in_microbatches(x, microbatches), inputs
  )

  def body(total, inputs):
    microbatch, place = inputs
    gradients, metrics = gradients_of(microbatch, place)
    example_loss = metrics.pop("example_loss")
    return jax.tree.map(jnp.add, total, (gradients, metrics)), example_loss

  first = jax.tree.map(lambda x: x[0], shares)
  shapes = jax.eval_shape(gradients_of, first, jnp.zeros((), jnp.int32))
  shapes[1].pop("example_loss")
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  (gradients, metrics), example_loss = jax.lax.scan(
    body, zeros, (shares, jnp.arange(microbatches))
  )
  return gradients, metrics, objective_lib.join_microbatches(example_loss)


@functools.cache
def make_score(graphdef: Any, logits_chunk: int = 128) -> Callable:
  """The jitted `(trainable, frozen, batch) -> logps [B, N]`.

  Every example is read with its own user's prefix; row 0 has the generic one.
  """

  def score(trainable, frozen, batch):
    policy = nnx.merge(graphdef, trainable, frozen)
    prefix = policy.user_model(batch.user_row)
    return objective_lib.response_logps(policy, batch, prefix, logits_chunk)

  return jax.jit(score)
