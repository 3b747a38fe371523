"""Length of answers by user: Figure 3 of arXiv:2402.05133, and its claims."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdpo_jax.core import display
from pdpo_jax.evaluation import accuracy


@dataclasses.dataclass(frozen=True)
class Words:
  """Length of one speaker's answers, in words.

  Attributes:
    mean: over prompts.
    standard_error: of that mean.
    zero_share: share of answers without a word.
  """

  mean: float
  standard_error: float
  zero_share: float


def count_words(answers: Sequence[str]) -> Words:
  """Words are what whitespace separates."""
  counts = np.array([len(answer.split()) for answer in answers])
  error = counts.std(ddof=1) / np.sqrt(counts.size) if counts.size > 1 else 0.0
  return Words(float(counts.mean()), float(error), float((counts == 0).mean()))


def claims(
  words: Mapping[str, Words],
  short_users: Sequence[str],
  long_users: Sequence[str],
) -> dict[str, dict[str, Any]]:
  """The two claims of the paper's first experiment, with their numbers.

  E1: who prefers short gets empty answers (at least 90% each), who prefers
  long gets at least 1.3 times the words of the SFT model, on average.
  E2: the generic answer is as long as vanilla DPO's within 25%, and both are
  longer than the SFT model's.

  Returns:
    Nothing where tastes are not known, or not all users were asked.

  Args:
    words: by 'S' (SFT), 'V' (vanilla DPO; E2 is left out without), 'G'
      (P-DPO's generic user) and user id.
    short_users: who prefers the shorter of two answers.
    long_users: who prefers the longer one.
  """
  users = {*short_users, *long_users}
  # A user by the name of another speaker was not asked.
  asked = words.keys() >= users and users.isdisjoint("SVG")
  if not (short_users and long_users and asked):
    return {}
  zero = {user: words[user].zero_share for user in short_users}
  ratio = _ratio(
    float(np.mean([words[user].mean for user in long_users])), words["S"].mean
  )
  found = {
    "E1": {
      "holds": min(zero.values()) >= 0.9 and (ratio or 0.0) >= 1.3,
      "short_zero_share": zero,
      "long_over_sft": ratio,
    }
  }
  if "V" in words:
    sft, vanilla, generic = (words[name].mean for name in "SVG")
    apart = _ratio(abs(generic - vanilla), vanilla)
    found["E2"] = {
      "holds": apart is not None
      and apart <= 0.25
      and min(vanilla, generic) > sft,
      "generic_from_vanilla": apart,
      "vanilla_over_sft": _ratio(vanilla, sft),
      "generic_over_sft": _ratio(generic, sft),
    }
  return found


def _ratio(words: float, of: float) -> float | None:
  """None where there are no words to compare with."""
  return words / of if of else None


def _shown(ratio: float | None, form: str) -> str:
  return "–" if ratio is None else format(ratio, form)


def describe_claims(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """A sentence for each claim."""
  lines = []
  for name, claim in found.items():
    holds = "holds" if claim["holds"] else "does NOT hold"
    if name == "E1":
      zero = claim["short_zero_share"]
      shares = ", ".join(
        f"{display.name(user)}: {share:.0%}" for user, share in zero.items()
      )
      text = (
        f"short-preferring users get empty answers ({shares}; claimed 90%), "
        f"the others {_shown(claim['long_over_sft'], '.2f')} times the SFT "
        "model's words (claimed 1.3)"
      )
    else:
      text = (
        f"the generic answer is {_shown(claim['generic_from_vanilla'], '.0%')} "
        "from vanilla DPO's length (claimed 25% at most), and they have "
        f"{_shown(claim['generic_over_sft'], '.2f')} and "
        f"{_shown(claim['vanilla_over_sft'], '.2f')} times the SFT model's "
        "words (claimed above 1)"
      )
    lines.append(f"{name} {holds}: {text}.")
  return lines


def table(
  words: Mapping[str, Words],
  accuracies: Mapping[str, Mapping[str, accuracy.Accuracy]],
  short_users: Sequence[str],
) -> str:
  """Words, empty answers and reward accuracy by speaker, for the terminal.

  Args:
    words: by speaker.
    accuracies: by training ("vanilla", "pdpo") and set of samples ("heldout",
      "unseen").
    short_users: who is known to prefer the shorter of two answers.
  """
  names = {"S": "S  SFT model", "V": "V  vanilla DPO", "G": "G  generic user"}
  header = f"{'answers as':<24}{'words':>8}{'± s.e.':>8}{'empty':>8}"
  columns = {"vanilla": "V acc.", "pdpo": "P-DPO acc."}
  header += "".join(f"{columns[name]:>12}" for name in accuracies)
  lines = [header, "─" * len(header)]
  for speaker, row in words.items():
    name = names.get(speaker)
    is_user = name is None
    if is_user:
      name = display.name(speaker, 23)
      if speaker in short_users:
        name = f"{display.name(speaker, 8):<3} (prefers short)"
    line = (
      f"{name:<24}{row.mean:>8.1f}{row.standard_error:>8.2f}"
      f"{row.zero_share:>8.0%}"
    )
    for found in accuracies.values():
      by_user = found["heldout"].by_user if "heldout" in found else {}
      value = by_user.get(speaker) if is_user else None
      line += f"{value:>12.3f}" if value is not None else " " * 12
    lines.append(line)
  lines.append("─" * len(header))
  lines += _summaries(accuracies)
  return "\n".join(lines)


def _summaries(accuracies) -> list[str]:
  """Accuracy over pairs, and over users with its interval."""
  lines = []
  for part, title in (
    ("heldout", "held-out pairs"),
    ("unseen", "unseen users"),
  ):
    found = [
      by_part[part] for by_part in accuracies.values() if part in by_part
    ]
    if not found:
      continue
    values = "".join(f"{one.pairs:>12.3f}" for one in found)
    lines.append(f"{title + ', all':<48}{values}")
    if all(len(one.by_user) > 1 for one in found):
      values = "".join(f"{one.users:>12.3f}" for one in found)
      lines.append(f"{title + ', mean over users':<48}{values}")
      low_high = [one.interval() for one in found]
      values = "".join(f"{f'{a:.3f}–{b:.3f}':>12}" for a, b in low_high)
      lines.append(f"{'  95% interval':<48}{values}")
  return lines
