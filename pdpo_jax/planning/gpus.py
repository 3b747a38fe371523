"""NVIDIA's GPUs, as XLA's compiler for them needs to know them.

It compiles for a GPU that is not there, told what it would otherwise ask one:
how many multiprocessors there are, and what each of them has. Figures are those
of NVIDIA's data sheets and of the CUDA programming guide's table of compute
capabilities.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence

import jax
from jax.experimental import topologies as jax_topologies

# Threads, KiB of shared memory and FP32 units of a multiprocessor, by compute
# capability.
_MULTIPROCESSORS = {
  (8, 0): (2048, 164, 64),
  (8, 9): (1536, 100, 128),
  (9, 0): (2048, 228, 128),
  (10, 0): (2048, 228, 128),
}
# GPUs of a host, as clouds rent them.
_OF_A_HOST = 8
# The compiler's own choices hardly depend on these; those of CUDA 12.9.
_CUDA, _CUDNN = (12, 9), (9, 10)


@dataclasses.dataclass(frozen=True)
class Gpu:
  """A GPU's figures.

  Attributes:
    name: as its driver gives it.
    capability: compute capability, major and minor.
    multiprocessors: how many.
    clock: GHz, boosted.
    memory: bytes, as CUDA tells programs.
    bandwidth: bytes a second, of that memory.
    cache: MiB, of the L2 cache.
    peak: dense bfloat16 FLOPs a second.
    links: bytes a second that it can receive from others, by NVLink or PCIe.
  """

  name: str
  capability: tuple[int, int]
  multiprocessors: int
  clock: float
  memory: float
  bandwidth: float
  cache: int
  peak: float
  links: float


GPUS = {
  "rtx4090": Gpu(
    name="NVIDIA GeForce RTX 4090",
    capability=(8, 9),
    multiprocessors=128,
    clock=2.52,
    memory=25.39e9,
    bandwidth=1.008e12,
    cache=72,
    peak=165e12,
    links=31.5e9,
  ),
  "l4": Gpu(
    name="NVIDIA L4",
    capability=(8, 9),
    multiprocessors=58,
    clock=2.04,
    memory=23.65e9,
    bandwidth=0.3e12,
    cache=48,
    peak=121e12,
    links=31.5e9,
  ),
  "l40s": Gpu(
    name="NVIDIA L40S",
    capability=(8, 9),
    multiprocessors=142,
    clock=2.52,
    memory=47.67e9,
    bandwidth=0.864e12,
    cache=96,
    peak=362e12,
    links=31.5e9,
  ),
  "a100": Gpu(
    name="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    multiprocessors=108,
    clock=1.41,
    memory=85.1e9,
    bandwidth=2.039e12,
    cache=40,
    peak=312e12,
    links=300e9,
  ),
  "h100": Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    multiprocessors=132,
    clock=1.98,
    memory=84.94e9,
    bandwidth=3.352e12,
    cache=50,
    peak=989e12,
    links=450e9,
  ),
  "h200": Gpu(
    name="NVIDIA H200",
    capability=(9, 0),
    multiprocessors=132,
    clock=1.98,
    memory=150.1e9,
    bandwidth=4.8e12,
    cache=50,
    peak=989e12,
    links=450e9,
  ),
  "b200": Gpu(
    name="NVIDIA B200",
    capability=(10, 0),
    multiprocessors=148,
    clock=1.965,
    memory=191.5e9,
    bandwidth=7.7e12,
    cache=126,
    peak=2250e12,
    links=900e9,
  ),
}


def installed() -> bool:
  """Whether there is XLA's compiler for NVIDIA's GPUs."""
  return any(
    importlib.util.find_spec(f"jax_cuda{version}_plugin")
    for version in (12, 13)
  )


def devices(gpu: Gpu, count: int) -> Sequence[jax.Device]:
  """GPUs to compile for; nothing can run on them.

  Args:
    gpu: which.
    count: how many; whole hosts where these divide it, else of one host.
  """
  hosts, rest = divmod(count, _OF_A_HOST)
  shape = (1, 1, count) if rest else (1, hosts, _OF_A_HOST)
  return jax_topologies.get_topology_desc(
    platform="cuda",
    topology="x".join(map(str, shape)),
    target_config=_description(gpu),
  ).devices


def _description(gpu: Gpu) -> str:
  """XLA's `GpuTargetConfigProto`, as text."""
  threads, shared, units = _MULTIPROCESSORS[gpu.capability]
  # CUDA keeps a KiB of it for each block.
  most_shared = (shared - 1) * 1024
  return f"""
    platform_name: "CUDA"
    device_description_str: "{gpu.name}"
    dnn_version_info {{ major: {_CUDNN[0]} minor: {_CUDNN[1]} }}
    runtime_version {{ major: {_CUDA[0]} minor: {_CUDA[1]} }}
    gpu_device_info {{
      cuda_compute_capability {{
        major: {gpu.capability[0]} minor: {gpu.capability[1]}
      }}
      core_count: {gpu.multiprocessors}
      fpus_per_core: {units}
      clock_rate_ghz: {gpu.clock}
      device_memory_size: {int(gpu.memory)}
      memory_bandwidth: {int(gpu.bandwidth)}
      l2_cache_size: {gpu.cache * 2**20}
      shared_memory_per_block: {48 * 1024}
      shared_memory_per_block_optin: {most_shared}
      shared_memory_per_core: {shared * 1024}
      registers_per_block_limit: {2**16}
      registers_per_core_limit: {2**16}
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: {threads}
      thread_dim_limit_x: 1024
      thread_dim_limit_y: 1024
      thread_dim_limit_z: 64
      block_dim_limit_x: {2**31 - 1}
      block_dim_limit_y: {2**16 - 1}
      block_dim_limit_z: {2**16 - 1}
    }}
  """
