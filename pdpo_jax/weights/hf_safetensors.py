"""Base weights in Hugging Face's folder format: config.json and safetensors.

Files are read and written tensor by tensor, so that a model never needs the
memory of a second one.
"""

import collections
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from flax import nnx

from pdpo_jax.core import kept
from pdpo_jax.models import hf_fields
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import json_files, loading, tensor_files

logger = logging.getLogger(__name__)

# Bytes that a file system allows.
_LONGEST_NAME = 255
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def read_headers(folder: pathlib.Path) -> dict[str, tensor_files.TensorPlace]:
  """The tensors of a folder by name.

  Of `model.safetensors`, else of the files that the index names, else of all.

  Raises:
    ValueError: if there is no file, or one is missing or damaged.
  """
  if (folder / tensor_files.WHOLE).is_file():
    return tensor_files.read_header(folder / tensor_files.WHOLE)
  if (folder / tensor_files.INDEX).is_file():
    return _read_indexed(folder)
  files = sorted(folder.glob("*.safetensors"))
  if not files:
    hint = ""
    if list(folder.glob("pytorch_model*.bin")):
      hint = (
        "; convert its pytorch_model.bin with `python -m "
        f"pdpo_jax.convert {folder} OUTPUT`"
      )
    raise ValueError(f"{folder} has no *.safetensors file{hint}")
  return _joined(
    folder, {file.name: tensor_files.read_header(file) for file in files}
  )


class _Index(pydantic.BaseModel):
  model_config = hf_fields.STRICT

  weight_map: dict[str, str] = pydantic.Field(min_length=1)


def index_files(index: pathlib.Path) -> dict[str, str]:
  """Tensors and their files, as an index of shards has them.

  Raises:
    ValueError: if it is damaged, or names anything but files of its folder.
  """
  place = json_files.read(index, _Index).weight_map
  for tensor, name in place.items():
    # A path could lead anywhere. The hub's cache has links of plain names.
    is_long = len(name.encode(errors="surrogatepass")) > _LONGEST_NAME
    if name in ("", ".", "..") or set(name) & set("/\\\0") or is_long:
      raise ValueError(
        f"{index}: {tensor} is said to be in {name!r:.80}, which is no plain "
        "file name; keep shards beside their index"
      )
  return place


def _read_indexed(folder: pathlib.Path) -> dict[str, tensor_files.TensorPlace]:
  index = folder / tensor_files.INDEX
  place = index_files(index)
  files = [folder / name for name in sorted(set(place.values()))]
  missing = [file.name for file in files if not file.is_file()]
  if missing:
    raise ValueError(
      f"{folder} lacks {', '.join(missing)}, which {index.name} names; "
      "download what is missing"
    )
  headers = {file.name: tensor_files.read_header(file) for file in files}
  lost = [name for name, shard in place.items() if name not in headers[shard]]
  if lost:
    raise ValueError(
      f"{index} names tensors that are not in their files: "
      f"{loading.listed(lost)}; download the folder again"
    )
  return _joined(folder, headers)


def _joined(
  folder: pathlib.Path,
  headers: Mapping[str, Mapping[str, tensor_files.TensorPlace]],
) -> dict[str, tensor_files.TensorPlace]:
  """The tensors of several files, by file name; none is in two."""
  count = collections.Counter(
    name for header in headers.values() for name in header
  )
  twice = [name for name, times in count.items() if times > 1]
  if twice:
    raise ValueError(
      f"{folder} has {loading.listed(twice)} in more than one of "
      f"{', '.join(headers)}; keep the files of one model"
    )
  return dict(collections.ChainMap(*map(dict, headers.values())))


def read_config(folder: pathlib.Path) -> dict[str, Any]:
  """The fields of a folder's `config.json`.

  Raises:
    ValueError: if there is none, or it is damaged.
  """
  file = folder / "config.json"
  if not file.is_file():
    raise ValueError(
      f"{folder} has no config.json; name a folder in Hugging Face format"
    )
  return json_files.read(file, dict[str, Any])


