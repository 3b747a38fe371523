"""The report's figures, as PNG."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")

from jaxtyping import Float
from matplotlib import pyplot

from pdpo_jax import processes
from pdpo_jax.evaluation import comparison

_BLUE, _ORANGE, _GREEN, _GRAY = "#3c78b4", "#d9822b", "#5aa469", "#5f6368"
# More names than this along an axis cannot be read.
_MOST_NAMES = 60


def accuracies(file: pathlib.Path, rows: Sequence[comparison.Row]) -> None:
  """Mean accuracy over users with its interval, a line a policy and part."""
  rows = [row for row in rows if row.users > 1]
  chart, axes = pyplot.subplots(figsize=(7.2, 1.1 + 0.36 * len(rows)), dpi=150)
  colors = {"heldout": _BLUE, "unseen": _ORANGE}
  for place, row in enumerate(rows):
    low, high = row.accuracy.interval()
    axes.plot([low, high], [place] * 2, color=colors[row.part], linewidth=2)
    axes.plot(row.accuracy.users, place, "o", color=colors[row.part])
  axes.axvline(0.5, color=_GRAY, linestyle=":", linewidth=1)
  axes.set_yticks(
    range(len(rows)),
    [f"{row.name} · {comparison.PARTS[row.part]}" for row in rows],
    fontsize=8,
  )
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set_xlabel("reward accuracy, mean over users with 95% interval")
  _save(chart, axes, file)


def by_user(
  file: pathlib.Path, ours: comparison.Row, baseline: comparison.Row
) -> None:
  """Each user's accuracy against the baseline's."""
  chart, axes = pyplot.subplots(figsize=(4.6, 4.4), dpi=150)
  users = list(ours.accuracy.by_user)
  x = np.array([baseline.accuracy.by_user[each] for each in users])
  y = np.array([ours.accuracy.by_user[each] for each in users])
  low = min(x.min(), y.min()) - 0.03
  axes.plot([low, 1.02], [low, 1.02], color=_GRAY, linestyle=":", linewidth=1)
  colors = np.where(y > x, _GREEN, np.where(y < x, _ORANGE, _GRAY))
  axes.scatter(x, y, s=22, color=colors, alpha=0.85, linewidths=0)
  if len(users) <= 12:
    _name_points(axes, users, x, y)
  axes.set_xlabel(f"{baseline.name}, accuracy")
  axes.set_ylabel(f"{ours.name}, accuracy")
  above, below = int((y > x).sum()), int((y < x).sum())
  axes.set_title(
    f"each user: {above} above the line, {below} below", fontsize=9, loc="left"
  )
  _save(chart, axes, file)


def cosines(
  file: pathlib.Path,
  ids: Sequence[str],
  cosines: Float[np.ndarray, "users users"],
) -> None:
  """A map of cosines between users, in the given order."""
  size = min(8.0, 2.6 + 0.12 * len(ids))
  chart, axes = pyplot.subplots(figsize=(size + 0.9, size), dpi=150)
  image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
  _name_ticks(axes, ids, "xy")
  chart.colorbar(image, ax=axes, shrink=0.8, label="cosine")
  _save(chart, axes, file)


def projection(
  file: pathlib.Path,
  ids: Sequence[str],
  places: Float[np.ndarray, "users 2"],
  share: float,
  groups: Mapping[str, Sequence[str]],
) -> None:
  """Users in the plane of the two principal components, colored by group."""
  chart, axes = pyplot.subplots(figsize=(5.4, 4.2), dpi=150)
  colors = [_ORANGE, _GREEN]
  shades = np.array([_BLUE] * len(ids), dtype=object)
  for color, (name, users) in zip(colors, groups.items(), strict=False):
    own = [place for place, each in enumerate(ids) if each in users]
    shades[own] = color
    axes.scatter([], [], color=color, label=name, s=20)
  axes.scatter(places[:, 0], places[:, 1], s=20, c=list(shades), linewidths=0)
  if len(ids) <= 30:
    _name_points(axes, ids, *places.T)
  if groups:
    axes.legend(frameon=False, fontsize=8)
  axes.set_xlabel(f"first of two components ({share:.0%} of the variance)")
  axes.set_ylabel("second")
  _save(chart, axes, file)


def cluster_weights(
  file: pathlib.Path,
  ids: Sequence[str],
  weights: Float[np.ndarray, "users C"],
) -> None:
  """Heat map: a row a user, a column a cluster."""
  height = min(9.0, 1.6 + 0.16 * len(ids))
  width = min(10.0, 2.6 + 0.28 * weights.shape[1])
  chart, axes = pyplot.subplots(figsize=(width, height), dpi=150)
  most = float(np.abs(weights).max()) or 1.0
  image = axes.imshow(
    weights, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto"
  )
  _name_ticks(axes, ids, "y")
  axes.set_xlabel("cluster")
  chart.colorbar(image, ax=axes, label="weight")
  _save(chart, axes, file)


def _name_points(axes, names, xs, ys) -> None:
  for name, x, y in zip(names, xs, ys, strict=True):
    axes.annotate(name, (x, y), (4, 3), textcoords="offset points", fontsize=7)


def _name_ticks(axes, ids: Sequence[str], directions: str) -> None:
  ticks = range(len(ids)) if len(ids) <= _MOST_NAMES else []
  names = ids if len(ids) <= _MOST_NAMES else []
  if "x" in directions:
    axes.set_xticks(ticks, names, fontsize=6, rotation=90)
  axes.set_yticks(ticks, names, fontsize=6)


def _save(chart, axes, file: pathlib.Path) -> None:
  axes.spines[["top", "right"]].set_visible(False)
  chart.tight_layout()
  if processes.is_first():
    file.parent.mkdir(parents=True, exist_ok=True)
    chart.savefig(file)
  pyplot.close(chart)
