"""Generated text: lengths, differences between users, drift from the base."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NotRequired

from matplotlib import patches
from typing_extensions import TypedDict

from pdpo_jax.core import processes
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import lengths, statistics, texts
from pdpo_jax.evaluation.report import charts, page
from pdpo_jax.inference import text_health
from pdpo_jax.runs import answers, run_folder, trained

# By speaker; empty where it is not known.
Health = Mapping[str, text_health.Health]


class Speaker(TypedDict):
  """Of `report.json`; a list has a mean and its standard error."""

  words: float
  words_standard_error: float
  zero_length_share: float
  words_beyond_base: list[float]
  repetition_beyond_base: list[float]
  health: NotRequired[dict[str, float]]


class OfPolicy(TypedDict, total=False):
  """Of `report.json`; speakers are those of the run's own policy alone."""

  distinctness: dict[str, float | None]
  speakers: dict[str, Speaker]


def _plus_minus(mean: statistics.Mean, factor: float = 1.0) -> str:
  return f"{factor * mean.mean:+z.1f} ± {factor * mean.standard_error:.1f}"


def read(policies: Sequence[trained.Trained]) -> dict[str, answers.Answers]:
  """What runs' own policies answered, by policy; controls are left out.

  Raises:
    ValueError: if a run has no answers, or they are damaged.
  """
  return {
    policy.name: processes.from_first(
      lambda file=policy.workdir / run_folder.ANSWERS: answers.read(file)
    )
    for policy in policies
    if policy.is_own and not policy.control
  }


def find_health(
  answered: answers.Answers | None, max_new_tokens: int
) -> Health:
  """Of each speaker's text; empty where no likelihoods were kept."""
  if answered is None or answered.likelihoods is None:
    return {}
  return text_health.examine(
    answered.texts, answered.likelihoods, "S", max_new_tokens
  )


def verdict(health: Health) -> str:
  """Whose text is broken; empty where nobody's is."""
  return text_health.sentence(health, answers.OTHERS, "S") if health else ""


def section(
  by_policy: Mapping[str, answers.Answers],
  dataset: dataset_lib.Dataset,
  health: Health,
) -> page.Section:
  """Of answers by policy, of which the first is shown in full.

  Args:
    health: of the first.
  """
  shown = next(iter(by_policy))
  words = {
    speaker: lengths.count_words(of_speaker)
    for speaker, of_speaker in by_policy[shown].texts.items()
  }
  claims = lengths.claims(words, dataset.short_users, dataset.long_users)
  speakers, table = _speakers(by_policy[shown].texts, words, health)
  distinctness, between = _between_users(by_policy)
  numbers: dict[str, OfPolicy] = {
    name: OfPolicy(distinctness=dataclasses.asdict(of_policy))
    for name, of_policy in distinctness.items()
  }
  numbers[shown] = OfPolicy(**numbers.get(shown, {}), speakers=speakers)
  figure = page.figure_or_note(
    "figure3",
    "Words per answer by speaker, mean ± standard error: Figure 3 of "
    "arXiv:2402.05133 for this run.",
    lambda: draw_words(words, dataset.short_users),
  )
  return page.Section(
    "Generated text",
    lengths.describe_claims(claims),
    [table, *([between] if distinctness else [])],
    [figure],
    {"claims": claims, "text": numbers},
  )


