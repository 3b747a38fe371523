"""How sure a mean is: its standard error, its interval, and its p-value."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Interval = tuple[float, float]

_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Mean:
  """A mean and its standard error, which is 0 for a single value."""

  mean: float
  standard_error: float


def mean_of(values: Sequence[float | int]) -> Mean:
  error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0
  return Mean(float(np.mean(values)), float(error))


def bootstrap_interval(
  values: Float[np.ndarray, " users"],
  counts: Int[np.ndarray, " users"] | None = None,
) -> Interval:
  """95% percentile interval of the mean, resampling users.

  Args:
    values: one a user, or, with `counts`, sums over a user's examples.
    counts: a user's examples, where it is their mean that is wanted.
  """
  if counts is None:
    counts = np.ones(values.size, np.int64)
  if values.size == 1:  # SciPy resamples two or more.
    only = float(values[0] / counts[0])
    return only, only
  low, high = stats.bootstrap(
    (values, counts),
    lambda values, counts, axis: values.sum(axis) / counts.sum(axis),
    paired=True,
    n_resamples=_RESAMPLES,
    batch=100,  # copies of all users at a time
    vectorized=True,
    method="percentile",
    rng=np.random.default_rng(0),
  ).confidence_interval
  return float(low), float(high)


def wilson_interval(share: float, count: int) -> Interval:
  """95% interval of a share of so many independent choices (Wilson, 1927)."""
  z = 1.96
  middle = share + z * z / (2 * count)
  half = z * math.sqrt(
    share * (1 - share) / count + z * z / (4 * count * count)
  )
  whole = 1 + z * z / count
  return (middle - half) / whole, (middle + half) / whole


def sign_flip_p(gains: Float[np.ndarray, " users"]) -> float:
  """Two-sided p-value of a mean gain, by turning round users' signs.

  A randomisation test (Fisher, 1935): if there is no gain, each user's could as
  well have been a loss of the same size. Exact up to 13 users; with few of them
  a bootstrapped interval excludes 0 too often, and this does not.
  """
  if gains.size == 1:  # SciPy wants two or more; of two signs, both reach it.
    return 1.0
  result = stats.permutation_test(
    (gains,),
    np.sum,
    permutation_type="samples",
    n_resamples=_RESAMPLES - 1,  # What was seen is one of the possible.
    batch=1_000,
    vectorized=True,
    rng=np.random.default_rng(0),
  )
  return float(result.pvalue)


def calibration_error(
  probability: Float[np.ndarray, " pairs"], bins: int = 10
) -> float:
  """Expected calibration error (Guo et al. 2017) of which is preferred.

  Args:
    probability: given to what was chosen; a half is right half of the time.
  """
  confidence = np.maximum(probability, 1 - probability)
  right = np.heaviside(probability - 0.5, 0.5)
  place = np.minimum((2 * bins * (confidence - 0.5)).astype(int), bins - 1)
  return float(
    sum(
      np.mean(place == each)
      * abs(confidence[place == each].mean() - right[place == each].mean())
      for each in np.unique(place)
    )
  )
