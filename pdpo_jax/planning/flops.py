"""Floating-point operations of a traced function, loops included.

Only products are counted, a multiplication and an addition as two: what they do
not do (norms, softmax, rotations, Adam) is of lower order in the width. XLA's
own `cost_analysis` counts the body of a loop once, and a stack of layers is
such a body.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

# cuDNN's attention is one call. Forward its products are scores and their mix;
# backward, scores again, and the gradients of their softmax, of values, of
# queries, and of keys.
_CUDNN_PRODUCTS = {
  "dot_product_attention_fwd_wrapper": 2,
  "dot_product_attention_bwd_wrapper": 5,
}


def count(function: jax.stages.Traced | core.ClosedJaxpr) -> int:
  """The FLOPs of one call.

  What no result depends on is left out, as XLA does, such as gradients of
  frozen weights that a custom rule gives along with the others. A loop's body
  counts as often as it is run; of a branch, the dearest one. What a checkpoint
  computes again in the backward pass counts again, as does what a kernel does
  for each cell of its grid.

  Raises:
    ValueError: if it has a `while` with products in it: nobody knows how often
      these are run.
  """
  closed = getattr(function, "jaxpr", function)
  results = [True] * len(closed.jaxpr.outvars)
  return _of_jaxpr(partial_eval.dce_jaxpr(closed.jaxpr, results)[0])


def _of_jaxpr(jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _of_dot(equation)
  if name == "conv_general_dilated":
    return _of_convolution(equation)
  if name in _CUDNN_PRODUCTS:
    return _CUDNN_PRODUCTS[name] * _of_attention(equation)
  inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
  if name == "while" and any(inner):
    raise ValueError(
      "a while loop with products in it cannot be counted; use jax.lax.scan"
    )
  if name == "scan":
    return params["length"] * sum(inner)
  if name == "cond":
    return max(inner)
  if name == "pallas_call":
    return math.prod(params["grid_mapping"].grid) * sum(inner)
  if name == "shard_map":
    # Inside, shapes are those of one device.
    return _devices_of(params) * sum(inner)
  return sum(inner)


def _inner(params) -> Iterator[Any]:
  """The jaxprs that an equation runs."""
  for value in params.values():
    for inner in value if isinstance(value, tuple | list) else (value,):
      if isinstance(inner, core.ClosedJaxpr):
        yield inner.jaxpr
      elif isinstance(inner, core.Jaxpr):
        yield inner


def _devices_of(params) -> int:
  sizes = params["mesh"].shape
  # JAX 0.10 calls them otherwise.
  axes = params.get("newly_manual_axes", params.get("manual_axes"))
  return math.prod(sizes[axis] for axis in axes)


def _of_dot(equation) -> int:
  left = equation.invars[0].aval.shape
  (contracted, _), _ = equation.params["dimension_numbers"]
  summed = math.prod(left[axis] for axis in contracted)
  return 2 * summed * math.prod(equation.outvars[0].aval.shape)


def _of_attention(equation) -> int:
  """One product of all queries `[B, Q, H, E]` with all keys `[B, S, K, E]`."""
  queries, keys = (each.aval.shape for each in equation.invars[:2])
  return 2 * math.prod(queries) * keys[1]


def _of_convolution(equation) -> int:
  kernel = equation.invars[1].aval.shape
  numbers = equation.params["dimension_numbers"]
  outputs = kernel[numbers.rhs_spec[0]]
  # A kernel's input features are those of one group already.
  summed = math.prod(kernel) // outputs
  return 2 * summed * math.prod(equation.outvars[0].aval.shape)
