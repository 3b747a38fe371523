"""Base weights in Hugging Face's folder format: config.json and safetensors.

Files are read and written tensor by tensor, so that a model never needs the
memory of a second one.
"""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import loading, tensor_files


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
        f"pdpo_jax.weights.convert_torch {folder} OUTPUT`"
      )
    raise ValueError(f"{folder} has no *.safetensors file{hint}")
  headers = [tensor_files.read_header(file) for file in files]
  count = collections.Counter(name for header in headers for name in header)
  twice = [name for name, times in count.items() if times > 1]
  if twice:
    raise ValueError(
      f"{folder} has {', '.join(sorted(twice))} in more than one of "
      f"{', '.join(file.name for file in files)}; keep the files of one model"
    )
  return dict(collections.ChainMap(*headers))


def _read_indexed(folder: pathlib.Path) -> dict[str, tensor_files.TensorPlace]:
  index = folder / tensor_files.INDEX
  try:
    place = json.loads(index.read_text())["weight_map"]
  except (ValueError, KeyError) as error:
    raise ValueError(
      f"{index} is damaged ({error!r}); download it again"
    ) from error
  files = {name: folder / name for name in sorted(set(place.values()))}
  missing = [name for name, file in files.items() if not file.is_file()]
  if missing:
    raise ValueError(
      f"{folder} lacks {', '.join(missing)}, which {index.name} names; "
      "download what is missing"
    )
  headers = {
    name: tensor_files.read_header(file) for name, file in files.items()
  }
  lost = [name for name, shard in place.items() if name not in headers[shard]]
  if lost:
    raise ValueError(
      f"{index} names tensors that are not in their files: "
      f"{', '.join(sorted(lost))}; download the folder again"
    )
  return {name: headers[shard][name] for name, shard in place.items()}


def read_architecture(folder: pathlib.Path) -> policy_lib.Architecture:
  """The architecture that a folder's `config.json` describes."""
  file = folder / "config.json"
  if not file.is_file():
    raise ValueError(
      f"{folder} has no config.json; name a folder in Hugging Face format"
    )
  try:
    fields = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f"{file} is no JSON ({error})") from error
  kind = fields.get("model_type")
  if kind not in policy_lib.ARCHITECTURES:
    raise ValueError(
      f"{file}: model_type {kind!r} is not supported; "
      f"{tuple(policy_lib.ARCHITECTURES)} are"
    )
  return policy_lib.ARCHITECTURES[kind].from_hf(fields)


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
    ValueError: if files are missing or damaged, or tensors do not fit the
      architecture, before any is read.
  """
  lm = loading.abstract_model(read_architecture(folder), **kwargs)
  places = read_headers(folder)
  loading.check_names(lm, set(places))
  loading.check_shapes(lm, {name: x.shape for name, x in places.items()})
  quantized = [
    f"{name} is {places[name].kind}"
    for name in loading.tensor_shapes(lm)
    if places[name].kind not in tensor_files.DTYPES
  ]
  if quantized:
    raise ValueError(
      f"{folder} has weights that are not one of {tuple(tensor_files.DTYPES)}: "
      f"{', '.join(quantized)}; use the model as it was before quantization"
    )
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
) -> None:
  """Writes `config.json` and safetensors, which `transformers` reads.

  The weights come last, and the index of shards last of all, so that a folder
  that has them is whole.

  Args:
    folder: made if it is missing.
    lm: a language model; its LoRA is merged in.
    extra: more fields for `config.json`.
    shard_bytes: where to begin another file.

  Raises:
    ValueError: if the folder has weights already.
  """
  config = merged_architecture(lm).to_hf() | dict(extra or {})
  folder.mkdir(parents=True, exist_ok=True)
  tensor_files.refuse_weights(folder)
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  tensor_files.write_shards(folder, to_tensors(lm), shard_bytes)
