"""Length of answers by user: Figure 3 of arXiv:2402.05133, and its claims."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from typing_extensions import TypedDict

from pdpo_jax.core import display
from pdpo_jax.evaluation import accuracy, statistics


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
  counts = [len(answer.split()) for answer in answers]
  mean = statistics.mean_of(counts)
  return Words(mean.mean, mean.standard_error, counts.count(0) / len(counts))


class E1(TypedDict):
  """About users."""

  holds: bool
  short_zero_share: dict[str, float]
  long_over_sft: float | None


class E2(TypedDict):
  """About the generic user and vanilla DPO."""

  holds: bool
  generic_from_vanilla: float | None
  vanilla_over_sft: float | None
  generic_over_sft: float | None


class Claims(TypedDict, total=False):
  """As in `results.json` and `report.json`."""

  E1: E1
  E2: E2


def claims(
  words: Mapping[str, Words],
  short_users: Sequence[str],
  long_users: Sequence[str],
) -> Claims:
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
  claimed = Claims(
    E1=E1(
      holds=min(zero.values()) >= 0.9 and (ratio or 0.0) >= 1.3,
      short_zero_share=zero,
      long_over_sft=ratio,
    )
  )
  if "V" in words:
    sft, vanilla, generic = (words[name].mean for name in "SVG")
    apart = _ratio(abs(generic - vanilla), vanilla)
    near = apart is not None and apart <= 0.25
    claimed["E2"] = E2(
      holds=near and min(vanilla, generic) > sft,
      generic_from_vanilla=apart,
      vanilla_over_sft=_ratio(vanilla, sft),
      generic_over_sft=_ratio(generic, sft),
    )
  return claimed


def _ratio(words: float, of: float) -> float | None:
  """None where there are no words to compare with."""
  return words / of if of else None


def _shown(ratio: float | None, form: str) -> str:
  return "–" if ratio is None else format(ratio, form)


def describe_claims(claimed: Claims) -> list[str]:
  """A sentence for each claim."""
  sentences = []
  for name, claim in claimed.items():
    if name == "E1":
      zero = ", ".join(
        f"{display.name(user)}: {share:.0%}"
        for user, share in claim["short_zero_share"].items()
      )
      text = (
        f"short-preferring users get empty answers ({zero}; claimed 90%), the "
        f"others {_shown(claim['long_over_sft'], '.2f')} times the SFT "
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
    holds = "holds" if claim["holds"] else "does NOT hold"
    sentences.append(f"{name} {holds}: {text}.")
  return sentences


def table(
  words: Mapping[str, Words],
  accuracies: Mapping[str, Mapping[str, accuracy.Accuracy]],
  short_users: Sequence[str],
) -> str:
  """Words, empty answers and reward accuracy by speaker, for the terminal.

  Args:
    words: by speaker.
    accuracies: by training ("vanilla", "pdpo") and split ("heldout", "unseen").
    short_users: who is known to prefer the shorter of two answers.
  """
  columns = {"vanilla": "V acc.", "pdpo": "P-DPO acc."}
  header = f"{'answers as':<24}{'words':>8}{'± s.e.':>8}{'empty':>8}"
  header += "".join(f"{columns[name]:>12}" for name in accuracies)
  rule = "─" * len(header)
  lines = [header, rule]
  for speaker, of_speaker in words.items():
    line = (
      f"{_title(speaker, short_users):<24}{of_speaker.mean:>8.1f}"
      f"{of_speaker.standard_error:>8.2f}{of_speaker.zero_share:>8.0%}"
    )
    for by_split in accuracies.values():
      share = None
      if speaker not in _SPEAKERS and "heldout" in by_split:
        share = by_split["heldout"].by_user.get(speaker)
      line += " " * 12 if share is None else f"{share:>12.3f}"
    lines.append(line)
  return "\n".join([*lines, rule, *_summaries(accuracies)])


# Who answers besides users.
_SPEAKERS = {"S": "S  SFT model", "V": "V  vanilla DPO", "G": "G  generic user"}


def _title(speaker: str, short_users: Sequence[str]) -> str:
  if speaker in _SPEAKERS:
    return _SPEAKERS[speaker]
  if speaker in short_users:
    return f"{display.name(speaker, 8):<3} (prefers short)"
  return display.name(speaker, 23)


def _summaries(
  accuracies: Mapping[str, Mapping[str, accuracy.Accuracy]],
) -> list[str]:
  """Accuracy over pairs, and over users with its interval."""
  lines = []
  for split, title in (
    ("heldout", "held-out pairs"),
    ("unseen", "unseen users"),
  ):
    of_split = [
      by_split[split] for by_split in accuracies.values() if split in by_split
    ]
    if not of_split:
      continue
    shares = "".join(f"{trained.pairs:>12.3f}" for trained in of_split)
    lines.append(f"{title + ', all':<48}{shares}")
    if all(len(trained.by_user) > 1 for trained in of_split):
      shares = "".join(f"{trained.users:>12.3f}" for trained in of_split)
      lines.append(f"{title + ', mean over users':<48}{shares}")
      intervals = [trained.interval() for trained in of_split]
      shares = "".join(f"{f'{a:.3f}–{b:.3f}':>12}" for a, b in intervals)
      lines.append(f"{'  95% interval':<48}{shares}")
  return lines
