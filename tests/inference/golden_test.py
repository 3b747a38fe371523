"""Greedy decoding against what `transformers.generate` wrote."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.inference import decode, sampling
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.models import user_model
from tests import golden_cases


def golden_policy(arrays) -> policy_lib.Policy:
  """The golden base; user number i has row i's golden prefix."""
  prefixes = arrays["greedy/prefix"]
  rows, tokens, _ = prefixes.shape
  lm = golden_cases.language_model(arrays)
  users = user_model.make_user_model(
    user_model.UserConfig("individual", tokens),
    rows + 1,
    lm.embed(jnp.arange(lm.arch.vocab_size)),
    nnx.Rngs(0),
  )
  generic = jnp.zeros_like(users.generic_prefix[...])
  users.generic_prefix = users.generic_prefix.replace(generic)
  offsets = np.concatenate([np.zeros_like(prefixes[:1]), prefixes])
  users.offsets = users.offsets.replace(jnp.asarray(offsets))
  return policy_lib.Policy(lm, users)


@pytest.mark.parametrize("name", golden_cases.MODELS)
@pytest.mark.parametrize("stops", [False, True])
def test_greedy_decoding_equals_that_of_transformers(name, stops):
  arrays = golden_cases.read(name)
  wanted = arrays["greedy/tokens"]
  end = int(arrays["greedy/end_token"])
  rows, count = wanted.shape
  graphdef, state = nnx.split(golden_policy(arrays))
  tokens, lengths = decode.decode(
    graphdef,
    state,
    jnp.asarray(arrays["greedy/prompt"]),
    jnp.asarray(arrays["greedy/prompt_mask"]),
    jnp.arange(1, rows + 1),
    jnp.zeros((rows,), jnp.uint32),
    jnp.array([end] if stops else [], jnp.int32),
    spec=sampling.AnswersConfig(max_new_tokens=count, temperature=0.0),
    pad_id=0,
  )
  for row in range(rows):
    answer = wanted[row].tolist()
    if stops and end in answer:
      answer = answer[: answer.index(end)]
    assert tokens[row, : lengths[row]].tolist() == answer
