"""Whether answers are still language: as likely as text, and not repeating.

Accuracy does not tell. A margin also grows by making both responses unlikely,
so that a policy can be right about every choice and answer with broken text.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pdpo_jax.evaluation import texts
from pdpo_jax.inference import likelihoods as likelihoods_lib

# An answer is unlikely where the base finds it less likely, a token, than all
# but this share of its own answers, by so many nats.
_LEAST_LIKELY, _BEYOND_NATS = 0.01, 0.5
# It repeats itself where it has this much more of repeated 3-grams than any
# answer of the base.
_BEYOND_REPETITION = 0.1
# Speakers with more broken answers than this are named.
_BROKEN_SHARE = 0.1
_NAMED = 3
# For who reads a table of it.
MEANING = (
  "Broken are answers that the base finds far less likely a token than what it "
  "says itself, and those that repeat their 3-grams as none of the base's "
  "answers does; empty ones are neither."
)


@dataclasses.dataclass(frozen=True)
class Health:
  """Of a speaker's answers.

  Attributes:
    log_likelihood: under the base, mean per token, in nats.
    ended: share that ended by themselves, before the limit of new tokens.
    unlikely: share that is less likely than what the base says.
    repeating: share that repeats itself as no answer of the base does.
    broken: share that is either. An empty answer is neither.
  """

  log_likelihood: float
  ended: float
  unlikely: float
  repeating: float
  broken: float


def sentence(health: Mapping[str, Health], names: Mapping[str, str]) -> str:
  """Says whose text is broken; empty where nobody's is.

  Args:
    health: of speakers who are no base.
    names: of those that are no users.
  """
  broken = {
    speaker: of_speaker.broken
    for speaker, of_speaker in health.items()
    if of_speaker.broken > _BROKEN_SHARE
  }
  if not broken:
    return ""
  worst = sorted(broken, key=broken.get, reverse=True)
  listed = ", ".join(
    f"{names.get(speaker, f'user {speaker}')} ({broken[speaker]:.0%})"
    for speaker in worst[:_NAMED]
  )
  more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
  return (
    "Text is broken, whatever accuracy says: of the answers as "
    f"{listed}{more}, so many are far less likely than what the base says, or "
    "repeat themselves. Read answers.jsonl; a larger loss.beta holds the "
    "policy to the base, and so do fewer steps."
  )


def examine(
  answers: Mapping[str, Sequence[str]],
  likelihoods: Mapping[str, likelihoods_lib.Likelihoods],
  base: str,
  max_new_tokens: int,
) -> dict[str, Health]:
  """What is wrong with each speaker's answers, beside the base's.

  Args:
    base: the speaker that is the base.
    max_new_tokens: limit of an answer.
  """
  own = likelihoods[base].per_token
  known = own[~np.isnan(own)]
  least = -np.inf
  if known.size:
    least = np.quantile(known, _LEAST_LIKELY) - _BEYOND_NATS
  most = max(map(texts.repetition, answers[base])) + _BEYOND_REPETITION
  health = {}
  for name, of_speaker in answers.items():
    likelihood = likelihoods[name]
    said = np.array([bool(text.strip()) for text in of_speaker])
    unlikely = said & (likelihood.per_token < least)
    repeating = said & np.array(
      [texts.repetition(text) > most for text in of_speaker]
    )
    health[name] = Health(
      likelihood.mean,
      float(np.mean(likelihood.tokens <= max_new_tokens)),
      float(np.mean(unlikely)),
      float(np.mean(repeating)),
      float(np.mean(unlikely | repeating)),
    )
  return health
