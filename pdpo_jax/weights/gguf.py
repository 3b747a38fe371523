"""A Llama's weights and architecture from GGUF, llama.cpp's file format.

The file is mapped into memory and each tensor dequantised when it is read, so
that a float32 copy of the whole model never exists beside the loaded one.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import gguf
import numpy as np
from flax import nnx
from jaxtyping import Float

from pdpo_jax.models import hf_fields, layers, llama, llama_fields
from pdpo_jax.weights import loading

# What to do about a file that is not as it should be.
AGAIN = "download or convert the model again"
# What Llama 3.1's scaling does to each frequency; the architecture holds it.
ROPE_FREQS = "rope_freqs.weight"
_TABLE = "token_embd.weight"


@dataclasses.dataclass(frozen=True)
class File:
  """An open GGUF file."""

  path: pathlib.Path
  reader: gguf.GGUFReader

  def error(self, message: str) -> ValueError:
    return ValueError(f"{self.path}: {message}")

  def get(self, name: str, kind: Any, default: Any = None) -> Any:
    """A metadata field, or `default` where the file has none.

    Args:
      kind: its type, as in `hf_fields`.

    Raises:
      ValueError: if it is of another.
    """
    field = self.reader.get_field(name)
    if field is None:
      return default
    try:
      value = field.contents()
    except Exception as error:  # The library checks nothing.
      raise self.error(f"{name} is damaged ({error!r:.80}); {AGAIN}") from error
    return hf_fields.parse(dict[str, kind], {name: value}, self.path)[name]

  def require(self, name: str, kind: Any) -> Any:
    """A metadata field; see `get`.

    Raises:
      ValueError: also if the file has none.
    """
    if self.reader.get_field(name) is None:
      raise self.error(
        f"the metadata field {name!r} is missing; convert the model again with "
        "llama.cpp's convert_hf_to_gguf.py"
      )
    return self.get(name, kind)

  @functools.cached_property
  def tensors(self) -> dict[str, gguf.gguf_reader.ReaderTensor]:
    return {tensor.name: tensor for tensor in self.reader.tensors}

  def read(self, name: str) -> Float[np.ndarray, "..."]:
    """A tensor, dequantised to float32; a linear layer's is `[out, in]`."""
    tensor = self.tensors[name]
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def open_file(path: pathlib.Path) -> File:
  """Reads a GGUF file's metadata and finds its tensors.

  Raises:
    ValueError: if it is missing, no GGUF file, truncated, of several parts, or
      big-endian.
  """
  if not path.is_file():
    raise ValueError(f"{path} is no file; name a .gguf file that exists")
  with path.open("rb") as start:
    if start.read(4) != b"GGUF":
      raise ValueError(
        f"{path} is not a GGUF file, whatever its name; name a folder in "
        "Hugging Face format or a file that llama.cpp reads"
      )
  try:
    reader = gguf.GGUFReader(path)
  except Exception as error:
    # The library checks no lengths: it stumbles over what is not there.
    raise ValueError(
      f"{path} is truncated or damaged ({error}); copy or download it again"
    ) from error
  file = File(path, reader)
  if reader.byte_order != "I":
    raise file.error(
      "the bytes are in the other order than this machine's; convert it with "
      "`gguf-convert-endian FILE little`"
    )
  parts = file.get("split.count", int, 1)
  if parts > 1:
    raise file.error(
      f"this is one of {parts} parts; join them with "
      "`llama-gguf-split --merge FIRST_PART OUT`"
    )
  return file


