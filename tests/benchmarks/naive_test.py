import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import naive
from pdpo_jax.core import structs
from pdpo_jax.models import layers, llama, policy, user_model
from pdpo_jax.training import objective as objective_lib

ARCH = dataclasses.replace(llama.PRESETS["llama-tiny"], vocab_size=59)
OBJECTIVE = objective_lib.LossConfig(beta=0.3, alpha=0.7)


def make_parts():
  """Definition, trained and frozen part of a policy whose LoRA is not zero."""
  lora = layers.LoraConfig(ARCH.linears, 3)
  lm = policy.make_language_model(ARCH, lora=lora, rngs=nnx.Rngs(0, lora=1))
  table = lm.embed(jnp.arange(ARCH.vocab_size))
  spec = user_model.UserConfig(num_tokens=2, init_std=0.1)
  users = user_model.make_user_model(spec, 5, table, nnx.Rngs(2))
  graphdef, trainable, frozen = nnx.split(
    policy.Policy(lm, users), policy.trainable, ...
  )
  keys = iter(jax.random.split(jax.random.key(3), 99))
  trainable = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), trainable
  )
  return graphdef, trainable, frozen


def make_batch(rows=3, prompt=7, responses=3, size=5):
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, size + 1, (rows, responses))
  return structs.PreferenceBatch(
    index=np.arange(rows, dtype=np.int32),
    user_row=np.array([4, 0, 2], np.int32),
    prompt=rng.integers(0, ARCH.vocab_size, (rows, prompt), dtype=np.int32),
    prompt_mask=np.ones((rows, prompt), bool),
    responses=rng.integers(
      0, ARCH.vocab_size, (rows, responses, size), dtype=np.int32
    ),
    response_mask=np.arange(size) < lengths[..., None],
    reference_logps=rng.normal(-20, 2, (rows, responses)).astype(np.float32),
    weight=np.ones(rows, np.float32),
  )


def test_the_naive_layout_has_the_same_loss_and_gradients():
  graphdef, trainable, frozen = make_parts()
  batch = jax.tree.map(jnp.asarray, make_batch())

  def naive_loss(trainable):
    return naive.loss(nnx.merge(graphdef, trainable, frozen), batch, OBJECTIVE)

  def our_loss(trainable):
    made = nnx.merge(graphdef, trainable, frozen)
    scales = objective_lib.pair_scales(batch, OBJECTIVE)
    return objective_lib.loss_and_metrics(
      made, batch, OBJECTIVE, scales, logits_chunk=11
    )[0]

  theirs, ours = (
    jax.jit(jax.value_and_grad(loss))(trainable)
    for loss in (naive_loss, our_loss)
  )
  # Float32 sums in another order.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    theirs,
    ours,
  )
