"""Llama 3 (arXiv:2407.21783), with an embedding-prefix hook.

RMSNorm, SwiGLU, grouped-query attention, rotary embedding on whole heads with
any base and with the frequency scaling of Llama 3.1 and 3.2, tied or untied
head. Parameter paths follow Hugging Face's `LlamaForCausalLM`, less `model.`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from pdpo_jax.models import hf_fields, kernels, layers, llama_fields, stack

LINEARS = (
  "q_proj",
  "k_proj",
  "v_proj",
  "o_proj",
  "gate_proj",
  "up_proj",
  "down_proj",
)
LORA_TARGETS = (*LINEARS, "embed_tokens")


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Sizes of a Llama, named as in this project; `from_hf` reads theirs."""

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  mlp_width: int
  rope_base: float = 500_000.0
  rope_scaling: llama_fields.RopeScaling | None = None
  tied_head: bool = False
  max_positions: int = 8192
  epsilon: float = 1e-5

  model_type = "llama"
  linears = LINEARS
  lora_targets = LORA_TARGETS

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"Llama num_heads {self.num_heads} is not divisible by num_kv_heads "
        f"{self.num_kv_heads}; choose a divisor"
      )
    if self.head_size % 2 or self.head_size < 2:
      raise ValueError(
        f"Llama head_size {self.head_size} must be even: rotary embedding "
        "turns pairs of features"
      )

  @classmethod
  def from_hf(cls, config: Mapping[str, Any]) -> "Architecture":
    """Reads the fields of a Hugging Face `config.json`, old or new style.

    What is missing is what it is for `transformers`.

    Raises:
      ValueError: naming a field that is of no use or not supported.
    """
    fields = hf_fields.parse(llama_fields.HfConfig, config, "Llama")
    old, new = fields.rope_scaling, fields.rope_parameters
    without_theta = {"rope_theta": None}
    if (
      old
      and new
      and old.model_copy(update=without_theta)
      != new.model_copy(update=without_theta)
    ):
      raise ValueError(
        "Llama rope_scaling and rope_parameters, two names of the same, "
        "differ; remove the one that is wrong"
      )
    rope = new or old or llama_fields.HfRope()
    num_heads = fields.num_attention_heads
    if fields.head_dim is None and fields.hidden_size % num_heads:
      raise ValueError(
        f"Llama hidden_size {fields.hidden_size} is not divisible by "
        f"num_attention_heads {num_heads}, and there is no head_dim"
      )
    head_size = fields.head_dim or fields.hidden_size // num_heads
    return cls(
      vocab_size=fields.vocab_size,
      width=fields.hidden_size,
      num_layers=fields.num_hidden_layers,
      num_heads=num_heads,
      num_kv_heads=fields.num_key_value_heads or num_heads,
      head_size=head_size,
      mlp_width=fields.intermediate_size,
      rope_base=rope.rope_theta or fields.rope_theta,
      rope_scaling=llama_fields.rope_scaling(rope, fields),
      tied_head=fields.tie_word_embeddings,
      max_positions=fields.max_position_embeddings,
      epsilon=fields.rms_norm_eps,
    )

  def to_hf(self) -> dict[str, Any]:
    """The `config.json` that `transformers` reads back.

    Raises:
      ValueError: if it would not, whose heads divide the width even where they
        have a size of their own.
    """
    if self.width % self.num_heads:
      raise ValueError(
        f"Llama width {self.width} is not divisible by num_heads "
        f"{self.num_heads}, which transformers refuses to read; choose a "
        "multiple"
      )
    scaling = self.rope_scaling
    rope = None
    if scaling is not None:
      rope = {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_factor,
        "high_freq_factor": scaling.high_factor,
        "original_max_position_embeddings": scaling.original_positions,
      }
    return {
      "architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "hidden_act": "silu",
      "attention_bias": False,
      "mlp_bias": False,
      "vocab_size": self.vocab_size,
      "hidden_size": self.width,
      "num_hidden_layers": self.num_layers,
      "num_attention_heads": self.num_heads,
      "num_key_value_heads": self.num_kv_heads,
      "head_dim": self.head_size,
      "intermediate_size": self.mlp_width,
      "rope_theta": self.rope_base,
      "rope_scaling": rope,
      "tie_word_embeddings": self.tied_head,
      "max_position_embeddings": self.max_positions,
      "rms_norm_eps": self.epsilon,
    }


_LLAMA_3_8B = Architecture(128256, 4096, 32, 32, 8, 128, 14336)

PRESETS = {
  "llama-3-8b": _LLAMA_3_8B,
  "llama-3.1-8b": dataclasses.replace(
    _LLAMA_3_8B,
    rope_scaling=llama_fields.RopeScaling(8.0, 1.0, 4.0, 8192),
    max_positions=131072,
  ),
  "llama-3.2-1b": Architecture(
    128256,
    2048,
    16,
    32,
    8,
    64,
    8192,
    rope_scaling=llama_fields.RopeScaling(32.0, 1.0, 4.0, 8192),
    tied_head=True,
    max_positions=131072,
  ),
  "smollm2-135m": Architecture(
    49152, 576, 30, 9, 3, 64, 1536, rope_base=100_000.0, tied_head=True
  ),
  "llama-tiny": Architecture(
    101,
    28,
    2,
    4,
    2,
    6,
    52,
    rope_base=5_000.0,
    rope_scaling=llama_fields.RopeScaling(8.0, 1.0, 4.0, 32),
    max_positions=128,
  ),
}


