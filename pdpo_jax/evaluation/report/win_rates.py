"""Win rates with a judge: Table 1, beside the paper's numbers."""

from typing import Any

from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import win_rates
from pdpo_jax.evaluation.report import page

_POLICIES = ("vanilla DPO", "P-DPO, individual")
_POLICIES += ("P-DPO, 10 clusters", "P-DPO, 100 clusters")
# Table 1 of arXiv:2402.05133: win rates in percent of these policies, by unit
# and opponent.
PAPER_TABLE_1 = {
  ("example", "vanilla DPO"): (None, 64.47, 61.84, 65.79),
  ("example", "chosen response"): (42.11, 60.52, 61.84, 60.52),
  ("user", "vanilla DPO"): (None, 60.00, 60.00, 65.00),
  ("user", "chosen response"): (25.00, 55.00, 70.00, 60.00),
}


def numbers(
  rates: win_rates.ByPair, judge: judge_config.JudgeConfig
) -> dict[str, Any]:
  """For `report.json`."""
  lines = [
    {"name": name, "against": opponent, "of": users, **of_users.to_json()}
    for (name, opponent), by_users in rates.items()
    for users, of_users in by_users.items()
  ]
  return {"win_rates": lines, "judge": judge_config.described(judge)}


def section(
  rates: win_rates.ByPair, judge: judge_config.JudgeConfig
) -> page.Section:
  """Rates by whose users, and how far the judge is to be trusted."""
  text = (
    f"Judge: {f'{judge.kind} {judge.model}'.strip()}. In percent; a tie counts "
    "as a win for both sides; the two orders of a pair are averaged; who wins "
    "most of a user's examples wins the user. Brackets are 95% intervals, "
    "bootstrapped over users."
  )
  users = dict.fromkeys(
    name for by_users in rates.values() for name in by_users
  )
  tables = [
    _rates_table(rates, name, not place) for place, name in enumerate(users)
  ]
  return page.Section("Win rates", [text], [*tables, _quality_table(rates)])


def _rates_table(
  rates: win_rates.ByPair, users: str, beside_paper: bool
) -> page.Table:
  policies = list(dict.fromkeys(name for name, _ in rates))
  opponents = list(dict.fromkeys(opponent for _, opponent in rates))
  table = page.Table((users, "against", *policies))
  for unit in ("example", "user"):
    for opponent in opponents:
      cells = [
        _rate_cell(rates.get((name, opponent), {}).get(users), unit)
        for name in policies
      ]
      table.add(f"per {unit}", opponent, *cells)
      paper = dict(
        zip(_POLICIES, PAPER_TABLE_1.get((unit, opponent), ()), strict=False)
      )
      known = [paper.get(name) for name in policies]
      if beside_paper and any(known):
        cells = ["–" if rate is None else f"{rate:.2f}" for rate in known]
        table.add("in the paper, on PRISM", opponent, *cells)
  return table


def _quality_table(rates: win_rates.ByPair) -> page.Table:
  columns = ("pair", "judgements", "ties", "unreadable", "first shown wins, %")
  columns += ("both orders agree, %", "users won : lost, exact p")
  table = page.Table(
    columns,
    "A judge without a taste for places lets the response shown first win half "
    "of what it decides. Unreadable answers count for nobody. The test is a "
    "two-sided binomial one of the users won against the users lost.",
  )
  for (name, opponent), by_users in rates.items():
    of_all = next(iter(by_users.values()))
    table.add(
      f"{name} against {opponent}",
      f"{of_all.judgements:,}",
      f"{of_all.ties:,}",
      f"{of_all.unreadable:,}",
      page.percent(of_all.first_share),
      page.percent(of_all.agreement),
      f"{of_all.users_won} : {of_all.users_lost}, p = {of_all.p_value:.2g}",
    )
  return table


def _rate_cell(rates: win_rates.WinRates | None, unit: str) -> str:
  if rates is None:
    return "–"
  rate = rates.examples if unit == "example" else rates.users
  return f"{page.with_interval(rate.rate, rate.interval)}\nof {rate.count}"
