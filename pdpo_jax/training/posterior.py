"""From choices to where a person most likely is: the numbers alone.

The objective of person a, in nats, is

    J(z) = 1/2 |z|^2 - sum over their choices of log P(choice | margin(z)).

Axes: A people · B choices of all of them · k coordinates of a person.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

Margins = Float[np.ndarray, "..."]
# (choices, coordinates of each one's owner) -> margins, and their gradients.
MarginsOf = Callable[
  [Int[np.ndarray, " B"], Float[np.ndarray, "B k"]],
  tuple[Float[np.ndarray, " B"], Float[np.ndarray, "B k"]],
]

# A search ends where J can fall by no more nats than this,
TOLERANCE = 1e-3
# or by no more than this, and does not: so much is noise of low precision.
_NOISE = 0.05
_NODES = 32
_MAX_ITERATIONS, _MAX_DAMPING = 50, 1e4


def probability(margin: Margins, lapse: float) -> Margins:
  """Of a choice: `sigma(margin)`, but for a share that is made by chance."""
  return lapse / 2 + (1 - lapse) * special.expit(margin)


def negative_log(margin: Margins, lapse: float) -> Margins:
  """Minus the log of the probability, in nats."""
  if not lapse:  # Exact where the probability is 0 in floating point.
    return -special.log_expit(margin)
  return -np.log(probability(margin, lapse))


def rise(margin: Margins, lapse: float) -> Margins:
  """Derivative of the log of the probability by the margin."""
  if not lapse:
    return special.expit(-margin)
  plain = special.expit(margin)
  return (1 - lapse) * plain * (1 - plain) / probability(margin, lapse)


def information(margin: Margins, lapse: float) -> Margins:
  """Fisher's, of a choice on its margin; p (1 - p) without lapse."""
  plain = special.expit(margin)
  variance = plain * special.expit(-margin)
  if not lapse:
    return variance
  noisy = probability(margin, lapse)
  return np.square((1 - lapse) * variance) / (noisy * (1 - noisy))


