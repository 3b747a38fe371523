"""Controls: what a result must do if it is personal, and what it must not."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from typing_extensions import TypedDict

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import sources
from pdpo_jax.evaluation import accuracy, user_space
from pdpo_jax.evaluation.report import accuracy as report_accuracy
from pdpo_jax.evaluation.report import page
from pdpo_jax.runs import trained


@dataclasses.dataclass(frozen=True)
class Flips:
  """Who was learnt the other way round once their choices were swapped.

  A user flips when their mean margin changes its sign between the two runs.

  Attributes:
    swapped: users whose choices were swapped, of those in both runs.
    flipped: how many of them flipped.
    others: users whose choices were left alone.
    others_flipped: how many of them flipped all the same.
  """

  swapped: int
  flipped: int
  others: int
  others_flipped: int


def flips(
  before: accuracy.Accuracy,
  after: accuracy.Accuracy,
  swapped: Collection[str],
) -> Flips:
  """Compares a run with one that was trained on swapped choices of some."""
  both = before.margin_by_user.keys() & after.margin_by_user.keys()
  flipped = {
    user
    for user in both
    if before.margin_by_user[user] * after.margin_by_user[user] < 0
  }
  of_swapped = both & set(swapped)
  others = both - of_swapped
  return Flips(
    len(of_swapped),
    len(flipped & of_swapped),
    len(others),
    len(flipped & others),
  )


class Numbers(TypedDict):
  """Of `report.json`."""

  shuffled: dict[str, dict[str, Any] | None]
  swapped: dict[str, dict[str, int]]
  group_agreement: float | None
  probes: dict[str, dict[str, Any]]


def section(
  policies: Sequence[trained.Trained],
  accuracies: report_accuracy.Findings,
  dataset: dataset_lib.Dataset,
  vectors: user_space.UserVectors | None,
) -> page.Section:
  """Each control that the runs at hand allow, with what it should show.

  Args:
    policies: of which the first is the run's own.
  """
  table = page.Table(
    ("control", "found", "expected of a personal result"),
    "Runs with --config.data.shuffle_users=True and with "
    "--config.data.swap_choices=0.3 add the first two, by --against.",
    numbers=False,
  )
  tastes = {user: "short" for user in dataset.short_users}
  tastes |= {user: "long" for user in dataset.long_users}
  numbers = Numbers(
    shuffled=_shuffled(table, policies, accuracies),
    swapped=_swapped(table, policies, accuracies, dataset),
    group_agreement=None,
    probes={},
  )
  _oracle(table, policies[0].name, accuracies, tastes)
  if vectors:
    numbers["group_agreement"] = _agreement(table, vectors, tastes)
    numbers["probes"] = _probes(table, vectors, dataset, tastes)
  return page.Section(
    "Controls",
    tables=[table] if table.lines else [],
    numbers={"controls": numbers},
  )


def _shuffled(
  table: page.Table,
  policies: Sequence[trained.Trained],
  accuracies: report_accuracy.Findings,
) -> dict[str, dict[str, Any] | None]:
  """The gain of each run whose users were shuffled; None without a baseline."""
  gains = {}
  for policy in policies:
    scored = accuracies.on("heldout").get(policy.name)
    if not (scored and policy.is_own and policy.control == trained.SHUFFLED):
      continue
    gain, run = scored.gain, policy.workdir.name
    gains[run] = gain and {"gain": gain.mean, "interval": gain.interval}
    beyond = f"{page.points(gain)} points beyond {accuracies.baseline}"
    table.add(
      f"user ids shuffled in training ({run})",
      beyond if gain else "needs a vanilla run (--against)",
      "about 0: nothing personal is left to learn",
    )
  return gains


def _swapped(
  table: page.Table,
  policies: Sequence[trained.Trained],
  accuracies: report_accuracy.Findings,
  dataset: dataset_lib.Dataset,
) -> dict[str, dict[str, int]]:
  """Who flipped in each run in which choices of some were swapped."""
  if policies[0].control:
    return {}
  flipped = {}
  seen = accuracies.on("heldout")
  for policy in policies:
    scored = seen.get(policy.name)
    if not (scored and policy.is_own and policy.control == trained.SWAPPED):
      continue
    turned = flips(
      seen[policies[0].name].accuracy,
      scored.accuracy,
      sources.swapped_users(
        policy.config.data, policy.config.seed, dataset.train
      ),
    )
    run = policy.workdir.name
    flipped[run] = dataclasses.asdict(turned)
    table.add(
      f"choices of some users swapped in training ({run})",
      f"{turned.flipped} of {turned.swapped} flipped, and "
      f"{turned.others_flipped} of {turned.others} others",
      "all of them, and none of the others",
    )
  return flipped


def _oracle(
  table: page.Table,
  name: str,
  accuracies: report_accuracy.Findings,
  tastes: Mapping[str, str],
) -> None:
  scored = accuracies.on("heldout").get(name)
  best = accuracies.oracles.get("heldout")
  learnt = scored and scored.accuracy.of(tastes)
  if best and learnt:
    table.add(
      "accuracy of who knows each seen user's taste",
      f"{page.percent(best)}, and {page.percent(learnt)} learnt",
      "the same",
    )


def _agreement(
  table: page.Table,
  vectors: user_space.UserVectors,
  tastes: Mapping[str, str],
) -> float | None:
  """How well groups are found again, where all users' tastes are known."""
  labels = [tastes.get(user) for user in vectors.ids]
  count = len(set(labels))
  if None in labels or count < 2:
    return None
  groups = user_space.recover_groups(vectors.features, count)
  agreement = user_space.group_agreement(groups, labels)
  table.add(
    f"{count} groups of users found from embeddings alone",
    f"adjusted Rand index {agreement:.2f}",
    "1 for the true groups, 0 for chance",
  )
  return agreement


def _probes(
  table: page.Table,
  vectors: user_space.UserVectors,
  dataset: dataset_lib.Dataset,
  tastes: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
  """What is known of users that embeddings may tell."""
  facts = []
  for user in vectors.ids:
    persona = dataset.personas.get(user)
    facts.append(dict(persona.facts) if persona else {})
    if user in tastes:
      facts[-1]["taste in length"] = tastes[user]
  probes = {}
  for name in dict.fromkeys(name for of_user in facts for name in of_user):
    labels = [of_user.get(name) for of_user in facts]
    probe = user_space.probe(vectors.features, labels)
    if probe:
      probes[name] = dataclasses.asdict(probe)
      table.add(
        f"embeddings tell “{name}” ({probe.users:,} users, "
        f"{len(probe.classes)} classes)",
        f"balanced accuracy {page.percent(probe.accuracy)}, "
        f"p = {probe.p_value:.3f}",
        f"{page.percent(probe.chance)} is chance",
      )
  return probes
