"""GPT-J (Wang and Komatsuzaki, 2021), with an embedding-prefix hook.

A block adds attention and MLP of the same normalised input. Rotary embedding
turns the first `rotary_dim` features of a head, in interleaved pairs.
Parameter paths follow Hugging Face's `GPTJForCausalLM`, less `transformer.`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from pdpo_jax.models import hf_fields, kernels, layers, stack

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out")
LORA_TARGETS = (*LINEARS, "wte")


class _HfConfig(pydantic.BaseModel):
  """The fields of `config.json` that mean something, and their defaults."""

  model_config = hf_fields.STRICT

  vocab_size: hf_fields.Size = 50_400
  n_positions: hf_fields.Size = 2048
  n_embd: hf_fields.Size = 4096
  n_layer: hf_fields.Layers = 28
  n_head: hf_fields.Size = 16
  rotary_dim: hf_fields.Size = 64
  n_inner: hf_fields.Size | None = None
  activation_function: Literal["gelu_new"] = "gelu_new"
  layer_norm_epsilon: hf_fields.Epsilon = 1e-5
  tie_word_embeddings: Literal[False] = False


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Sizes of a GPT-J, named as in this project; `from_hf` reads theirs."""

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  mlp_width: int
  rotary_dim: int
  max_positions: int = 2048
  epsilon: float = 1e-5

  model_type = "gptj"
  linears = LINEARS
  lora_targets = LORA_TARGETS

  def __post_init__(self):
    if self.width % self.num_heads:
      raise ValueError(
        f"GPT-J width {self.width} is not divisible by num_heads "
        f"{self.num_heads}; choose a multiple"
      )
    if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_size:
      raise ValueError(
        f"GPT-J rotary_dim {self.rotary_dim} must be even and from 2 to the "
        f"head size {self.head_size}"
      )

  @property
  def head_size(self) -> int:
    return self.width // self.num_heads

  @classmethod
  def from_hf(cls, config: Mapping[str, Any]) -> "Architecture":
    """Reads the fields of a Hugging Face `config.json`.

    What is missing is what it is for `transformers`.

    Raises:
      ValueError: naming a field that is of no use or not supported.
    """
    fields = hf_fields.parse(_HfConfig, config, "GPT-J")
    return cls(
      vocab_size=fields.vocab_size,
      width=fields.n_embd,
      num_layers=fields.n_layer,
      num_heads=fields.n_head,
      mlp_width=fields.n_inner or 4 * fields.n_embd,
      rotary_dim=fields.rotary_dim,
      max_positions=fields.n_positions,
      epsilon=fields.layer_norm_epsilon,
    )

  def to_hf(self) -> dict[str, Any]:
    """The `config.json` that `transformers` reads back."""
    return {
      "architectures": ["GPTJForCausalLM"],
      "model_type": "gptj",
      "activation_function": "gelu_new",
      "vocab_size": self.vocab_size,
      "n_embd": self.width,
      "n_layer": self.num_layers,
      "n_head": self.num_heads,
      "n_inner": self.mlp_width,
      "rotary_dim": self.rotary_dim,
      "n_positions": self.max_positions,
      "layer_norm_epsilon": self.epsilon,
      "resid_pdrop": 0.0,
      "embd_pdrop": 0.0,
      "attn_pdrop": 0.0,
      "tie_word_embeddings": False,
    }


PRESETS = {
  "gptj-6b": Architecture(50400, 4096, 28, 16, 16384, 64),
  "gptj-tiny": Architecture(101, 28, 2, 2, 52, 6, max_positions=128),
}