def _speakers(
  answered: Mapping[str, Sequence[str]],
  words: Mapping[str, lengths.Words],
  health: Health,
) -> tuple[dict[str, Speaker], page.Table]:
  """Length of each speaker's answers, and how they differ from the base's."""
  columns = ("answers as", "words", "empty, %", "words beyond the base")
  columns += ("repeated 3-grams beyond the base, points",)
  notes = (
    f"{len(answered['S'])} held-out prompts, the same seed for every speaker; "
    "mean ± standard error over prompts."
  )
  if health:
    columns += ("nats a token under the base", "ended, %", "broken, %")
    notes += f" {text_health.MEANING}"
  table = page.Table(columns, notes)
  speakers = {}
  for speaker, of_speaker in words.items():
    drift = texts.drift(answered[speaker], answered["S"])
    speakers[speaker] = Speaker(
      words=of_speaker.mean,
      words_standard_error=of_speaker.standard_error,
      zero_length_share=of_speaker.zero_share,
      words_beyond_base=[*dataclasses.astuple(drift.words)],
      repetition_beyond_base=[*dataclasses.astuple(drift.repetition)],
    )
    is_base = speaker == "S"
    cells = []
    if health:
      own = health[speaker]
      speakers[speaker]["health"] = dataclasses.asdict(own)
      cells = [f"{own.log_likelihood:.2f}"]
      cells += [page.percent(own.ended), page.percent(own.broken)]
    table.add(
      answers.OTHERS.get(speaker, speaker),
      f"{of_speaker.mean:.1f} ± {of_speaker.standard_error:.1f}",
      page.percent(of_speaker.zero_share),
      "–" if is_base else _plus_minus(drift.words),
      "–" if is_base else _plus_minus(drift.repetition, factor=100.0),
      *cells,
    )
  return speakers, table


def _between_users(
  by_policy: Mapping[str, answers.Answers],
) -> tuple[dict[str, texts.Distinctness], page.Table]:
  """How answers differ between users, of the policies that have several."""
  table = page.Table(
    ("run", "users", "distance", "for scale", "identical, %"),
    "Between two users' answers to the same prompt: mean Jaccard distance of "
    "their words, 0 to 1, and how many are the very same. For scale, the "
    "distance of one user's answers to two prompts.",
  )
  distinctness = {}
  for name, answered in by_policy.items():
    users = {
      speaker: of_speaker
      for speaker, of_speaker in answered.texts.items()
      if speaker not in answers.OTHERS
    }
    between = texts.distinctness(users)
    if between:
      distinctness[name] = between
      table.add(
        name,
        f"{len(users)}",
        f"{between.distance:.2f}",
        "–" if between.chance is None else f"{between.chance:.2f}",
        page.percent(between.identical),
      )
  return distinctness, table


def draw_words(
  words: Mapping[str, lengths.Words], short_users: Sequence[str]
) -> bytes:
  """Figure 3 of arXiv:2402.05133: mean words, a bar a speaker.

  Args:
    words: by speaker; "S", "V" and "G" are no users.
    short_users: who is known to prefer the shorter of two answers.
  """
  colors = {"S": charts.LIGHT_GRAY, "V": charts.GRAY, "G": charts.BLUE}
  shades = [
    colors.get(
      speaker, charts.ORANGE if speaker in short_users else charts.GREEN
    )
    for speaker in words
  ]
  means = [of_speaker.mean for of_speaker in words.values()]
  errors = [of_speaker.standard_error for of_speaker in words.values()]
  top = max(m + e for m, e in zip(means, errors, strict=True)) or 1.0
  names = [charts.name(speaker) for speaker in words]
  # Short names lie side by side, and others stand below the bars.
  longest = max(map(len, names))
  upright = 0 if longest <= 6 else 0.07 * longest
  width = max(6.0, 0.55 * len(words) + 1.5)
  with charts.chart(width, 3.6 + upright) as (axes, png):
    places = range(len(words))
    axes.bar(places, means, yerr=errors, color=shades, capsize=3, width=0.7)
    for place, mean, error in zip(places, means, errors, strict=True):
      axes.text(
        place,
        mean + error + 0.015 * top,
        f"{mean:.1f}",
        ha="center",
        va="bottom",
        fontsize=8,
      )
    if upright:
      axes.set_xticks(places, names, rotation=90, fontsize=7)
    else:
      axes.set_xticks(places, names)
    axes.set_ylim(0, top * 1.12)
    axes.set_ylabel("words per answer (mean ± s.e.)")
    axes.set_xlabel("S SFT · V vanilla DPO · G generic user · then each user")
    axes.set_title("Length of answers", fontsize=10, loc="left")
    if short_users:
      axes.legend(
        [patches.Patch(color=c) for c in (charts.ORANGE, charts.GREEN)],
        ["prefers short", "prefers long"],
        frameon=False,
        fontsize=8,
        # Above the bars, whose heights are not known.
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
      )
  return png.getvalue()
