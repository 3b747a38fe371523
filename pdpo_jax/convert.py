r"""Converts a model that has only pytorch_model.bin to safetensors.

  python -m pdpo_jax.convert IN_FOLDER OUT_FOLDER --dtype=bfloat16

The only part of the package that needs torch; its CPU build is enough. Tensors
are mapped into memory and written one at a time.
"""

import argparse
import json
import pathlib
import pickle
import sys

import jax.numpy as jnp
import numpy as np

from pdpo_jax.core import kept
from pdpo_jax.weights import hf_safetensors, hub, loading, tensor_files

try:
  import torch
except ImportError:
  torch = None  # `main` says what to do.

_INDEX = "pytorch_model.bin.index.json"
_DTYPES = ("float32", "bfloat16", "float16")


def find_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files of a model: one, or those that the index names.

  Raises:
    ValueError: naming those that are missing.
  """
  names = ["pytorch_model.bin"]
  if (folder / _INDEX).is_file():
    names = sorted(set(hf_safetensors.index_files(folder / _INDEX).values()))
  missing = [name for name in names if not (folder / name).is_file()]
  if missing:
    raise ValueError(f"{folder} lacks {', '.join(missing)}; download it again")
  return [folder / name for name in names]


def load(file: pathlib.Path) -> "dict[str, torch.Tensor]":
  """The tensors of a file, as a memory map where its format allows one.

  Raises:
    ValueError: if the file is damaged, or holds anything but tensors.
  """
  with file.open("rb") as opened:
    is_zip = opened.read(2) == b"PK"  # Before torch 1.6 they were pickles.
  try:
    tensors = torch.load(
      file, map_location="cpu", weights_only=True, mmap=is_zip
    )
  except pickle.UnpicklingError as error:
    raise ValueError(
      f"{file} is not loaded: it holds something else than tensors, which "
      "could run code, or is damaged. Get the model from a place you trust"
    ) from error
  except Exception as error:  # torch raises what zip and pickle raise.
    raise ValueError(
      f"{file} is cut off or damaged ({type(error).__name__}); download it "
      "again"
    ) from error
  if not isinstance(tensors, dict):
    raise ValueError(
      f"{file} holds a {type(tensors).__name__}; only a model's plain state "
      "dict can be converted"
    )
  others = [name for name, x in tensors.items() if not torch.is_tensor(x)]
  if others:
    raise ValueError(
      f"{file} holds {others[0]!r}, which is no tensor; only a model's plain "
      "state dict can be converted"
    )
  return tensors


def _array(tensor: "torch.Tensor") -> np.ndarray:
  array = tensor.detach().contiguous()
  if array.dtype == torch.bfloat16:  # which torch does not hand to numpy
    return array.view(torch.int16).numpy().view(jnp.bfloat16)
  return array.numpy()


def _lazy(
  tensor: "torch.Tensor", dtype: "torch.dtype"
) -> tensor_files.LazyTensor:
  name = str(dtype).removeprefix("torch.")
  return tensor_files.LazyTensor(
    tuple(tensor.shape), jnp.dtype(name), lambda: _array(tensor.to(dtype))
  )


def convert(
  source: pathlib.Path,
  target: pathlib.Path,
  dtype: str | None = None,
  shard_bytes: int = tensor_files.SHARD_BYTES,
) -> None:
  """Writes a folder that `hf_safetensors.read_model` reads; weights last.

  Args:
    source: with config.json and pytorch_model.bin, one file or an index.
    target: gets safetensors, and copies of config and tokenizer.
    dtype: of all weights; without, each keeps its own.
    shard_bytes: where to begin another file.

  Raises:
    ValueError: if files are missing, damaged or unsafe, or are no model that
      this package reads.
  """
  tensor_files.refuse_weights(target)
  described = hf_safetensors.read_architecture(source)
  tensors = {}
  for file in find_files(source):
    tensors |= load(file)
  arch, tensors = hf_safetensors.own_head(described, tensors, _array)
  lm = loading.abstract_model(arch)
  loading.check_names(lm, set(tensors))
  loading.check_shapes(lm, {name: x.shape for name, x in tensors.items()})
  # What is not needed are buffers.
  wanted = None if dtype is None else getattr(torch, dtype)
  lazy = {
    name: _lazy(tensors[name], wanted or tensors[name].dtype)
    for name in loading.tensor_shapes(lm)
  }
  kept.make_folder(target)
  for pattern in hub.TEXT_FILES:
    for file in filter(pathlib.Path.is_file, source.glob(pattern)):
      with kept.writing(target / file.name, summed=False) as out:
        out.write(file.read_bytes())
  config = hf_safetensors.read_config(source)
  if dtype is not None:
    config = {k: v for k, v in config.items() if k != "torch_dtype"}
    config["dtype"] = dtype
  if arch != described:
    config["tie_word_embeddings"] = False
  with kept.writing(target / "config.json", summed=False) as out:
    out.write((json.dumps(config, indent=2) + "\n").encode())
  tensor_files.write_shards(target, lazy, shard_bytes)


def main() -> None:
  parser = argparse.ArgumentParser(
    prog="python -m pdpo_jax.convert",
    description=__doc__.splitlines()[0],
  )
  parser.add_argument("source", type=pathlib.Path, metavar="IN_FOLDER")
  parser.add_argument("target", type=pathlib.Path, metavar="OUT_FOLDER")
  parser.add_argument(
    "--dtype", choices=_DTYPES, help="of all weights; default: as they are"
  )
  flags = parser.parse_args()
  if torch is None:
    sys.exit(
      "error: this command needs torch: pip install torch --index-url "
      "https://download.pytorch.org/whl/cpu"
    )
  try:
    convert(flags.source, flags.target, flags.dtype)
  except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")
  print(f"base.path may now be {str(flags.target)!r}")


if __name__ == "__main__":
  main()
