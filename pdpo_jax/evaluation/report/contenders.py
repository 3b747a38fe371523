"""Who could answer people: the base, the base prompted, vanilla DPO, P-DPO."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.evaluation import accuracy, texts, untrained
from pdpo_jax.evaluation.judge import win_rates
from pdpo_jax.evaluation.report import accuracy as report_accuracy
from pdpo_jax.evaluation.report import page
from pdpo_jax.inference import likelihoods as likelihoods_lib
from pdpo_jax.inference import text_health
from pdpo_jax.runs import answers as answers_lib
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.runs import trained
from pdpo_jax.weights import base as base_lib

# Of whom answers are compared, and to how many prompts.
_PEOPLE, _PROMPTS = 6, 4

Groups = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Text:
  """What a contender answers to a few people.

  Attributes:
    by_user: answers to the same prompts, by the user that they are for.
    health: of all of them; None where no likelihoods were kept.
  """

  by_user: Mapping[str, Sequence[str]]
  health: text_health.Health | None

  @property
  def distance(self) -> float | None:
    """Between two users' answers, as `texts.Distinctness` has it."""
    between = texts.distinctness(self.by_user)
    return between.distance if between else None

  def words(self, users: Sequence[str]) -> float | None:
    """Mean of an answer to some users; None if none of them is there."""
    counts = [
      len(text.split()) for user in users for text in self.by_user.get(user, ())
    ]
    return float(np.mean(counts)) if counts else None


def section(
  policies: Sequence[trained.Trained],
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  scores: Mapping[str, scores_lib.Scores],
  accuracies: report_accuracy.Findings,
  answered: answers_lib.Answers | None,
  groups: Groups,
  rates: win_rates.ByPair | None = None,
) -> page.Section:
  """Contenders at a glance, and the base's accuracy in full.

  Args:
    policies: of which the first is the run's own.
    scores: of the run's policy, by split.
    answered: what the run's policies answered; none without.
    groups: users by their taste, where tastes are known.
    rates: of a judge, if there is one.
  """
  first = policies[0]
  of_base = {
    name: {split: accuracy.of_scores(kept) for split, kept in by_split.items()}
    for name, by_split in untrained.scores(
      base, dataset, first.config, scores
    ).items()
  }
  said, told = {}, []
  if answered is not None:
    users, told = ask(first, base, dataset, answered)
    said = find_texts(first, policies, base, users, told, answered)
  tables, numbers = [], []
  for split, title in accuracy.USERS_OF.items():
    if split not in scores:
      continue
    ours = accuracies.on(split)[first.name].accuracy
    tables.append(_table(title, of_base, split, ours, first.name, numbers))
  glance, lines = at_a_glance(
    first.name,
    [policy.name for policy in policies],
    accuracies,
    of_base,
    said,
    groups,
    rates,
  )
  text = (
    "What training is for must show beyond what the base can do without. "
    "Prompted, it reads before each question what the person says of "
    "themselves and choices that they made in training, as many as fit in half "
    "of the positions that are left. Its accuracy is how often it finds the "
    "chosen response more likely, a token, than the rejected one."
  )
  if told:
    counts = [untrained.count_told(each) for each in told]
    text += (
      f" It was told of {np.mean(counts):.1f} choices of a person."
      if any(counts)
      else " Of no person's choices has it room for even one, so that it is "
      "told no more than what they say of themselves."
    )
  return page.Section(
    "Contenders side by side",
    [text],
    [glance, *tables],
    numbers={"untrained": numbers, "contenders": lines},
  )


def ask(
  first: trained.Trained,
  base: base_lib.Base,
  dataset: dataset_lib.Dataset,
  answered: answers_lib.Answers,
) -> tuple[list[str], list[structs.PreferenceExample]]:
  """A few users who answered, and their prompts as the base reads them."""
  users = [name for name in answered.texts if name not in answers_lib.OTHERS]
  places = np.linspace(0, len(users) - 1, min(_PEOPLE, len(users)))
  users = [users[round(place)] for place in places]
  own = dataset.user_texts()
  examples = [
    structs.PreferenceExample(asked.prompt, "", ("",), user, own.get(user, ""))
    for user in users
    for asked in answered.prompts[:_PROMPTS]
  ]
  return users, untrained.tell(base, dataset, first.config, examples)


def find_texts(
  first: trained.Trained,
  policies: Sequence[trained.Trained],
  base: base_lib.Base,
  users: Sequence[str],
  told: Sequence[structs.PreferenceExample],
  answered: answers_lib.Answers,
) -> dict[str, Text]:
  """Answers of each contender to a few users and prompts, by its name.

  The base prompted is asked now, unless it was before; others were.

  Args:
    users, told: of `ask`.
  """
  if not users:
    return {}
  prompts = answered.prompts[:_PROMPTS]
  # The base and vanilla DPO answer everybody alike.
  speakers = {untrained.BASE: dict.fromkeys(users, "S")}
  for policy in policies:
    alike = policy.config.user.kind == "none"
    if policy.workdir == first.workdir and alike and "V" in answered.texts:
      speakers.setdefault(policy.name, dict.fromkeys(users, "V"))
  if first.config.user.kind != "none":
    speakers[first.name] = {user: user for user in users}
  seeds = [first.config.seed + place for place in range(len(prompts))]
  prompted = untrained.respond(
    base, first.config, first.workdir, told, seeds * len(users)
  )
  found = {
    name: _text(
      {user: answered.texts[who][:_PROMPTS] for user, who in of_user.items()},
      answered,
      answered.likelihoods
      and [
        answered.likelihoods[who].first(_PROMPTS) for who in of_user.values()
      ],
      first.config.answers.max_new_tokens,
    )
    for name, of_user in speakers.items()
  }
  if None not in prompted:
    by_user = {
      user: prompted[place * len(prompts) : (place + 1) * len(prompts)]
      for place, user in enumerate(users)
    }
    likely = answered.likelihoods and likelihoods_lib.under_base(
      base,
      prompts,
      by_user,
      first.config.data,
      first.config.train.logits_chunk,
      first.config.answers.max_new_tokens,
    )
    text = _text(
      by_user,
      answered,
      likely and [*likely.values()],
      first.config.answers.max_new_tokens,
    )
    base_first, *others = found.items()
    found = dict([base_first, (untrained.PROMPTED, text), *others])
  return found


