"""A policy of each kind with random weights, to be exported."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pdpo_jax.data import tokenize
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import (
  attention,
  gptj,
  llama,
  llama_fields,
  policy,
  user_model,
)
from pdpo_jax.weights import base as base_lib
from tests.weights import models

USERS = users_lib.UserIndex(["4", "ada", "böhm"])
VOCABULARY = 271
ROPE = llama_fields.RopeScaling(8.0, 1.0, 4.0, 32)
ARCHITECTURES = {
  "gptj": gptj.Architecture(VOCABULARY, 20, 3, 2, 23, 6, max_positions=128),
  "llama": llama.Architecture(
    VOCABULARY, 20, 3, 4, 2, 6, 23, rope_scaling=ROPE
  ),
  "llama_tied": llama.Architecture(
    VOCABULARY, 20, 3, 4, 2, 6, 23, tied_head=True
  ),
}
# (architecture, user model, place of the prefix).
CASES = [
  ("gptj", "individual", "after_bos"),
  ("llama", "cluster", "front"),
  ("llama_tied", "individual", "front"),
]


@functools.cache
def tokenizer():
  return tokenize.train_tokenizer(["a few words, a few more"] * 3, 300)


@functools.cache
def make(name, kind, prefix_position):
  """A policy with LoRA everywhere, the table included, and its base."""
  arch = ARCHITECTURES[name]
  lm = models.make(arch, targets=arch.lora_targets)
  users = user_model.make_user_model(
    user_model.UserConfig(kind, num_tokens=3, num_clusters=2, init_std=1.0),
    USERS.num_rows,
    lm.embed(jnp.arange(VOCABULARY)),
    nnx.Rngs(1),
  )
  plain = nnx.clone(models.make(arch))
  nnx.update(plain, nnx.state(lm, nnx.Param))
  base = base_lib.Base(plain, tokenizer(), base_lib.fingerprint(plain), (7,))
  return policy.Policy(lm, users, prefix_position), base


def logits(model, prompt):
  """Each user's logits, `[U, T + P, V]`, the prefix included; no dropout."""
  graphdef, state = nnx.split(model)

  @jax.jit
  def run(state, prompt):
    model = nnx.merge(graphdef, state)
    prefix = model.user_model(jnp.arange(USERS.num_rows))
    embeddings, mask = model.prompt_embeddings(
      prompt, jnp.ones(prompt.shape, bool), prefix
    )
    hidden, _ = model.lm.hidden(
      embeddings, attention.positions_of(mask), attention.causal(mask)
    )
    return model.lm.logits(hidden)

  return run(state, jnp.tile(jnp.array(prompt), (USERS.num_rows, 1)))
