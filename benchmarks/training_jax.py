"""This package's step, and the naive one, as contenders of `training.py`."""

import dataclasses
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import comparisons, naive, side_by_side
from pdpo_jax.core import structs
from pdpo_jax.data import batching
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import config as config_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.training import optimizer, pdpo, policies
from pdpo_jax.training import step as step_lib
from pdpo_jax.weights import base as base_lib

# Width of the square matrices whose product says what the machine can do.
_SQUARE = 3072
_multiply = jax.jit(jnp.matmul)


def make_config(spec) -> config_lib.Config:
  config = config_lib.Config()
  config.base.dtype = config.base.param_dtype = spec["dtype"]
  config.base.remat = spec["remat"]
  config.user.num_tokens = spec["prefix"]
  config.lora.dropout = 0.0
  config.loss.beta = 0.1
  config.train.logits_chunk = spec["logits_chunk"]
  return config


def batch_of(file: str, prefix: int) -> structs.PreferenceBatch:
  """All examples, whose prompts lose `prefix` tokens to the soft prefix."""
  arrays = np.load(file)
  prompt, responses = arrays["prompts"][:, prefix:], arrays["responses"]
  rows = len(prompt)
  return jax.tree.map(
    jnp.asarray,
    structs.PreferenceBatch(
      index=np.arange(rows, dtype=np.int32),
      user_row=1 + np.arange(rows, dtype=np.int32),
      prompt=prompt,
      prompt_mask=np.ones(prompt.shape, bool),
      responses=responses,
      response_mask=np.ones(responses.shape, bool),
      reference_logps=np.zeros(responses.shape[:2], np.float32),
      weight=np.ones(rows, np.float32),
    ),
  )


def score(base: base_lib.Base, batch: structs.PreferenceBatch):
  """What the base says of a batch's responses."""
  graphdef, trainable, frozen = nnx.split(
    policy_lib.base_policy(base.lm), policy_lib.trainable, ...
  )
  return step_lib.make_score(graphdef)(trainable, frozen, batch)


def rectangle(spec, base: base_lib.Base) -> structs.PreferenceBatch:
  """Rows of one length, as they are; the base reads what TRL gets."""
  reference = score(base, batch_of(spec["tokens"], 0))
  return dataclasses.replace(
    batch_of(spec["tokens"], spec["prefix"]), reference_logps=reference
  )


def dialogues(spec, base: base_lib.Base) -> structs.PreferenceBatch:
  """Turns of dialogues in one packed batch, with or without shared trunks."""
  found = comparisons.read(spec["tokens"])

  def batch(prefix, logps, *, share_trunks):
    examples = [
      structs.TokenizedExample(user, prompt[prefix:], prompt[prefix:], (*own,))
      for user, prompt, own in found
    ]
    parts = spec["accumulation"]
    batches = batching.PreferenceBatches(
      examples,
      logps,
      -(-len(examples) // parts) * parts,
      0,
      prefix,
      max_shapes=1,
      microbatches=parts,
      share_trunks=share_trunks,
    )
    return jax.tree.map(jnp.asarray, batches.batch(0))

  whole = batch(0, None, share_trunks=False)
  of_base = np.asarray(score(base, whole))
  order = np.argsort(np.asarray(whole.index), kind="stable")
  logps = of_base[order[-len(found) :]]
  shared = spec["layout"] == "ours"
  return batch(spec["prefix"], logps, share_trunks=shared)


def first_pair(batch: structs.PreferenceBatch) -> list[float]:
  """Reference log-probabilities, chosen and rejected, to compare with TRL's."""
  logps = np.asarray(batch.reference_logps)
  is_first = np.broadcast_to(np.asarray(batch.examples) == 0, logps.shape)
  return logps[is_first][:2].tolist()


def time_product(dtype: str) -> side_by_side.Facts:
  """What one large matrix product takes, just now."""
  square = jnp.ones((_SQUARE, _SQUARE), dtype)
  _multiply(square, square).block_until_ready()
  start, cpu_start = time.perf_counter(), time.process_time()
  _multiply(square, square).block_until_ready()
  return {
    "product_flops": 2 * _SQUARE**3,
    "product_seconds": time.perf_counter() - start,
    "product_cpu_seconds": time.process_time() - cpu_start,
  }


def main() -> None:
  turns = side_by_side.Turns()
  spec = json.loads(sys.argv[1])
  config = make_config(spec)
  base = base_lib.read_base(spec["weights"], config.base)
  make = dialogues if spec["ragged"] else rectangle
  batch = make(spec, base)
  rows = int(batch.user_row.max())
  policy = policies.make_policy(config.recipe, base, rows + 1)
  objective = pdpo.make_objective(config.recipe)
  transformation = optimizer.make_optimizer(config.train, 10_000)
  state = structs.TrainState(
    jnp.zeros((), jnp.int32),
    policy.trainable,
    transformation.init(policy.trainable),
  )
  if spec["layout"] == "naive":
    step = naive.make_train_step(policy.graphdef, objective, transformation)
  else:
    step = step_lib.make_train_step(
      policy.graphdef,
      objective,
      transformation,
      accumulation_steps=spec["accumulation"],
    )
  start = time.perf_counter()
  compiled = step.lower(state, policy.frozen, batch).compile()
  turns.ready(
    versions=run_folder.versions(),
    compile_seconds=time.perf_counter() - start,
    reference=first_pair(batch),
  )
  del base
  while True:
    turns.wait()
    state, metrics = compiled(state, policy.frozen, batch)
    loss = float(metrics["loss"])
    turns.report(lambda: time_product(spec["dtype"]), loss=loss)


if __name__ == "__main__":
  main()
