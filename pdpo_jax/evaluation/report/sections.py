"""What the report says: findings as sections with tables and sentences."""

import math
from collections.abc import Mapping, Sequence

from pdpo_jax.evaluation import comparison, controls, lengths, texts, user_space
from pdpo_jax.evaluation.judge import winrate
from pdpo_jax.evaluation.report import report

# Table 1 of arXiv:2402.05133: win rates in percent by unit, opponent, policy.
PAPER_TABLE_1 = {
  ("sample", "vanilla DPO"): {
    "P-DPO, individual": 64.47,
    "P-DPO, 10 clusters": 61.84,
    "P-DPO, 100 clusters": 65.79,
  },
  ("sample", "chosen response"): {
    "vanilla DPO": 42.11,
    "P-DPO, individual": 60.52,
    "P-DPO, 10 clusters": 61.84,
    "P-DPO, 100 clusters": 60.52,
  },
  ("user", "vanilla DPO"): {
    "P-DPO, individual": 60.00,
    "P-DPO, 10 clusters": 60.00,
    "P-DPO, 100 clusters": 65.00,
  },
  ("user", "chosen response"): {
    "vanilla DPO": 25.00,
    "P-DPO, individual": 55.00,
    "P-DPO, 10 clusters": 70.00,
    "P-DPO, 100 clusters": 60.00,
  },
}


def percent(value: float | None) -> str:
  known = value is not None and math.isfinite(value)
  return f"{100 * value:.1f}" if known else "–"


def with_interval(
  value: float | None, interval: tuple[float, float] | None
) -> str:
  if value is None or interval is None:
    return percent(value)
  low, high = interval
  return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def _points(gain: tuple[float, tuple[float, float]] | None) -> str:
  if gain is None:
    return "–"
  mean, (low, high) = gain
  return f"{100 * mean:+z.1f} [{100 * low:+z.1f}, {100 * high:+z.1f}]"


def accuracy_section(
  rows: Sequence[comparison.Row],
  baseline: str | None,
  oracles: Mapping[str, float],
  figures: Sequence[report.Figure],
) -> report.Section:
  """Reward accuracy and margin, policies side by side."""
  groups = list(dict.fromkeys(name for row in rows for name in row.groups))
  tables = []
  for part, title in comparison.PARTS.items():
    own = [row for row in rows if row.part == part]
    if not own:
      continue
    columns = (f"{title}", "users", "pairs", "accuracy, all pairs")
    columns += ("mean over users", f"beyond {baseline or 'vanilla'}, points")
    columns += ("worst decile", "margin, nats", *groups)
    cells = []
    for row in own:
      found, known = row.accuracy, bool(row.accuracy.by_user)
      cells.append(
        (
          row.name,
          f"{row.users:,}",
          f"{row.pairs:,}",
          percent(found.pairs),
          with_interval(found.users, found.interval()) if known else "–",
          _points(row.gain),
          percent(found.worst_decile) if known else "–",
          f"{found.margin:.2f}" if known else "–",
          *(percent(row.groups.get(name)) for name in groups),
        )
      )
    if part in oracles:
      blank = ("–",) * (len(columns) - 5)
      mean = percent(oracles[part])
      cells.append(("who knows each taste", "", "", "–", mean, *blank))
    tables.append(report.Table(columns, cells))
  text = [
    "How often, in percent, a policy gives the response that a user chose more "
    "implicit reward than one they rejected; half of it is chance. A user "
    "without a row of their own is read as the generic one. Brackets are 95% "
    "intervals, bootstrapped over users; gains are paired by user."
  ]
  return report.Section(
    "Reward accuracy on held-out choices", text, tables, list(figures)
  )


