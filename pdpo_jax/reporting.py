"""A run's report: what was found, and the tables and figures that show it."""

import dataclasses
import pathlib
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from pdpo_jax import contenders, experiment, judged, processes, run_folder
from pdpo_jax.config import judge as judge_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import sources
from pdpo_jax.evaluation import (
  answers,
  comparison,
  controls,
  figures,
  lengths,
  report,
  sections,
  user_space,
)
from pdpo_jax.evaluation import scores as scores_lib
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
  folder = workdir / "report"
  drawn = folder / "figures"
  groups = comparison.taste_groups(dataset.short_users, dataset.long_users)
  scores = {each.name: each.scores(dataset) for each in found}
  baseline = _baseline(found)
  rows = comparison.compare(scores, groups, baseline)
  findings: dict[str, Any] = {"accuracy": [row.to_json() for row in rows]}
  oracles = _oracles(found[0], dataset, scores[found[0].name])
  findings["oracle"] = oracles
  made = [_accuracy(rows, found[0], baseline, oracles, drawn, findings)]
  made.append(_text(found, dataset, drawn, findings))
  if judge:
    rates = judged.win_rates(
      found, base, dataset, scores[found[0].name], judge, workdir
    )
    made.append(_win_rates(rates, judge, findings))
  vectors, order = _vectors(found[0], dataset)
  made.append(_controls(found, rows, baseline, dataset, vectors, findings))
  if vectors:
    read = experiment.busiest_users(dataset.train, found[0].users, _MOST_READ)
    made.append(_users(vectors, order, read, base, groups, drawn, findings))
  made.append(_provenance(found, dataset))
  verdict = comparison.verdict(rows, found[0].name, baseline)
  verdict = verdict or "This run has no held-out choices to evaluate it on."
  findings["verdict"] = verdict
  whole = report.Report(
    f"{found[0].config.name}: does it personalise?",
    verdict,
    [each for each in made if each.text or each.tables or each.figures],
    findings,
  )
  page = processes.from_first(lambda: report.write(folder, whole))
  print(f"\n{textwrap.fill(verdict, 80)}")
  return page


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


def _accuracy(rows, own, baseline, oracles, drawn, findings) -> report.Section:
  pictures = []
  if any(row.users > 1 for row in rows):
    file = drawn / "accuracy.png"
    figures.accuracies(file, rows)
    caption = "Mean over users, with its 95% interval bootstrapped over users."
    pictures.append(report.Figure(file, caption))
  by_name = {row.name: row for row in rows if row.part == "heldout"}
  both = baseline in by_name and own.name in by_name and own.name != baseline
  if both and by_name[own.name].accuracy.by_user:
    file = drawn / "by_user.png"
    figures.by_user(file, by_name[own.name], by_name[baseline])
    caption = f"Seen users one by one: {own.name} against {baseline}."
    pictures.append(report.Figure(file, caption))
  return sections.accuracy_section(rows, baseline, oracles, pictures)


def _text(found, dataset, drawn, findings) -> report.Section:
  """Figure 3 of the first run, and how answers differ between users."""
  said = {}
  for each in found:
    if each.is_own and not each.control:
      file = each.workdir / run_folder.ANSWERS
      _, said[each.name] = processes.from_first(lambda f=file: answers.read(f))
  if not said:
    return report.Section("Generated text")
  own = next(iter(said))
  file = drawn / "figure3.png"
  words = {
    name: lengths.count_words(texts) for name, texts in said[own].items()
  }
  if processes.is_first():
    lengths.figure(file, words, dataset.short_users, "Length of answers")
  claims = lengths.claims(words, dataset.short_users, dataset.long_users)
  findings["claims"] = claims
  caption = (
    "Words per answer by speaker, mean ± standard error: Figure 3 of "
    "arXiv:2402.05133 for this run."
  )
  section, findings["text"] = sections.text_section(
    said, answers.OTHERS, own, [report.Figure(file, caption)]
  )
  section.text.extend(lengths.describe_claims(claims))
  return section


def _win_rates(rates, judge, findings) -> report.Section:
  findings["win_rates"] = [
    {"name": name, "against": other, "of": group, **found.to_json()}
    for (name, other), by_group in rates.items()
    for group, found in by_group.items()
  ]
  findings["judge"] = dataclasses.asdict(judge)
  who = f"{judge.kind} {judge.model}".strip()
  return sections.win_rate_section(rates, who)


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
        sources.swapped_users(each.config, dataset.train),
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
  vectors, order, read, base, groups, drawn, findings
) -> report.Section:
  """Embeddings as tokens (of those who are `read`) and as maps."""
  nearest = _nearest(vectors, read, base)
  findings["nearest_tokens"] = nearest
  # Equals side by side, so that groups show as blocks.
  places = {each: place for place, each in enumerate(vectors.ids)}
  grouped = [user for users in groups.values() for user in users]
  rank = {user: place for place, user in enumerate(grouped)}
  ids = sorted(order, key=lambda each: rank.get(each, len(rank)))
  features = vectors.features[[places[each] for each in ids]]
  pictures = []
  file = drawn / "cosines.png"
  figures.cosines(file, ids, user_space.cosine_map(features))
  kind = "weights" if vectors.weights is not None else "offsets"
  caption = f"Cosine between users' {kind}; the {len(ids)} busiest users."
  pictures.append(report.Figure(file, caption))
  file = drawn / "projection.png"
  plane, share = user_space.project(vectors.features)
  figures.projection(file, vectors.ids, plane, share, groups)
  caption = (
    f"Principal components of users' {kind}, {len(vectors.ids):,} users."
  )
  pictures.append(report.Figure(file, caption))
  if vectors.weights is not None:
    file = drawn / "clusters.png"
    figures.cluster_weights(file, ids, features)
    caption = "Weight of each cluster in a user's embedding."
    pictures.append(report.Figure(file, caption))
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
    prefixes[f"user {each}, offset alone"] = offset
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
  spec = answers.sampling_spec(found[0].config.answers)
  settings = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(spec).items())
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
