"""The layers both language models are made of, and how LoRA sits on them.

Axes: B batch, S sequence, D width, H query heads, K key/value heads, E head
size, I and O a linear layer's input and output size, r LoRA rank, L layers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ad_checkpoint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Int8, Key, Shaped

from pdpo_jax.core import sections
from pdpo_jax.models import placement


class LoraParam(nnx.Variable):
  """A trained low-rank weight. Base weights are `nnx.Param` and stay frozen."""


@dataclasses.dataclass(unsafe_hash=True)
class LoraConfig(sections.Section):
  """Which linear layers get a low-rank update, and of what size.

  The update is `dropout(x) @ A @ B * (alpha / rank)`, with B zero at the start
  (Hu et al., arXiv:2106.09685), so that a new policy is the base model.
  """

  # Names of linear layers, as in Hugging Face's parameter names. "all" means
  # each linear layer of a block; () leaves the base as it is.
  targets: tuple[str, ...] = ("all",)
  rank: sections.Count = 8
  alpha: float = 16.0
  # Probability that an input feature is dropped, in training only.
  dropout: sections.ShareBelowOne = 0.05

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


NO_LORA = LoraConfig(targets=())


def drop(
  x: Float[Array, "*batch I"], rate: float, key: Key[Array, ""] | None
) -> Float[Array, "*batch I"]:
  """Inverted dropout; without a key, or at rate 0, the input itself.

  Sixteen random bits a feature are enough, and cost half of what 32 would.
  """
  if key is None or rate == 0.0:
    return x
  dropped = round(rate * 2**16)
  kept = jax.random.bits(key, x.shape, jnp.uint16) >= dropped
  scale = 1.0 / (1.0 - dropped / 2**16)
  return jnp.where(kept, x * scale, 0.0).astype(x.dtype)


@jax.custom_vjp
def product(
  x: Float[Array, "S I"], kernel: Shaped[Array, "I O"]
) -> Float[Array, "S O"]:
  """`x @ kernel`, with a gradient that XLA's CPU backend is fast at.

  In bfloat16, it takes half the time for a product with a transposed matrix
  whose result is float32 that it takes for one whose result is bfloat16. On a
  GPU it is the other way round.
  """
  return x @ kernel.astype(x.dtype)


def _product_forward(x, kernel):
  return product(x, kernel), (x, kernel)


def _product_backward(inputs, slope):
  x, kernel = inputs
  wide = jnp.float32 if placement.platform(slope) == "cpu" else None
  towards_x = jax.lax.dot_general(
    slope,
    kernel.astype(slope.dtype),
    (((1,), (1,)), ((), ())),
    preferred_element_type=wide,
  )
  # Only supervised fine-tuning trains kernels; elsewhere XLA leaves this out.
  # Of integers there is no gradient at all.
  towards_kernel = None
  if jnp.issubdtype(kernel.dtype, jnp.floating):
    towards_kernel = x.T @ slope
  return towards_x.astype(x.dtype), towards_kernel


product.defvjp(_product_forward, _product_backward)


def quantize(
  kernel: Float[Array, "I O"],
) -> tuple[Int8[Array, "I O"], Float[Array, " O"]]:
  """Integers and a scale for each output, whose product is near `kernel`."""
  wide = kernel.astype(jnp.float32)
  scale = jnp.abs(wide).max(0) / 127
  # Where all weights of an output are zero, any scale will do.
  rounded = jnp.round(wide / jnp.where(scale > 0, scale, 1.0))
  return rounded.astype(jnp.int8), scale


def other_dtype(param_dtype: DTypeLike, dtype: DTypeLike) -> DTypeLike:
  """Of base weights that are no kernels, given those and the activations'."""
  return dtype if jnp.dtype(param_dtype) == jnp.int8 else param_dtype


