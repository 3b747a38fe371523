"""P-DPO on a base: builds the policy, trains it, loads it again."""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float

from pdpo_jax.core import processes, sections, structs
from pdpo_jax.data import batching
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import kernels, user_model
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import (
  checkpoint,
  checkpoint_items,
  host_users,
  loop,
  losses,
  optimizer,
  recipes,
  sharding,
)
from pdpo_jax.training import objective as objective_lib
from pdpo_jax.training import step as step_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

# What a policy is, and what it was learnt by, in the recipe.
_LEARNT_BY = ("seed", "user.", "lora.", "loss.", "train.")


@dataclasses.dataclass(frozen=True)
class SplitPolicy:
  """A `Policy` taken apart, as jitted functions want it."""

  graphdef: Any
  trainable: nnx.State  # LoRA and users, float32
  frozen: nnx.State  # the base

  def merge(self) -> policy_lib.Policy:
    return nnx.merge(self.graphdef, self.trainable, self.frozen)

  def digest(self) -> str:
    """Names what was trained; that of other values is another."""
    flat = nnx.to_flat_state(self.trainable)
    return base_lib.digest_of({path: x.get_value() for path, x in flat})


def check_policy(recipe: recipes.Recipe, arch: policy_lib.Architecture) -> None:
  """Checks that the policy can be made, without making it.

  Raises:
    ValueError: naming what is wrong with `user`, `lora` or `base`.
  """
  make = policy_factory(recipe, arch, num_rows=1)
  size = arch.vocab_size, arch.width
  nnx.eval_shape(make, jax.ShapeDtypeStruct(size, jnp.float32))


def policy_factory(
  recipe: recipes.Recipe,
  arch: policy_lib.Architecture,
  num_rows: int,
) -> Callable[[Any], policy_lib.Policy]:
  """Makes the policy that a configuration describes, with random weights.

  Args:
    recipe: `base`, `user` and `lora` say what it is, `seed` how it starts.
    arch: of the base.
    num_rows: U, users and the generic one.

  Returns:
    A function of the base's token embeddings `[V, D]`, which users start from.
  """
  # Copies, which the policy keeps.
  users_config = dataclasses.replace(recipe.user)
  targets = recipe.lora.targets
  lora = dataclasses.replace(
    recipe.lora, targets=arch.linears if targets == ("all",) else targets
  )
  keys = jax.random.split(jax.random.key(recipe.seed), 2)

  def make(table):
    lm = policy_lib.make_language_model(
      arch,
      lora=lora,
      dtype=jnp.dtype(recipe.base.dtype),
      param_dtype=jnp.dtype(recipe.base.param_dtype),
      remat=recipe.base.remat,
      kernel=kernels.Kernel(recipe.base.attention),
      rngs=nnx.Rngs(params=keys[0], lora=keys[0]),
    )
    users = user_model.make_user_model(
      users_config, num_rows, table, nnx.Rngs(keys[1])
    )
    return policy_lib.Policy(lm, users, recipe.user.prefix_position)

  return make


def make_policy(
  recipe: recipes.Recipe, base: base_lib.Base, num_rows: int
) -> SplitPolicy:
  """A new policy: the base, LoRA that changes nothing yet, and users.

  Args:
    recipe: as for `policy_factory`.
    base: stays as it is.
    num_rows: U, users and the generic one.
  """
  arch = base.lm.arch
  make = policy_factory(recipe, arch, num_rows)

  def trainable_of(table):
    # Compiled, the base weights that `make` draws are never computed.
    return nnx.split(make(table), policy_lib.trainable, ...)[1]

  table = base.lm.embed(jnp.arange(arch.vocab_size))
  graphdef = nnx.graphdef(nnx.eval_shape(make, table))
  places = sharding.of_trainable(
    jax.eval_shape(trainable_of, table), sharding.mesh_of(base.params)
  )
  if recipe.train.users_on_host:
    if processes.several():
      raise ValueError(
        "train.users_on_host keeps the users in the memory of one process, and "
        "there are several; leave it off, and split the table over the devices "
        "by mesh.fsdp"
      )
    trainable = _with_users_on_host(trainable_of, table, places)
  else:
    trainable = jax.jit(trainable_of, out_shardings=places)(table)
  return SplitPolicy(graphdef, trainable, base.params)


