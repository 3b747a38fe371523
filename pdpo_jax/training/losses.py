"""Losses of the log-ratio difference, and P-DPO's mix of two branches.

With `d(y) = log pi(y | x, u) - log ref(y | x)`, every loss here is a function
of `d(chosen) - d(rejected)` and of beta. Any of them makes a P-*PO.
Axes: B examples, N responses (0 is the chosen one).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Values = Array | np.ndarray

# (log-ratio differences in nats, beta, label smoothing) -> loss of each pair.
PairLoss = Callable[[Array, float, float], Array]


def sigmoid(ratios: Array, beta: float, smoothing: float) -> Array:
  """`-log sigma(beta d)` (DPO, arXiv:2305.18290, equation 7).

  With smoothing e, the conservative form: the label is wrong with
  probability e (Mitchell, 2023).
  """
  margin = beta * ratios
  right = -jax.nn.log_sigmoid(margin)
  wrong = -jax.nn.log_sigmoid(-margin)
  return (1 - smoothing) * right + smoothing * wrong


def robust(ratios: Array, beta: float, smoothing: float) -> Array:
  """An unbiased estimate under label noise e (arXiv:2403.00409, equation 8)."""
  margin = beta * ratios
  right = -jax.nn.log_sigmoid(margin)
  wrong = -jax.nn.log_sigmoid(-margin)
  return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)


def ipo(ratios: Array, beta: float, smoothing: float) -> Array:
  """`(d - 1 / (2 beta))^2` (arXiv:2310.12036, equation 17); no smoothing."""
  del smoothing
  return jnp.square(ratios - 1 / (2 * beta))


def hinge(ratios: Array, beta: float, smoothing: float) -> Array:
  """`max(0, 1 - beta d)` (SLiC, arXiv:2305.10425); no smoothing."""
  del smoothing
  return jax.nn.relu(1 - beta * ratios)


LOSSES: dict[str, PairLoss] = {
  "sigmoid": sigmoid,
  "ipo": ipo,
  "hinge": hinge,
  "robust": robust,
}


def log_ratios(
  policy_logps: Float[Values, "B N"],
  reference_logps: Float[Values, "B N"],
  response_mask: Bool[Values, "B N R"] | None = None,
) -> Float[Values, "B N"]:
  """`d(y) = log pi(y | x, u) - log ref(y | x)` of each response, in nats.

  Args:
    response_mask: if given, each d is a mean over its response's tokens.
  """
  ratios = policy_logps - reference_logps
  if response_mask is not None:
    ratios = ratios / response_mask.sum(-1).clip(1)
  return ratios


def of_chosen(
  values: Float[Values, "B N"], chosen: Int[Array, "B N"] | None = None
) -> Float[Values, "B _"]:
  """Each pair's value of the chosen response, `[B, M]`, or `[B, 1]` for all.

  Args:
    chosen: as `structs.Decisions.chosen`; None where it is the first.
  """
  if chosen is None:
    return values[:, :1]
  return jnp.take_along_axis(values, chosen[:, 1:], 1)


def differences(
  ratios: Float[Values, "B N"], chosen: Int[Array, "B N"] | None = None
) -> Float[Values, "B M"]:
  """`d(chosen) - d(response)`, for each of the M = N - 1 after the first.

  Args:
    chosen: as `of_chosen`.
  """
  return of_chosen(ratios, chosen) - ratios[:, 1:]


def pair_weights(
  response_mask: Bool[Array, "B N R"],
  weight: Float[Array, " B"],
  chosen: Int[Array, "B N"] | None = None,
) -> Float[Array, "B M"]:
  """A row's weight for each of its pairs, 0 where no response is rejected.

  Args:
    chosen: as `of_chosen`.
  """
  rejected = jnp.any(response_mask[:, 1:], -1)
  if chosen is not None:
    rejected &= chosen[:, 1:] != jnp.arange(1, chosen.shape[1])
  return rejected * weight[:, None]
