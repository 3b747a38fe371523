r"""Memory and time that loading a checkpoint takes.

  python -m benchmarks.loading --preset=llama-3.2-1b --dtype=bfloat16

Writes a checkpoint of random weights in several shards, loads it in a fresh
process (on Linux), and prints what that process needed at its peak besides the
loaded arrays. Loading holds one tensor on the host, so that this stays below
the size of the largest one and what JAX itself needs to compile.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import hf_safetensors, loading, tensor_files


def write_checkpoint(
  folder: pathlib.Path, preset: str, dtype: str, shard_bytes: int
) -> dict[str, float]:
  """Writes random weights; returns the bytes of all and of the largest."""
  arch = policy_lib.PRESETS[preset]
  rng = np.random.default_rng(0)

  def lazy(shape):
    return tensor_files.LazyTensor(
      shape,
      jnp.dtype(dtype),
      lambda: rng.standard_normal(shape, np.float32) / 50,
    )

  shapes = loading.tensor_shapes(loading.abstract_model(arch))
  tensors = {name: lazy(shape) for name, shape in shapes.items()}
  (folder / "config.json").write_text(json.dumps(arch.to_hf()))
  tensor_files.write_shards(folder, tensors, shard_bytes)
  sizes = [tensor.num_bytes for tensor in tensors.values()]
  return {"checkpoint": sum(sizes), "largest tensor": max(sizes)}


def resident(what: str) -> int:
  """Bytes in memory, now ("VmRSS") or at this program's peak ("VmHWM")."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  (line,) = (line for line in lines if line.startswith(what))
  return int(line.split()[1]) * 1024


def measure(folder: pathlib.Path, param_dtype: str) -> dict[str, float]:
  """Loads a checkpoint in this process, which should be a fresh one."""
  jnp.zeros(1).block_until_ready()  # Starts JAX.
  before = resident("VmRSS")
  start = time.perf_counter()
  lm = hf_safetensors.read_model(folder, param_dtype=jnp.dtype(param_dtype))
  params = jax.block_until_ready(loading.base_params(lm))
  seconds = time.perf_counter() - start
  loaded = sum(array.nbytes for array in params.values())
  return {
    "loaded arrays": loaded,
    "peak besides them": resident("VmHWM") - before - loaded,
    "seconds": seconds,
  }


def run(
  preset: str, dtype: str, param_dtype: str, shard_bytes: int
) -> dict[str, float]:
  """Both parts; sizes are in bytes."""
  with tempfile.TemporaryDirectory() as name:
    written = write_checkpoint(pathlib.Path(name), preset, dtype, shard_bytes)
    script = (
      "import json, pathlib; from benchmarks import loading; "
      f"print(json.dumps(loading.measure(pathlib.Path({name!r}), "
      f"{param_dtype!r})))"
    )
    done = subprocess.run(
      [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE
    )
  return written | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--preset", default="llama-3.2-1b")
  parser.add_argument("--dtype", default="bfloat16", help="of the files")
  parser.add_argument("--param_dtype", help="of the model; default: --dtype")
  parser.add_argument("--shard_bytes", type=float, default=5e8)
  flags = parser.parse_args()
  param_dtype = flags.param_dtype or flags.dtype
  found = run(flags.preset, flags.dtype, param_dtype, int(flags.shard_bytes))
  print(f"{flags.preset}, {flags.dtype} files to {param_dtype} arrays:")
  for what, value in found.items():
    unit = "s" if what == "seconds" else "MB"
    value = value if what == "seconds" else value / 1e6
    print(f"  {what:<18} {value:>9,.1f} {unit}")


if __name__ == "__main__":
  main()
