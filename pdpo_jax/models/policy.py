"""A language model and a user model, and where the two meet.

Axes: B examples, N responses (0 is the chosen one), P prompt positions, R
response positions, T user tokens, D width, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from pdpo_jax.core import structs
from pdpo_jax.models import (
  attention,
  gptj,
  layers,
  llama,
  placement,
  user_model,
)
from pdpo_jax.models import packing as packing_lib

LANGUAGE_MODELS = {"gptj": gptj.GPTJ, "llama": llama.Llama}
ARCHITECTURES = {"gptj": gptj.Architecture, "llama": llama.Architecture}
PRESETS = gptj.PRESETS | llama.PRESETS
PREFIX_POSITIONS = ("front", "after_bos")
# Rows that are so many times as long as what is real of them.
_MOSTLY_PADDING = 2

Architecture = gptj.Architecture | llama.Architecture


def make_language_model(arch: Architecture, **kwargs: Any) -> nnx.Module:
  """The language model of an architecture; see `GPTJ` for the arguments.

  Raises:
    ValueError: if `lora` names a layer that the architecture does not have.
  """
  lora = kwargs.get("lora", layers.NO_LORA)
  for target in lora.targets:
    if target not in arch.lora_targets:
      raise ValueError(
        f"lora.targets: {target!r} is no layer of {arch.model_type!r} that "
        f"takes LoRA; it has {arch.lora_targets} (the output head is frozen)"
      )
  return LANGUAGE_MODELS[arch.model_type](arch, **kwargs)


def trainable(path, variable) -> bool:
  """The filter that splits a policy: LoRA and user weights, nothing else."""
  del path
  kinds = (layers.LoraParam, user_model.UserParam)
  return issubclass(getattr(variable, "type", type(variable)), kinds)


class Policy(nnx.Module):
  """`pi(y | x, u)`: a language model that answers a user.

  Args:
    lm: the language model.
    users: the user model.
    prefix_position: 'front' puts the prefix before the prompt (the paper),
      'after_bos' after the prompt's first token (the released code).
  """

  def __init__(
    self, lm: nnx.Module, users: nnx.Module, prefix_position: str = "front"
  ):
    if prefix_position not in PREFIX_POSITIONS:
      raise ValueError(
        f"prefix_position {prefix_position!r} is not one of {PREFIX_POSITIONS}"
      )
    self.lm = lm
    self.user_model = users
    self.prefix_position = prefix_position

  def prompt_embeddings(
    self,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    prefix: Float[Array, "B T D"],
  ) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """Puts each row's prefix into its prompt.

    Padding may then lie between prefix and prompt; positions count real
    entries only, so it makes no difference. The last column stays real:

      prompt      0  0  a  b        prompt_mask  0 0 1 1
      front       p  p  0  0  a  b      -> mask  1 1 0 0 1 1
      after_bos   0  0  a  p  p  b      -> mask  0 0 1 1 1 1

    Returns:
      Embeddings, and which positions are real; S is T + P.
    """
    embeddings = self.lm.embed(prompt)
    if prefix.shape[1] == 0:
      return embeddings, prompt_mask
    rows, tokens, _ = prefix.shape
    mask = jnp.concatenate([jnp.ones(prefix.shape[:2], bool), prompt_mask], 1)
    pieces = [prefix.astype(embeddings.dtype), embeddings]
    embeddings = jnp.concatenate(pieces, 1)
    if self.prefix_position == "after_bos":
      # Column T + c holds prompt column c. Sorted by rank, padding comes first,
      # then the first real token, the prefix, and the rest of the prompt.
      seen = jnp.cumsum(prompt_mask, -1)
      rank = jnp.concatenate(
        [jnp.full((rows, tokens), 2), jnp.where(seen > 1, 3, seen)], 1
      )
      order = jnp.argsort(rank, -1, stable=True)
      mask = jnp.take_along_axis(mask, order, 1)
      embeddings = jnp.take_along_axis(embeddings, order[..., None], 1)
    return embeddings, mask

  def response_hidden(
    self,
    prompt: Int[Array, "B P"],
    prompt_mask: Bool[Array, "B P"],
    responses: Int[Array, "B N R"],
    response_mask: Bool[Array, "B N R"],
    prefix: Float[Array, "B T D"],
    dropout_key: Key[Array, ""] | None = None,
    packed: structs.Packed | None = None,
    decisions: structs.Decisions | None = None,
  ) -> Float[Array, "B N R D"]:
    """The states that predict each response's tokens, in one forward pass.

    The prompt is run once for all N responses (`attention.shared_prompt`). A
    response's first token is predicted from its prompt's last position, each
    later one from the token before it. A response that stands on the prompt,
    the trunk of its dialogue, is not run once more: its states are those there.

    Args:
      prompt: padded on the left, so that its last column is real.
      prompt_mask: true at real tokens.
      responses: padded on the right.
      response_mask: true at real tokens.
      prefix: a soft prefix for each example; T may be 0.
      dropout_key: for LoRA's dropout; none without.
      packed: room for a group's prompts and responses; padding is then run
        through attention alone, and the states there mean nothing.
      decisions: where rows are dialogues, which responses are of which turn.
    """
    on_trunk, remaining = 0, None
    if decisions is not None:
      on_trunk = decisions.on_trunk
      remaining = decisions.remaining[:, on_trunk:]
    mask_on_trunk = response_mask[:, :on_trunk]
    responses, response_mask = (
      responses[:, on_trunk:],
      response_mask[:, on_trunk:],
    )
    rows, num_responses, size = responses.shape
    embeddings, mask = self.prompt_embeddings(prompt, prompt_mask, prefix)
    length = embeddings.shape[1]
    answer = self.lm.embed(responses.reshape(rows, num_responses * size))
    positions = attention.positions_of(mask)
    after = positions[:, -1:, None] + 1 + jnp.arange(size)  # [B, 1, R]
    if remaining is not None:
      # Padding lies before all prompts of a dialogue.
      after = after - remaining[..., None]
    after = jnp.broadcast_to(after, responses.shape)
    embeddings = placement.by_rows(jnp.concatenate([embeddings, answer], 1))
    positions = jnp.concatenate([positions, after.reshape(rows, -1)], 1)
    kernel = self.lm.kernel
    if packed is not None:
      room = packed.positions + packed.rows * prefix.shape[1]
      padded = packed.rows * embeddings.shape[1]
      kernel = dataclasses.replace(
        kernel, mostly_padding=padded > _MOSTLY_PADDING * room
      )
    attend = attention.shared_prompt(mask, response_mask, kernel, remaining)
    if packed is None:
      hidden, _ = self.lm.hidden(
        embeddings, positions, attend, dropout_key=dropout_key
      )
    else:
      real = jnp.concatenate([mask, response_mask.reshape(rows, -1)], 1)
      packing = packing_lib.Packing.of(real, packed.rows, room)
      hidden, _ = self.lm.hidden(
        placement.by_rows(packing.pack(embeddings)),
        packing.pack(positions),
        packing.around(attend),
        dropout_key=dropout_key,
      )
      hidden = packing.checked(packing.unpack(hidden))
    answer = hidden[:, length:].reshape(*responses.shape, -1)
    if decisions is None:
      last = jnp.broadcast_to(
        hidden[:, length - 1, None, None, :],
        (rows, num_responses, 1, hidden.shape[-1]),
      )
      return jnp.concatenate([last, answer[:, :, :-1]], 2)
    trunk = hidden[:, :length]
    # Columns that predict the first token of each response.
    first = length - 1 - decisions.remaining
    last = jax.vmap(lambda states, columns: states[columns])(
      trunk, first[:, on_trunk:]
    )
    behind = jnp.concatenate([last[:, :, None], answer[:, :, :-1]], 2)
    standing = _read(trunk, first[:, :on_trunk], mask_on_trunk)
    return jnp.concatenate([standing, behind], 1)


def _read(
  trunk: Float[Array, "B S D"],
  first: Int[Array, "B N"],
  mask: Bool[Array, "B N R"],
) -> Float[Array, "B N R D"]:
  """States of a trunk that predict the responses on it; 0 where masked.

  Args:
    first: the position that predicts a response's first token. Those of two
      responses do not overlap.
  """
  rows, length, width = trunk.shape
  source = first[..., None] + jnp.arange(mask.shape[-1])
  source = jnp.where(mask, source, length).reshape(rows, -1)
  number = jnp.arange(source.shape[1], dtype=jnp.int32)
  none = jnp.full(length, -1, jnp.int32)
  # Which of the responses' tokens each position predicts.
  reader = jax.vmap(lambda at: none.at[at].set(number, mode="drop"))(source)
  states = packing_lib.move(
    trunk,
    (jnp.minimum(source, length - 1), mask.reshape(rows, -1)),
    (jnp.maximum(reader, 0), reader >= 0),
  )
  return states.reshape(*mask.shape, width)


def base_policy(lm: nnx.Module) -> Policy:
  """The base itself as a policy, the reference: a prefix for nobody.

  Args:
    lm: without LoRA.
  """
  spec = user_model.UserConfig(kind="none")
  nobody = user_model.make_user_model(
    spec, 1, lm.embed(jnp.arange(1)), nnx.Rngs(0)
  )
  return Policy(lm, nobody)