class Attention(nnx.Module):
  """Grouped-query attention without biases."""

  def __init__(self, arch, linear):
    query_width = arch.num_heads * arch.head_size
    key_width = arch.num_kv_heads * arch.head_size
    self.q_proj = linear("q_proj", arch.width, query_width)
    self.k_proj = linear("k_proj", arch.width, key_width)
    self.v_proj = linear("v_proj", arch.width, key_width)
    self.o_proj = linear("o_proj", query_width, arch.width)
    self.head_size = arch.head_size

  def __call__(self, x, rotary, attend, past, dropout_key):
    def heads(projection):
      out = projection(x, dropout_key)
      return out.reshape(*x.shape[:2], -1, self.head_size)

    out, present = attend(
      self.rotate(heads(self.q_proj), rotary),
      self.rotate(heads(self.k_proj), rotary),
      heads(self.v_proj),
      past,
    )
    out = out.reshape(*x.shape[:2], -1)
    return self.o_proj(out, dropout_key), present

  @staticmethod
  def rotate(
    x: Float[Array, "B S heads E"], rotary: layers.Rotary
  ) -> Float[Array, "B S heads E"]:
    return jnp.concatenate(rotary.rotate(*jnp.split(x, 2, -1)), -1)


class MLP(nnx.Module):
  """SwiGLU (arXiv:2002.05202)."""

  def __init__(self, arch, linear):
    self.gate_proj = linear("gate_proj", arch.width, arch.mlp_width)
    self.up_proj = linear("up_proj", arch.width, arch.mlp_width)
    self.down_proj = linear("down_proj", arch.mlp_width, arch.width)

  def __call__(self, x, dropout_key):
    gate = jax.nn.silu(self.gate_proj(x, dropout_key))
    return self.down_proj(gate * self.up_proj(x, dropout_key), dropout_key)


class Block(nnx.Module):
  def __init__(self, arch, lora, kernel_dtype, param_dtype, rngs):
    def linear(name, in_features, out_features):
      return layers.Linear(
        name,
        in_features,
        out_features,
        use_bias=False,
        lora=lora,
        stream=LINEARS.index(name),
        param_dtype=kernel_dtype,
        rngs=rngs,
      )

    def norm():
      return layers.RMSNorm(arch.width, arch.epsilon, param_dtype)

    self.input_layernorm = norm()
    self.self_attn = Attention(arch, linear)
    self.post_attention_layernorm = norm()
    self.mlp = MLP(arch, linear)

  def __call__(self, x, rotary, attend, past, dropout_key):
    attended, present = self.self_attn(
      self.input_layernorm(x), rotary, attend, past, dropout_key
    )
    x = x + attended
    normal = self.post_attention_layernorm(x)
    return x + self.mlp(normal, dropout_key), present


class Llama(nnx.Module):
  """The language model in four calls: `embed`, `hidden`, `logits` and `head`.

  Args:
    arch: sizes.
    lora: low-rank updates; the default has none.
    dtype: of activations.
    param_dtype: of base weights; int8 is for kernels of linear layers alone,
      and the others are as activations.
    remat: a key of `layers.REMAT_POLICIES`.
    kernel: of attention, for whoever makes an `Attend` for this model.
  """

  # What holds the layers.
  stacked = "layers"

  def __init__(
    self,
    arch: Architecture,
    *,
    lora: layers.LoraConfig = layers.NO_LORA,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    kernel: kernels.Kernel = kernels.Kernel(),
    rngs: nnx.Rngs,
  ):
    self.arch = arch
    self.dtype = dtype
    self.remat = remat
    self.kernel = kernel
    kernel_dtype = param_dtype
    param_dtype = layers.other_dtype(param_dtype, dtype)
    self.embed_tokens = layers.Embedding(
      "embed_tokens",
      arch.vocab_size,
      arch.width,
      lora=lora,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.layers = stack.stack_layers(
      lambda rngs: Block(arch, lora, kernel_dtype, param_dtype, rngs),
      arch.num_layers,
      rngs,
    )
    self.norm = layers.RMSNorm(arch.width, arch.epsilon, param_dtype)
    self.lm_head = (
      None
      if arch.tied_head
      else layers.Head(
        arch.vocab_size,
        arch.width,
        use_bias=False,
        param_dtype=param_dtype,
        rngs=rngs,
      )
    )

  def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    return self.embed_tokens(tokens, self.dtype)

  def hidden(
    self,
    embeddings: Float[Array, "B S D"],
    positions: Int[Array, "B S"],
    attend,
    past: Any = None,
    dropout_key: Key[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B S D"], Any]:
    """What the head reads, and what `attend` keeps, stacked by layer."""
    frequencies = layers.rotary_frequencies(
      self.arch.head_size, self.arch.rope_base
    )
    if self.arch.rope_scaling is not None:
      frequencies = self.arch.rope_scaling(frequencies)
    rotary = layers.Rotary.at(positions, frequencies)
    x, present = stack.scan_layers(
      self.layers, embeddings, rotary, attend, past, dropout_key, self.remat
    )
    return self.norm(x), present

  def head(self) -> tuple[Float[Array, "V D"], Float[Array, " V"] | None]:
    """Weight and bias of the output layer; there is no bias."""
    if self.lm_head is None:
      return self.embed_tokens.weight[...], None
    return self.lm_head.weight[...], None

  def logits(
    self, hidden: Float[Array, "*batch D"]
  ) -> Float[Array, "*batch V"]:
    return layers.head_logits(hidden, *self.head())
