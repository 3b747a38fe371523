"""Win rates against the counts behind the paper's Table 1, and their traps."""

import pytest

from pdpo_jax.evaluation.judge import journal, win_rates

J = journal.Judgement


def judgements(outcomes, users=None):
  """One judgement an example, of a user for each where none are given."""
  return [
    J(f"s{place}", users[place] if users else f"u{place}", outcome, True)
    for place, outcome in enumerate(outcomes)
  ]


# Wins (ties included) and examples or users, and the paper's percentage.
TABLE_1 = [
  (49, 76, 64.47),
  (47, 76, 61.84),
  (50, 76, 65.79),
  (46, 76, 60.53),
  (32, 76, 42.11),
  (12, 20, 60.00),
  (13, 20, 65.00),
  (11, 20, 55.00),
  (14, 20, 70.00),
  (5, 20, 25.00),
]


@pytest.mark.parametrize("wins,count,percent", TABLE_1)
@pytest.mark.parametrize("ties", [0, 3])
def test_table_1_follows_from_its_counts(wins, count, percent, ties):
  outcomes = ["tie"] * ties + ["ours"] * (wins - ties)
  outcomes += ["theirs"] * (count - wins)
  # 20 users, each with three or four examples.
  users = [f"u{place % 20}" for place in range(count)]
  found = win_rates.of_judgements(judgements(outcomes, users)).examples
  assert (found.wins, found.count) == (wins, count)
  assert 100 * found.rate == pytest.approx(percent, abs=0.011)
  alone = win_rates.of_judgements(judgements(outcomes))
  assert 100 * alone.users.rate == pytest.approx(percent, abs=0.011)


def test_a_tie_counts_for_both():
  found = win_rates.of_judgements(judgements(["tie", "ours", "theirs", "tie"]))
  assert (found.examples.wins, found.theirs_examples.wins) == (3, 3)
  assert (found.users.wins, found.theirs_users.wins) == (3, 3)
  assert found.ties == 2


def test_who_wins_most_of_a_users_examples_wins_the_user():
  users = ["ann"] * 3 + ["bob"] * 3 + ["cem"] * 2
  outcomes = ["ours", "ours", "theirs", "theirs", "theirs", "tie"]
  outcomes += ["ours", "theirs"]
  found = win_rates.of_judgements(judgements(outcomes, users))
  # ann is ours, bob theirs, and cem both sides'.
  assert (found.users.wins, found.theirs_users.wins, found.users.count) == (
    2,
    2,
    3,
  )


def test_a_user_of_ties_alone_is_won_by_both():
  found = win_rates.of_judgements(judgements(["tie", "tie"], ["ann", "ann"]))
  assert (found.users.wins, found.theirs_users.wins) == (1, 1)
  assert found.p_value == 1.0
  assert found.first_share is None


def test_users_and_examples_without_a_verdict_are_counted_and_left_out():
  users = ["ann", "ann", "bob"]
  found = win_rates.of_judgements(judgements(["ours", None, None], users))
  assert (found.users.count, found.examples.count) == (1, 1)
  assert found.examples.rate == 1.0
  assert (found.unjudged_users, found.unjudged_examples) == (1, 2)
  assert found.unreadable == 2


def test_no_verdict_at_all_has_no_rate():
  found = win_rates.of_judgements(judgements([None]))
  assert found.examples.rate is None and found.users.rate is None


def test_two_orders_of_an_example_are_averaged():
  both = [J("s", "ann", "ours", True), J("s", "ann", "theirs", False)]
  found = win_rates.of_judgements(both)
  assert (found.examples.wins, found.examples.count) == (0.5, 1)
  assert (found.users.wins, found.theirs_users.wins) == (1, 1)
  assert (found.first_share, found.agreement) == (1.0, 0.0)


def test_an_unreadable_order_leaves_the_other():
  both = [J("s", "ann", "ours", True), J("s", "ann", None, False)]
  found = win_rates.of_judgements(both)
  assert (found.examples.wins, found.examples.count) == (1, 1)
  assert found.agreement is None


def test_always_the_first_response_gives_half():
  many = []
  for place in range(40):
    user = f"u{place % 10}"
    many.append(J(f"s{place}", user, "ours", True))
    many.append(J(f"s{place}", user, "theirs", False))
  found = win_rates.of_judgements(many)
  assert found.examples.rate == 0.5 and found.theirs_examples.rate == 0.5
  assert found.p_value == 1.0
  assert found.examples.interval == (0.5, 0.5)


def test_the_test_is_exact():
  # 12 of 20 users: far from telling anything; 19 of 20: beyond doubt.
  outcomes = ["ours"] * 12 + ["theirs"] * 8
  # Sum of binomial(20, k) / 2^20 for k <= 8 or k >= 12.
  assert win_rates.of_judgements(judgements(outcomes)).p_value == pytest.approx(
    2 * 263950 / 2**20, abs=1e-9
  )
  outcomes = ["ours"] * 19 + ["theirs"]
  assert win_rates.of_judgements(judgements(outcomes)).p_value == pytest.approx(
    2 * 21 / 2**20
  )


def test_the_interval_resamples_users_rather_than_examples():
  # Ten users of ten examples each that agree within a user: as ten examples.
  users = [f"u{place // 10}" for place in range(100)]
  outcomes = ["ours" if place < 50 else "theirs" for place in range(100)]
  low, high = win_rates.of_judgements(
    judgements(outcomes, users)
  ).examples.interval
  assert high - low > 0.5
  alone = win_rates.of_judgements(judgements(outcomes)).examples.interval
  assert alone[1] - alone[0] < 0.21


def test_an_example_judged_twice_in_one_order_is_refused():
  with pytest.raises(ValueError, match="judged twice in the same order"):
    win_rates.of_judgements(
      [J("s", "ann", "ours", True), J("s", "ann", "tie", True)]
    )
  with pytest.raises(ValueError, match="an example belongs to one"):
    win_rates.of_judgements(
      [J("s", "ann", "ours", True), J("s", "b", "tie", False)]
    )


def test_rates_by_split_are_told_where_there_are_both():
  two = judgements(["ours", "theirs"])
  one_split = {"s0": "heldout", "s1": "heldout"}
  assert [*win_rates._by_split(two, one_split)] == ["all users"]
  everyone, known, new = win_rates._by_split(
    two, one_split | {"s1": "unseen"}
  ).values()
  assert (everyone.examples.rate, everyone.judgements) == (0.5, 2)
  assert (known.examples.rate, known.judgements) == (1.0, 1)
  assert (new.examples.rate, new.judgements) == (0.0, 1)