def _sizes(file: File) -> dict[str, Any]:
  """The fields of an architecture that are numbers in the metadata."""

  def number(name: str, kind: Any, default: Any = None) -> Any:
    name = f"llama.{name}"
    if isinstance(file.get(name, Any), list):
      raise file.error(f"{name} differs between layers, which Llama's does not")
    if default is None:
      return file.require(name, kind)
    return file.get(name, kind, default)

  def size(name: str, default: int | None = None) -> int:
    return number(name, hf_fields.Size, default)

  def decimal(name: str, kind: Any, default: float | None = None) -> float:
    # The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(number(name, kind, default))))

  width = size("embedding_length")
  num_heads = size("attention.head_count")
  return {
    "width": width,
    "num_layers": number("block_count", hf_fields.Layers),
    "num_heads": num_heads,
    "num_kv_heads": size("attention.head_count_kv", num_heads),
    "head_size": size("attention.key_length", width // num_heads),
    "mlp_width": size("feed_forward_length"),
    "rope_base": decimal("rope.freq_base", hf_fields.Positive, 10_000.0),
    "max_positions": size("context_length"),
    "epsilon": decimal("attention.layer_norm_rms_epsilon", hf_fields.Epsilon),
  }


def _rope_scaling(
  file: File, head_size: int, rope_base: float
) -> llama_fields.RopeScaling | None:
  """Llama 3.1's scaling, from the divisor of each frequency.

  The file has no other trace of it. Llama 3.1 to 3.3 all blend between 1 and 4
  periods, so that the longest wavelengths give the factor, and the original
  context is the power of two that gives the other divisors.
  """
  if ROPE_FREQS not in file.tensors:
    return None
  divisors = file.read(ROPE_FREQS)
  frequencies = layers.rotary_frequencies(head_size, rope_base)
  if divisors.shape != frequencies.shape:
    raise file.error(
      f"{ROPE_FREQS} has shape {divisors.shape}, not {frequencies.shape}"
    )

  def deviation(scaling: llama_fields.RopeScaling) -> float:
    ratio = divisors * np.asarray(scaling(frequencies) / frequencies)
    return float(np.abs(ratio - 1).max())

  candidates = [
    llama_fields.RopeScaling(float(divisors.max()), 1.0, 4.0, 2**exponent)
    for exponent in range(5, 21)
  ]
  best = min(candidates, key=deviation)
  if not deviation(best) < 1e-4:
    raise file.error(
      f"{ROPE_FREQS} is not the scaling of Llama 3.1 (low_freq_factor 1, "
      "high_freq_factor 4), which alone is supported; use the model in Hugging "
      "Face format"
    )
  return best


def read_architecture(file: File) -> llama.Architecture:
  """The architecture that a file's metadata and tensors describe.

  Raises:
    ValueError: if it is not Llama, or has something that Llama does not.
  """
  kind = file.require("general.architecture", str)
  if kind != "llama":
    raise file.error(
      f"general.architecture {kind!r} is not supported; only 'llama' is"
    )
  sizes = _sizes(file)
  for name, only in (
    ("expert_count", 0),
    ("rope.scaling.type", "none"),
    ("rope.dimension_count", sizes["head_size"]),
    ("attention.value_length", sizes["head_size"]),
  ):
    value = file.get(f"llama.{name}", Any, only)
    if value != only:
      raise file.error(
        f"llama.{name} {value!r} is not supported; only {only!r} is"
      )
  if _TABLE not in file.tensors:
    raise file.error(f"the tensor {_TABLE} is missing; {AGAIN}")
  shape = file.tensors[_TABLE].shape
  if len(shape) != 2:
    raise file.error(f"the tensor {_TABLE} is no table; {AGAIN}")
  scaling = _rope_scaling(file, sizes["head_size"], sizes["rope_base"])
  try:
    return llama.Architecture(
      # Sizes are in llama.cpp's order, the reverse of numpy's.
      vocab_size=int(shape[1]),
      **sizes,
      rope_scaling=scaling,
      tied_head="output.weight" not in file.tensors,
    )
  except ValueError as error:
    raise file.error(str(error)) from error


def _gguf_names(lm: nnx.Module) -> dict[str, str]:
  """GGUF's name of each tensor of a model, by Hugging Face's."""
  table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, lm.arch.num_layers)
  return {
    name: table.get_name(name, (".weight",))
    for name in loading.tensor_shapes(lm)
  }


def _check_tensors(file: File, needed: set[str]) -> None:
  """Before the first is read, as reading them all takes a while."""
  present = set(file.tensors) - {ROPE_FREQS}
  if needed - present:
    raise file.error(
      f"tensors are missing: {loading.listed(needed - present)}; {AGAIN}"
    )
  if present - needed:
    raise file.error(
      "these tensors have no place in a Llama: "
      f"{loading.listed(present - needed)}"
    )
  for kind in {file.tensors[name].tensor_type for name in needed}:
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
      gguf.quants.dequantize(block, kind)
    except NotImplementedError as error:
      raise file.error(
        f"the gguf library cannot dequantise tensors of type {kind.name}; "
        "requantise the model with "
        "`llama-quantize --allow-requantize FILE OUT Q8_0`"
      ) from error


def _restore_rows(
  weight: Float[np.ndarray, "out in"], num_heads: int
) -> Float[np.ndarray, "out in"]:
  """Rows of `q_proj` or `k_proj` in Hugging Face's order.

  llama.cpp turns neighbouring features of a head, Hugging Face features half a
  head apart, and the converter reorders rows to suit. A head of six features
  lies in the file as 0 3 1 4 2 5.
  """
  pairs = weight.reshape(num_heads, -1, 2, weight.shape[1])
  return pairs.swapaxes(1, 2).reshape(weight.shape)


def read_model(
  file: File, sharding: loading.ShardingOf | None = None, **kwargs: Any
) -> nnx.Module:
  """The language model of a file, without LoRA.

  Args:
    file: of Llama architecture, in any quantisation that the gguf library
      dequantises.
    sharding: where each parameter goes; without, to the default device.
    **kwargs: `dtype`, `param_dtype`, `remat`, `kernel` of the model.

  Raises:
    ValueError: if the architecture, a tensor or its type is not supported.
  """
  arch = read_architecture(file)
  lm = loading.abstract_model(arch, **kwargs)
  names = _gguf_names(lm)
  _check_tensors(file, set(names.values()))
  heads = {"q_proj": arch.num_heads, "k_proj": arch.num_kv_heads}

  def read(name: str) -> np.ndarray:
    array = file.read(names[name])
    layer = name.split(".")[-2]
    return _restore_rows(array, heads[layer]) if layer in heads else array

  # Sizes are in llama.cpp's order, the reverse of numpy's.
  shapes = {
    name: tuple(map(int, file.tensors[place].shape[::-1]))
    for name, place in names.items()
  }
  try:
    loading.check_shapes(lm, shapes)
    loading.load_tensors(lm, set(names), read, sharding)
  except ValueError as error:
    raise file.error(str(error)) from error
  return lm