def text_section(
  answers: Mapping[str, Mapping[str, Sequence[str]]],
  speakers: Mapping[str, str],
  shown: str,
  figures: Sequence[report.Figure],
) -> tuple[report.Section, dict]:
  """Lengths, differences between users and drift from the base; and numbers.

  Args:
    answers: by run and speaker; "S" is the base, "V" vanilla DPO and "G" the
      generic user.
    speakers: what "S", "V" and "G" are called.
    shown: the run whose speakers are listed one by one.
  """
  findings = {}
  between = []
  for run, said in answers.items():
    users = {name: own for name, own in said.items() if name not in speakers}
    found = texts.distinctness(users)
    if found:
      findings[run] = {"distinctness": vars(found)}
      between.append(
        (
          run,
          f"{len(users)}",
          f"{found.distance:.2f}",
          "–" if found.chance is None else f"{found.chance:.2f}",
          percent(found.identical),
        )
      )
  tables = []
  said = answers[shown]
  cells = []
  for name, own in said.items():
    words = lengths.count_words(own)
    drift = texts.drift(own, said["S"])
    findings.setdefault(shown, {}).setdefault("speakers", {})[name] = {
      "words": words.mean,
      "words_standard_error": words.standard_error,
      "zero_length_share": words.zero_share,
      "words_beyond_base": list(drift.words),
      "repetition_beyond_base": list(drift.repetition),
    }
    cells.append(
      (
        speakers.get(name, name),
        f"{words.mean:.1f} ± {words.standard_error:.1f}",
        percent(words.zero_share),
        "–" if name == "S" else _plus_minus(*drift.words),
        "–" if name == "S" else _plus_minus(*drift.repetition, factor=100.0),
      )
    )
  tables.append(
    report.Table(
      (
        "answers as",
        "words",
        "empty, %",
        "words beyond the base",
        "repeated 3-grams beyond the base, points",
      ),
      cells,
      f"{len(said['S'])} held-out prompts, the same seed for every speaker; "
      "mean ± standard error over prompts.",
    )
  )
  if between:
    tables.append(
      report.Table(
        ("run", "users", "distance", "for scale", "identical, %"),
        between,
        "Between two users' answers to the same prompt: mean Jaccard distance "
        "of their words, 0 to 1, and how many are the very same. For scale, "
        "the distance of one user's answers to two prompts.",
      )
    )
  return report.Section("Generated text", [], tables, list(figures)), findings


def _plus_minus(mean: float, error: float, factor: float = 1.0) -> str:
  return f"{factor * mean:+z.1f} ± {factor * error:.1f}"


def win_rate_section(
  found: Mapping[tuple[str, str], Mapping[str, winrate.WinRates]],
  judge: str,
) -> report.Section:
  """Table 1, beside the paper's numbers where there are any.

  Args:
    found: by policy and opponent, then by whose users: "all users" and parts.
    judge: what it was, in words.
  """
  policies = list(dict.fromkeys(name for name, _ in found))
  opponents = list(dict.fromkeys(other for _, other in found))
  tables = []
  groups = list(
    dict.fromkeys(g for by_group in found.values() for g in by_group)
  )
  for group in groups:
    cells = []
    for unit in ("sample", "user"):
      for other in opponents:
        rates = [found.get((name, other), {}).get(group) for name in policies]
        cells.append(
          (f"per {unit}", other, *(_rate_cell(each, unit) for each in rates))
        )
        paper = PAPER_TABLE_1.get((unit, other), {})
        if group == groups[0] and any(name in paper for name in policies):
          known = [paper.get(name) for name in policies]
          shown = ("–" if each is None else f"{each:.2f}" for each in known)
          cells.append(("in the paper, on PRISM", other, *shown))
    tables.append(report.Table((group, "against", *policies), cells))
  columns = ("pair", "judgements", "ties", "unreadable", "first shown wins, %")
  columns += ("both orders agree, %", "users won : lost, exact p")
  quality = []
  for (name, other), by_group in found.items():
    rates = next(iter(by_group.values()))
    quality.append(
      (
        f"{name} against {other}",
        f"{rates.judgements:,}",
        f"{rates.ties:,}",
        f"{rates.unreadable:,}",
        percent(rates.first_share),
        percent(rates.agreement),
        f"{rates.users_won} : {rates.users_lost}, p = {rates.p_value:.2g}",
      )
    )
  note = (
    "A judge without a taste for places lets the response shown first win half "
    "of what it decides. Unreadable answers count for nobody. The test is a "
    "two-sided binomial one of the users won against the users lost."
  )
  tables.append(report.Table(columns, quality, note))
  text = [
    f"Judge: {judge}. In percent; a tie counts as a win for both sides; the "
    "two orders of a pair are averaged; who wins most of a user's samples wins "
    "the user. Brackets are 95% intervals, bootstrapped over users."
  ]
  return report.Section("Win rates", text, tables)