def _with_users_on_host(trainable_of, table, places):
  """Computes what has a row a user on the host, and the rest where it goes."""

  is_row = user_model.UserRowParam
  if places is not None:
    places = nnx.split_state(places, nnx.Not(is_row), ...)[0]
  others = jax.jit(
    lambda table: nnx.split_state(trainable_of(table), nnx.Not(is_row), ...)[0],
    out_shardings=places,
  )(table)
  rows = jax.jit(
    lambda table: nnx.split_state(trainable_of(table), is_row, ...)[0],
    out_shardings=jax.sharding.SingleDeviceSharding(host_users.host()),
  )(host_users.to_host(table))
  return nnx.merge_state(others, rows)


def is_begun(folder: pathlib.Path) -> bool:
  """Whether a training has a checkpoint, with which it goes on."""
  place = folder / "checkpoints"
  if not processes.from_first(place.is_dir):
    return False
  with checkpoint.Checkpoints(place) as saved:
    return bool(processes.from_first(lambda: saved.steps))


def begin_as(
  split: SplitPolicy, earlier: SplitPolicy, known: users_lib.UserIndex
) -> SplitPolicy:
  """A new policy with the weights of one that was trained before.

  Args:
    split: new; the first rows of its user table are those of `known`.
    earlier: of the same base, LoRA and user model.
    known: the users that it was trained for. Those who come after them begin
      as the generic user.
  """
  taken = 1 + len(known.ids)

  def extend(table, *, rows, offsets):
    # Cluster weights have the generic user's in row 0.
    first = jnp.zeros_like(table[:1]) if offsets else table[:1]
    more = jnp.broadcast_to(first, (rows, *table.shape[1:]))
    return jnp.concatenate([table[:taken], more])

  trainable = []
  before = dict(nnx.to_flat_state(earlier.trainable))
  for path, variable in nnx.to_flat_state(split.trainable):
    new, value = variable.get_value(), before[path].get_value()
    if isinstance(variable, user_model.UserRowParam):
      rows = new.shape[0] - taken
      extended = jax.jit(
        functools.partial(extend, rows=rows, offsets=path[-1] == "offsets"),
        out_shardings=new.sharding,
      )
      value = extended(value)
    trainable.append((path, variable.replace(value)))
  return dataclasses.replace(split, trainable=nnx.from_flat_state(trainable))


def make_objective(recipe: recipes.Recipe) -> objective_lib.LossConfig:
  """The objective of a training: `loss`, as far as its users go with it."""
  changes = {}
  if recipe.user.kind == "none" and recipe.loss.mixing == "batch":
    # Of the two rows of a sample, which are the same, one counts.
    changes = {"alpha": 0.0}
  elif not recipe.learns_generic:
    # Without prefixes the two branches are the same; and the generic one
    # teaches users' rows nothing.
    changes = {"alpha": 1.0, "mixing": "sample"}
  return dataclasses.replace(recipe.loss, **changes)


def make_step(
  recipe: recipes.Recipe,
  graphdef: Any,
  objective: objective_lib.LossConfig,
  logits_chunk: int,
  transformation: optax.GradientTransformation,
  places: Any,
) -> Callable:
  """The train step of a configuration; see `step.make_train_step`."""
  on_host = recipe.train.users_on_host
  sparse = recipe.train.sparse_users and recipe.user.kind != "none"
  step = step_lib.make_train_step(
    graphdef,
    objective,
    transformation,
    logits_chunk=logits_chunk,
    accumulation_steps=recipe.train.accumulation_steps,
    # Of LoRA that learns.
    dropout=recipe.lora.dropout > 0 and recipe.train.learn == "all",
    sparse_users=sparse and not on_host,
    learn=recipe.train.learn,
    seed=recipe.seed,
    places=places,
  )
  return host_users.make_step(step) if sparse and on_host else step


