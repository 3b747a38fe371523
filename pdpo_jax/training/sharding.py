"""Where everything lies on a mesh of devices.

Axes of the mesh: `data` splits the batch alone; `fsdp` splits the batch, and
weights and users as well; `tensor` splits the products with the weights. XLA
puts in what has to be sent.

One table of rules says which dimension of a parameter is split by which axis,
by the parameter's path in a `Policy`. A dimension that an axis does not divide
is whole on every device. On one device there is no mesh, and nothing here does
anything.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import sharding as jax_sharding

from pdpo_jax.core import sections, structs
from pdpo_jax.models import placement
from pdpo_jax.weights import loading

AXES = (*placement.BATCH_AXES, "tensor")

Spec = tuple[str | None, ...]

# Paths and the axis of each dimension; layers are stacked in front. Products
# take turns: those of `_IN` split what they give, those of `_OUT` what they
# take.
_IN = r"lm\..*\.(q_proj|k_proj|v_proj|gate_proj|up_proj|fc_in)\."
_OUT = r"lm\..*\.(o_proj|out_proj|down_proj|fc_out)\."
RULES: tuple[tuple[str, Spec], ...] = (
  (_IN + "kernel", (None, "fsdp", "tensor")),
  (_IN + "(bias|kernel_scale)", (None, "tensor")),
  (_IN + "lora_a", (None, "fsdp", None)),
  (_IN + "lora_b", (None, None, "tensor")),
  (_OUT + "kernel", (None, "tensor", "fsdp")),
  (_OUT + "(bias|kernel_scale)", (None, "fsdp")),
  (_OUT + "lora_a", (None, "tensor", None)),
  (_OUT + "lora_b", (None, None, "fsdp")),
  (r"lm\.(wte|embed_tokens)\.lora_a", ("tensor", None)),
  (r"lm\.(wte|embed_tokens)\.lora_b", (None, "fsdp")),
  (r"lm\.(wte|embed_tokens|lm_head)\.weight", ("tensor", "fsdp")),
  (r"lm\.lm_head\.bias", ("tensor",)),
  (r"lm\..*(ln_1|layernorm)\.(weight|bias)", (None, None)),
  (r"lm\.(ln_f|norm)\.(weight|bias)", (None,)),
  # By width, which an axis divides; weights of clusters are small.
  (r"user_model\.offsets", (None, None, "fsdp")),
  (r"user_model\.weights", ("fsdp",)),
  (r"user_model\.(generic_prefix|centers)", ()),
)


@dataclasses.dataclass
class MeshConfig(sections.Section):
  """How devices share the work; see `training/sharding.py`."""

  # Devices that split the batch; 0: all that the others leave.
  data: sections.CountOrNone = 0
  # That split the batch, and weights and users as well.
  fsdp: sections.Count = 1
  # That split the products with the weights.
  tensor: sections.Count = 1


def make_mesh(
  config: MeshConfig, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh | None:
  """The mesh that the configuration describes; None for a single device.

  Args:
    config: sizes of its axes.
    devices: those that JAX sees, if no others are given.

  Raises:
    ValueError: if it does not make use of all devices.
  """
  devices = jax.devices() if devices is None else devices
  others = config.fsdp * config.tensor
  data = config.data or max(1, len(devices) // others)
  sizes = (data, config.fsdp, config.tensor)
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"mesh.data {config.data}, mesh.fsdp {config.fsdp} and mesh.tensor "
      f"{config.tensor} make {math.prod(sizes)} devices, and there are "
      f"{len(devices)}; their product must be that (mesh.data 0 takes what the "
      "others leave)"
    )
  if len(devices) == 1:
    return None
  return jax_sharding.Mesh(np.array(devices).reshape(sizes), AXES)


def reading_mesh() -> MeshConfig:
  """For what is not trained: all devices share the weights."""
  return MeshConfig(data=1, fsdp=len(jax.devices()))


def check_batch(
  config: MeshConfig,
  batch_size: int,
  accumulation_steps: int,
  devices: Sequence[jax.Device] | None = None,
) -> None:
  """Checks that each microbatch can be split over the devices.

  Args:
    config: of the mesh.
    batch_size: as `recipes.TrainConfig.batch_size`.
    accumulation_steps: microbatches that a batch is run in.
    devices: as for `make_mesh`.

  Raises:
    ValueError: with both numbers.
  """
  mesh = make_mesh(config, devices)
  if mesh is None:
    return
  shards = batch_shards(mesh)
  microbatch = batch_size // accumulation_steps
  if microbatch % shards:
    fewer = [
      steps
      for steps in range(1, accumulation_steps)
      if batch_size % (steps * shards) == 0
    ]
    remedy = "use a larger batch"
    if fewer:
      remedy = (
        f"use --config.train.accumulation_steps={fewer[-1]}, or, for a run "
        "that has begun with these microbatches, fewer devices"
      )
    raise ValueError(
      f"train.batch_size {batch_size} in train.accumulation_steps "
      f"{accumulation_steps} microbatches leaves {microbatch} examples, which "
      f"the {shards} devices of mesh axes 'data' and 'fsdp' do not divide; "
      f"{remedy}"
    )


def spec_of(path: str) -> Spec:
  """The rule for a parameter's path such as "lm.h.attn.q_proj.kernel".

  Raises:
    ValueError: if no rule names it, or more than one does.
  """
  matching = [spec for rule, spec in RULES if re.fullmatch(rule, path)]
  if len(matching) != 1:
    raise ValueError(
      f"parameter {path} has {len(matching)} sharding rules and needs one; see "
      "RULES in training/sharding.py"
    )
  return matching[0]


def place_of(
  path: str,
  shape: tuple[int, ...],
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> jax.sharding.NamedSharding:
  """Where a parameter lies."""
  spec = spec_of(path)
  spec += (None,) * (len(shape) - len(spec))
  axes = [
    axis if axis and size % mesh.shape[axis] == 0 else None
    for axis, size in zip(spec, shape, strict=True)
  ]
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def logits_chunk(positions: int, mesh: jax.sharding.Mesh | None) -> int:
  """Positions with logits at a time over all devices that split the batch.

  Args:
    positions: of one device, as `recipes.TrainConfig.logits_chunk`.
  """
  platform = jax.default_backend()
  shards = 1
  if mesh is not None:
    platform = mesh.devices.flat[0].platform
    shards = batch_shards(mesh)
  return shards * (positions or (128 if platform == "cpu" else 1024))


def batch_shards(
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None,
) -> int:
  """Devices that split the batch; 1 without a mesh."""
  if mesh is None:
    return 1
  return math.prod(mesh.shape[axis] for axis in placement.BATCH_AXES)


def of_base(mesh: jax.sharding.Mesh | None) -> loading.ShardingOf | None:
  """Where the weights of a base go as they are loaded."""
  if mesh is None:
    return None
  return lambda path, shape: place_of(".".join(("lm", *path)), shape, mesh)


def of_trainable(
  trainable: nnx.State, mesh: jax.sharding.Mesh | None
) -> nnx.State | None:
  """The same tree with places; None without a mesh."""
  if mesh is None:
    return None
  flat = [
    (
      path,
      variable.replace(
        place_of(".".join(map(str, path)), variable.get_value().shape, mesh)
      ),
    )
    for path, variable in nnx.to_flat_state(trainable)
  ]
  return nnx.from_flat_state(flat)


def mesh_of(tree: Any) -> jax.sharding.Mesh | None:
  """The mesh that a tree of arrays lies on; None on a single device."""
  for leaf in jax.tree.leaves(tree):
    place = getattr(leaf, "sharding", None)
    if isinstance(place, jax.sharding.NamedSharding):
      return place.mesh
  return None


def batch_placer(
  mesh: jax.sharding.Mesh | None,
) -> Callable[[Any], Any]:
  """Puts a batch's examples on the devices that share them.

  Where these do not divide a batch, which training does not allow, it is whole
  on every device. With several processes each lays out the whole batch, which
  takes a fraction of a millisecond an example, and gives its own devices their
  rows.
  """
  if mesh is None:
    return lambda batch: batch
  spec = jax.sharding.PartitionSpec(placement.BATCH_AXES)
  split = jax.sharding.NamedSharding(mesh, spec)
  shards = batch_shards(mesh)

  def place(batch):
    divided = len(jax.tree.leaves(batch)[0]) % shards == 0
    return put(batch, split if divided else whole(mesh))

  return place


def whole(
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> jax.sharding.NamedSharding:
  """On every device."""
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def put(tree: Any, place: jax.sharding.NamedSharding) -> Any:
  """Host arrays, the same on all processes, as arrays that lie on a mesh."""
  return jax.tree.map(
    lambda leaf: jax.make_array_from_callback(
      np.shape(leaf), place, np.asarray(leaf).__getitem__
    ),
    tree,
  )


def pinned(state: structs.TrainState) -> Any:
  """Where a step must leave its state: where it was; None without a mesh.

  What has no place of its own yet, such as counters, is whole everywhere.
  """
  mesh = mesh_of(state.trainable)
  if mesh is None:
    return None
  return jax.tree.map(
    lambda leaf: (
      leaf.sharding
      if isinstance(leaf.sharding, jax.sharding.NamedSharding)
      else whole(mesh)
    ),
    state,
  )
