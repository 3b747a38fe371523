"""Accelerators by name: TPU slices as Google names them, GPUs, and CPUs.

Google counts TensorCores in the names of v4 and v5p slices, two a chip, and
chips in those of v5e and v6e:

    v5e-16   16 chips      v6e-8    8 chips
    v5p-8     4 chips      v4-32   16 chips
"""

import dataclasses
import math
import re

from pdpo_jax.planning import gpus

GIBIBYTE = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """An accelerator's figures, as its maker gives them.

  Attributes:
    memory: bytes that a program may use.
    peak: bfloat16 FLOPs a second.
    links: bytes a second that it can receive from the others of a slice, over
      all its links.
  """

  memory: float
  peak: float
  links: float


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm. Of the memory,
# XLA keeps a quarter of a gibibyte for itself.
_TPUS = {
  "v4": Chip(31.75 * GIBIBYTE, 275e12, 300e9),
  "v5e": Chip(15.75 * GIBIBYTE, 197e12, 200e9),
  "v5p": Chip(94.75 * GIBIBYTE, 459e12, 600e9),
  "v6e": Chip(31.75 * GIBIBYTE, 918e12, 400e9),
}

# Of a GPU's memory. JAX takes three quarters at its start, unless
# XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; this leaves room for CUDA.
GPU_SHARE = 0.95
# What "gpu-8" is taken for.
_ANY_GPU = "h100"

# Shapes of slices by the number in their names.
_FLAT = {
  "1": (1, 1),
  "4": (2, 2),
  "8": (2, 4),
  "16": (4, 4),
  "32": (4, 8),
  "64": (8, 8),
  "128": (8, 16),
  "256": (16, 16),
}
_CUBES = {
  "8": (2, 2, 1),
  "16": (2, 2, 2),
  "32": (2, 2, 4),
  "64": (2, 4, 4),
  "128": (4, 4, 4),
  "256": (4, 4, 8),
  "512": (4, 8, 8),
  "1024": (8, 8, 8),
}
_SLICES = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Some equal devices of one kind, a chip each.

  Attributes:
    name: as on the command line.
    platform: "tpu", "gpu" or "cpu".
    num_devices: chips.
    chip: None for "cpu", which has no figures of its own.
    shape: of a TPU slice.
    gpu: which, where these are GPUs.
  """

  name: str
  platform: str
  num_devices: int
  chip: Chip | None
  shape: tuple[int, ...] = ()
  gpu: gpus.Gpu | None = None

  @property
  def kind(self) -> str:
    return self.name.split("-")[0]

  @property
  def libtpu_name(self) -> str:
    """What the compiler calls a TPU slice."""
    return f"{self.kind}:{'x'.join(map(str, self.shape))}"

  @property
  def accelerator_type(self) -> str:
    """What Google's tools call a TPU slice."""
    return self.name.replace("v5e", "v5litepod")


def parse(name: str) -> Topology:
  """The topology of a name such as "v5e-16", "gpu-8" or "cpu-8".

  Raises:
    ValueError: if there is none, naming those that there are.
  """
  kind, _, size = name.replace("v5litepod", "v5e").partition("-")
  shape = _SLICES.get(kind, {}).get(size)
  if shape:
    return Topology(
      f"{kind}-{size}", "tpu", math.prod(shape), _TPUS[kind], shape
    )
  if re.fullmatch("[1-9][0-9]*", size):
    if kind == "cpu":
      return Topology(name, "cpu", int(size), None)
    gpu = gpus.GPUS.get(_ANY_GPU if kind == "gpu" else kind)
    if gpu:
      chip = Chip(GPU_SHARE * gpu.memory, gpu.peak, gpu.links)
      return Topology(name, "gpu", int(size), chip, gpu=gpu)
  known = [f"{kind}-{{{','.join(_SLICES[kind])}}}" for kind in _SLICES]
  others = [f"{kind}-N" for kind in (*gpus.GPUS, "gpu", "cpu")]
  raise ValueError(
    f"topology {name!r} is not known; there are {', '.join(known + others)} "
    "(v4 and v5p count two a chip, as Google does)"
  )


def smaller(topology: Topology) -> list[Topology]:
  """Those of the same kind with fewer devices, the smallest first."""
  if topology.platform == "tpu":
    sizes = _SLICES[topology.kind]
  else:
    sizes = [
      str(2**power) for power in range(topology.num_devices.bit_length())
    ]
  same_kind = (parse(f"{topology.kind}-{size}") for size in sizes)
  return [each for each in same_kind if each.num_devices < topology.num_devices]
