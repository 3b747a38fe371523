"""Reward accuracy: policies on the same held-out pairs, user by user."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy
from pdpo_jax.evaluation.report import charts, page
from pdpo_jax.runs import contenders, trained
from pdpo_jax.runs import scores as scores_lib


@dataclasses.dataclass(frozen=True)
class Scored:
  """One policy on one split.

  Attributes:
    name: of the policy.
    split: a key of `accuracy.USERS_OF`.
    pairs: how many there are.
    accuracy: over pairs and by user.
    groups: mean accuracy over the users of each group that has any.
    gain: beyond the baseline; None for the baseline itself.
    chosen_per_token: how much more likely chosen responses are than under the
      base, in nats a token; None where it is not known.
  """

  name: str
  split: str
  pairs: int
  accuracy: accuracy.Accuracy
  groups: dict[str, float]
  gain: accuracy.Gain | None
  chosen_per_token: float | None = None

  @property
  def users(self) -> int:
    return len(self.accuracy.by_user)

  def to_json(self) -> dict[str, Any]:
    """Fields by name; `report.json` calls a split a part."""
    fields = {
      "name": self.name,
      "part": self.split,
      "num_pairs": self.pairs,
      "num_users": self.users,
      **self.accuracy.to_json(),
      "groups": self.groups,
    }
    if self.chosen_per_token is not None:
      fields["chosen_per_token"] = self.chosen_per_token
    if self.gain:
      fields["gain"] = dataclasses.asdict(self.gain)
    return fields


@dataclasses.dataclass(frozen=True)
class Findings:
  """What was found out about accuracy.

  Attributes:
    scored: each policy on each split, policies in their order.
    name: of the run's policy.
    baseline: the policy that others are compared with, if there is one.
    oracles: by split, the accuracy of who knows each user's taste in length.
  """

  scored: Sequence[Scored]
  name: str
  baseline: str | None
  oracles: Mapping[str, float]

  def to_json(self) -> dict[str, Any]:
    return {
      "accuracy": [scored.to_json() for scored in self.scored],
      "oracle": dict(self.oracles),
    }

  def on(self, split: str) -> dict[str, Scored]:
    """Policies on a split, by name."""
    return {
      scored.name: scored for scored in self.scored if scored.split == split
    }

  def verdict(
    self, new_texts: Mapping[str, Mapping[str, Scored] | None]
  ) -> str:
    """What a reader must know first: does the run's policy personalise?

    Says "more" or "less accurate" only where the gain is sure, and "more" of
    texts that are new to a person only where it is sure of those.

    Args:
      new_texts: by split and policy, what holds on pairs of such texts; no
        policy where they are too few, None where all texts are new.
    """
    sentences = [
      _sentence(scored, self.baseline, new_texts.get(scored.split))
      for scored in self.scored
      if scored.name == self.name and scored.pairs
    ]
    if not sentences:
      return "This run has no held-out choices to evaluate it on."
    return ". ".join(sentences) + "."

  def section(self) -> page.Section:
    """Accuracy and margin, policies side by side."""
    text = (
      "How often, in percent, a policy gives the response that a user chose "
      "more implicit reward than one they rejected; half of it is chance. A "
      "user without a row of their own is read as the generic one. Brackets "
      "are 95% intervals, bootstrapped over users; gains are paired by user. A "
      'margin also grows by making both responses unlikely: "chosen" is how '
      "much more likely the chosen one is than under the base."
    )
    tables = [
      _table(of_split, title, self.baseline, self.oracles.get(split))
      for split, title in accuracy.USERS_OF.items()
      if (of_split := list(self.on(split).values()))
    ]
    return page.Section(
      "Reward accuracy on held-out choices", [text], tables, self._figures()
    )

  def _figures(self) -> list[page.Figure]:
    figures = []
    if any(scored.users > 1 for scored in self.scored):
      figures.append(
        page.figure_or_note(
          "accuracy",
          "Mean over users, with its 95% interval bootstrapped over users.",
          lambda: draw_means(self.scored),
        )
      )
    return figures


def find(
  policies: Sequence[trained.Trained],
  scores: Mapping[str, Mapping[str, scores_lib.Scores]],
  dataset: dataset_lib.Dataset,
  groups: Mapping[str, Collection[str]],
) -> Findings:
  """Compares policies, of which the first is the run's own.

  Args:
    scores: by policy and split.
    groups: as for `compare`.

  Raises:
    ValueError: if policies were not evaluated on the same examples.
  """
  first = policies[0]
  baseline = _baseline(policies)
  return Findings(
    compare(scores, groups, baseline),
    first.name,
    baseline,
    _oracles(first.config.data, dataset, scores[first.name]),
  )


def compare(
  scores: Mapping[str, Mapping[str, scores_lib.Scores]],
  groups: Mapping[str, Collection[str]],
  baseline: str | None,
) -> list[Scored]:
  """Each policy on each split, policies in the given order.

  Args:
    scores: by policy and split; all policies have the same splits.
    groups: users by group, where groups are known.
    baseline: the policy that others are compared with, if there is one.

  Raises:
    ValueError: if policies were not evaluated on the same examples.
  """
  compared = []
  first, *others = scores
  for split in accuracy.USERS_OF:
    if not all(split in by_split for by_split in scores.values()):
      continue
    for name in others:
      scores_lib.check_same(
        scores[first][split], scores[name][split], (first, name)
      )
    accuracies = {
      name: accuracy.of_scores(by_split[split])
      for name, by_split in scores.items()
    }
    for name, of_policy in accuracies.items():
      gain = None
      if baseline is not None and name != baseline and of_policy.by_user:
        gain = accuracy.gain(of_policy, accuracies[baseline])
      means = {group: of_policy.of(users) for group, users in groups.items()}
      compared.append(
        Scored(
          name,
          split,
          int((~np.isnan(scores[name][split].ratios)).sum()),
          of_policy,
          {group: mean for group, mean in means.items() if mean is not None},
          gain,
          scores[name][split].chosen_per_token,
        )
      )
  return compared


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


def _baseline(policies: Sequence[trained.Trained]) -> str | None:
  """What others are compared with: vanilla DPO, or else the run before.

  For a run without users, that is the run before, or else itself.
  """
  alike = [
    p for p in policies if p.config.user.kind == "none" and not p.control
  ]
  before = [
    p
    for p in policies[1:]
    if contenders.is_start(p.workdir, policies[0].config)
  ]
  if policies[0].config.user.kind == "none":
    alike, before = before, alike
  return next((policy.name for policy in [*alike, *before]), None)


def _oracles(
  data: data_config.DataConfig,
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
) -> dict[str, float]:
  """By split, on the pairs that were scored; see `accuracy.oracle`."""
  if data.source == "tldr" and data.tldr.length_unit != "words":
    return {}  # What tastes are made of is not known here.
  oracles = {}
  for split, of_split in scores.items():
    scored = set(of_split.examples)
    best = accuracy.oracle(
      [
        example
        for example in getattr(dataset, split)
        if scores_lib.example_key(example) in scored
      ],
      dataset.short_users,
      dataset.long_users,
    )
    if best is not None:
      oracles[split] = best
  return oracles


def _sentence(
  scored: Scored,
  baseline: str | None,
  new_texts: Mapping[str, Scored] | None,
) -> str:
  users = accuracy.USERS_OF[scored.split]
  if scored.gain is None:
    share, why = scored.accuracy.pairs, "since no choice says who made it"
    if scored.accuracy.by_user:
      share = scored.accuracy.users
      why = "without a vanilla run beside it (--against)"
    if scored.name == baseline:
      why = "since it answers all users alike"
    return (
      f"{scored.name} gives the chosen response more reward in {share:.1%} of "
      f"held-out pairs of {users}; {why}, that does not say if it is personal"
    )
  gain = scored.gain
  words, hedge = "no more accurate than", ", as far as these users can tell"
  also = ""
  if gain.is_sure:
    words = "more accurate than" if gain.mean > 0 else "less accurate than"
    hedge = ""
    if gain.mean > 0 and new_texts is not None:
      hedge, also = _of_new_texts(new_texts.get(scored.name))
  return (
    f"For {scored.users:,} {users}, {scored.name} is {words} {baseline}"
    f"{hedge}: {_told(gain)[0]} points on held-out choices ({_told(gain)[1]})"
    f"{also}"
  )


def _told(gain: accuracy.Gain) -> tuple[str, str]:
  """A gain in points, and how certain it is."""
  low, high = gain.interval
  return f"{100 * gain.mean:+z.1f}", (
    f"95% interval {100 * low:+z.1f} to {100 * high:+z.1f}, "
    f"p = {gain.p_value:.2g}"
  )


def _of_new_texts(scored: Scored | None) -> tuple[str, str]:
  """What limits a gain of all pairs, and the gain on those of new texts."""
  if scored is None:
    return (
      " on texts that they had compared before",
      ", too few of which are between texts that are new to the person",
    )
  mean, certain = _told(scored.gain)
  also = f", {mean} on those between texts new to the person ({certain})"
  if not scored.gain.is_sure:
    return ", which is not shown on texts that are new to a person", also
  if scored.gain.mean < 0:
    return ", but less accurate on texts that are new to a person", also
  return ", also on texts that are new to a person", also


def _table(
  of_split: Sequence[Scored],
  title: str,
  baseline: str | None,
  oracle: float | None,
) -> page.Table:
  groups = list(
    dict.fromkeys(name for scored in of_split for name in scored.groups)
  )
  columns = (f"{title}", "users", "pairs", "accuracy, all pairs")
  columns += ("mean over users", f"beyond {baseline or 'vanilla'}, points")
  columns += ("worst decile", "margin, nats", "chosen, nats a token", *groups)
  table = page.Table(columns)
  for scored in of_split:
    of_policy, known = scored.accuracy, bool(scored.accuracy.by_user)
    mean = worst = margin = "–"
    if known:
      mean = page.with_interval(of_policy.users, of_policy.interval())
      worst = page.percent(of_policy.worst_decile)
      margin = f"{of_policy.margin:.2f}"
    table.add(
      scored.name,
      f"{scored.users:,}",
      f"{scored.pairs:,}",
      page.percent(of_policy.pairs),
      mean,
      page.points(scored.gain),
      worst,
      margin,
      "–"
      if scored.chosen_per_token is None
      else f"{scored.chosen_per_token:+z.3f}",
      *(page.percent(scored.groups.get(name)) for name in groups),
    )
  if oracle is not None:
    blank = ("–",) * (len(columns) - 5)
    mean = page.percent(oracle)
    table.add("who knows each taste", "", "", "–", mean, *blank)
  return table


def draw_means(scored: Sequence[Scored]) -> bytes:
  """Mean accuracy over users with its interval, by policy and split."""
  scored = [policy for policy in scored if policy.users > 1]
  colors = {"heldout": charts.BLUE, "unseen": charts.ORANGE}
  with charts.chart(7.2, 1.1 + 0.36 * len(scored)) as (axes, png):
    for place, policy in enumerate(scored):
      low, high = policy.accuracy.interval()
      axes.plot(
        [low, high], [place] * 2, color=colors[policy.split], linewidth=2
      )
      axes.plot(policy.accuracy.users, place, "o", color=colors[policy.split])
    axes.axvline(0.5, color=charts.GRAY, linestyle=":", linewidth=1)
    axes.set_yticks(
      range(len(scored)),
      [
        f"{charts.name(policy.name, 60)} · {accuracy.USERS_OF[policy.split]}"
        for policy in scored
      ],
      fontsize=8,
    )
    axes.set_ylim(len(scored) - 0.5, -0.5)
    axes.set_xlabel("reward accuracy, mean over users with 95% interval")
  return png.getvalue()
