"""This package's step as a contender of `benchmarks.training_gpu`."""

import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import kernels, layers
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import optimizer, pdpo, policies
from pdpo_jax.training import step as step_lib
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import loading


def random_base(config: base_lib.BaseConfig, preset: str) -> base_lib.Base:
  """A base of random weights, made where they lie."""
  lm = loading.abstract_model(
    policy_lib.PRESETS[preset],
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.param_dtype),
    remat=config.remat,
    kernel=kernels.Kernel(config.attention),
  )
  made = []
  for number, (path, variable) in enumerate(loading.variables(lm)):
    like = variable.get_value()
    key = jax.random.fold_in(jax.random.key(0), number)
    made.append((path, variable.replace(random_weight(path, like, key))))
  nnx.update(lm, nnx.from_flat_state(made))
  return base_lib.Base(lm, None, "random")


def random_weight(path, like, key) -> jax.Array:
  if path[-1] == loading.SCALE:
    return jnp.full(like.shape, 0.02 / 64, like.dtype)
  if like.dtype == jnp.int8:
    return jax.random.randint(key, like.shape, -127, 128, jnp.int8)
  if "norm" in "".join(path):
    return jnp.ones(like.shape, like.dtype)
  draw = jax.jit(
    lambda key: 0.02 * jax.random.normal(key, like.shape, like.dtype)
  )
  return draw(key)


def random_batch(spec, vocab_size: int) -> structs.PreferenceBatch:
  rows, prompt = int(spec["samples"]), spec["prompt"] - spec["prefix"]
  shape = (rows, spec["responses"], spec["size"])
  rng = np.random.default_rng(0)
  return jax.tree.map(
    jnp.asarray,
    structs.PreferenceBatch(
      index=np.arange(rows, dtype=np.int32),
      user_row=1 + np.arange(rows, dtype=np.int32),
      prompt=rng.integers(3, vocab_size, (rows, prompt), dtype=np.int32),
      prompt_mask=np.ones((rows, prompt), bool),
      responses=rng.integers(3, vocab_size, shape, dtype=np.int32),
      response_mask=np.ones(shape, bool),
      reference_logps=np.full(shape[:2], -3000.0, np.float32),
      weight=np.ones(rows, np.float32),
    ),
  )


def main() -> None:
  spec = json.loads(sys.argv[1])
  config = config_lib.Config()
  config.base.dtype = "bfloat16"
  config.base.param_dtype = spec.get("kernels", "bfloat16")
  config.base.remat = spec.get("remat", "dots")
  config.base.attention = spec.get("attention", "auto")
  config.user.num_tokens = spec["prefix"]
  config.lora = layers.LoraConfig(rank=8, dropout=0.0)
  base = random_base(config.base, spec["preset"])
  policy = policies.make_policy(config.recipe, base, 1000)
  transformation = optimizer.make_optimizer(config.train, 10_000)
  state = structs.TrainState(
    jnp.zeros((), jnp.int32),
    policy.trainable,
    transformation.init(policy.trainable),
  )
  batch = random_batch(spec, base.lm.arch.vocab_size)
  step = step_lib.make_train_step(
    policy.graphdef, pdpo.make_objective(config.recipe), transformation
  )
  start = time.perf_counter()
  compiled = step.lower(state, policy.frozen, batch).compile()
  compile_seconds = time.perf_counter() - start
  seconds = []
  for _ in range(2 + spec["repeats"]):
    start = time.perf_counter()
    state, metrics = compiled(state, policy.frozen, batch)
    loss = float(metrics["loss"])
    seconds.append(time.perf_counter() - start)
  device = jax.devices()[0]
  print(
    json.dumps(
      {
        "seconds": statistics.median(seconds[2:]),
        "compile_seconds": compile_seconds,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use", 0),
        "loss": loss,
        "device": device.device_kind,
        "versions": {"jax": jax.__version__},
      }
    )
  )


if __name__ == "__main__":
  main()
