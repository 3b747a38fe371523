"""Policies compared on the same held-out pairs, user by user."""

import dataclasses
from collections.abc import Collection, Mapping

from pdpo_jax.evaluation import accuracy
from pdpo_jax.runs import scores as scores_lib

PARTS = {"heldout": "seen users", "unseen": "unseen users"}


@dataclasses.dataclass(frozen=True)
class Row:
  """One policy on one part.

  Attributes:
    name: of the policy.
    part: a key of `PARTS`.
    pairs, users: how many there are of each.
    accuracy: over pairs and by user.
    groups: mean accuracy over the users of each group that has any.
    gain: mean over users of the accuracy beyond the baseline's, paired, with
      its 95% interval bootstrapped over users; None for the baseline itself.
    p_value: of that gain, `accuracy.sign_flip_p`.
  """

  name: str
  part: str
  pairs: int
  users: int
  accuracy: accuracy.Accuracy
  groups: dict[str, float]
  gain: tuple[float, tuple[float, float]] | None
  p_value: float | None = None

  def to_json(self) -> dict:
    found = {
      "name": self.name,
      "part": self.part,
      "num_pairs": self.pairs,
      "num_users": self.users,
      **self.accuracy.to_json(),
      "groups": self.groups,
    }
    if self.gain:
      gain, interval = self.gain
      found["gain"] = {
        "mean": gain,
        "interval": list(interval),
        "p_value": self.p_value,
      }
    return found


def compare(
  scores: Mapping[str, Mapping[str, scores_lib.Scores]],
  groups: Mapping[str, Collection[str]],
  baseline: str | None,
) -> list[Row]:
  """A row for each policy and part, policies in the given order.

  Args:
    scores: by policy and part; all policies have the same parts.
    groups: users by group, where groups are known.
    baseline: the policy that others are compared with, if there is one.

  Raises:
    ValueError: if policies were not evaluated on the same samples.
  """
  rows = []
  names = list(scores)
  for part in PARTS:
    if not all(part in scores[name] for name in names):
      continue
    for name in names[1:]:
      scores_lib.check_same(
        scores[names[0]][part], scores[name][part], (names[0], name)
      )
    found = {
      name: accuracy.of_scores(by_part[part])
      for name, by_part in scores.items()
    }
    for name, one in found.items():
      gain = p_value = None
      if baseline is not None and name != baseline and one.by_user:
        gain = accuracy.difference(one, found[baseline])
        p_value = accuracy.sign_flip_p(accuracy.gains(one, found[baseline]))
      ratios = scores[name][part].ratios
      rows.append(
        Row(
          name,
          part,
          int((ratios == ratios).sum()),
          len(one.by_user),
          one,
          _by_group(one, groups),
          gain,
          p_value,
        )
      )
  return rows


def _by_group(
  found: accuracy.Accuracy, groups: Mapping[str, Collection[str]]
) -> dict[str, float]:
  means = {name: found.of(users) for name, users in groups.items()}
  return {name: mean for name, mean in means.items() if mean is not None}


def taste_groups(
  short_users: Collection[str], long_users: Collection[str]
) -> dict[str, Collection[str]]:
  """Minority and majority, where tastes in length are known."""
  groups = {"prefer short": short_users, "prefer long": long_users}
  if not all(groups.values()):
    return {}
  least, most = sorted(groups, key=lambda name: len(groups[name]))
  return {
    f"minority ({least})": groups[least],
    f"majority ({most})": groups[most],
  }


def verdict(rows: list[Row], name: str, baseline: str | None) -> str:
  """What a reader must know first: does `name` personalise?

  Says "more" or "less accurate" only where the interval of the paired gain
  excludes none at all, and its p-value is below 5%.
  """
  sentences = []
  for row in rows:
    if row.name != name or not row.pairs:
      continue
    if row.gain is None:
      value, why = row.accuracy.pairs, "since no choice says who made it"
      if row.accuracy.by_user:
        value = row.accuracy.users
        why = "without a vanilla run beside it (--against)"
      if name == baseline:
        why = "since it answers all users alike"
      sentences.append(
        f"{name} gives the chosen response more reward in {value:.1%} of "
        f"held-out pairs of {PARTS[row.part]}; {why}, that does not say if it "
        "is personal"
      )
      continue
    gain, (low, high) = row.gain
    sure = row.p_value < 0.05 and (low > 0 or high < 0)
    words, hedge = "no more accurate than", ", as far as these users can tell"
    if sure:
      words = "more accurate than" if gain > 0 else "less accurate than"
      hedge = ""
    sentences.append(
      f"For {row.users:,} {PARTS[row.part]}, {name} is {words} {baseline}"
      f"{hedge}: {100 * gain:+z.1f} points on held-out choices (95% interval "
      f"{100 * low:+z.1f} to {100 * high:+z.1f}, p = {row.p_value:.2g})"
    )
  return ". ".join(sentences) + "." if sentences else ""
