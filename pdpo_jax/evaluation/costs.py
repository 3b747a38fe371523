"""What personalising costs: how far policies drift, and what they give up.

People choose what they like to hear, so that a policy that learns it may agree
with them where they are wrong (Sharma et al. 2023, arXiv:2310.13548).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.evaluation import probes, statistics
from pdpo_jax.inference import likelihoods
from pdpo_jax.runs import answers as answers_lib
from pdpo_jax.training import policies, scoring
from pdpo_jax.weights import base as base_lib


class Speaker(NamedTuple):
  """Who answered.

  Attributes:
    policy: that it is read by.
    row: its user row; 0 is the generic user's.
  """

  policy: policies.SplitPolicy
  row: int


@dataclasses.dataclass(frozen=True)
class Manners:
  """Which of two answers to `probes` is the likelier one, a token.

  Attributes:
    agrees_false, agrees_true: shares of such statements that it agrees with.
    refuses_harmful, refuses_harmless: shares of such requests that it refuses.
  """

  agrees_false: float
  agrees_true: float
  refuses_harmful: float
  refuses_harmless: float


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of a speaker.

  Attributes:
    from_generic: how much likelier it finds its own answers than its policy's
      generic user does, in nats an answer: a sample of the Kullback-Leibler
      divergence between them. None for who is no user.
    from_base: how much less likely it finds the base's answers than the base
      does, in nats a token: the same of the base and the speaker. None for the
      base.
    manners: None where the base is no chat model.
  """

  from_generic: statistics.Mean | None
  from_base: statistics.Mean | None
  manners: Manners | None


class Settings(NamedTuple):
  """How prompts are written and scored; as for `likelihoods.under`."""

  data: data_config.DataConfig
  logits_chunk: int = 0
  max_new_tokens: int = 0


def find(
  speakers: Mapping[str, Speaker],
  base: base_lib.Base,
  answered: answers_lib.Answers,
  settings: Settings,
) -> dict[str, Cost]:
  """By speaker, the base first.

  Args:
    speakers: by their names in `answered`, but for the base.
    base: of all policies.
    answered: what they and the base said to the same prompts.
  """
  everyone = {"S": Speaker(scoring.of_base(base), 0), **speakers}
  encoder = prompts_lib.make_encoder(base.tokenizer, settings.data)
  drifts, manners = {}, {}
  for policy in {id(x.policy): x.policy for x in everyone.values()}.values():
    rows = {
      name: speaker.row
      for name, speaker in everyone.items()
      if speaker.policy is policy
    }
    drifts |= _drifts(policy, rows, base, answered, settings)
    if encoder.chat:
      manners |= _manners(policy, rows, base, settings)
  of_base = drifts["S"].bases_own
  costs = {}
  for name, drift in drifts.items():
    lost = (of_base.sums - drift.bases_own.sums) / of_base.tokens.clip(1)
    costs[name] = Cost(
      drift.from_generic,
      None if name == "S" else _mean(lost),
      manners.get(name),
    )
  return costs


class _Drift(NamedTuple):
  """Of a speaker: `Cost.from_generic`, and how it finds the base's answers."""

  from_generic: statistics.Mean | None
  bases_own: likelihoods.Likelihoods


def _drifts(
  policy: policies.SplitPolicy,
  rows: Mapping[str, int],
  base: base_lib.Base,
  answered: answers_lib.Answers,
  settings: Settings,
) -> dict[str, _Drift]:
  """Of the speakers that a policy reads, by their user rows."""
  said = {}
  for name, row in rows.items():
    said["base", name] = likelihoods.Said(row, answered.texts["S"])
    if row:
      own = answered.texts[name]
      said["own", name] = likelihoods.Said(row, own)
      said["generic", name] = likelihoods.Said(0, own)
  found = likelihoods.under(policy, base, answered.prompts, said, *settings)
  return {
    name: _Drift(
      _mean(found["own", name].sums - found["generic", name].sums)
      if row
      else None,
      found["base", name],
    )
    for name, row in rows.items()
  }


def _mean(values: Float[np.ndarray, " prompts"]) -> statistics.Mean | None:
  """Of the prompts that the template takes."""
  known = values[~np.isnan(values)]
  return statistics.mean_of(known.tolist()) if known.size else None


def _manners(
  policy: policies.SplitPolicy,
  rows: Mapping[str, int],
  base: base_lib.Base,
  settings: Settings,
) -> dict[str, Manners]:
  """Of the speakers that a policy reads, by their user rows."""
  shares = []
  for pairs, asked, pair in (
    (probes.STATEMENTS, probes.ASKED, (probes.AGREES, probes.DISAGREES)),
    (probes.REQUESTS, "{}", (probes.REFUSES, probes.COMPLIES)),
  ):
    for texts in zip(*pairs, strict=True):
      prompts = [structs.PromptExample(asked.format(text)) for text in texts]
      said = {
        (name, answer): likelihoods.Said(row, [answer] * len(prompts))
        for name, row in rows.items()
        for answer in pair
      }
      found = likelihoods.under(policy, base, prompts, said, *settings)
      first, second = pair
      shares.append(
        {name: _share(found[name, first], found[name, second]) for name in rows}
      )
  return {name: Manners(*(each[name] for each in shares)) for name in rows}


def _share(
  ours: likelihoods.Likelihoods, theirs: likelihoods.Likelihoods
) -> float:
  """Of prompts where one answer is likelier a token than the other."""
  known = ~np.isnan(ours.sums)
  if not known.any():
    return float("nan")
  return float(np.mean((ours.per_token > theirs.per_token)[known]))
