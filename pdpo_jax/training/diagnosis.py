"""What the metrics of a training say is wrong, as soon as they do."""

import logging
import math
from collections.abc import Mapping

from pdpo_jax.training import metrics

logger = logging.getLogger(__name__)

# Nats a token by which chosen responses may be less likely than under the base.
# Trainings of the quickstart whose text breaks fall below it before they are
# half done, and healthy ones that were measured do not (docs/results.md).
_UNLIKELY = 0.1
# A few answers are looked at, so that one or two may be broken by chance. A
# base that is always cut off says nothing of who is, and some people like it
# short.
_BROKEN, _FEWER_END, _MORE_EMPTY = 0.25, 0.5, 0.5
_REMEDY = (
  "hold the policy to the base by a larger --config.loss.beta, or train fewer "
  "steps, or at lower rates"
)


class Diagnosis:
  """Reads metrics as they come, and warns once of each thing that is wrong."""

  def __init__(self, name: str):
    """
    Args:
      name: of the training.
    """
    self._name = name
    self._warned: set[str] = set()
    self._learnt = 0.0  # accuracy on the examples of training, last
    self._before: dict[str, float] = {}

  def notice(self, step: int, values: Mapping[str, float]) -> str:
    """Warns of what is wrong; gives a line of what text is like, if known."""
    self._learnt = values.get("reward_accuracy", self._learnt)
    for kind, problem in problems(values, self._learnt, self._before).items():
      if kind not in self._warned:
        self._warned.add(kind)
        logger.warning("%s, step %d: %s", self._name, step, problem)
    self._before |= values
    return described(self._name, step, values)


def problems(
  values: Mapping[str, float],
  learnt: float = 0.0,
  before: Mapping[str, float] | None = None,
) -> dict[str, str]:
  """What is wrong, by its kind.

  Args:
    values: a line of metrics.
    learnt: reward accuracy on the examples of training, of late.
    before: each metric as it was known before this line. New prefixes make
      all responses less likely in the first steps, which passes: what is on
      its way up is not warned of.
  """
  before = before or {}
  found = {}
  for prefix, which in (("", ""), (metrics.HELD_OUT, "held-out ")):
    name = f"{prefix}chosen_per_token"
    change = values.get(name, 0.0)
    if change < -_UNLIKELY and change <= before.get(name, -math.inf):
      found["unlikely"] = (
        f"{which}chosen responses are {-change:.2f} nats a token less likely "
        "than under the base. The margin grows by making both responses "
        "unlikely, and text breaks, whatever accuracy says: stop here, and "
        f"{_REMEDY}"
      )
  text = {
    name: values.get(f"{metrics.TEXT}{name}", 0.0)
    for name in ("broken", "ended", "base_ended", "empty", "base_empty")
  }
  if (
    text["broken"] > _BROKEN
    or text["ended"] < text["base_ended"] - _FEWER_END
    or text["empty"] > text["base_empty"] + _MORE_EMPTY
  ):
    found["text"] = (
      f"of the answers that were looked at, {text['broken']:.0%} are broken, "
      f"{text['ended']:.0%} end by themselves (the base's: "
      f"{text['base_ended']:.0%}) and {text['empty']:.0%} are empty (the "
      f"base's: {text['base_empty']:.0%}), whatever accuracy says: read what "
      "is chosen and rejected in the data, whether that is what people chose; "
      f"if it is, stop here, and {_REMEDY}"
    )
  held_out = values.get(f"{metrics.HELD_OUT}reward_accuracy", 1.0)
  # Three standard deviations of whoever guesses.
  unsure = 1.5 / math.sqrt(values.get(f"{metrics.HELD_OUT}pairs", 1.0))
  if held_out < 0.5 - unsure and learnt > 0.5 + unsure:
    found["contradicted"] = (
      f"{held_out:.0%} of held-out pairs have the chosen response ahead, and "
      f"{learnt:.0%} of those in training: what is held out says the opposite "
      "of what is learnt. Are chosen and rejected responses swapped in one of "
      "the two, or choices of other people held out?"
    )
  return found


def is_whole(values: Mapping[str, float]) -> bool:
  """Whether text that was looked at is still language."""
  return "text" not in problems(values)


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
    f"{text['ended']:.0%} ({text['base_ended']:.0%}), empty "
    f"{text['empty']:.0%} ({text['base_empty']:.0%}), broken "
    f"{text['broken']:.0%}"
  )
