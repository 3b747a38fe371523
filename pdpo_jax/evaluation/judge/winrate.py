"""Win rates of two models, judged pair by pair: Table 1 of arXiv:2402.05133.

A tie counts as a win for both, so the two sides' rates may add up to more than
one. A sample judged in both orders counts with the mean of its judgements, so
that a judge who always names the first response gives 50%. A user is won by
whoever wins most of the user's samples, and by both where that is a draw. What
the judge said unreadably counts for nobody, and is counted.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from pdpo_jax.evaluation import accuracy

OURS, THEIRS, TIE = "ours", "theirs", "tie"


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What a judge, playing the user, said of two responses to one prompt.

  Attributes:
    sample: the key of the pair.
    user_id: whom the judge played.
    winner: `OURS`, `THEIRS` or `TIE`; None where the answer was unreadable.
    ours_first: whether our response was shown as (a).
  """

  sample: str
  user_id: str
  winner: str | None
  ours_first: bool


@dataclasses.dataclass(frozen=True)
class Rate:
  """How often one side wins.

  Attributes:
    wins: ties included; a half where two orders of a sample disagree.
    count: samples or users that were judged.
    interval: 95%, bootstrapped over users; None for fewer than two users.
  """

  wins: float
  count: int
  interval: tuple[float, float] | None

  @property
  def rate(self) -> float | None:
    """Wins as a share; None where nothing was judged."""
    return self.wins / self.count if self.count else None

  def to_json(self) -> dict:
    return {
      "rate": self.rate,
      "wins": self.wins,
      "count": self.count,
      "interval": list(self.interval) if self.interval else None,
    }


@dataclasses.dataclass(frozen=True)
class WinRates:
  """Both rows of Table 1 for one pair of models, and how far to trust them.

  Attributes:
    samples, users: rates of `ours`.
    theirs_samples, theirs_users: rates of the other side.
    ties: judgements that were ties.
    users_won, users_lost: users who are decided.
    p_value: exact two-sided binomial test of users won against users lost,
      draws left out (a sign test); 1 where all are draws.
    unreadable: judgements without a verdict.
    unjudged_samples, unjudged_users: those that have no readable judgement.
    first_share: share of the decided judgements won by the response shown
      first; 0.5 is a judge without a taste for places. None without any.
    agreement: share of the samples judged in both orders that have the same
      verdict in both. None without any.
  """

  samples: Rate
  users: Rate
  theirs_samples: Rate
  theirs_users: Rate
  judgements: int
  ties: int
  users_won: int
  users_lost: int
  p_value: float
  unreadable: int
  unjudged_samples: int
  unjudged_users: int
  first_share: float | None
  agreement: float | None

  def to_json(self) -> dict:
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    return {
      name: value.to_json() if isinstance(value, Rate) else value
      for name, value in fields.items()
    }


def win_rates(judgements: Sequence[Judgement]) -> WinRates:
  """Rates per sample and per user.

  Raises:
    ValueError: if a sample is of two users, or was judged twice in one order.
  """
  by_sample = _by_sample(judgements)
  # user -> (our wins, their wins) of each of the user's judged samples
  scores = collections.defaultdict(list)
  users = {}
  for own in by_sample.values():
    users[own[0].user_id] = None
    readable = [each.winner for each in own if each.winner is not None]
    if readable:
      scores[own[0].user_id].append(
        (_share(readable, OURS), _share(readable, THEIRS))
      )
  judged = sum(map(len, scores.values()))
  won = {user: _winner(rows) for user, rows in scores.items()}
  ours = [float(won[user] != THEIRS) for user in scores]
  theirs = [float(won[user] != OURS) for user in scores]
  decided = [each for each in won.values() if each != TIE]
  p_value = 1.0
  if decided:
    p_value = float(stats.binomtest(decided.count(OURS), len(decided)).pvalue)
  return WinRates(
    samples=_sample_rate(scores, 0),
    users=_user_rate(ours),
    theirs_samples=_sample_rate(scores, 1),
    theirs_users=_user_rate(theirs),
    judgements=len(judgements),
    ties=sum(each.winner == TIE for each in judgements),
    users_won=decided.count(OURS),
    users_lost=decided.count(THEIRS),
    p_value=p_value,
    unreadable=sum(each.winner is None for each in judgements),
    unjudged_samples=len(by_sample) - judged,
    unjudged_users=len(users) - len(scores),
    first_share=_first_share(judgements),
    agreement=_agreement(by_sample.values()),
  )


def _by_sample(
  judgements: Sequence[Judgement],
) -> dict[str, list[Judgement]]:
  by_sample: dict[str, list[Judgement]] = {}
  for each in judgements:
    own = by_sample.setdefault(each.sample, [])
    if own and own[0].user_id != each.user_id:
      raise ValueError(
        f"sample {each.sample} is judged for the users {own[0].user_id!r} and "
        f"{each.user_id!r}; a sample belongs to one"
      )
    if any(other.ours_first == each.ours_first for other in own):
      raise ValueError(
        f"sample {each.sample} is judged twice in the same order; count each "
        "judgement once"
      )
    own.append(each)
  return by_sample


def _share(winners: Sequence[str], side: str) -> float:
  """Share of judgements that a side wins, ties included."""
  return sum(winner in (side, TIE) for winner in winners) / len(winners)


def _winner(rows: Sequence[tuple[float, float]]) -> str:
  """Who wins most of a user's samples."""
  ours = sum(mine > other for mine, other in rows)
  theirs = sum(other > mine for mine, other in rows)
  if ours == theirs:
    return TIE
  return OURS if ours > theirs else THEIRS


def _sample_rate(scores, side: int) -> Rate:
  sums = np.array([sum(row[side] for row in rows) for rows in scores.values()])
  counts = np.array([len(rows) for rows in scores.values()])
  interval = None
  if len(scores) > 1:
    interval = accuracy.bootstrap_interval(sums, counts)
  return Rate(float(sums.sum()), int(counts.sum()), interval)


def _user_rate(wins: Sequence[float]) -> Rate:
  interval = None
  if len(wins) > 1:
    interval = accuracy.bootstrap_interval(np.array(wins))
  return Rate(float(sum(wins)), len(wins), interval)


def _first_share(judgements: Sequence[Judgement]) -> float | None:
  decided = [each for each in judgements if each.winner in (OURS, THEIRS)]
  if not decided:
    return None
  first = sum((each.winner == OURS) == each.ours_first for each in decided)
  return first / len(decided)


def _agreement(samples) -> float | None:
  pairs = [
    own
    for own in samples
    if len(own) == 2 and all(each.winner is not None for each in own)
  ]
  if not pairs:
    return None
  return sum(a.winner == b.winner for a, b in pairs) / len(pairs)
