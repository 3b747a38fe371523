"""Win rates of two models, judged pair by pair: Table 1 of arXiv:2402.05133.

A tie counts as a win for both, so the two sides' rates may add up to more than
one. An example judged in both orders counts with the mean of its judgements, so
that a judge who always names the first response gives 50%. A user is won by
whoever wins most of the user's examples, and by both where that is a draw. What
the judge said unreadably counts for nobody, and is counted.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from pdpo_jax.core import processes
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy, statistics
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import journal, questions
from pdpo_jax.runs import run_folder, trained
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.weights import base as base_lib


@dataclasses.dataclass(frozen=True)
class Rate:
  """How often one side wins.

  Attributes:
    wins: ties included; a half where two orders of an example disagree.
    count: examples or users that were judged.
    interval: 95%, bootstrapped over users; None for fewer than two users.
  """

  wins: float
  count: int
  interval: statistics.Interval | None

  @property
  def rate(self) -> float | None:
    """Wins as a share; None where nothing was judged."""
    return self.wins / self.count if self.count else None

  def to_json(self) -> dict:
    return {"rate": self.rate, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class WinRates:
  """Both lines of Table 1 for one pair of models, and how far to trust them.

  Attributes:
    examples, users: rates of `ours`.
    theirs_examples, theirs_users: rates of the other side.
    ties: judgements that were ties.
    users_won, users_lost: users who are decided.
    p_value: exact two-sided binomial test of users won against users lost,
      draws left out (a sign test); 1 where all are draws.
    unreadable: judgements without a verdict.
    unjudged_examples, unjudged_users: those that have no readable judgement.
    first_share: share of the decided judgements won by the response shown
      first; 0.5 is a judge without a taste for places. None without any.
    agreement: share of the examples judged in both orders that have the same
      verdict in both. None without any.
  """

  examples: Rate
  users: Rate
  theirs_examples: Rate
  theirs_users: Rate
  judgements: int
  ties: int
  users_won: int
  users_lost: int
  p_value: float
  unreadable: int
  unjudged_examples: int
  unjudged_users: int
  first_share: float | None
  agreement: float | None

  def to_json(self) -> dict:
    """Fields by name; `report.json` calls an example a sample."""
    fields = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      name = field.name.replace("examples", "samples")
      fields[name] = value.to_json() if isinstance(value, Rate) else value
    return fields


# By policy and opponent, then by whose users: "all users" and those of a split.
ByPair = dict[tuple[str, str], dict[str, WinRates]]


def of_run(
  policies: Sequence[trained.Trained],
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  judge: judge_config.JudgeConfig,
  workdir: pathlib.Path,
) -> ByPair:
  """Judges every policy that is no control against each opponent.

  Args:
    scores: of the first policy by split; examples are drawn from those it has.
    workdir: gets the journal of verdicts.

  Raises:
    ValueError: if verdicts could not be had; those that could are kept. If the
      first policy is a control.
  """
  drawn, pairs = questions.of_run(policies, base, dataset, scores, judge)
  wanted = [question for of_pair in pairs.values() for question in of_pair]
  # A judge costs money, or runs on a device of its own process.
  judgements = iter(
    processes.from_first(
      lambda: journal.judge(wanted, judge, workdir / run_folder.JOURNAL)
    )
  )
  orders = 2 if judge.order == "both" else 1
  rates: ByPair = {}
  for pair, of_pair in pairs.items():
    of_pair = [next(judgements) for _ in range(orders * len(of_pair))]
    rates[pair] = _by_split(of_pair, drawn.splits)
  return rates


def estimate(
  policies: Sequence[trained.Trained],
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  judge: judge_config.JudgeConfig,
  workdir: pathlib.Path,
) -> journal.Estimate:
  """What `of_run` would ask for now, without generating anything.

  A response that is not generated yet counts as long as the chosen one.
  """
  _, pairs = questions.of_run(policies, None, dataset, scores, judge)
  wanted = [question for of_pair in pairs.values() for question in of_pair]
  return journal.estimate(wanted, judge, workdir / run_folder.JOURNAL)


def _by_split(
  judgements: Sequence[journal.Judgement], splits: Mapping[str, str]
) -> dict[str, WinRates]:
  rates = {"all users": of_judgements(judgements)}
  for split, title in accuracy.USERS_OF.items():
    of_split = [each for each in judgements if splits[each.example] == split]
    if of_split and len(of_split) < len(judgements):
      rates[title] = of_judgements(of_split)
  return rates


def of_judgements(judgements: Sequence[journal.Judgement]) -> WinRates:
  """Rates per example and per user.

  Raises:
    ValueError: if an example is of two users, or was judged twice in one order.
  """
  by_example = _by_example(judgements)
  # (our wins, their wins) of each judged example, by user
  wins: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
  users = {orders[0].user_id for orders in by_example.values()}
  for orders in by_example.values():
    readable = [each.winner for each in orders if each.winner is not None]
    if readable:
      wins[orders[0].user_id].append(
        (_share(readable, journal.OURS), _share(readable, journal.THEIRS))
      )
  winners = [_winner(of_user) for of_user in wins.values()]
  won, lost = winners.count(journal.OURS), winners.count(journal.THEIRS)
  p_value = 1.0
  if won + lost:
    p_value = float(stats.binomtest(won, won + lost).pvalue)
  return WinRates(
    examples=_example_rate(wins, 0),
    users=_user_rate([winner != journal.THEIRS for winner in winners]),
    theirs_examples=_example_rate(wins, 1),
    theirs_users=_user_rate([winner != journal.OURS for winner in winners]),
    judgements=len(judgements),
    ties=sum(each.winner == journal.TIE for each in judgements),
    users_won=won,
    users_lost=lost,
    p_value=p_value,
    unreadable=sum(each.winner is None for each in judgements),
    unjudged_examples=len(by_example) - sum(map(len, wins.values())),
    unjudged_users=len(users) - len(wins),
    first_share=_first_share(judgements),
    agreement=_agreement(by_example.values()),
  )


def _by_example(
  judgements: Sequence[journal.Judgement],
) -> dict[str, list[journal.Judgement]]:
  by_example: dict[str, list[journal.Judgement]] = {}
  for judgement in judgements:
    others = by_example.setdefault(judgement.example, [])
    if others and others[0].user_id != judgement.user_id:
      raise ValueError(
        f"example {judgement.example} is judged for the users "
        f"{others[0].user_id!r} and {judgement.user_id!r}; an example belongs "
        "to one"
      )
    if any(other.ours_first == judgement.ours_first for other in others):
      raise ValueError(
        f"example {judgement.example} is judged twice in the same order; count "
        "each judgement once"
      )
    others.append(judgement)
  return by_example


def _share(winners: Sequence[str], side: str) -> float:
  """Share of judgements that a side wins, ties included."""
  return sum(winner in (side, journal.TIE) for winner in winners) / len(winners)


def _winner(wins: Sequence[tuple[float, float]]) -> str:
  """Who wins most of a user's examples."""
  ours = sum(mine > other for mine, other in wins)
  theirs = sum(other > mine for mine, other in wins)
  if ours == theirs:
    return journal.TIE
  return journal.OURS if ours > theirs else journal.THEIRS