class Attention(nnx.Module):
  """Multi-head attention without biases."""

  def __init__(self, arch, linear):
    width = arch.width
    self.q_proj = linear("q_proj", width, width, use_bias=False)
    self.k_proj = linear("k_proj", width, width, use_bias=False)
    self.v_proj = linear("v_proj", width, width, use_bias=False)
    self.out_proj = linear("out_proj", width, width, use_bias=False)
    self.head_shape = (arch.num_heads, arch.head_size)
    self.rotary_dim = arch.rotary_dim

  def __call__(self, x, rotary, attend, past, dropout_key):
    def heads(projection):
      return projection(x, dropout_key).reshape(*x.shape[:2], *self.head_shape)

    out, present = attend(
      self.rotate(heads(self.q_proj), rotary),
      self.rotate(heads(self.k_proj), rotary),
      heads(self.v_proj),
      past,
    )
    return self.out_proj(out.reshape(x.shape), dropout_key), present

  def rotate(
    self, x: Float[Array, "B S H E"], rotary: layers.Rotary
  ) -> Float[Array, "B S H E"]:
    turned, rest = jnp.split(x, [self.rotary_dim], -1)
    pair = rotary.rotate(turned[..., 0::2], turned[..., 1::2])
    turned = jnp.stack(pair, -1).reshape(turned.shape)
    return jnp.concatenate([turned, rest], -1)


class MLP(nnx.Module):
  def __init__(self, arch, linear):
    self.fc_in = linear("fc_in", arch.width, arch.mlp_width, use_bias=True)
    self.fc_out = linear("fc_out", arch.mlp_width, arch.width, use_bias=True)

  def __call__(self, x, dropout_key):
    inner = jax.nn.gelu(self.fc_in(x, dropout_key), approximate=True)
    return self.fc_out(inner, dropout_key)


class Block(nnx.Module):
  def __init__(self, arch, lora, kernel_dtype, param_dtype, rngs):
    def linear(name, in_features, out_features, use_bias):
      return layers.Linear(
        name,
        in_features,
        out_features,
        use_bias=use_bias,
        lora=lora,
        stream=LINEARS.index(name),
        param_dtype=kernel_dtype,
        rngs=rngs,
      )

    self.ln_1 = layers.LayerNorm(arch.width, arch.epsilon, param_dtype)
    self.attn = Attention(arch, linear)
    self.mlp = MLP(arch, linear)

  def __call__(self, x, rotary, attend, past, dropout_key):
    normal = self.ln_1(x)
    attended, present = self.attn(normal, rotary, attend, past, dropout_key)
    return x + attended + self.mlp(normal, dropout_key), present


class GPTJ(nnx.Module):
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
  stacked = "h"

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
    self.wte = layers.Embedding(
      "wte",
      arch.vocab_size,
      arch.width,
      lora=lora,
      param_dtype=param_dtype,
      rngs=rngs,
    )
    self.h = stack.stack_layers(
      lambda rngs: Block(arch, lora, kernel_dtype, param_dtype, rngs),
      arch.num_layers,
      rngs,
    )
    self.ln_f = layers.LayerNorm(arch.width, arch.epsilon, param_dtype)
    self.lm_head = layers.Head(
      arch.vocab_size,
      arch.width,
      use_bias=True,
      param_dtype=param_dtype,
      rngs=rngs,
    )

  def embed(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
    return self.wte(tokens, self.dtype)

  def hidden(
    self,
    embeddings: Float[Array, "B S D"],
    positions: Int[Array, "B S"],
    attend,
    past: Any = None,
    dropout_key: Key[Array, ""] | None = None,
  ) -> tuple[Float[Array, "B S D"], Any]:
    """What the head reads, and what `attend` keeps, stacked by layer."""
    rotary = layers.Rotary.at(
      positions, layers.rotary_frequencies(self.arch.rotary_dim, 10_000.0)
    )
    x, present = stack.scan_layers(
      self.h, embeddings, rotary, attend, past, dropout_key, self.remat
    )
    return self.ln_f(x), present

  def head(self) -> tuple[Float[Array, "V D"], Float[Array, " V"] | None]:
    """Weight and bias of the output layer."""
    return self.lm_head.weight[...], self.lm_head.bias[...]

  def logits(
    self, hidden: Float[Array, "*batch D"]
  ) -> Float[Array, "*batch V"]:
    return layers.head_logits(hidden, *self.head())
