"""A run's report: what was found, and the tables and figures that show it."""

import dataclasses
import pathlib
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from pdpo_jax.core import display, processes
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import sources
from pdpo_jax.evaluation import comparison, controls, lengths, user_space
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import judged
from pdpo_jax.evaluation.report import figures, report, sections
from pdpo_jax.runs import answers, contenders, experiment, run_folder
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.weights import base as base_lib

# Users that are probed and projected, and those that are drawn one by one.
_MOST_USERS, _MOST_DRAWN, _MOST_READ = 2_000, 60, 10


def make_report(
  workdir: pathlib.Path,
  against: Sequence[pathlib.Path],
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  judge: judge_config.JudgeConfig | None = None,
) -> pathlib.Path:
  """Writes a run's report, prints its verdict, and returns its page.

  Args:
    against: other runs on the same base and data.
    base: the run's.
    dataset: the run's.
    judge: for win rates; none without.
  """
  found = contenders.open_contenders(workdir, against, base)
  # First all that is found out: errors there are errors of this command.
  groups = comparison.taste_groups(dataset.short_users, dataset.long_users)
  scores = {each.name: each.scores(dataset) for each in found}
  baseline = _baseline(found)
  rows = comparison.compare(scores, groups, baseline)
  findings: dict[str, Any] = {"accuracy": [row.to_json() for row in rows]}
  oracles = _oracles(found[0], dataset, scores[found[0].name])
  findings["oracle"] = oracles
  said = _read_answers(found)
  rates = None
  if judge:
    rates = judged.win_rates(
      found, base, dataset, scores[found[0].name], judge, workdir
    )
    findings["win_rates"] = [
      {"name": name, "against": other, "of": group, **each.to_json()}
      for (name, other), by_group in rates.items()
      for group, each in by_group.items()
    ]
    findings["judge"] = judge_config.described(judge)
  vectors, order = _vectors(found[0], dataset)
  verdict = comparison.verdict(rows, found[0].name, baseline)
  verdict = verdict or "This run has no held-out choices to evaluate it on."
  # Then how it is shown.
  makers = {
    "Reward accuracy": lambda: _accuracy(rows, found[0], baseline, oracles),
    "Generated text": lambda: _text(said, dataset, findings),
    "Win rates": lambda: sections.win_rate_section(
      rates, f"{judge.kind} {judge.model}".strip()
    ),
    "Controls": lambda: _controls(
      found, rows, baseline, dataset, vectors, findings
    ),
    "Users": lambda: _users(
      vectors, order, found[0], base, dataset, groups, findings
    ),
    "What was evaluated": lambda: _provenance(found, dataset),
  }
  if not said:
    del makers["Generated text"]
  if rates is None:
    del makers["Win rates"]
  if vectors is None:
    del makers["Users"]
  made = [report.section_or_note(*each) for each in makers.items()]
  findings["verdict"] = verdict
  whole = report.Report(
    f"{found[0].config.name}: does it personalise?",
    verdict,
    [
      each
      for each in made
      if each.text or each.tables or each.figures or each.problem
    ],
    findings,
  )
  folder = workdir / "report"
  problems = processes.from_first(lambda: report.write(folder, whole))
  print(f"\n{textwrap.fill(display.visible(verdict), 80)}")
  for problem in problems:
    print(f"\n{textwrap.fill(display.visible(problem), 80)}")
  return folder / report.PAGE


def _baseline(found: Sequence[contenders.Contender]) -> str | None:
  """What others are compared with: vanilla DPO, or else the run before.

  For a run without users, that is the run before, or else itself.
  """
  alike = [
    each.name
    for each in found
    if each.config.user.kind == "none" and not each.control
  ]
  before = [
    each.name
    for each in found[1:]
    if contenders.is_start(each.workdir, found[0].config)
  ]
  if found[0].config.user.kind == "none":
    alike, before = before, alike
  return next(iter([*alike, *before]), None)


def _oracles(own, dataset, scores) -> dict[str, float]:
  """Accuracy by part of who knows each taste, on the pairs that were scored."""
  data = own.config.data
  if data.source == "tldr" and data.tldr.length_unit != "words":
    return {}  # What tastes are made of is not known here.
  oracles = {}
  for part, scored in scores.items():
    fit = set(scored.samples)
    best = controls.oracle(
      [
        each
        for each in getattr(dataset, part)
        if scores_lib.sample_key(each) in fit
      ],
      dataset.short_users,
      dataset.long_users,
    )
    if best is not None:
      oracles[part] = best
  return oracles