def _meta(
  recipe: recipes.Recipe, base: base_lib.Base, users: users_lib.UserIndex
) -> dict[str, Any]:
  """What must be the same where a checkpoint is loaded."""
  return {
    **base.names,
    "user_kind": recipe.user.kind,
    # Without a user model, nothing depends on who there is.
    "num_users": len(users.ids) if recipe.user.kind != "none" else 0,
    "config": json.dumps(
      {
        name: value
        for name, value in sections.flatten(
          json.loads(json.dumps(dataclasses.asdict(recipe)))
        ).items()
        if name.startswith(_LEARNT_BY)
      }
    ),
  }


def train(
  recipe: recipes.Recipe,
  base: base_lib.Base,
  users: users_lib.UserIndex,
  batches: batching.PreferenceBatches,
  heldout: batching.PreferenceBatches | None,
  examples: Sequence[structs.PreferenceExample],
  folder: pathlib.Path,
  data: str = "",
) -> SplitPolicy:
  """Trains a policy, or goes on where this run was cut off.

  Args:
    recipe: `user`, `lora`, `loss` and `train` apply.
    base: frozen.
    users: rows of the user table.
    batches: with reference log-probabilities.
    heldout: likewise, for evaluation during training; None for none.
    examples: what `batches` was made of, to name samples in errors.
    folder: gets metrics and checkpoints.
    data: names the data set; a training only goes on with the same.

  Raises:
    ValueError: besides `loop.run`'s, if `train.start_from` cannot be started
      from.
  """
  train_config = recipe.train
  split = make_policy(recipe, base, users.num_rows)
  if recipe.train.start and not is_begun(folder):
    place = recipe.train.start / folder.name
    earlier = load(recipe, base, place, of_run=False)
    split = begin_as(split, earlier.policy, earlier.users)
  total_steps = train_config.epochs * batches.num_batches
  if train_config.warmup_steps >= total_steps:
    logger.warning(
      "train.warmup_steps %d is not below the run's %d steps, so that learning "
      "rates never reach their peak; lower it, or train more epochs",
      train_config.warmup_steps,
      total_steps,
    )
  transformation = optimizer.make_optimizer(train_config, total_steps)
  mesh = sharding.mesh_of(split.frozen)
  objective = make_objective(recipe)
  state = structs.TrainState(
    jnp.zeros((), jnp.int32),
    split.trainable,
    transformation.init(split.trainable),
  )
  if train_config.users_on_host and recipe.user.kind != "none":
    state, places = host_users.settle(state)
  else:
    places = sharding.pinned(state)
    if places is not None:
      state = jax.device_put(state, places)
  train_step = make_step(
    recipe,
    split.graphdef,
    objective,
    sharding.logits_chunk(train_config.logits_chunk, mesh),
    transformation,
    places,
  )
  place = sharding.batch_placer(mesh)

  def evaluate(state):
    trained = dataclasses.replace(split, trainable=state.trainable)
    ratios = heldout_ratios(
      trained,
      heldout,
      train_config.logits_chunk,
      objective.length_normalized,
    )
    pair_loss = losses.LOSSES[objective.kind](
      jnp.asarray(ratios), objective.beta, objective.label_smoothing
    )
    return {
      "loss": float(np.nanmean(pair_loss)),
      "reward_accuracy": float(np.mean(ratios[~np.isnan(ratios)] > 0)),
      "margin": objective.beta * float(np.nanmean(ratios)),
    }

  def describe(index):
    # Generic rows, where they are samples of their own, come after the others.
    example = examples[index % len(examples)]
    return f"#{index} of user {example.user_id!r} ({example.prompt[:40]!r}…)"

  state = loop.run(
    loop.Training(
      name=folder.name,
      folder=folder,
      state=state,
      step=lambda state, batch: train_step(state, split.frozen, batch),
      batch=lambda number: place(batches.batch(number)),
      total_steps=total_steps,
      samples=train_config.batch_size,
      evaluate=evaluate if heldout else None,
      describe=describe,
      users=users,
      meta=_meta(recipe, base, users) | {"data": data},
    ),
    train_config,
  )
  return dataclasses.replace(split, trainable=state.trainable)


