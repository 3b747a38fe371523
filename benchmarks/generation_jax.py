"""This package's decoding as a contender of `benchmarks.generation`."""

import json
import sys
import time

import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import side_by_side
from pdpo_jax.inference import decode, sampling
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.models import stack, user_model
from pdpo_jax.runs import run_folder
from pdpo_jax.weights import base as base_lib


def main() -> None:
  turns = side_by_side.Turns()
  spec = json.loads(sys.argv[1])
  arrays = np.load(spec["requests"])
  config = base_lib.BaseConfig(dtype=spec["dtype"], param_dtype=spec["dtype"])
  base = base_lib.read_base(spec["weights"], config)
  rows, tokens, _ = arrays["prefixes"].shape
  users = user_model.make_user_model(
    user_model.UserConfig(num_tokens=tokens, init="normal"),
    rows,
    base.lm.embed(jnp.arange(base.lm.arch.vocab_size)),
    nnx.Rngs(0),
  )
  generic = arrays["prefixes"][0]
  users.generic_prefix[...] = jnp.asarray(generic)
  users.offsets[...] = jnp.asarray(arrays["prefixes"] - generic)
  graphdef, state = nnx.split(policy_lib.Policy(base.lm, users))
  # As `generate` does it where there are more batches.
  state = stack.apart(state, base.lm.stacked)
  size = spec["new_tokens"]
  greedy = sampling.AnswersConfig(
    max_new_tokens=size, min_new_tokens=size, temperature=0.0
  )

  def answer():
    found, _ = decode.decode(
      graphdef,
      state,
      jnp.asarray(arrays["prompt"]),
      jnp.asarray(arrays["mask"]),
      jnp.arange(rows, dtype=jnp.int32),
      jnp.zeros(rows, jnp.uint32),
      jnp.asarray(arrays["stop"], jnp.int32),
      spec=greedy,
      pad_id=0,
    )
    return np.asarray(found).tolist()

  start = time.perf_counter()
  answer()
  turns.ready(
    versions=run_folder.versions(), first_seconds=time.perf_counter() - start
  )
  while True:
    turns.wait()
    found = answer()
    turns.report(tokens=found)


if __name__ == "__main__":
  main()
