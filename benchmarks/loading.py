r"""Memory and time that loading a checkpoint takes, beside `transformers`.

  python -m benchmarks.loading
  python -m benchmarks.loading --layers=0 --dtype=float32 --repeats=1

Writes a checkpoint of random weights in several shards, by default 1 GB of
Llama-3.2-1B's shapes, and loads it in fresh processes (on Linux), ours and
`from_pretrained` in turn. Each then looks at every page of every weight, since
a mapped file is only read when it is looked at. Prints the time, and what a
process needed at its peak besides the loaded weights. Ours holds one tensor on
the host, so that this stays below the size of the largest one and what JAX
itself needs to compile. Writes `benchmarks/loading.json`.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import side_by_side
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.runs import run_folder
from pdpo_jax.weights import hf_safetensors, loading, tensor_files

_THREADS = 2


def write_checkpoint(
  folder: pathlib.Path,
  arch: policy_lib.Architecture,
  dtype: str,
  shard_bytes: int,
) -> dict[str, float]:
  """Writes random weights; returns the bytes of all and of the largest."""
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


def measure(folder: pathlib.Path, param_dtype: str) -> dict[str, float]:
  """Loads a checkpoint in this process, which should be a fresh one."""
  jnp.zeros(1).block_until_ready()  # Starts JAX.
  before = side_by_side.resident("VmRSS")
  start, cpu_start = time.perf_counter(), time.process_time()
  lm = hf_safetensors.read_model(folder, param_dtype=jnp.dtype(param_dtype))
  params = jax.block_until_ready(loading.base_params(lm))
  for array in params.values():
    side_by_side.look_at(np.asarray(array))
  seconds = time.perf_counter() - start
  cpu_seconds = time.process_time() - cpu_start
  loaded = sum(array.nbytes for array in params.values())
  return {
    "loaded arrays": loaded,
    "peak besides them": side_by_side.resident("VmHWM") - before - loaded,
    "seconds": seconds,
    "CPU seconds": cpu_seconds,
  }


def load_once(
  python: str, module: str, folder: str, param_dtype: str
) -> dict[str, float]:
  """What `module.measure` finds in a process of its own."""
  script = (
    f"import json, pathlib; from benchmarks import {module}; "
    f"print(json.dumps({module}.measure(pathlib.Path({folder!r}), "
    f"{param_dtype!r})))"
  )
  done = subprocess.run(
    [python, "-c", script],
    check=True,
    stdout=subprocess.PIPE,
    env=side_by_side.environment(_THREADS),
  )
  return json.loads(done.stdout.splitlines()[-1])


def run(
  preset: str, dtype: str, param_dtype: str, shard_bytes: int
) -> dict[str, float]:
  """Writes and loads, once; sizes are in bytes."""
  with tempfile.TemporaryDirectory() as name:
    arch = policy_lib.PRESETS[preset]
    written = write_checkpoint(pathlib.Path(name), arch, dtype, shard_bytes)
    return written | load_once(sys.executable, "loading", name, param_dtype)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--preset", default="llama-3.2-1b")
  parser.add_argument("--layers", type=int, default=4, help="0: the preset's")
  parser.add_argument("--dtype", default="bfloat16", help="of the files")
  parser.add_argument("--param_dtype", help="of the model; default: --dtype")
  parser.add_argument("--shard_bytes", type=float, default=5e8)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument(
    "--peer_python", default=sys.executable, help="that has torch"
  )
  flags = parser.parse_args()
  arch = policy_lib.PRESETS[flags.preset]
  if flags.layers:
    arch = dataclasses.replace(arch, num_layers=flags.layers)
  param_dtype = flags.param_dtype or flags.dtype
  side_by_side.use_cores(_THREADS)
  contenders = {
    "ours": (sys.executable, "loading"),
    "transformers": (flags.peer_python, "loading_torch"),
  }
  loads = {name: [] for name in contenders}
  with tempfile.TemporaryDirectory() as name:
    written = write_checkpoint(
      pathlib.Path(name), arch, flags.dtype, int(flags.shard_bytes)
    )
    for _ in range(flags.repeats):
      for title, (python, module) in contenders.items():
        loads[title].append(load_once(python, module, name, param_dtype))
  print(
    f"{flags.preset}, {arch.num_layers} layers, {flags.dtype} files of "
    f"{written['checkpoint'] / 1e6:,.0f} MB, the largest tensor "
    f"{written['largest tensor'] / 1e6:,.0f} MB, to {param_dtype} arrays"
  )
  medians = {
    title: {
      what: statistics.median(load[what] for load in found) for what in found[0]
    }
    for title, found in loads.items()
  }
  print(
    side_by_side.table(
      ("", "seconds", "CPU seconds", "peak besides the weights, MB"),
      [
        (
          title,
          f"{found['seconds']:.2f}",
          f"{found['CPU seconds']:.2f}",
          f"{found['peak besides them'] / 1e6:,.0f}",
        )
        for title, found in medians.items()
      ],
    )
  )
  ratio = medians["transformers"]["seconds"] / medians["ours"]["seconds"]
  print(f"ratio of seconds: {ratio:.2f}")
  side_by_side.write(
    __file__,
    {"versions": run_folder.versions(), "ratio": ratio} | written | loads,
  )


if __name__ == "__main__":
  main()