def _accuracy(rows, own, baseline, oracles) -> report.Section:
  pictures = []
  if any(row.users > 1 for row in rows):
    pictures.append(
      report.figure_or_note(
        "accuracy",
        "Mean over users, with its 95% interval bootstrapped over users.",
        lambda: figures.accuracies(rows),
      )
    )
  by_name = {row.name: row for row in rows if row.part == "heldout"}
  both = baseline in by_name and own.name in by_name and own.name != baseline
  if both and by_name[own.name].accuracy.by_user:
    pictures.append(
      report.figure_or_note(
        "by_user",
        f"Seen users one by one: {own.name} against {baseline}.",
        lambda: figures.by_user(by_name[own.name], by_name[baseline]),
      )
    )
  return sections.accuracy_section(rows, baseline, oracles, pictures)


def _read_answers(found) -> dict[str, dict[str, list[str]]]:
  """What each run's policies answered, by policy and speaker."""
  return {
    each.name: processes.from_first(
      lambda file=each.workdir / run_folder.ANSWERS: answers.read(file)
    )[1]
    for each in found
    if each.is_own and not each.control
  }


def _text(said, dataset, findings) -> report.Section:
  """Figure 3 of the first run, and how answers differ between users."""
  own = next(iter(said))
  words = {
    name: lengths.count_words(texts) for name, texts in said[own].items()
  }
  claims = lengths.claims(words, dataset.short_users, dataset.long_users)
  findings["claims"] = claims
  picture = report.figure_or_note(
    "figure3",
    "Words per answer by speaker, mean ± standard error: Figure 3 of "
    "arXiv:2402.05133 for this run.",
    lambda: figures.words(words, dataset.short_users),
  )
  section, findings["text"] = sections.text_section(
    said, answers.OTHERS, own, [picture]
  )
  section.text.extend(lengths.describe_claims(claims))
  return section


def _vectors(
  own: contenders.Contender, dataset: dataset_lib.Dataset
) -> tuple[user_space.UserVectors | None, list[str]]:
  """Embeddings of the busiest users, and those who are drawn one by one."""
  if own.config.user.kind == "none" or len(own.users.ids) < 2:
    return None, []
  ids = experiment.busiest_users(dataset.train, own.users, _MOST_USERS)
  drawn = experiment.busiest_users(dataset.train, own.users, _MOST_DRAWN)
  vectors = user_space.read_vectors(own.policy.user_model, own.users, ids)
  return vectors, drawn


def _controls(
  found, rows, baseline, dataset, vectors, findings
) -> report.Section:
  heldout = {row.name: row for row in rows if row.part == "heldout"}
  shuffled, flipped = {}, {}
  for each in found:
    row = heldout.get(each.name)
    if row is None:
      continue
    if each.control == contenders.SHUFFLED and each.is_own:
      shuffled[each.workdir.name] = row.gain
    elif (
      each.control == contenders.SWAPPED
      and each.is_own
      and not found[0].control
    ):
      flipped[each.workdir.name] = controls.flips(
        heldout[found[0].name].accuracy,
        row.accuracy,
        sources.swapped_users(
          each.config.data, each.config.seed, dataset.train
        ),
      )
  tastes = {user: "short" for user in dataset.short_users}
  tastes |= {user: "long" for user in dataset.long_users}
  oracle = None
  own = heldout.get(found[0].name)
  if own and findings["oracle"].get("heldout") and own.accuracy.of(tastes):
    oracle = findings["oracle"]["heldout"], own.accuracy.of(tastes)
  agreement, probes = None, {}
  if vectors:
    labels = [tastes.get(each) for each in vectors.ids]
    if None not in labels and len(set(labels)) > 1:
      number = len(set(labels))
      groups = user_space.recover_groups(vectors.features, number)
      agreement = number, user_space.group_agreement(groups, labels)
    probes = _probes(vectors, dataset, tastes)
  findings["controls"] = {
    "shuffled": {
      name: gain and {"gain": gain[0], "interval": list(gain[1])}
      for name, gain in shuffled.items()
    },
    "swapped": {n: dataclasses.asdict(flip) for n, flip in flipped.items()},
    "group_agreement": agreement and agreement[1],
    "probes": {n: dataclasses.asdict(probe) for n, probe in probes.items()},
  }
  return sections.control_section(
    baseline, shuffled, flipped, oracle, agreement, probes
  )