def heldout_ratios(
  split: SplitPolicy,
  batches: batching.PreferenceBatches,
  logits_chunk: int,
  length_normalized: bool = False,
) -> Float[np.ndarray, "examples M"]:
  """Log-ratio differences of each sample's pairs, read as its own user.

  Args:
    logits_chunk: as `recipes.TrainConfig.logits_chunk`.
    length_normalized: as `objective.LossConfig.length_normalized`.

  Returns:
    `d(chosen) - d(rejected)` in nats; NaN where a sample has no such pair.
  """
  mesh = sharding.mesh_of(split.frozen)
  score = step_lib.make_score(
    split.graphdef, sharding.logits_chunk(logits_chunk, mesh)
  )
  place = sharding.batch_placer(mesh)
  found = {}
  for batch in batches.in_order():
    trainable, rows = host_users.narrow(split.trainable, batch.user_row)
    placed = dataclasses.replace(place(batch), user_row=rows)
    logps = processes.fetch(score(trainable, split.frozen, placed))
    ratios = losses.log_ratio_differences(
      logps,
      batch.reference_logps,
      batch.response_mask if length_normalized else None,
    )
    exists = batch.response_mask[:, 1:].any(-1)
    ratios = np.where(exists, ratios, np.nan)
    for row, index in enumerate(batch.index):
      if index >= 0:
        found[int(index)] = ratios[row]
  most = max(row.size for row in found.values())
  out = np.full((len(found), most), np.nan, np.float32)
  for index, row in found.items():
    out[index, : row.size] = row
  return out


class Loaded(NamedTuple):
  """A trained policy, the users of its table, and the step it is of."""

  policy: SplitPolicy
  users: users_lib.UserIndex
  step: int


def read_users(
  recipe: recipes.Recipe, folder: pathlib.Path
) -> users_lib.UserIndex:
  """The users of a training's table, without the table.

  Raises:
    ValueError: if there is no checkpoint, or none that can be read.
  """
  place = folder / "checkpoints"
  if not place.is_dir():
    raise ValueError(
      f"{folder} has no checkpoints; train first, or name another --workdir"
    )
  if recipe.user.kind == "none":
    return users_lib.UserIndex([])
  with checkpoint.Checkpoints(place) as saved:
    return saved.users()


def load(
  recipe: recipes.Recipe,
  base: base_lib.Base,
  folder: pathlib.Path,
  *,
  of_run: bool = True,
) -> Loaded:
  """The newest policy of a training that can be read.

  Its step is not always that of the newest folder: one that is damaged is
  passed over with a warning. What is made with the policy is to be filed under
  the step that comes with it.

  Args:
    recipe: of its run, or of one that starts from it.
    base: what it was trained on.
    folder: of the training.
    of_run: whether `recipe` is that of its run, and it is checked.

  Raises:
    ValueError: if there is none, or it is of another base or run.
  """
  users = read_users(recipe, folder)
  checkpoints_folder = folder / "checkpoints"
  with checkpoint.Checkpoints(checkpoints_folder) as saved:
    split = make_policy(recipe, base, users.num_rows)
    like = checkpoint_items.of_trainable(split.trainable)
    if "users" in like:
      like["users"] = {"table": like["users"], "ids": ""}
    meta = _meta(recipe, base, users)
    if not of_run:
      del meta["config"]
    newest = saved.newest(like, meta)
  if newest is None:
    raise ValueError(f"{checkpoints_folder} has no whole checkpoint")
  step, items = newest
  trainable = checkpoint_items.load(split.trainable, items)
  return Loaded(dataclasses.replace(split, trainable=trainable), users, step)
