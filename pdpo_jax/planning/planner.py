"""Compiles the train step for devices that are not there, and reads the result.

XLA's own compiler for the devices does it, that of `libtpu` or that of JAX for
CUDA, and its figures are those of the real program. Without the latter, a step
for GPUs is compiled for as many simulated CPUs: what is held is exact then, and
temporaries and collectives are estimates, since each makes its own choices.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies as jax_topologies

from pdpo_jax.models import kernels
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.planning import abstract, collectives, flops, gpus, topologies
from pdpo_jax.training import optimizer, recipes, sharding
from pdpo_jax.weights import base as base_lib

_USED = re.compile(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm")
# Up to this, any GPU that has cuDNN's attention takes it.
_HEAD_NOT_ASKED = 128
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a step needs.

  Attributes:
    topology: the devices.
    mesh: sizes by axis.
    shape: of a batch.
    microbatches: that a batch is run in, one after the other.
    memory: bytes a device, by what they are for.
    flops: of a step, all devices together.
    received: bytes a device receives in a step, by kind of collective; None
      where memory is short, and the compiler stopped there.
    seconds: of compiling.
    estimated: whether temporaries and collectives are another platform's.
  """

  topology: topologies.Topology
  mesh: dict[str, int]
  shape: abstract.Shape
  microbatches: int
  memory: dict[str, float]
  flops: int
  received: dict[str, float] | None
  seconds: float
  estimated: bool = False

  @property
  def total(self) -> float:
    """Bytes a device."""
    return sum(self.memory.values())

  @property
  def fits(self) -> bool:
    """True too where a device's memory is not known."""
    chip = self.topology.chip
    if chip is None:
      return True
    return self.received is not None and self.total <= chip.memory

  @property
  def shards(self) -> int:
    """Devices that share a batch."""
    return self.mesh["data"] * self.mesh["fsdp"]

  @property
  def examples(self) -> int:
    """That a device has at a time."""
    return self.shape.examples // self.microbatches // self.shards

  @property
  def seconds_of_products(self) -> float | None:
    """Of a step, at the chips' peak."""
    chip = self.topology.chip
    if chip is None:
      return None
    return self.flops / self.topology.num_devices / chip.peak

  @property
  def seconds_of_links(self) -> float | None:
    """Of a step's collectives, with all links at full speed."""
    chip = self.topology.chip
    if chip is None or self.received is None:
      return None
    return sum(self.received.values()) / chip.links


def devices_of(topology: topologies.Topology) -> Sequence[jax.Device]:
  """Devices to compile for; nothing can run on them.

  Raises:
    ValueError: if the compiler is missing, or JAX has begun with other devices.
  """
  jax.config.update("jax_platforms", "cpu")
  if topology.platform == "gpu" and gpus.installed():
    return gpus.devices(topology.gpu, topology.num_devices)
  if topology.platform != "tpu":
    if jax.config.jax_num_cpu_devices != topology.num_devices:
      jax.config.update("jax_num_cpu_devices", topology.num_devices)
    return jax.devices()
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"topology {topology.name!r} needs XLA's compiler for TPUs, which is not "
      "installed; pip install libtpu"
    )
  # There is no TPU to ask, and several compilers do not disturb one another.
  for name, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_ACCELERATOR_TYPE", topology.accelerator_type),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
  ):
    os.environ.setdefault(name, value)
  options = {}
  if topology.kind == "v4":
    # Both cores of a chip as one device, as JAX sees them.
    options["chip_config_name"] = "megacore"
  try:
    description = jax_topologies.get_topology_desc(
      platform="tpu", topology_name=topology.libtpu_name, **options
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"libtpu does not know topology {topology.name!r} "
      f"({topology.libtpu_name}); update it, or choose another: {error}"
    ) from error
  return description.devices


def choose_mesh(
  mesh: sharding.MeshConfig, topology: topologies.Topology
) -> sharding.MeshConfig:
  """The mesh of a configuration; all devices on `fsdp` if it names none."""
  if mesh == sharding.MeshConfig():
    return sharding.MeshConfig(data=1, fsdp=topology.num_devices)
  return mesh