def _probes(
  vectors: user_space.UserVectors,
  dataset: dataset_lib.Dataset,
  tastes: Mapping[str, str],
) -> dict[str, user_space.Probe]:
  """What is known of users that embeddings may tell."""
  facts = []
  for each in vectors.ids:
    known = dataset.personas.get(each)
    facts.append(dict(known.facts) if known else {})
    if each in tastes:
      facts[-1]["taste in length"] = tastes[each]
  found = {}
  for name in dict.fromkeys(name for own in facts for name in own):
    probe = user_space.probe(vectors.features, [own.get(name) for own in facts])
    if probe:
      found[name] = probe
  return found


def _users(
  vectors, order, own, base, dataset, groups, findings
) -> report.Section:
  """Embeddings as tokens, of a few, and as maps."""
  read = experiment.busiest_users(dataset.train, own.users, _MOST_READ)
  nearest = _nearest(vectors, read, base)
  findings["nearest_tokens"] = nearest
  # Equals side by side, so that groups show as blocks.
  places = {each: place for place, each in enumerate(vectors.ids)}
  grouped = [user for users in groups.values() for user in users]
  rank = {user: place for place, user in enumerate(grouped)}
  ids = sorted(order, key=lambda each: rank.get(each, len(rank)))
  features = vectors.features[[places[each] for each in ids]]
  kind = "weights" if vectors.weights is not None else "offsets"
  pictures = [
    report.figure_or_note(
      "cosines",
      f"Cosine between users' {kind}; the {len(ids)} busiest users.",
      lambda: figures.cosines(ids, user_space.cosine_map(features)),
    ),
    report.figure_or_note(
      "projection",
      f"Principal components of users' {kind}, {len(vectors.ids):,} users.",
      lambda: figures.projection(
        vectors.ids, *user_space.project(vectors.features), groups
      ),
    ),
  ]
  if vectors.weights is not None:
    pictures.append(
      report.figure_or_note(
        "clusters",
        "Weight of each cluster in a user's embedding.",
        lambda: figures.cluster_weights(ids, features),
      )
    )
  return sections.users_section(nearest, pictures)


def _nearest(
  vectors: user_space.UserVectors, ids: Collection[str], base: base_lib.Base
) -> dict[str, list[str]]:
  """Nearest tokens of the generic user, of centers and of some users.

  Of a user's embedding, those of its offset from the generic one as well, since
  the two are often near the same tokens.
  """
  table = base.lm.embed(jnp.arange(len(base.tokenizer)))
  table = processes.fetch(table.astype(jnp.float32))
  prefixes = {"the generic user": vectors.generic}
  if vectors.centers is not None:
    for number, center in enumerate(vectors.centers[:_MOST_READ]):
      prefixes[f"center {number}"] = center
  places = {each: place for place, each in enumerate(vectors.ids)}
  for each in ids if vectors.centers is None else ():
    prefix = vectors.prefixes[places[each]]
    prefixes[f"user {each}"] = prefix
    offset = prefix - vectors.generic + table.mean(0)
    prefixes[f"offset alone of user {each}"] = offset
  return {
    name: [
      base.tokenizer.decode(near)
      for near in user_space.nearest_tokens(prefix, table, 1)
    ]
    for name, prefix in prefixes.items()
  }


def _provenance(found, dataset) -> report.Section:
  """What the report is of, so that it can be made again."""
  cells = []
  for each in found:
    cells.append(
      (
        each.name,
        str(each.folder),
        f"{each.step:,}",
        str(each.config.seed),
        f"{each.config.train.batch_size} × {each.config.train.epochs} epochs",
      )
    )
  columns = ("policy", "folder", "step", "seed", "batch size")
  knobs = found[0].config.answers.sampling()
  settings = ", ".join(f"{name} {value}" for name, value in knobs.items())
  versions = processes.from_first(
    lambda: run_folder.read_versions(found[0].workdir)
  )
  text = [
    f"Answers were sampled with {settings}.",
    "On " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".",
  ]
  if dataset.tally.rows:
    text.insert(0, f"Data: {dataset.tally}.")
  table = report.Table(columns, cells, numbers=False)
  return report.Section("What was evaluated", text, [table])
