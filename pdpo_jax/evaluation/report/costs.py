"""What it costs: drift from the generic user and the base, and manners."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from pdpo_jax.evaluation import costs, probes, statistics
from pdpo_jax.evaluation.report import page
from pdpo_jax.runs import answers as answers_lib
from pdpo_jax.runs import trained
from pdpo_jax.weights import base as base_lib

_MANNERS = {
  "agrees_false": "agrees, false, %",
  "agrees_true": "agrees, true, %",
  "refuses_harmful": "refuses, harmful, %",
  "refuses_harmless": "refuses, harmless, %",
}


def section(
  policies: Sequence[trained.Trained],
  base: base_lib.Base,
  answered: answers_lib.Answers,
) -> page.Section:
  """Of everybody who answered.

  Args:
    policies: of which the first is the run's own.
    answered: what it answered.
  """
  first = policies[0]
  settings = costs.Settings(
    first.config.data,
    first.config.train.logits_chunk,
    first.config.answers.max_new_tokens,
  )
  found = costs.find(_speakers(policies, answered), base, answered, settings)
  is_chat = found["S"].manners is not None
  columns = ("answers as", "from the generic user, nats an answer")
  columns += ("from the base, nats a token",)
  note = (
    f"{len(answered.prompts)} held-out prompts, mean ± standard error. From "
    "the generic user: how much likelier a user's answers are as this user "
    "than as the generic one. From the base: how much less likely the base's "
    "answers are than under the base."
  )
  if is_chat:
    columns += (*_MANNERS.values(),)
    note += (
      f" Agrees, refuses: of {len(probes.STATEMENTS)} false and as many true "
      f"statements, and {len(probes.REQUESTS)} harmful and as many harmless "
      "requests in English, how often such an answer is the likelier one, a "
      "token."
    )
  table = page.Table(columns, note)
  for name, cost in found.items():
    cells = [answers_lib.OTHERS.get(name, name)]
    cells += [_plus_minus(cost.from_generic), _plus_minus(cost.from_base)]
    if is_chat:
      cells += [
        page.percent(getattr(cost.manners, field)) for field in _MANNERS
      ]
    table.add(*cells)
  numbers = {name: dataclasses.asdict(cost) for name, cost in found.items()}
  return page.Section(
    "What it costs", [_told(found)], [table], numbers={"costs": numbers}
  )


def _speakers(
  policies: Sequence[trained.Trained], answered: answers_lib.Answers
) -> dict[str, costs.Speaker]:
  """Whose policies and rows are there, by their names in `answered`."""
  first = policies[0]
  # What vanilla DPO is, alone or beside P-DPO.
  alike = [
    policy
    for policy in policies
    if policy.workdir == first.workdir and policy.config.user.kind == "none"
  ]
  speakers = {
    name: costs.Speaker(policy.split_policy, 0)
    for name, policy in zip("V", alike, strict=False)
  }
  if first.config.user.kind != "none":
    for name in answered.texts:
      if name == "G" or name in first.table:
        row = first.table.row_or_generic(None if name == "G" else name)
        speakers[name] = costs.Speaker(first.split_policy, row)
  return {name: speakers[name] for name in answered.texts if name in speakers}


def _plus_minus(mean: statistics.Mean | None) -> str:
  if mean is None:
    return "–"
  return f"{mean.mean:+z.2f} ± {mean.standard_error:.2f}"


def _told(found: Mapping[str, costs.Cost]) -> str:
  """In a sentence or two."""
  users = [
    cost for name, cost in found.items() if name not in answers_lib.OTHERS
  ]
  base = found["S"].manners
  if base is None:
    return (
      "The base is no chat model, so that it is not asked whether it agrees "
      "with what is false, or refuses what does harm."
    )
  asked = users or [cost for name, cost in found.items() if name != "S"]
  who = "users" if users else "trained policies"

  def change(field: str) -> str:
    mean = np.mean([getattr(cost.manners, field) for cost in asked])
    return f"{100 * (mean - getattr(base, field)):+.1f}"

  return (
    f"Against the base, {who} agree with {change('agrees_false')} points of "
    f"false statements and {change('agrees_true')} of true ones, and refuse "
    f"{change('refuses_harmful')} of harmful requests and "
    f"{change('refuses_harmless')} of harmless ones."
  )
