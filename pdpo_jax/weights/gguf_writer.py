"""A Llama as a GGUF file, as llama.cpp's own converter writes it.

Tensors are made one after the other, while they are written.
"""

import logging
import pathlib
from collections.abc import Mapping, Sequence

import gguf
import jax.numpy as jnp
import numpy as np
import transformers
from jaxtyping import Float

from pdpo_jax.core import kept
from pdpo_jax.models import layers, llama
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import gguf as gguf_lib
from pdpo_jax.weights import gguf_tokenizer, tensor_files

logger = logging.getLogger(__name__)

_KINDS = {
  np.dtype("float32"): gguf.GGMLQuantizationType.F32,
  np.dtype("float16"): gguf.GGMLQuantizationType.F16,
  jnp.dtype("bfloat16"): gguf.GGMLQuantizationType.BF16,
}
_FILE_TYPES = {
  gguf.GGMLQuantizationType.F32: gguf.LlamaFileType.ALL_F32,
  gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
  gguf.GGMLQuantizationType.BF16: gguf.LlamaFileType.MOSTLY_BF16,
}
# Fields for tokens that end an answer.
_ENDS = ("eos", "eot", "eom")


def write(
  file: pathlib.Path,
  arch: policy_lib.Architecture,
  tensors: Mapping[str, tensor_files.LazyTensor],
  tokenizer: transformers.PreTrainedTokenizerBase,
  stop_tokens: Sequence[int],
  license: Mapping[str, str],
) -> None:
  """Writes a file, which has its name once it is whole.

  Matrices have the types that they have here, vectors are float32. No token is
  put before a text: the template writes one where there is to be one.

  Args:
    arch: of the tensors.
    tensors: by Hugging Face's names.
    tokenizer: with the chat template.
    stop_tokens: that end an answer, the most frequent first.
    license: its fields as on the hub.

  Raises:
    ValueError: if llama.cpp has no such architecture or tokenizer, or the file
      cannot be written.
  """
  if not isinstance(arch, llama.Architecture):
    raise ValueError(
      f"llama.cpp has no architecture for {arch.model_type!r} models; export "
      "them for other engines (--format=merged, peft or tokens)"
    )
  kept.make_folder(file.parent)
  part = file.with_name(f".{file.name}{kept.UNFINISHED}")
  writer = gguf.GGUFWriter(part, "llama")
  _add_architecture(writer, arch)
  _add_tokenizer(writer, tokenizer, stop_tokens, arch.vocab_size)
  for name, value in license.items():
    writer.add_string(f"general.{name.replace('_', '.')}", value)
  made = _named(arch, tensors)
  kinds = {
    _KINDS[tensor.dtype] for tensor in tensors.values() if len(tensor.shape) > 1
  }
  kind = gguf.GGMLQuantizationType.F32 if len(kinds) > 1 else kinds.pop()
  writer.add_file_type(_FILE_TYPES[kind])
  for name, tensor in made.items():
    kind = _KINDS[tensor.dtype]
    writer.add_tensor_info(
      name, tensor.shape, np.dtype("float32"), tensor.num_bytes, kind
    )
  try:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in made.values():
      array = np.ascontiguousarray(tensor.make(), tensor.dtype)
      # As bytes: bfloat16 has no buffer protocol.
      writer.write_tensor_data(array.reshape(-1).view(np.uint8))
    writer.close()
    part.replace(file)
  except OSError as error:
    raise kept.Unwritable(file, error) from error
  finally:
    writer.close()
    part.unlink(missing_ok=True)


def _add_architecture(
  writer: gguf.GGUFWriter, arch: llama.Architecture
) -> None:
  writer.add_vocab_size(arch.vocab_size)
  writer.add_block_count(arch.num_layers)
  writer.add_context_length(arch.max_positions)
  writer.add_embedding_length(arch.width)
  writer.add_feed_forward_length(arch.mlp_width)
  writer.add_head_count(arch.num_heads)
  writer.add_head_count_kv(arch.num_kv_heads)
  writer.add_key_length(arch.head_size)
  writer.add_value_length(arch.head_size)
  writer.add_rope_dimension_count(arch.head_size)
  writer.add_rope_freq_base(arch.rope_base)
  writer.add_layer_norm_rms_eps(arch.epsilon)


def _add_tokenizer(
  writer: gguf.GGUFWriter,
  tokenizer: transformers.PreTrainedTokenizerBase,
  stop_tokens: Sequence[int],
  size: int,
) -> None:
  described = gguf_tokenizer.describe(tokenizer, size)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre(described.pre)
  writer.add_token_list(described.tokens)
  writer.add_token_types(described.kinds)
  writer.add_token_merges(described.merges)
  writer.add_add_bos_token(False)
  special = {
    "bos": tokenizer.bos_token_id,
    "unk": tokenizer.unk_token_id,
    "pad": tokenizer.pad_token_id,
    **dict(zip(_ENDS, stop_tokens, strict=False)),
  }
  for name, number in special.items():
    if number is not None:
      getattr(writer, f"add_{name}_token_id")(number)
  if len(stop_tokens) > len(_ENDS):
    rest = tokenizer.convert_ids_to_tokens(list(stop_tokens[len(_ENDS) :]))
    logger.warning(
      "a GGUF file names %d tokens that end an answer; there is no place for "
      "%s, so stop at them as texts",
      len(_ENDS),
      ", ".join(map(repr, rest)),
    )
  if tokenizer.chat_template:
    writer.add_chat_template(tokenizer.chat_template)


def _named(
  arch: llama.Architecture, tensors: Mapping[str, tensor_files.LazyTensor]
) -> dict[str, tensor_files.LazyTensor]:
  """Tensors under llama.cpp's names and in its layout."""
  names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, arch.num_layers)
  heads = {"q_proj": arch.num_heads, "k_proj": arch.num_kv_heads}
  made = {}
  for name, tensor in tensors.items():
    # Norms are read as float32 alone.
    dtype = np.dtype("float32") if len(tensor.shape) == 1 else tensor.dtype
    num_heads = heads.get(name.split(".")[-2])
    made[names.get_name(name, (".weight",))] = tensor_files.LazyTensor(
      tensor.shape,
      dtype,
      lambda tensor=tensor, num_heads=num_heads: _laid_out(
        np.asarray(tensor.make()), num_heads
      ),
    )
  if arch.rope_scaling is not None:
    frequencies = layers.rotary_frequencies(arch.head_size, arch.rope_base)
    divisors = np.asarray(
      frequencies / arch.rope_scaling(frequencies), np.float32
    )
    made[gguf_lib.ROPE_FREQS] = tensor_files.LazyTensor(
      divisors.shape, divisors.dtype, lambda: divisors
    )
  return made


def _laid_out(
  weight: Float[np.ndarray, "..."], num_heads: int | None
) -> Float[np.ndarray, "..."]:
  """Rows of `q_proj` and `k_proj` as llama.cpp has them; others as they are.

  The inverse of what `gguf.read_model` does to them.
  """
  if num_heads is None:
    return weight
  halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
  return halves.swapaxes(1, 2).reshape(weight.shape)
