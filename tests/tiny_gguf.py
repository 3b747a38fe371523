"""Writes small GGUF files, by the rules of llama.cpp's convert_hf_to_gguf.py.

Nothing here is taken from `pdpo_jax.weights.gguf`, so that the two can differ.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping

import gguf
import numpy as np

from pdpo_jax.models import llama, llama_fields
from tests.weights import models

F32 = gguf.GGMLQuantizationType.F32
_NAMES = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
}
_LAYER_NAMES = {
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
}

Add = Callable[[gguf.GGUFWriter], None]


def gguf_name(name: str) -> str:
  stem = name.removesuffix(".weight")
  if stem in _NAMES:
    return _NAMES[stem] + ".weight"
  _, _, layer, part = stem.split(".", 3)
  return f"blk.{layer}.{_LAYER_NAMES[part]}.weight"


def permuted(weight: np.ndarray, num_heads: int) -> np.ndarray:
  """What the converter does to rows of q_proj and k_proj."""
  halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
  return halves.swapaxes(1, 2).reshape(weight.shape)


def rope_divisors(
  head_size: int, base: float, scaling: llama_fields.RopeScaling
) -> list[float]:
  """The converter's `rope_freqs.weight`, one frequency after the other."""
  divisors = []
  for index in range(0, head_size, 2):
    wavelength = 2 * math.pi * base ** (index / head_size)
    periods = scaling.original_positions / wavelength
    if periods > scaling.high_factor:
      divisors.append(1.0)
    elif periods < scaling.low_factor:
      divisors.append(scaling.factor)
    else:
      band = scaling.high_factor - scaling.low_factor
      smooth = (periods - scaling.low_factor) / band
      divisors.append(1 / ((1 - smooth) / scaling.factor + smooth))
  return divisors


def architecture(arch: llama.Architecture, **changes: Callable) -> Add:
  """The fields of an architecture; `changes` replace some of them."""

  def add(writer: gguf.GGUFWriter) -> None:
    fields = {
      "vocab_size": arch.vocab_size,
      "block_count": arch.num_layers,
      "context_length": arch.max_positions,
      "embedding_length": arch.width,
      "feed_forward_length": arch.mlp_width,
      "head_count": arch.num_heads,
      "head_count_kv": arch.num_kv_heads,
      "key_length": arch.head_size,
      "rope_dimension_count": arch.head_size,
      "rope_freq_base": arch.rope_base,
      "layer_norm_rms_eps": arch.epsilon,
    } | changes
    for name, value in fields.items():
      if value is not None:
        getattr(writer, f"add_{name}")(value)
    if arch.rope_scaling is not None:
      divisors = rope_divisors(
        arch.head_size, arch.rope_base, arch.rope_scaling
      )
      writer.add_tensor("rope_freqs.weight", np.array(divisors, np.float32))

  return add


def weights(
  arch: llama.Architecture,
  tensors: Mapping[str, np.ndarray],
  kind: gguf.GGMLQuantizationType = F32,
) -> Add:
  """Tensors by Hugging Face's names; all but vectors become `kind`."""

  def add(writer: gguf.GGUFWriter) -> None:
    for name, array in tensors.items():
      array = np.asarray(array, np.float32)
      if "q_proj" in name:
        array = permuted(array, arch.num_heads)
      if "k_proj" in name:
        array = permuted(array, arch.num_kv_heads)
      own = F32 if array.ndim == 1 else kind
      data = gguf.quants.quantize(np.ascontiguousarray(array), own)
      writer.add_tensor(gguf_name(name), data, raw_dtype=own)

  return add


def tokenizer(original: str, pre: str, size: int | None = None) -> Add:
  """The fields of a byte-level `tokenizer.json`, filled up to `size` tokens."""

  def add(writer: gguf.GGUFWriter) -> None:
    fields = json.loads(original)
    vocab = {index: token for token, index in fields["model"]["vocab"].items()}
    kinds = dict.fromkeys(vocab, gguf.TokenType.NORMAL)
    for token in fields["added_tokens"]:
      vocab[token["id"]] = token["content"]
      special = token["special"]
      kinds[token["id"]] = (
        gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
      )
    for index in range(size or len(vocab)):
      vocab.setdefault(index, f"[PAD{index}]")
      kinds.setdefault(index, gguf.TokenType.UNUSED)
    merges = fields["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([vocab[index] for index in range(len(vocab))])
    writer.add_token_types([kinds[index] for index in range(len(vocab))])
    writer.add_token_merges([" ".join(merge) for merge in merges])

  return add


def write(
  file: pathlib.Path,
  *adds: Add,
  kind: str = "llama",
  endianess: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE,
) -> pathlib.Path:
  writer = gguf.GGUFWriter(file, kind, endianess=endianess)
  for add in adds:
    add(writer)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


def model(lm, kind: gguf.GGMLQuantizationType = F32) -> tuple[Add, Add]:
  """Architecture and weights of one of our models."""
  tensors = models.tensors(lm)
  return architecture(lm.arch), weights(lm.arch, tensors, kind)