def make_plan(
  recipe: recipes.Recipe,
  arch: policy_lib.Architecture,
  shape: abstract.Shape,
  topology: topologies.Topology,
  devices: Sequence[jax.Device],
) -> Plan:
  """Compiles the step and reads what it needs.

  Args:
    recipe: of the run, with its mesh.
    arch: of the base.
    shape: of a batch.
    topology: what is planned for.
    devices: of `devices_of`.

  Raises:
    ValueError: if mesh, batch and devices do not match, or `base.attention`
      is not for them.
  """
  estimated = devices[0].platform != topology.platform
  train = dataclasses.replace(recipe.train, batch_size=shape.examples)
  recipe = dataclasses.replace(recipe, train=train)
  attention = attention_of(recipe.base, arch, topology, estimated)
  base = dataclasses.replace(recipe.base, attention=attention)
  recipe = dataclasses.replace(recipe, base=base)
  recipe, shape = _on_devices(recipe, shape)
  train = recipe.train
  sharding.check_batch(
    recipe.mesh, train.batch_size, train.accumulation_steps, devices
  )
  mesh = sharding.make_mesh(recipe.mesh, devices)
  if mesh is None:
    mesh = jax.sharding.Mesh(np.array(devices).reshape(1, 1, 1), sharding.AXES)
  start = time.perf_counter()
  arguments, traced = abstract.trace(recipe, arch, shape, mesh)
  held = held_bytes(arguments)
  received = None
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    used = _USED.search(str(error))
    if not used:
      raise
    total = float(used.group(1)) * _UNITS[used.group(2)]
    memory = held | {"temporaries": total - sum(held.values())}
  else:
    memory = held | _measured(compiled.memory_analysis(), sum(held.values()))
    received = collectives.received(compiled.as_text())
  return Plan(
    topology,
    dict(mesh.shape),
    shape,
    recipe.train.accumulation_steps,
    memory,
    flops.count(traced),
    received,
    time.perf_counter() - start,
    estimated,
  )


def attention_of(
  base: base_lib.BaseConfig,
  arch: policy_lib.Architecture,
  topology: topologies.Topology,
  estimated: bool,
) -> str:
  """The kernel that the devices would choose, or were asked for.

  Raises:
    ValueError: if they do not have it.
  """
  if topology.platform != "gpu":
    return base.attention
  if estimated:
    # CPUs, for which it is then compiled, have no cuDNN.
    return "auto" if base.attention == "cudnn" else base.attention
  problem = kernels.against_cudnn(
    topology.gpu.capability[0], base.dtype, arch.head_size
  )
  if base.attention == "cudnn" and problem:
    raise ValueError(f"base.attention 'cudnn' {problem}; use 'auto'")
  if base.attention not in ("auto", "cudnn"):
    return base.attention  # If it is not for GPUs, the kernel says so.
  # JAX asks a GPU, and there is none here, whether it takes such heads. With
  # the other kernel a plan is too high by a layer's scores.
  return "xla" if problem or arch.head_size > _HEAD_NOT_ASKED else "cudnn"


def _on_devices(
  recipe: recipes.Recipe, shape: abstract.Shape
) -> tuple[recipes.Recipe, abstract.Shape]:
  """What devices get to see: of a table on the host, a batch's rows alone."""
  if not recipe.train.users_on_host:
    return recipe, shape
  train = dataclasses.replace(
    recipe.train, users_on_host=False, sparse_users=False
  )
  # As `sparse_users.batch_rows`: one each, and the generic user's.
  shape = dataclasses.replace(shape, user_rows=shape.examples + 1)
  return dataclasses.replace(recipe, train=train), shape


