"""What the metrics of a training say is wrong, as soon as they do."""

import logging
from collections.abc import Mapping

from pdpo_jax.training import metrics

logger = logging.getLogger(__name__)

# Nats a token by which chosen responses may be less likely than under the base.
# In the quickstart, text is whole above it and broken below (docs/results.md).
_UNLIKELY = 0.1


class Diagnosis:
  """Reads metrics as they come, and warns once of each thing that is wrong."""

  def __init__(self, name: str):
    """
    Args:
      name: of the training.
    """
    self._name = name
    self._warned: set[str] = set()

  def notice(self, step: int, values: Mapping[str, float]) -> str:
    """Warns of what is wrong; gives a line of what text is like, if known."""
    for kind, problem in problems(values).items():
      if kind not in self._warned:
        self._warned.add(kind)
        logger.warning("%s, step %d: %s", self._name, step, problem)
    return described(self._name, step, values)


def problems(values: Mapping[str, float]) -> dict[str, str]:
  """What is wrong, by its kind."""
  found = {}
  for prefix, which in (("", ""), (metrics.HELD_OUT, "held-out ")):
    change = values.get(f"{prefix}chosen_per_token", 0.0)
    if change < -_UNLIKELY:
      found["unlikely"] = (
        f"{which}chosen responses are {-change:.2f} nats a token less likely "
        "than under the base. The margin grows by making both responses "
        "unlikely, and text breaks, whatever accuracy says: stop here, and "
        "hold the policy to the base by a larger --config.loss.beta, or train "
        "fewer steps"
      )
  return found


def described(name: str, step: int, values: Mapping[str, float]) -> str:
  """A line of what text is like beside the base's; empty where not known."""
  text = {
    key.removeprefix(metrics.TEXT): value
    for key, value in values.items()
    if key.startswith(metrics.TEXT)
  }
  if not text:
    return ""
  return (
    f"{name}, step {step}: text {text['log_likelihood']:.2f} nats a token "
    f"under the base (its own {text['base_log_likelihood']:.2f}), repeated "
    f"3-grams {text['repetition']:.0%} ({text['base_repetition']:.0%}), ended "
    f"{text['ended']:.0%} ({text['base_ended']:.0%}), broken "
    f"{text['broken']:.0%}"
  )