def _rate_cell(rates: winrate.WinRates | None, unit: str) -> str:
  if rates is None:
    return "–"
  rate = rates.samples if unit == "sample" else rates.users
  return f"{with_interval(rate.rate, rate.interval)}\nof {rate.count}"


def control_section(
  baseline: str | None,
  shuffled: Mapping[str, tuple[float, tuple[float, float]] | None],
  flipped: Mapping[str, controls.Flips],
  oracle: tuple[float, float] | None,
  agreement: tuple[int, float] | None,
  probes: Mapping[str, user_space.Probe],
) -> report.Section:
  """Each control that the runs at hand allow, with what it should show.

  Args:
    baseline: what gains are over, if anything.
    shuffled: by run, the gain once user ids were shuffled; None without a
      baseline.
    flipped: by run.
    oracle: accuracy of who knows each taste, and the policy's.
    agreement: number of groups, and the adjusted Rand index.
  """
  cells = []
  for name, gain in shuffled.items():
    cells.append(
      (
        f"user ids shuffled in training ({name})",
        f"{_points(gain)} points beyond {baseline}"
        if gain
        else "needs a vanilla run (--against)",
        "about 0: nothing personal is left to learn",
      )
    )
  for name, found in flipped.items():
    cells.append(
      (
        f"choices of some users swapped in training ({name})",
        f"{found.flipped} of {found.swapped} flipped, and "
        f"{found.others_flipped} of {found.others} others",
        "all of them, and none of the others",
      )
    )
  if oracle:
    best, ours = oracle
    cells.append(
      (
        "accuracy of who knows each seen user's taste",
        f"{percent(best)}, and {percent(ours)} learnt",
        "the same",
      )
    )
  if agreement:
    count, index = agreement
    cells.append(
      (
        f"{count} groups of users found from embeddings alone",
        f"adjusted Rand index {index:.2f}",
        "1 for the true groups, 0 for chance",
      )
    )
  for name, probe in probes.items():
    cells.append(
      (
        f"embeddings tell “{name}” ({probe.users:,} users, "
        f"{len(probe.classes)} classes)",
        f"balanced accuracy {percent(probe.accuracy)}, p = {probe.p_value:.3f}",
        f"{percent(probe.chance)} is chance",
      )
    )
  if not cells:
    return report.Section("Controls")
  note = (
    "Runs with --config.data.shuffle_users=True and with "
    "--config.data.swap_choices=0.3 add the first two, by --against."
  )
  columns = ("control", "found", "expected of a personal result")
  table = report.Table(columns, cells, note, numbers=False)
  return report.Section("Controls", [], [table])


def users_section(
  nearest: Mapping[str, Sequence[str]],
  figures: Sequence[report.Figure],
) -> report.Section:
  """Users' embeddings read as tokens, and maps of them."""
  cells = [
    (name, " · ".join(map(repr, tokens))) for name, tokens in nearest.items()
  ]
  note = (
    "For each user token, the nearest of the vocabulary, by cosine with the "
    "table's mean taken off. A soft prefix need not be near any."
  )
  columns = ("embedding of", "nearest tokens")
  tables = [report.Table(columns, cells, note, numbers=False)]
  return report.Section("Users", [], tables if cells else [], list(figures))
