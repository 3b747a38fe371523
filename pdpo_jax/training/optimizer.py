"""AdamW with its own learning rate for LoRA and for users."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from pdpo_jax.models import user_model
from pdpo_jax.training import recipes


def cosine_schedule(
  peak: float, warmup_steps: int, total_steps: int
) -> Callable[[Any], Any]:
  """Linear warm-up from 0 to `peak`, then a half cosine down to 0.

  Where the run is shorter than the warm-up, the warm-up is what there is of it.
  """
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=peak,
    warmup_steps=warmup_steps,
    decay_steps=max(total_steps, warmup_steps + 1),
  )


def label(trainable: nnx.State) -> Any:
  """The same tree with 'users' or 'lora' in each variable's place."""
  return _map_variables(_name, trainable)


def _name(variable):
  return "users" if isinstance(variable, user_model.UserParam) else "lora"


def _map_variables(change, trainable):
  return jax.tree.map(
    change, trainable, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
  )


def learns(variable: nnx.Variable, learn: str) -> bool:
  """Whether `train.learn` has a variable of a policy learn."""
  return learn == "all" or isinstance(variable, user_model.UserRowParam)


def kept_apart(trainable: nnx.State, learn: str) -> nnx.State:
  """The same, with no gradient for what does not learn."""
  return _map_variables(
    lambda variable: (
      variable
      if learns(variable, learn)
      else jax.tree.map(jax.lax.stop_gradient, variable)
    ),
    trainable,
  )


def make_optimizer(
  train: recipes.TrainConfig, total_steps: int
) -> optax.GradientTransformation:
  """Clipping by the global norm, then AdamW for LoRA and for users.

  What `train.learn` leaves out stays as it is, and has no moments.

  Weight decay applies to LoRA only: towards zero is towards the base model,
  whereas for a user's embedding zero means nothing.
  """

  def adamw(rate, decay):
    schedule = cosine_schedule(rate, train.warmup_steps, total_steps)
    return optax.adamw(schedule, weight_decay=decay)

  user_rate = train.user_learning_rate or train.learning_rate
  by_label = {
    "lora": adamw(train.learning_rate, train.weight_decay),
    "users": adamw(user_rate, 0.0),
    "kept": optax.set_to_zero(),
  }

  def labels(trainable):
    return _map_variables(
      lambda variable: (
        _name(variable) if learns(variable, train.learn) else "kept"
      ),
      trainable,
    )

  clip = (
    optax.clip_by_global_norm(train.clip_norm)
    if train.clip_norm
    else optax.identity()
  )
  return optax.chain(clip, optax.partition(by_label, labels))


def norms(gradients: nnx.State) -> dict[str, jax.Array]:
  """Global gradient norms by label."""
  squares = {"lora": jnp.zeros(()), "users": jnp.zeros(())}
  names = jax.tree.leaves(label(gradients))
  for name, leaf in zip(names, jax.tree.leaves(gradients), strict=True):
    squares[name] += jnp.sum(jnp.square(leaf))
  return {name: jnp.sqrt(value) for name, value in squares.items()}