def read_architecture(folder: pathlib.Path) -> policy_lib.Architecture:
  """The architecture that a folder's `config.json` describes.

  Raises:
    ValueError: naming what is missing, of no use, or not supported.
  """
  file, fields = folder / "config.json", read_config(folder)
  kind = fields.get("model_type")
  if not isinstance(kind, str) or kind not in policy_lib.ARCHITECTURES:
    raise ValueError(
      f"{file}: model_type {kind!r:.80} is not supported; "
      f"{' and '.join(map(repr, policy_lib.ARCHITECTURES))} are"
    )
  if fields.get("quantization_config"):
    raise ValueError(
      f"{file}: quantization_config says that the weights are quantized, which "
      "is not supported; use the model as it was before (base.param_dtype can "
      "make it int8)"
    )
  try:
    return policy_lib.ARCHITECTURES[kind].from_hf(fields)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from error


def own_head(
  arch: policy_lib.Architecture,
  places: Mapping[str, Any],
  read: Callable[[Any], np.ndarray],
) -> tuple[policy_lib.Architecture, dict[str, Any]]:
  """Architecture and tensors of a model whose files have a head of its own.

  Where `config.json` says that the head is the token table, and the files have
  both: two copies are one. Of two that differ the head is kept, as by
  `transformers` from 5.0 on; an adapter that was merged into one of them leaves
  that behind. Where the files have the head alone, it is the table.

  Args:
    places: what is known of each tensor, by name.
    read: gives its values.
  """
  places = dict(places)
  if not getattr(arch, "tied_head", False) or _HEAD not in places:
    return arch, places
  if _TABLE not in places:
    places[_TABLE] = places.pop(_HEAD)
  elif tensor_files.same_values(read(places[_TABLE]), read(places[_HEAD])):
    del places[_HEAD]
  else:
    logger.warning(
      "config.json says tie_word_embeddings, but %s and %s differ; both are "
      "kept, as transformers does",
      _HEAD,
      _TABLE,
    )
    arch = dataclasses.replace(arch, tied_head=False)
  return arch, places


def read_places(
  folder: pathlib.Path,
) -> tuple[policy_lib.Architecture, dict[str, tensor_files.TensorPlace]]:
  """A folder's architecture, and where each of its tensors lies.

  Raises:
    ValueError: if files are missing or damaged, or tensors do not fit the
      architecture. Of weights nothing is read but copies of a tied head.
  """
  arch, places = read_architecture(folder), read_headers(folder)
  try:
    quantized = [
      f"{name} is {place.kind}"
      for name, place in places.items()
      if place.kind not in tensor_files.DTYPES
      and not name.endswith(loading.BUFFERS)
    ]
    if quantized:
      raise ValueError(
        f"there are weights that are not one of {tuple(tensor_files.DTYPES)}: "
        f"{loading.listed(quantized)}; use the model as it was before "
        "quantization"
      )
    arch, places = own_head(arch, places, lambda place: place.read())
    lm = loading.abstract_model(arch)
    loading.check_names(lm, set(places))
    loading.check_shapes(lm, {name: x.shape for name, x in places.items()})
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error
  return arch, places


def read_model(
  folder: pathlib.Path,
  sharding: loading.ShardingOf | None = None,
  **kwargs: Any,
) -> nnx.Module:
  """The language model of a folder, without LoRA.

  Args:
    folder: with `config.json` and `*.safetensors`.
    sharding: where each parameter goes; without, to the default device.
    **kwargs: `dtype`, `param_dtype`, `remat`, `kernel` of the model.

  Raises:
    ValueError: as `read_places`.
  """
  return load_model(*read_places(folder), sharding, **kwargs)


def load_model(
  arch: policy_lib.Architecture,
  places: Mapping[str, tensor_files.TensorPlace],
  sharding: loading.ShardingOf | None = None,
  **kwargs: Any,
) -> nnx.Module:
  """The language model that `read_places` found; see `read_model`."""
  lm = loading.abstract_model(arch, **kwargs)
  loading.load_tensors(
    lm, set(places), lambda name: places[name].read(), sharding
  )
  return lm


def _lora_of(lm: nnx.Module, path: tuple[str, ...]) -> Any:
  """The layer whose low-rank update applies to the weight at `path`, if any."""
  layer = functools.reduce(getattr, path[:-1], lm)
  if path[-1] == "bias" or getattr(layer, "lora_a", None) is None:
    return None
  return layer


