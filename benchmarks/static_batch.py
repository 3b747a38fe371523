"""Our own decoding, as benchmarks of generation run it: one static batch."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from pdpo_jax.inference import decode, sampling
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.models import stack, user_model
from pdpo_jax.weights import base as base_lib


def read_policy(
  folder: str, prefixes: Float[np.ndarray, "U T D"], dtype: str = "float32"
) -> policy_lib.Policy:
  """A base with users of these prefixes, the first of which is generic."""
  config = base_lib.BaseConfig(dtype=dtype, param_dtype=dtype)
  base = base_lib.read_base(folder, config)
  users = user_model.make_user_model(
    user_model.UserConfig(num_tokens=prefixes.shape[1], init="normal"),
    len(prefixes),
    base.lm.embed(jnp.arange(base.lm.arch.vocab_size)),
    nnx.Rngs(0),
  )
  users.generic_prefix[...] = jnp.asarray(prefixes[0])
  users.offsets[...] = jnp.asarray(prefixes - prefixes[0])
  return policy_lib.Policy(base.lm, users)


def static_batch(
  policy: policy_lib.Policy, arrays: Mapping[str, np.ndarray], size: int
) -> Callable[[], list[list[int]]]:
  """All prompts in one call of `decode`, as `generate` does many batches.

  Args:
    arrays: as `benchmarks.generation` writes them.
    size: of an answer, in tokens.
  """
  graphdef, state = nnx.split(policy)
  state = stack.apart(state, policy.lm.stacked)
  rows = len(arrays["prompt"])
  spec = sampling.AnswersConfig(
    max_new_tokens=size, min_new_tokens=size, temperature=0.0
  )

  def answer():
    tokens, _ = decode.decode(
      graphdef,
      state,
      jnp.asarray(arrays["prompt"]),
      jnp.asarray(arrays["mask"]),
      jnp.arange(rows, dtype=jnp.int32),
      jnp.zeros(rows, jnp.uint32),
      jnp.asarray(arrays["stop"], jnp.int32),
      spec=spec,
      pad_id=0,
    )
    return np.asarray(tokens).tolist()

  return answer