def expected(
  function: Callable[[Margins], np.ndarray],
  margin: Float[np.ndarray, "*shape"],
  deviation: Float[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
  """The mean of a function of a normal margin, by Gauss-Hermite quadrature."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
  values = function(margin[..., None] + deviation[..., None] * nodes)
  return values @ (weights / weights.sum())


def entropy(share: np.ndarray) -> np.ndarray:
  """Of an answer with such a probability, in nats."""
  return special.entr(share) + special.entr(1 - share)


@dataclasses.dataclass
class Found:
  """Where people are.

  Attributes:
    z: their coordinates.
    objective: J there.
    slope: the gradient of J.
    curvature: Gauss and Newton's, `I + sum of information g g^T`, with g the
      gradient of a margin. Its inverse is the covariance of z (Laplace).
    iterations: evaluations after the first.
    converged: whether J is as low as it gets, up to a tolerance.
    margins: of all choices there.
    gradients: of the margins.
  """

  z: Float[np.ndarray, "A k"]
  objective: Float[np.ndarray, " A"]
  slope: Float[np.ndarray, "A k"]
  curvature: Float[np.ndarray, "A k k"]
  iterations: Int[np.ndarray, " A"]
  converged: Bool[np.ndarray, " A"]
  margins: Float[np.ndarray, " B"]
  gradients: Float[np.ndarray, "B k"]

  @property
  def log_evidence(self) -> Float[np.ndarray, " A"]:
    """Of all the choices of each, by Laplace's approximation, in nats."""
    return -self.objective - 0.5 * np.linalg.slogdet(self.curvature)[1]


def start(
  count: int,
  size: int,
  margins_of: MarginsOf,
  owner: Int[np.ndarray, " B"],
  lapse: float,
) -> Found:
  """People of whom nothing is known, at z = 0, and J there.

  Args:
    count: A.
    size: k.
    margins_of: is given some of the choices, by their places in `owner`.
    owner: of each choice, a person's number.
    lapse: share of choices that are made by chance.
  """
  found = Found(
    np.zeros((count, size)),
    np.full(count, np.inf),
    np.zeros((count, size)),
    np.zeros((count, size, size)),
    np.zeros(count, np.int64),
    np.zeros(count, bool),
    np.zeros(len(owner)),
    np.zeros((len(owner), size)),
  )
  _move(found, found.z, np.arange(count), margins_of, owner, lapse)
  return found


def minimize(
  found: Found,
  people: Int[np.ndarray, " some"],
  margins_of: MarginsOf,
  owner: Int[np.ndarray, " B"],
  lapse: float,
) -> None:
  """Damped Gauss-Newton (Levenberg and Marquardt), for many people at once.

  J never rises. Somebody who is found is not evaluated again.

  Args:
    found: where the search begins, and then where it ended.
    people: who are searched for.
    margins_of: as for `start`, and so are `owner` and `lapse`.
  """
  size = found.z.shape[1]
  damping = np.zeros(len(found.z))
  failed = np.zeros(len(found.z), bool)
  going = people
  while True:
    # How far J would fall, were it as its curvature says.
    newton = _solve(found.curvature[going], found.slope[going])
    fall = 0.5 * np.sum(newton * found.slope[going], -1)
    enough = np.where(failed[going], _NOISE, TOLERANCE)
    found.converged[going] = fall <= enough
    going = going[(fall > enough) & (damping[going] < _MAX_DAMPING)]
    if not going.size or found.iterations.max() >= _MAX_ITERATIONS:
      return
    damped = found.curvature[going] + damping[going, None, None] * np.eye(size)
    trial = found.z.copy()
    trial[going] -= _solve(damped, found.slope[going])
    better = _move(found, trial, going, margins_of, owner, lapse)
    failed[going] = ~better
    weaker = np.where(damping[going] > 0.1, damping[going] / 10, 0.0)
    stronger = np.maximum(10 * damping[going], 1.0)
    damping[going] = np.where(better, weaker, stronger)
    found.iterations[going] += 1


def set_lapse(found: Found, owner: Int[np.ndarray, " B"], lapse: float) -> None:
  """Makes J that of another lapse, where people are."""
  sums = _sums(found.z, found.margins, found.gradients, owner, lapse)
  found.objective, found.slope, found.curvature = sums


def _move(
  found: Found,
  z: Float[np.ndarray, "A k"],
  people: Int[np.ndarray, " some"],
  margins_of: MarginsOf,
  owner: Int[np.ndarray, " B"],
  lapse: float,
) -> Bool[np.ndarray, " some"]:
  """Moves those people to `z` for whom J is less there; says for whom."""
  mine = np.flatnonzero(np.isin(owner, people))
  margins, gradients = margins_of(mine, z[owner[mine]])
  objective, slope, curvature = _sums(z, margins, gradients, owner[mine], lapse)
  better = objective[people] < found.objective[people]
  chosen = people[better]
  found.z[chosen] = z[chosen]
  found.objective[chosen] = objective[chosen]
  found.slope[chosen] = slope[chosen]
  found.curvature[chosen] = curvature[chosen]
  moved = np.isin(owner[mine], chosen)
  found.margins[mine[moved]] = margins[moved]
  found.gradients[mine[moved]] = gradients[moved]
  return better


def _sums(
  z: Float[np.ndarray, "A k"],
  margins: Float[np.ndarray, " B"],
  gradients: Float[np.ndarray, "B k"],
  owner: Int[np.ndarray, " B"],
  lapse: float,
) -> tuple[
  Float[np.ndarray, " A"], Float[np.ndarray, "A k"], Float[np.ndarray, "A k k"]
]:
  """J of each person, its gradient, and Gauss and Newton's curvature."""
  count, size = z.shape
  objective = 0.5 * np.square(z).sum(1)
  np.add.at(objective, owner, negative_log(margins, lapse))
  slope = z.copy()
  np.add.at(slope, owner, -rise(margins, lapse)[:, None] * gradients)
  curvature = np.repeat(np.eye(size)[None], count, 0)
  weighted = information(margins, lapse)[:, None, None] * gradients[:, None]
  np.add.at(curvature, owner, weighted * gradients[..., None])
  return objective, slope, curvature


def _solve(matrices, vectors):
  return np.linalg.solve(matrices, vectors[..., None])[..., 0]