def held_bytes(arguments: abstract.Arguments) -> dict[str, float]:
  """Bytes a device of what a step is called with, by what they are."""
  state = arguments.state
  sizes = {
    "base": _bytes(arguments.frozen),
    "lora": 0.0,
    "users": 0.0,
    "optimizer": _bytes((state.step, state.opt_state)),
    "batch": _bytes(arguments.batch),
  }
  labels = jax.tree.leaves(optimizer.label(state.trainable))
  leaves = jax.tree.leaves(state.trainable)
  for name, leaf in zip(labels, leaves, strict=True):
    sizes[name] += _bytes(leaf)
  return sizes


def _bytes(tree: Any) -> float:
  return float(
    sum(
      np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )
  )


def _measured(memory, held) -> dict[str, float]:
  """What a compiled step needs besides `held` bytes of arguments."""
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    # Of arrays whose layout on the device has gaps; what a step does not read
    # is not there.
    "padding": float(max(0, memory.argument_size_in_bytes - held)),
    "temporaries": float(memory.temp_size_in_bytes + results),
    "code": float(memory.generated_code_size_in_bytes),
  }


@dataclasses.dataclass(frozen=True)
class Growth:
  """How a device's memory grows with its examples, by two plans.

  Attributes:
    fixed: bytes of temporaries, padding and code without any examples.
    per_example: bytes of temporaries and batch that an example adds.
  """

  fixed: float
  per_example: float

  @classmethod
  def between(cls, first: Plan, second: Plan) -> "Growth":
    grown = [_not_held(plan) for plan in (first, second)]
    per_example = (grown[1] - grown[0]) / (second.examples - first.examples)
    return cls(grown[0] - per_example * first.examples, per_example)


def _not_held(plan):
  held = ("base", "lora", "users", "optimizer")
  return plan.total - sum(plan.memory[name] for name in held)


def find_largest(
  compile_examples: Callable[[int], Plan], first: Plan
) -> tuple[Plan | None, Growth]:
  """The most examples that a device takes at a time.

  Memory is nearly linear in them: two plans give a line, and what it promises
  is compiled. Where that is not as promised, a line to there promises anew.

  Args:
    compile_examples: makes the plan for so many examples a device.
    first: a plan.

  Returns:
    The largest plan that fits, None if not even one example does; and the line.
  """
  second = compile_examples(1 if first.examples > 1 else 2)
  growth = line = Growth.between(first, second)
  room = first.topology.chip.memory - (first.total - _not_held(first))
  known = {plan.examples: plan for plan in (first, second)}
  while True:
    fitting = max((n for n, plan in known.items() if plan.fits), default=0)
    too_many = min((n for n, plan in known.items() if not plan.fits), default=0)
    most = max(int((room - line.fixed) / max(line.per_example, 1.0)), 1)
    if too_many:
      most = min(most, too_many - 1)
      most = max(most, fitting + 1)
    # More examples that take less memory promise nothing.
    if most <= fitting or most in known or line.per_example <= 0:
      return known.get(fitting), growth
    known[most] = compile_examples(most)
    line = Growth.between(first, known[most])


def find_smaller(
  recipe: recipes.Recipe,
  arch: policy_lib.Architecture,
  plan: Plan,
  growth: Growth,
) -> tuple[topologies.Topology, int] | None:
  """The smallest topology of the same kind that should do for a batch.

  What is held there is exact, all devices being on `fsdp`; what an example adds
  is taken from larger ones.

  Returns:
    The topology, and in how many microbatches a batch must be run; None if
    there is none that is smaller.
  """
  # Of a plan, the shape is what devices see already.
  policy = abstract.make_policy(recipe, arch, plan.shape.user_rows)
  for topology in topologies.smaller(plan.topology):
    count = topology.num_devices
    if plan.shape.examples % count:
      continue
    mesh = jax.sharding.AbstractMesh((1, count, 1), sharding.AXES)
    held = held_bytes(abstract.make_arguments(recipe, policy, plan.shape, mesh))
    spare = topology.chip.memory - sum(held.values()) + held["batch"]
    share = plan.shape.examples // count
    for microbatches in (n for n in range(1, share + 1) if share % n == 0):
      if growth.fixed + growth.per_example * share / microbatches <= spare:
        return topology, microbatches
  return None
