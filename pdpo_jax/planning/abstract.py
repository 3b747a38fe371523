"""The train step of a configuration on shapes alone: no weight is allocated."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.models import placement
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import optimizer, pdpo, policies, recipes, sharding

# Of a schedule; nothing that is planned depends on it.
_TOTAL_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a batch is padded to, and how many rows the user table has.

  Attributes:
    examples: comparisons, over all devices.
    prompt: P, without the prefix; of a dialogue, its trunk.
    responses: of an example.
    response: R.
    user_rows: U.
    bare_prompt: whether the generic branch reads a prompt of its own.
    turns: examples of a dialogue, which share a trunk.
  """

  examples: int
  prompt: int
  responses: int
  response: int
  user_rows: int
  bare_prompt: bool = False
  turns: int = 1


@dataclasses.dataclass(frozen=True)
class Arguments:
  """What a step is called with."""

  state: structs.TrainState
  frozen: nnx.State
  batch: structs.PreferenceBatch


def make_policy(
  recipe: recipes.Recipe,
  arch: policy_lib.Architecture,
  num_rows: int,
) -> policies.SplitPolicy:
  """The policy of a configuration; where its arrays lie is left open."""
  table = jax.ShapeDtypeStruct(
    (arch.vocab_size, arch.width), jnp.dtype(recipe.base.dtype)
  )
  make = policies.policy_factory(recipe, arch, num_rows)
  return policies.SplitPolicy(
    *nnx.split(nnx.eval_shape(make, table), policy_lib.trainable, ...)
  )


def make_arguments(
  recipe: recipes.Recipe,
  policy: policies.SplitPolicy,
  shape: Shape,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
) -> Arguments:
  """The shapes that a step runs on.

  Args:
    recipe: of the run.
    policy: of `make_policy`.
    shape: of a batch.
    mesh: where everything lies, by the rules of `training.sharding`; without,
      shapes have no place.
  """
  transformation = optimizer.make_optimizer(recipe.train, _TOTAL_STEPS)
  state = structs.TrainState(
    jax.ShapeDtypeStruct((), jnp.int32),
    policy.trainable,
    jax.eval_shape(transformation.init, policy.trainable),
  )
  groups = recipe.train.accumulation_steps * sharding.batch_shards(mesh)
  batch = make_batch(shape, groups if recipe.data.pack else None)
  frozen = policy.frozen
  if mesh is not None:
    state, frozen = _placed_state(state, mesh), _placed(frozen, mesh)
    batch = _placed_batch(batch, mesh)
  return Arguments(state, frozen, batch)


def trace(
  recipe: recipes.Recipe,
  arch: policy_lib.Architecture,
  shape: Shape,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Arguments, jax.stages.Traced]:
  """The step that `pdpo.train` would run, and what it would run on."""
  policy = make_policy(recipe, arch, shape.user_rows)
  arguments = make_arguments(recipe, policy, shape, mesh)
  step = pdpo.make_step(
    recipe,
    policy.graphdef,
    pdpo.make_objective(recipe),
    sharding.logits_chunk(recipe.train.logits_chunk, mesh),
    optimizer.make_optimizer(recipe.train, _TOTAL_STEPS),
    sharding.pinned(arguments.state) if mesh is not None else None,
  )
  traced = step.trace(arguments.state, arguments.frozen, arguments.batch)
  return arguments, traced


def make_batch(shape: Shape, groups: int | None = 1) -> structs.PreferenceBatch:
  """The arrays of a batch, packed as `data.packing` does where all are real.

  Args:
    groups: that the rows are run in, over all devices; None: not packed. What
      they do not divide is filled up.
  """
  rows = -(-shape.examples // shape.turns)
  packed, on_trunk = None, shape.turns - 1
  if groups is not None:
    together = -(-rows // groups)
    rows = together * groups
    read = shape.turns * shape.responses * shape.response
    run = shape.prompt + read - on_trunk * shape.response
    packed = structs.Packed(together, together * run, together * read)
  prompt = (rows, shape.prompt)
  responses = (rows, shape.turns * shape.responses, shape.response)

  def array(sizes, dtype):
    return jax.ShapeDtypeStruct(sizes, dtype)

  return structs.PreferenceBatch(
    index=array((rows,), jnp.int32),
    user_row=array((rows,), jnp.int32),
    prompt=array(prompt, jnp.int32),
    prompt_mask=array(prompt, jnp.bool_),
    responses=array(responses, jnp.int32),
    response_mask=array(responses, jnp.bool_),
    reference_logps=array(responses[:2], jnp.float32),
    weight=array((rows,), jnp.float32),
    bare_prompt=array(prompt, jnp.int32) if shape.bare_prompt else None,
    bare_prompt_mask=array(prompt, jnp.bool_) if shape.bare_prompt else None,
    decisions=structs.Decisions(
      example=array(responses[:2], jnp.int32),
      chosen=array(responses[:2], jnp.int32),
      remaining=array(responses[:2], jnp.int32),
      on_trunk=on_trunk,
    )
    if on_trunk
    else None,
    packed=packed,
  )


def _at(leaf, place):
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _placed(tree, mesh):
  """Parameters, each where its path says."""
  flat = nnx.to_flat_state(tree)
  placed = []
  for path, variable in flat:
    leaf = variable.get_value()
    place = sharding.place_of(".".join(map(str, path)), leaf.shape, mesh)
    placed.append((path, variable.replace(_at(leaf, place))))
  return nnx.from_flat_state(placed)


def _placed_state(state, mesh):
  """Moments lie where their parameters do, and counters everywhere.

  A moment's path ends as its parameter's.
  """
  trainable = _placed(state.trainable, mesh)
  places = {
    path: leaf.sharding
    for path, leaf in jax.tree_util.tree_leaves_with_path(trainable)
  }
  whole = sharding.whole(mesh)
  longest = max(map(len, places))

  def place(path, leaf):
    ends = (path[-size:] for size in range(min(len(path), longest), 0, -1))
    target = next((places[end] for end in ends if end in places), whole)
    return _at(leaf, target)

  return structs.TrainState(
    _at(state.step, whole),
    trainable,
    jax.tree_util.tree_map_with_path(place, state.opt_state),
  )


def _placed_batch(batch, mesh):
  """Examples are split as `sharding.batch_placer` does."""
  axes = jax.sharding.PartitionSpec(placement.BATCH_AXES)
  place = jax.sharding.NamedSharding(mesh, axes)
  return jax.tree.map(lambda leaf: _at(leaf, place), batch)
