"""What a Llama's `config.json` says, with the defaults of `transformers`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import pydantic
from jaxtyping import Array, Float

from pdpo_jax.models import hf_fields


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3.1's stretch of low rotary frequencies to longer contexts.

  Attributes:
    factor: by which wavelengths above `original_positions / low_factor` grow.
    low_factor, high_factor: ends of the band in which scaled and unscaled
      frequencies are blended, in periods per original context.
    original_positions: the context length before scaling, in tokens.
  """

  factor: float
  low_factor: float
  high_factor: float
  original_positions: int

  def __call__(
    self, frequencies: Float[Array, " half"]
  ) -> Float[Array, " half"]:
    periods = self.original_positions * frequencies / (2 * math.pi)
    kept = (periods - self.low_factor) / (self.high_factor - self.low_factor)
    kept = jnp.clip(kept, 0.0, 1.0)
    return frequencies * (kept + (1 - kept) / self.factor)


class HfRope(pydantic.BaseModel):
  """How `config.json` describes rotary embedding."""

  model_config = hf_fields.STRICT

  rope_type: Literal["default", "llama3"] = pydantic.Field(
    "default", validation_alias=pydantic.AliasChoices("rope_type", "type")
  )
  rope_theta: hf_fields.Positive | None = None
  partial_rotary_factor: hf_fields.One | None = None
  factor: hf_fields.Positive | None = None
  low_freq_factor: hf_fields.Positive | None = None
  high_freq_factor: hf_fields.Positive | None = None
  original_max_position_embeddings: hf_fields.Size | None = None

  @pydantic.model_validator(mode="before")
  @classmethod
  def _one_for_all_layers(cls, fields: Any) -> Any:
    if isinstance(fields, Mapping):
      for name, value in fields.items():
        if isinstance(value, Mapping):
          raise ValueError(f"{name}: all layers have to turn alike")
    return fields


class HfConfig(pydantic.BaseModel):
  """The fields of `config.json` that mean something, and their defaults."""

  model_config = hf_fields.STRICT

  vocab_size: hf_fields.Size = 32_000
  hidden_size: hf_fields.Size = 4096
  intermediate_size: hf_fields.Size = 11_008
  num_hidden_layers: hf_fields.Layers = 32
  num_attention_heads: hf_fields.Size = 32
  num_key_value_heads: hf_fields.Size | None = None
  head_dim: hf_fields.Size | None = None
  hidden_act: Literal["silu", "swish"] = "silu"
  attention_bias: Literal[False] = False
  mlp_bias: Literal[False] = False
  sliding_window: Literal[False] | None = None
  max_position_embeddings: hf_fields.Size = 2048
  original_max_position_embeddings: hf_fields.Size | None = None
  rms_norm_eps: hf_fields.Epsilon = 1e-6
  tie_word_embeddings: bool = False
  rope_theta: hf_fields.Positive = 10_000.0
  partial_rotary_factor: hf_fields.One | None = None
  rope_scaling: HfRope | None = None
  # Its name since transformers 5, with `rope_theta` inside.
  rope_parameters: HfRope | None = None


def rope_scaling(rope: HfRope, fields: HfConfig) -> RopeScaling | None:
  if rope.rope_type == "default":
    return None
  for name in ("factor", "low_freq_factor", "high_freq_factor"):
    if getattr(rope, name) is None:
      raise ValueError(f"Llama rope_scaling of type 'llama3' lacks {name}")
  if rope.high_freq_factor <= rope.low_freq_factor:
    raise ValueError(
      f"Llama high_freq_factor {rope.high_freq_factor} is not supported; it "
      f"has to be above low_freq_factor, {rope.low_freq_factor}"
    )
  return RopeScaling(
    factor=rope.factor,
    low_factor=rope.low_freq_factor,
    high_factor=rope.high_freq_factor,
    # Where a model trained for no longer context has it.
    original_positions=fields.original_max_position_embeddings
    or rope.original_max_position_embeddings
    or fields.max_position_embeddings,
  )
