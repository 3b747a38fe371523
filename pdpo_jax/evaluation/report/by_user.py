"""Seen users one by one: how accurate the run's policy is for each."""

import numpy as np

from pdpo_jax.evaluation.report import accuracy, charts, page

# Of users at either end of a table of them.
_LISTED = 10


def section(accuracies: accuracy.Findings) -> page.Section:
  """Of the run's policy, beside what it is compared with."""
  seen = accuracies.on("heldout")
  ours, baseline = seen.get(accuracies.name), seen.get(accuracies.baseline)
  if not ours or not ours.users:
    return page.Section("Users one by one")
  if baseline is ours:
    baseline = None
  figures = []
  if baseline:
    figures.append(
      page.figure_or_note(
        "by_user",
        f"Seen users one by one: {ours.name} against {baseline.name}.",
        lambda: draw_users(ours, baseline),
      )
    )
  return page.Section("Users one by one", [], [_table(ours, baseline)], figures)


def _table(
  ours: accuracy.Scored, baseline: accuracy.Scored | None
) -> page.Table:
  """Users one by one, the least accurate first; of many, both ends."""
  users = sorted(ours.accuracy.by_user, key=ours.accuracy.by_user.get)
  note = (
    "Brackets are 95% intervals by the number of a user's choices (Wilson); "
    "of most users, a few choices tell little."
  )
  if len(users) > 2 * _LISTED:
    note += (
      f" The {_LISTED} least and the {_LISTED} most accurate of "
      f"{len(users):,}; report.json has all."
    )
    users = users[:_LISTED] + users[-_LISTED:]
  policies = [ours, baseline] if baseline else [ours]
  columns = ("seen user", "choices", *(policy.name for policy in policies))
  table = page.Table(columns, note)
  for user in users:
    table.add(
      user,
      f"{ours.accuracy.examples_by_user[user]:,}",
      *(
        page.with_interval(
          policy.accuracy.by_user[user], policy.accuracy.user_interval(user)
        )
        for policy in policies
      ),
    )
  return table


def draw_users(ours: accuracy.Scored, baseline: accuracy.Scored) -> bytes:
  """Each user's accuracy against the baseline's."""
  users = list(ours.accuracy.by_user)
  x = np.array([baseline.accuracy.by_user[user] for user in users])
  y = np.array([ours.accuracy.by_user[user] for user in users])
  low = min(x.min(), y.min()) - 0.03
  diagonal = [low, 1.02]
  with charts.chart(4.6, 4.4) as (axes, png):
    axes.plot(diagonal, diagonal, color=charts.GRAY, linestyle=":", linewidth=1)
    colors = np.where(y < x, charts.ORANGE, charts.GRAY)
    colors = np.where(y > x, charts.GREEN, colors)
    axes.scatter(x, y, s=22, color=colors, alpha=0.85, linewidths=0)
    if len(users) <= 12:
      charts.name_points(axes, users, x, y)
    axes.set_xlabel(f"{charts.name(baseline.name)}, accuracy")
    axes.set_ylabel(f"{charts.name(ours.name)}, accuracy")
    above, below = int((y > x).sum()), int((y < x).sum())
    axes.set_title(
      f"each user: {above} above the line, {below} below",
      fontsize=9,
      loc="left",
    )
  return png.getvalue()