def _text(
  by_user: Mapping[str, Sequence[str]],
  answered: answers_lib.Answers,
  likely: Sequence[likelihoods_lib.Likelihoods] | None,
  max_new_tokens: int,
) -> Text:
  if not likely:
    return Text(by_user, None)
  standard = text_health.Standard.of(
    answered.texts["S"], answered.likelihoods["S"]
  )
  health = standard.examine(
    [text for of_user in by_user.values() for text in of_user],
    likelihoods_lib.Likelihoods.joined(likely),
    max_new_tokens,
  )
  return Text(by_user, health)


def at_a_glance(
  ours: str,
  policies: Sequence[str],
  accuracies: report_accuracy.Findings,
  of_base: Mapping[str, Mapping[str, accuracy.Accuracy]],
  said: Mapping[str, Text],
  groups: Groups,
  rates: win_rates.ByPair | None,
) -> tuple[page.Table, list[dict[str, Any]]]:
  """A line for each contender, and the same as numbers.

  Args:
    ours: the run's own policy.
    policies: names of all that were trained.
    of_base: the base's accuracies by contender and split.
    said: of the contenders that answered a few people.
  """
  groups = {
    group: users
    for group, users in groups.items()
    if any(text.words(users) is not None for text in said.values())
  }
  columns = ["contender", "accuracy, mean over seen users"]
  if rates:
    columns.append(f"{ours} wins or ties against it, %")
  if said:
    columns += ["nats a token under the base", "repeated 3-grams, %"]
    columns += ["ended, %", "broken, %", "distance between users"]
    columns += [f"words, {group}" for group in groups] or ["words"]
  note = ""
  if said:
    few = next(iter(said.values())).by_user
    note = (
      f"Text: answers to {len(few)} people and the same "
      f"{len(next(iter(few.values())))} held-out prompts. {text_health.MEANING}"
    )
  table = page.Table(tuple(columns), note)
  lines = []
  for name in (*of_base, *reversed(policies)):
    if name in of_base:
      of_name = of_base[name].get("heldout")
    else:
      scored = accuracies.on("heldout").get(name)
      of_name = scored and scored.accuracy
    line: dict[str, Any] = {"name": name, "accuracy": None}
    cells = [name, "–"]
    if of_name and of_name.by_user:
      line["accuracy"] = of_name.users
      cells[1] = page.with_interval(of_name.users, of_name.interval())
    if rates:
      rate = rates.get((ours, name), {}).get("all users")
      line["our_win_rate"] = rate and rate.examples.rate
      cells.append(page.percent(line["our_win_rate"]))
    if said:
      text = said.get(name)
      cells += _text_cells(text, groups)
      if text:
        line["distance"] = text.distance
        line["text"] = text.health and dataclasses.asdict(text.health)
    lines.append(line)
    table.add(*cells)
  return table, lines


def _text_cells(text: Text | None, groups: Groups) -> list[str]:
  if text is None:
    return ["–"] * (5 + max(1, len(groups)))
  cells = ["–"] * 4
  if text.health:
    shares = text.health.repetition, text.health.ended, text.health.broken
    cells = [f"{text.health.log_likelihood:.2f}", *map(page.percent, shares)]
  means = [text.words(users) for users in groups.values()] or [
    text.words([*text.by_user])
  ]
  return [
    *cells,
    *("–" if x is None else f"{x:.2f}" for x in [text.distance]),
    *("–" if x is None else f"{x:.1f}" for x in means),
  ]


def _table(
  title: str,
  of_base: Mapping[str, Mapping[str, accuracy.Accuracy]],
  split: str,
  ours: accuracy.Accuracy,
  name_of_ours: str,
  numbers: list[dict[str, Any]],
) -> page.Table:
  """The base's accuracy on a split; adds to `numbers`."""
  table = page.Table((
    title,
    "accuracy, all pairs",
    "mean over users",
    f"{name_of_ours} beyond it, points",
  ))  # fmt: skip
  for name, by_split in of_base.items():
    found = by_split[split]
    numbers.append({"name": name, "part": split, **found.to_json()})
    mean, gain = "–", None
    if found.by_user:
      mean = page.with_interval(found.users, found.interval())
      gain = accuracy.gain(ours, found)
      numbers[-1]["beyond"] = dataclasses.asdict(gain)
    table.add(name, page.percent(found.pairs), mean, page.points(gain))
  return table