@functools.partial(jax.jit, static_argnames=("scale", "transposed"))
def _one_tensor(weight, update, layer, scale, transposed):
  """A tensor of a weight, `layer` of it if it is stacked, with its update.

  An int8 kernel comes with its scales, and leaves as float32.
  """

  def take(x):
    return x if layer is None else x[layer]

  kernel, by_output = weight
  out = take(kernel)
  if by_output is not None:
    out = out * take(by_output)
  if update is not None:
    down, up = map(take, update)
    low_rank = scale * jnp.matmul(down, up, precision="highest")
    out = (out.astype(jnp.float32) + low_rank).astype(out.dtype)
  return out.T if transposed else out


def merged_architecture(lm: nnx.Module) -> policy_lib.Architecture:
  """The architecture of `lm` once LoRA is merged into its weights.

  A tied head reads the token table without its update, so a table with one
  leaves a head of its own behind.
  """
  tied = getattr(lm.arch, "tied_head", False)
  if tied and lm.embed_tokens.lora_a is not None:
    return dataclasses.replace(lm.arch, tied_head=False)
  return lm.arch


def _tensors_of(
  arch: policy_lib.Architecture,
  path: tuple[str, ...],
  weight: tuple[jax.Array, jax.Array | None],
  updated: Any,
) -> dict[str, tensor_files.LazyTensor]:
  """The tensors of a weight, which the low-rank update of `updated` is for.

  Args:
    weight: with the scales of an int8 kernel.
  """
  update, scale = None, None
  if updated is not None:
    update = (updated.lora_a[...], updated.lora_b[...])
    scale = updated.lora_scale
  tensors = {}
  for layer, name in enumerate(loading.tensor_names(arch, path)):
    make = functools.partial(
      _one_tensor,
      weight,
      update,
      layer if loading.is_stacked(arch, path) else None,
      scale=scale,
      transposed=path[-1] == "kernel",
    )
    like = jax.eval_shape(make)
    tensors[name] = tensor_files.LazyTensor(like.shape, like.dtype, make)
  return tensors


def to_tensors(lm: nnx.Module) -> dict[str, tensor_files.LazyTensor]:
  """Weights under Hugging Face's names and in its layout, LoRA merged in.

  It is added in float32, and the sum rounded to the weight's dtype.
  """
  tensors = {}
  for path, variable in loading.variables(lm):
    if path[-1] == loading.SCALE:
      continue
    weight = (variable.get_value(), loading.scale_of(lm, path))
    tensors |= _tensors_of(lm.arch, path, weight, _lora_of(lm, path))
  if merged_architecture(lm) != lm.arch:
    table = (lm.embed_tokens.weight[...], None)
    tensors |= _tensors_of(lm.arch, ("lm_head", "weight"), table, None)
  return tensors


def write_model(
  folder: pathlib.Path,
  lm: nnx.Module,
  extra: Mapping[str, Any] | None = None,
  shard_bytes: int = tensor_files.SHARD_BYTES,
  *,
  summed: bool = False,
) -> None:
  """Writes a language model, its LoRA merged in; see `write_tensors`."""
  write_tensors(
    folder,
    merged_architecture(lm),
    to_tensors(lm),
    extra,
    shard_bytes,
    summed=summed,
  )


def write_tensors(
  folder: pathlib.Path,
  arch: policy_lib.Architecture,
  tensors: Mapping[str, tensor_files.LazyTensor],
  extra: Mapping[str, Any] | None = None,
  shard_bytes: int = tensor_files.SHARD_BYTES,
  *,
  summed: bool = False,
) -> None:
  """Writes `config.json` and safetensors, which `transformers` reads.

  The weights come last, and the index of shards last of all, so that a folder
  that has them is whole.

  Args:
    folder: made if it is missing.
    arch: of the tensors.
    tensors: by Hugging Face's names.
    extra: more fields for `config.json`.
    shard_bytes: where to begin another file.
    summed: whether sums of the files are kept beside them.

  Raises:
    ValueError: if the folder has weights already, or cannot be written.
  """
  config = arch.to_hf() | dict(extra or {})
  tensor_files.refuse_weights(folder)
  with kept.writing(folder / "config.json", summed=summed) as out:
    out.write((json.dumps(config, indent=2) + "\n").encode())
  tensor_files.write_shards(folder, tensors, shard_bytes, summed=summed)
