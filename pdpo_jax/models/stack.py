"""Many layers of a kind as one module, and how they are run.

Axes: B batch, S sequence, D width, L layers.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from pdpo_jax.models import layers, placement

Layer = TypeVar("Layer", bound=nnx.Module)


def stack_layers(
  make_layer: Callable[[nnx.Rngs], Layer], num_layers: int, rngs: nnx.Rngs
) -> Layer:
  """One module whose every variable has a leading layer axis L."""

  def initial_state(params_key, lora_key):
    layer = make_layer(nnx.Rngs(params=params_key, lora=lora_key))
    return nnx.state(layer)

  graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_layer(nnx.Rngs(0))))
  keys = [
    jax.random.split(stream(), num_layers)
    for stream in (rngs.params, rngs.lora)
  ]
  return nnx.merge(graphdef, jax.vmap(initial_state)(*keys))


def scan_layers(
  stacked: nnx.Module,
  x: Float[Array, "B S D"],
  rotary: layers.Rotary,
  attend: Callable,
  past: Any,
  dropout_key: Key[Array, ""] | None,
  remat: str,
) -> tuple[Float[Array, "B S D"], Any]:
  """Runs stacked layers one after the other.

  Args:
    stacked: what `stack_layers` made; see `apart`.
    past: of which `attend` gets its layer's part, or None. Arrays with a
      leading layer axis, or tuples with an array of each layer.

  Returns:
    The last layer's output, and what `attend` handed back: stacked by layer,
    or as tuples where weights are apart.
  """
  graphdef, state = nnx.split(stacked)
  if _is_apart(state):
    return _run_apart(graphdef, state, x, rotary, attend, past)
  num_layers = jax.tree.leaves(state)[0].shape[0]
  keys = None
  if dropout_key is not None:
    keys = jax.random.split(dropout_key, num_layers)

  def body(x, inputs):
    layer_state, layer_past, key = inputs
    layer = nnx.merge(graphdef, layer_state)
    out, present = layer(placement.by_rows(x), rotary, attend, layer_past, key)
    return placement.by_rows(out), present

  policy = layers.REMAT_POLICIES[remat]
  if policy is not None:
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
  return jax.lax.scan(body, x, (state, past, keys))


def apart(state: nnx.State, name: str) -> nnx.State:
  """Weights on one CPU, those of each layer an array of its own.

  XLA's CPU backend copies a layer's part out of a stack before it reads it.
  Where weights are read for few positions, as in decoding, these copies take a
  third of the time. Programs are larger without them: a layer takes about a
  third of a second more to compile. What `attend` hands back and is given is
  then apart, too.

  Frozen weights stay where they are, so that this takes no memory. Others may
  be used up by a training step, and are copied.

  Args:
    state: of a model with stacked layers.
    name: of these in the model.

  Returns:
    A state for the same graph, with tuples of arrays in it.
  """

  def split(path, variable):
    if name not in path:
      return variable
    value = np.asarray(variable.get_value())
    if not isinstance(variable, nnx.Param):
      value = value.copy()
    return variable.replace(
      tuple(jax.device_put(layer, may_alias=True) for layer in value)
    )

  flat = nnx.to_flat_state(state)
  return nnx.from_flat_state([(path, split(path, x)) for path, x in flat])


def without_lora(lm: nnx.Module) -> nnx.Module:
  """A model of the same weights, with the updates of its layers in them.

  For inference on a CPU, where the two small products beside each large one
  take their time. Updates stay beside weights that are less exact than they
  are, which would lose them, and beside embeddings, which are looked up.
  """
  lm = nnx.merge(*nnx.split(lm))
  for _, node in nnx.iter_graph(lm):
    if (
      isinstance(node, layers.Linear)
      and node.lora_a is not None
      and node.kernel[...].dtype == jnp.float32
    ):
      node.merge_lora()
  return lm


def can_be_apart(state: nnx.State) -> bool:
  """Whether weights lie on one CPU, and nowhere else."""
  devices = set().union(*(x.devices() for x in jax.tree.leaves(state)))
  return len(devices) == 1 and devices.pop().platform == "cpu"


def _is_apart(state):
  return any(isinstance(x.get_value(), tuple) for x in _variables(state))


def _variables(tree):
  return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _run_apart(graphdef, state, x, rotary, attend, past):
  """`scan_layers` without a scan, for inference."""
  present = []
  for number in range(len(_variables(state)[0].get_value())):
    layer_state = jax.tree.map(
      lambda variable, number=number: variable.replace(
        variable.get_value()[number]
      ),
      state,
      is_leaf=lambda x: isinstance(x, nnx.Variable),
    )
    layer = nnx.merge(graphdef, layer_state)
    layer_past = past and tuple(entries[number] for entries in past)
    x, kept = layer(x, rotary, attend, layer_past, None)
    present.append(kept)
  return x, jax.tree.map(lambda *entries: entries, *present)
