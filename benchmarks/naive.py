"""The usual layout of preference training, to measure the package's against.

Every pair is two full sequences, chosen and rejected, each with its own copy of
the prompt; attention is causal, logits exist at every position, and autodiff
does the rest. The loss is the same.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import attention
from pdpo_jax.training import losses
from pdpo_jax.training import objective as objective_lib


def sequence_logps(policy, prompt, response, response_mask, prefix):
  """`log pi(y | x, prefix)` in nats, of one response to each prompt `[B, P]`.

  Prompts have no padding.
  """
  embeddings, prompt_mask = policy.prompt_embeddings(
    prompt, jnp.ones(prompt.shape, bool), prefix
  )
  embeddings = jnp.concatenate([embeddings, policy.lm.embed(response)], 1)
  mask = jnp.concatenate([prompt_mask, response_mask], 1)
  hidden, _ = policy.lm.hidden(
    embeddings,
    attention.positions_of(mask),
    attention.causal(mask, policy.lm.kernel),
  )
  log_probabilities = jax.nn.log_softmax(policy.lm.logits(hidden)[:, :-1])
  start = prompt_mask.shape[1]
  targets = jnp.pad(response, ((0, 0), (start - 1, 0)))
  counted = jnp.pad(response_mask, ((0, 0), (start - 1, 0)))
  chosen = jnp.take_along_axis(log_probabilities, targets[..., None], -1)
  return jnp.sum(jnp.where(counted, chosen[..., 0], 0.0), -1)


def pairs_of(batch: structs.PreferenceBatch) -> tuple[jax.Array, jax.Array]:
  """The example and the response of each row: all pairs' chosen, then rejected.

  With two examples of three responses: examples 0 0 1 1 0 0 1 1 and responses
  0 0 0 0 1 2 1 2.
  """
  rows, responses = batch.response_mask.shape[:2]
  examples = jnp.repeat(jnp.arange(rows), responses - 1)
  rejected = jnp.tile(jnp.arange(1, responses), rows)
  return (
    jnp.tile(examples, 2),
    jnp.concatenate([jnp.zeros_like(rejected), rejected]),
  )


def loss(
  policy, batch: structs.PreferenceBatch, objective: objective_lib.LossConfig
):
  """The mean over pairs of P-DPO's loss; examples have all their responses."""
  examples, responses = pairs_of(batch)
  prompt = batch.prompt[examples]
  response = batch.responses[examples, responses]
  mask = batch.response_mask[examples, responses]
  generic = policy.user_model.generic()
  prefixes = {
    "user": policy.user_model(batch.user_row)[examples],
    "generic": jnp.broadcast_to(generic, (len(examples), *generic.shape)),
  }
  names = [name for name, _ in objective.branches()]
  logps = sequence_logps(
    policy,
    *(
      jnp.concatenate([each] * len(names)) for each in (prompt, response, mask)
    ),
    jnp.concatenate([prefixes[name] for name in names]),
  )
  ratios = logps.reshape(len(names), -1)
  ratios = ratios - batch.reference_logps[examples, responses]
  chosen, rejected = jnp.split(ratios, 2, 1)
  pair_loss = losses.LOSSES[objective.kind]
  total = jnp.zeros(())
  for (_, weight), ratio in zip(
    objective.branches(), chosen - rejected, strict=True
  ):
    total += weight * jnp.mean(
      pair_loss(ratio, objective.beta, objective.label_smoothing)
    )
  return total


def make_train_step(graphdef, objective, transformation):
  """The jitted step `(state, frozen, batch) -> (state, metrics)`."""

  def train_step(state, frozen, batch):
    def loss_of(trainable):
      return loss(nnx.merge(graphdef, trainable, frozen), batch, objective)

    value, gradients = jax.value_and_grad(loss_of)(state.trainable)
    updates, opt_state = transformation.update(
      gradients, state.opt_state, state.trainable
    )
    trainable = optax.apply_updates(state.trainable, updates)
    state = structs.TrainState(state.step + 1, trainable, opt_state)
    return state, {"loss": value}

  return jax.jit(train_step, donate_argnums=0)