class Linear(nnx.Module):
  """`x @ kernel + bias`, plus a low-rank update where `lora` names it.

  Args:
    name: the layer's Hugging Face name, which `lora.targets` refers to.
    stream: tells this layer's dropout from its neighbours'.
    param_dtype: of kernel and bias. int8 makes a kernel of integers, which
      `kernel_scale` times by output, and a bias in float32.
  """

  def __init__(
    self,
    name: str,
    in_features: int,
    out_features: int,
    *,
    use_bias: bool,
    lora: LoraConfig,
    stream: int,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    normal = nnx.initializers.normal(0.02)
    shape = (in_features, out_features)
    if jnp.dtype(param_dtype) == jnp.int8:
      kernel, scale = quantize(normal(rngs.params(), shape))
      self.kernel, self.kernel_scale = nnx.Param(kernel), nnx.Param(scale)
    else:
      self.kernel = nnx.Param(normal(rngs.params(), shape, param_dtype))
      self.kernel_scale = None
    if use_bias:
      bias_dtype = other_dtype(param_dtype, jnp.float32)
      self.bias = nnx.Param(jnp.zeros((out_features,), bias_dtype))
    else:
      self.bias = None
    if name in lora.targets:
      # Kaiming-uniform with a = sqrt(5), the field's usual choice for A.
      uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
      down = uniform(rngs.lora(), (in_features, lora.rank), jnp.float32)
      self.lora_a = LoraParam(down)
      self.lora_b = LoraParam(jnp.zeros((lora.rank, out_features)))
    else:
      self.lora_a = self.lora_b = None
    self.lora_scale = lora.scale
    self.lora_dropout = lora.dropout
    self.stream = stream

  def __call__(
    self, x: Float[Array, "*batch I"], dropout_key: Key[Array, ""] | None
  ) -> Float[Array, "*batch O"]:
    # As a matrix: with two batch axes, XLA's CPU backend computes gradients of
    # the low-rank weights several times slower.
    *batch, width = x.shape
    x = x.reshape(-1, width)
    out = product(x, self.kernel[...])
    if self.kernel_scale is not None:
      out = (out * self.kernel_scale[...]).astype(x.dtype)
    if self.bias is not None:
      out = out + self.bias[...].astype(x.dtype)
    if self.lora_a is not None:
      if dropout_key is not None:
        dropout_key = jax.random.fold_in(dropout_key, self.stream)
      low = drop(x, self.lora_dropout, dropout_key)
      down, up = (
        placement.whole(weight[...].astype(x.dtype))
        for weight in (self.lora_a, self.lora_b)
      )
      low = keep(low @ down)
      # Scaled while it is only `rank` wide.
      out = out + (low * self.lora_scale) @ up
    return keep(out.reshape(*batch, -1))

  def merge_lora(self) -> None:
    """Adds the update to the kernel, which may be stacked, and drops it."""
    update = self.lora_scale * (self.lora_a[...] @ self.lora_b[...])
    self.kernel = nnx.Param(self.kernel[...] + update)
    self.lora_a = self.lora_b = None


class Embedding(nnx.Module):
  """A token table `[V, D]`, with a low-rank update where `lora` names it.

  As in PEFT, A is zero and B is random at the start, and there is no dropout.
  A tied output head uses the table without the update.
  """

  def __init__(
    self,
    name: str,
    vocab_size: int,
    width: int,
    *,
    lora: LoraConfig,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    normal = nnx.initializers.normal(0.02)
    shape = (vocab_size, width)
    self.weight = nnx.Param(normal(rngs.params(), shape, param_dtype))
    if name in lora.targets:
      self.lora_a = LoraParam(jnp.zeros((vocab_size, lora.rank)))
      up = nnx.initializers.normal(1.0)
      self.lora_b = LoraParam(up(rngs.lora(), (lora.rank, width), jnp.float32))
    else:
      self.lora_a = self.lora_b = None
    self.lora_scale = lora.scale

  def __call__(
    self, tokens: Int[Array, "*batch"], dtype: DTypeLike
  ) -> Float[Array, "*batch D"]:
    out = self.weight[...][tokens].astype(dtype)
    if self.lora_a is not None:
      low = (self.lora_a[...][tokens] * self.lora_scale).astype(dtype)
      out = out + low @ self.lora_b[...].astype(dtype)
    return out


class LayerNorm(nnx.Module):
  """Mean and variance normalisation in float32, with weight and bias."""

  def __init__(self, width: int, epsilon: float, param_dtype: DTypeLike):
    self.weight = nnx.Param(jnp.ones((width,), param_dtype))
    self.bias = nnx.Param(jnp.zeros((width,), param_dtype))
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + self.epsilon)
    out = normal * self.weight[...] + self.bias[...]
    return out.astype(x.dtype)


class RMSNorm(nnx.Module):
  """Root-mean-square normalisation in float32 (arXiv:1910.07467)."""

  def __init__(self, width: int, epsilon: float, param_dtype: DTypeLike):
    self.weight = nnx.Param(jnp.ones((width,), param_dtype))
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    wide = x.astype(jnp.float32)
    power = jnp.square(wide).mean(-1, keepdims=True)
    normal = wide * jax.lax.rsqrt(power + self.epsilon)
    return (normal * self.weight[...]).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotary:
  """Sines and cosines of the rotary angles, `[B, S, E / 2]` each."""

  sin: Any
  cos: Any

  @classmethod
  def at(
    cls, positions: Int[Array, "B S"], frequencies: Float[Array, " half"]
  ) -> "Rotary":
    """The angles of `positions` (RoPE, arXiv:2104.09864), in float32."""
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return cls(jnp.sin(angles), jnp.cos(angles))

  def rotate(
    self,
    first: Float[Array, "B S heads half"],
    second: Float[Array, "B S heads half"],
  ) -> tuple[Float[Array, "B S heads half"], Float[Array, "B S heads half"]]:
    """Rotates pairs of features; which features make a pair, models differ."""
    sin = self.sin[:, :, None, :].astype(first.dtype)
    cos = self.cos[:, :, None, :].astype(first.dtype)
    return first * cos - second * sin, second * cos + first * sin


def rotary_frequencies(size: int, base: float) -> Float[Array, " half"]:
  """`base ** (-2i / size)` for the `size / 2` pairs."""
  return 1.0 / base ** (jnp.arange(0, size, 2, dtype=jnp.float32) / size)


KEPT = "kept"


def keep(x: Array) -> Array:
  """Marks what the remat policy "dots" keeps."""
  return ad_checkpoint.checkpoint_name(x, KEPT)


REMAT_POLICIES: dict[str, Callable | None] = {
  # Keep everything: most memory.
  "none": None,
  # Keep the results of linear layers, LoRA included, and of attention where
  # its kernel says so; recompute the rest.
  "dots": jax.checkpoint_policies.save_only_these_names(KEPT),
  # Keep each layer's input only: least memory, one more forward pass.
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Head(nnx.Module):
  """The output layer, `[V, D]` as in Hugging Face's files; always frozen."""

  def __init__(
    self,
    vocab_size: int,
    width: int,
    *,
    use_bias: bool,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    normal = nnx.initializers.normal(0.02)
    shape = (vocab_size, width)
    self.weight = nnx.Param(normal(rngs.params(), shape, param_dtype))
    if use_bias:
      self.bias = nnx.Param(jnp.zeros((vocab_size,), param_dtype))
    else:
      self.bias = None


def head_logits(
  hidden: Float[Array, "*batch D"],
  weight: Float[Array, "V D"],
  bias: Float[Array, " V"] | None,
) -> Float[Array, "*batch V"]:
  """`hidden @ weight.T + bias`, summed and returned in float32."""
  logits = jax.lax.dot_general(
    hidden,
    weight.astype(hidden.dtype),
    (((hidden.ndim - 1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  return logits if bias is None else logits + bias.astype(jnp.float32)