def _example_rate(
  wins: Mapping[str, Sequence[tuple[float, float]]], side: int
) -> Rate:
  sums = np.array(
    [sum(two[side] for two in of_user) for of_user in wins.values()]
  )
  counts = np.array([len(of_user) for of_user in wins.values()], np.int64)
  return _rate(sums, counts)


def _user_rate(wins: Sequence[bool]) -> Rate:
  return _rate(np.array(wins, float), np.ones(len(wins), np.int64))


def _rate(
  sums: Float[np.ndarray, " users"], counts: Int[np.ndarray, " users"]
) -> Rate:
  interval = None
  if sums.size > 1:
    interval = statistics.bootstrap_interval(sums, counts)
  return Rate(float(sums.sum()), int(counts.sum()), interval)


def _first_share(judgements: Sequence[journal.Judgement]) -> float | None:
  sides = (journal.OURS, journal.THEIRS)
  decided = [each for each in judgements if each.winner in sides]
  if not decided:
    return None
  first = sum(
    (each.winner == journal.OURS) == each.ours_first for each in decided
  )
  return first / len(decided)


def _agreement(
  by_example: Iterable[Sequence[journal.Judgement]],
) -> float | None:
  pairs = [
    orders
    for orders in by_example
    if len(orders) == 2 and all(each.winner is not None for each in orders)
  ]
  if not pairs:
    return None
  return sum(a.winner == b.winner for a, b in pairs) / len(pairs)
