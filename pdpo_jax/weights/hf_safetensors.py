"""Base weights in Hugging Face's folder format: config.json and safetensors.

Parameter paths follow Hugging Face's names, so one rule names them all:
`("h", "attn", "q_proj", "kernel")`, stacked over layers, is
`transformer.h.{layer}.attn.q_proj.weight`, transposed.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from pdpo_jax.models import policy as policy_lib

_PREFIX = {"gptj": "transformer.", "llama": "model."}
_STACKS = {"gptj": "h", "llama": "layers"}
# Buffers that old checkpoints carry and no model needs.
_BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")


def tensor_names(
  arch: policy_lib.Architecture, path: tuple[str, ...]
) -> list[str]:
  """Hugging Face's names of a variable: one, or one for each layer."""
  *parts, leaf = path
  leaf = "weight" if leaf == "kernel" else leaf
  if parts[0] == "lm_head":
    return [".".join((*parts, leaf))]
  prefix = _PREFIX[arch.model_type]
  if parts[0] != _STACKS[arch.model_type]:
    return [prefix + ".".join((*parts, leaf))]
  return [
    prefix + ".".join((parts[0], str(layer), *parts[1:], leaf))
    for layer in range(arch.num_layers)
  ]


def _variables(lm: nnx.Module) -> Iterator[tuple[tuple[str, ...], nnx.Param]]:
  yield from nnx.to_flat_state(nnx.state(lm, nnx.Param))


def abstract_model(arch: policy_lib.Architecture, **kwargs: Any) -> nnx.Module:
  """A language model without LoRA whose weights are shapes only."""
  return nnx.eval_shape(
    lambda: policy_lib.make_language_model(arch, rngs=nnx.Rngs(0), **kwargs)
  )


def load_tensors(
  lm: nnx.Module, names: set[str], read: Callable[[str], np.ndarray]
) -> None:
  """Sets every base weight of `lm`, in the dtype it has there.

  Args:
    lm: a language model without LoRA; its weights may be shapes only.
    names: the tensors that there are.
    read: gives a tensor by name.

  Raises:
    ValueError: naming each tensor that is missing, unused or misshapen.
  """
  wanted = {path: tensor_names(lm.arch, path) for path, _ in _variables(lm)}
  needed = {name for group in wanted.values() for name in group}
  unused = {name for name in names - needed if not name.endswith(_BUFFERS)}
  if getattr(lm.arch, "tied_head", False):
    unused.discard("lm_head.weight")
  problems = []
  if needed - names:
    problems.append(f"missing: {', '.join(sorted(needed - names))}")
  if unused:
    problems.append(f"unused: {', '.join(sorted(unused))}")
  if problems:
    raise ValueError(
      f"weights do not fit {lm.arch.model_type!r} of config.json; "
      + "; ".join(problems)
    )
  misshapen = []
  loaded = {}
  for path, variable in _variables(lm):
    group = wanted[path]
    stacked = len(group) > 1 or path[0] == _STACKS[lm.arch.model_type]
    shape = variable.get_value().shape
    one_shape = shape[1:] if stacked else shape
    arrays = []
    for name in group:
      array = read(name)
      if path[-1] == "kernel":
        array = array.T
      if array.shape != one_shape:
        misshapen.append(f"{name} is {array.shape}, not {one_shape}")
      arrays.append(array)
    if not misshapen:
      array = np.stack(arrays) if stacked else arrays[0]
      loaded[path] = jnp.asarray(array, variable.get_value().dtype)
  if misshapen:
    raise ValueError(
      "weights do not fit config.json (after transposing linear layers); "
      + "; ".join(misshapen)
    )
  state = nnx.state(lm, nnx.Param)
  flat = dict(nnx.to_flat_state(state))
  for path, array in loaded.items():
    flat[path] = flat[path].replace(array)
  nnx.update(lm, nnx.from_flat_state(list(flat.items())))


def read_architecture(folder: pathlib.Path) -> policy_lib.Architecture:
  """The architecture that a folder's `config.json` describes."""
  file = folder / "config.json"
  if not file.is_file():
    raise ValueError(
      f"base.path {str(folder)!r} has no config.json; name a folder in Hugging "
      "Face format"
    )
  fields = json.loads(file.read_text())
  kind = fields.get("model_type")
  if kind not in policy_lib.ARCHITECTURES:
    raise ValueError(
      f"{file}: model_type {kind!r} is not supported; "
      f"{tuple(policy_lib.ARCHITECTURES)} are"
    )
  return policy_lib.ARCHITECTURES[kind].from_hf(fields)


def read_model(folder: pathlib.Path, **kwargs: Any) -> nnx.Module:
  """The language model of a folder, without LoRA.

  Args:
    folder: with `config.json` and `*.safetensors`.
    **kwargs: `dtype`, `param_dtype`, `remat` of the model.
  """
  lm = abstract_model(read_architecture(folder), **kwargs)
  files = sorted(folder.glob("*.safetensors"))
  if not files:
    raise ValueError(f"{folder} has no *.safetensors file")
  handles = [safetensors.safe_open(file, framework="np") for file in files]
  place = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
  load_tensors(lm, set(place), lambda name: place[name].get_tensor(name))
  return lm


def to_tensors(lm: nnx.Module) -> dict[str, np.ndarray]:
  """Base weights under Hugging Face's names and in its layout."""
  tensors = {}
  for path, variable in _variables(lm):
    array = np.asarray(variable[...])
    group = tensor_names(lm.arch, path)
    stacked = path[0] == _STACKS[lm.arch.model_type]
    for layer, name in enumerate(group):
      one = array[layer] if stacked else array
      one = one.T if path[-1] == "kernel" else one
      tensors[name] = np.ascontiguousarray(one)
  return tensors


def write_model(
  folder: pathlib.Path, lm: nnx.Module, extra: Mapping[str, Any] | None = None
) -> None:
  """Writes `config.json` and `model.safetensors`, which `transformers` reads.

  The weights come last and by renaming, so that a folder that has them is
  whole.

  Args:
    folder: made if it is missing.
    lm: a language model; LoRA is left out.
    extra: more fields for `config.json`.
  """
  folder.mkdir(parents=True, exist_ok=True)
  config = lm.arch.to_hf() | dict(extra or {})
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  part = folder / "model.safetensors.part"
  safetensors.numpy.save_file(to_tensors(lm), part, metadata={"format": "pt"})
  part.rename(folder / "model.safetensors")


def base_params(lm: nnx.Module) -> Mapping[tuple[str, ...], jax.Array]:
  """The base weights of a language model by path."""
  return {path: variable[...] for path, variable in _variables(lm)}
