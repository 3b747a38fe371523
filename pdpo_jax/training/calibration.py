"""How often a policy is right, by its margins: what makes them probabilities.

DPO's loss reads a margin as log odds, but a policy need not end where they are:
one that is held to its reference says too little (a margin of 1.5 where it is
right in 96 of 100 pairs), and one that was trained for long too much. So, of a
pair with margin m,

    P = lapse / 2 + (1 - lapse) sigma(scale m),

where scale is an inverse temperature (Guo et al. 2017, arXiv:1706.04599) and
lapse the share of choices that no margin tells. Both are fitted to what the
run's own users chose of pairs that were held out.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import optimize

from pdpo_jax.training import posterior

# What is thought before a pair was seen: log scale is normal around 0 with
# deviation 1, and lapse exponential with this mean. A few dozen pairs outvote
# it, and few pairs that happen to be all right do not make a scale infinite.
_LAPSE = 0.05
_MAX_LAPSE, _MAX_LOG_SCALE = 0.5, 5.0


@dataclasses.dataclass(frozen=True)
class Calibration:
  """From a margin to a probability.

  Attributes:
    scale: of margins.
    lapse: share of choices that are made by chance.
    pairs: that both were fitted to.
  """

  scale: float = 1.0
  lapse: float = 0.0
  pairs: int = 0


def fit(margins: Float[np.ndarray, " pairs"]) -> Calibration:
  """The most likely calibration.

  Args:
    margins: in favour of what was chosen, of pairs that were not trained on.
  """
  margins = np.asarray(margins, np.float64)
  if not margins.size:
    return Calibration()

  def objective(values):
    log_scale, lapse = values
    lost = posterior.negative_log(np.exp(log_scale) * margins, lapse).sum()
    return lost + 0.5 * log_scale**2 + lapse / _LAPSE

  found = optimize.minimize(
    objective,
    (0.0, _LAPSE),
    bounds=((-_MAX_LOG_SCALE, _MAX_LOG_SCALE), (0.0, _MAX_LAPSE)),
  )
  log_scale, lapse = found.x
  return Calibration(float(np.exp(log_scale)), float(lapse), len(margins))
