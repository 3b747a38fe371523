"""Safetensors files: read by memory map, written in a stream.

The library's own reader and writer hold a whole tensor besides its memory map,
and a whole file; these hold a page and a tensor.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from pdpo_jax.core import kept

DTYPES = {
  "F64": np.dtype("float64"),
  "F32": np.dtype("float32"),
  "F16": np.dtype("float16"),
  "BF16": jnp.dtype("bfloat16"),
}
_KINDS = {dtype: kind for kind, dtype in DTYPES.items()}
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
# Values that are compared at once.
_COMPARED = 4_000_000


@dataclasses.dataclass(frozen=True)
class TensorPlace:
  """Where a tensor lies."""

  file: pathlib.Path
  kind: str  # a key of `DTYPES`, or a type that no weight of ours has
  shape: tuple[int, ...]
  offset: int  # of its first byte in the file

  def read(self) -> np.ndarray:
    """A memory map of its own, whose pages go when it does."""
    return np.memmap(self.file, DTYPES[self.kind], "r", self.offset, self.shape)


def read_header(file: pathlib.Path) -> dict[str, TensorPlace]:
  """The tensors of a file by name.

  Raises:
    ValueError: if the file is cut off or damaged.
  """
  try:
    with safetensors.safe_open(file, framework="np"):
      pass  # It saw a sound header and as many bytes as that speaks of.
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(
      f"{file} is cut off or damaged ({error}); download it again"
    ) from error
  with file.open("rb") as opened:
    size = int.from_bytes(opened.read(8), "little")
    header = json.loads(opened.read(size))
  header.pop("__metadata__", None)
  return {
    name: TensorPlace(
      file=file,
      kind=fields["dtype"],
      shape=tuple(fields["shape"]),
      offset=8 + size + fields["data_offsets"][0],
    )
    for name, fields in header.items()
  }


def same_values(first: np.ndarray, second: np.ndarray) -> bool:
  """Whether two arrays are the same numbers, whatever their types.

  Little of them is copied.
  """
  if first.shape != second.shape:
    return False
  first, second = first.reshape(-1), second.reshape(-1)
  return all(
    np.array_equal(
      first[start : start + _COMPARED].astype(np.float32),
      second[start : start + _COMPARED].astype(np.float32),
      equal_nan=True,
    )
    for start in range(0, first.size, _COMPARED)
  )


@dataclasses.dataclass(frozen=True)
class LazyTensor:
  """A tensor that is made when it is written."""

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray | jax.Array]

  @property
  def num_bytes(self) -> int:
    return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_file(
  file: pathlib.Path,
  tensors: Mapping[str, LazyTensor],
  *,
  summed: bool = False,
) -> None:
  """Writes one file, which has its name only once it is whole.

  Args:
    summed: whether its sum is kept beside it.

  Raises:
    ValueError: if it cannot be written.
  """
  # Wide types first, so that every tensor is aligned.
  names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
  header, offset = {"__metadata__": {"format": "pt"}}, 0
  for name in names:
    tensor = tensors[name]
    end = offset + tensor.num_bytes
    header[name] = {
      "dtype": _KINDS[tensor.dtype],
      "shape": list(tensor.shape),
      "data_offsets": [offset, end],
    }
    offset = end
  encoded = json.dumps(header).encode()
  encoded += b" " * (-len(encoded) % 8)
  with kept.writing(file, summed=summed) as out:
    out.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in names:
      array = np.ascontiguousarray(tensors[name].make(), tensors[name].dtype)
      # As bytes: bfloat16 has no buffer protocol.
      out.write(array.reshape(-1).view(np.uint8))


def refuse_weights(folder: pathlib.Path) -> None:
  """Checks that a folder has no weights that new ones would mix with.

  Raises:
    ValueError: naming a file of them.
  """
  present = sorted(file.name for file in folder.glob("model*.safetensors"))
  if present:
    raise ValueError(
      f"{folder} has weights already ({present[0]}); choose another folder"
    )


def remove_unfinished(folder: pathlib.Path) -> None:
  """Removes the shards of a `write_shards` that was cut off there."""
  if not is_whole(folder):
    for file in folder.glob("model*.safetensors"):
      kept.remove(file)
    for file in folder.glob(f".*{kept.UNFINISHED}"):
      if file.is_file():
        file.unlink()
      else:
        shutil.rmtree(file)


def write_shards(
  folder: pathlib.Path,
  tensors: Mapping[str, LazyTensor],
  shard_bytes: int = SHARD_BYTES,
  *,
  summed: bool = False,
) -> None:
  """Writes `model.safetensors`, or shards of it and then their index.

  Args:
    shard_bytes: the most that a file's tensors take, where none takes more.
    summed: whether sums of the files are kept beside them.
  """
  sizes = {name: tensor.num_bytes for name, tensor in tensors.items()}
  split = huggingface_hub.split_state_dict_into_shards_factory(
    sizes,
    get_storage_size=lambda size: size,
    filename_pattern="model{suffix}.safetensors",
    max_shard_size=shard_bytes,
  )
  for file_name, names in split.filename_to_tensors.items():
    wanted = {name: tensors[name] for name in names}
    write_file(folder / file_name, wanted, summed=summed)
  if split.is_sharded:
    index = {
      "metadata": {"total_size": sum(sizes.values())},
      "weight_map": split.tensor_to_filename,
    }
    with kept.writing(folder / INDEX, summed=summed) as out:
      out.write((json.dumps(index, indent=2) + "\n").encode())


def is_whole(folder: pathlib.Path) -> bool:
  """Whether `write_shards` came to its end there."""
  return any((folder / name).is_file() for name in (WHOLE, INDEX))
