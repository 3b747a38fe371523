"""The report's figures, as PNG.

Names are data: no figure takes a name for mathematics, sees two equal ones as
one, or loses its shape to a long one. Nothing here depends on matplotlib's
settings of whoever runs it, or on its global state.
"""

import contextlib
import functools
import io
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
import matplotlib.figure
import matplotlib.style
import numpy as np
from jaxtyping import Float
from matplotlib import axes as mpl_axes
from matplotlib import font_manager, patches

from pdpo_jax.core import display
from pdpo_jax.evaluation import comparison, lengths

_BLUE, _ORANGE, _GREEN, _GRAY = "#3c78b4", "#d9822b", "#5aa469", "#5f6368"
_LIGHT_GRAY = "#9aa0a6"
# More names than this along an axis cannot be read.
_MOST_NAMES = 60
# Characters of a name; and inches, which matplotlib needs a limit for too.
_LONGEST_NAME, _LARGEST = 24, 40.0
# Matplotlib's own, so that it is there everywhere.
_FONT = "DejaVu Sans"


def accuracies(rows: Sequence[comparison.Row]) -> bytes:
  """Mean accuracy over users with its interval, a line a policy and part."""
  rows = [row for row in rows if row.users > 1]
  colors = {"heldout": _BLUE, "unseen": _ORANGE}
  with _chart(7.2, 1.1 + 0.36 * len(rows)) as (axes, png):
    for place, row in enumerate(rows):
      low, high = row.accuracy.interval()
      axes.plot([low, high], [place] * 2, color=colors[row.part], linewidth=2)
      axes.plot(row.accuracy.users, place, "o", color=colors[row.part])
    axes.axvline(0.5, color=_GRAY, linestyle=":", linewidth=1)
    axes.set_yticks(
      range(len(rows)),
      [f"{_name(row.name, 60)} · {comparison.PARTS[row.part]}" for row in rows],
      fontsize=8,
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("reward accuracy, mean over users with 95% interval")
  return png.getvalue()


def by_user(ours: comparison.Row, baseline: comparison.Row) -> bytes:
  """Each user's accuracy against the baseline's."""
  users = list(ours.accuracy.by_user)
  x = np.array([baseline.accuracy.by_user[each] for each in users])
  y = np.array([ours.accuracy.by_user[each] for each in users])
  low = min(x.min(), y.min()) - 0.03
  with _chart(4.6, 4.4) as (axes, png):
    axes.plot([low, 1.02], [low, 1.02], color=_GRAY, linestyle=":", linewidth=1)
    colors = np.where(y > x, _GREEN, np.where(y < x, _ORANGE, _GRAY))
    axes.scatter(x, y, s=22, color=colors, alpha=0.85, linewidths=0)
    if len(users) <= 12:
      _name_points(axes, users, x, y)
    axes.set_xlabel(f"{_name(baseline.name)}, accuracy")
    axes.set_ylabel(f"{_name(ours.name)}, accuracy")
    above, below = int((y > x).sum()), int((y < x).sum())
    axes.set_title(
      f"each user: {above} above the line, {below} below",
      fontsize=9,
      loc="left",
    )
  return png.getvalue()


def words(
  lengths_of: Mapping[str, lengths.Words], short_users: Sequence[str]
) -> bytes:
  """Figure 3 of arXiv:2402.05133: mean words, a bar a speaker.

  Args:
    lengths_of: by speaker; "S", "V" and "G" are no users.
    short_users: who is known to prefer the shorter of two answers.
  """
  speakers = list(lengths_of)
  colors = {"S": _LIGHT_GRAY, "V": _GRAY, "G": _BLUE}
  shades = [
    colors.get(speaker, _ORANGE if speaker in short_users else _GREEN)
    for speaker in speakers
  ]
  means = [each.mean for each in lengths_of.values()]
  errors = [each.standard_error for each in lengths_of.values()]
  top = max(m + e for m, e in zip(means, errors, strict=True)) or 1.0
  names = [_name(speaker) for speaker in speakers]
  # Short names lie side by side, and others stand below the bars.
  longest = max(map(len, names))
  upright = 0 if longest <= 6 else 0.07 * longest
  width = max(6.0, 0.55 * len(speakers) + 1.5)
  with _chart(width, 3.6 + upright) as (axes, png):
    places = range(len(speakers))
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
        [patches.Patch(color=_ORANGE), patches.Patch(color=_GREEN)],
        ["prefers short", "prefers long"],
        frameon=False,
        fontsize=8,
        # Above the bars, whose heights are not known.
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=2,
      )
  return png.getvalue()


def cosines(
  ids: Sequence[str],
  cosines: Float[np.ndarray, "users users"],
) -> bytes:
  """A map of cosines between users, in the given order."""
  size = min(8.0, 2.6 + 0.12 * len(ids))
  with _chart(size + 0.9, size) as (axes, png):
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    _name_ticks(axes, ids, "xy")
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="cosine")
  return png.getvalue()


def projection(
  ids: Sequence[str],
  places: Float[np.ndarray, "users 2"],
  share: float,
  groups: Mapping[str, Sequence[str]],
) -> bytes:
  """Users in the plane of the two principal components, colored by group."""
  colors = [_ORANGE, _GREEN]
  shades = np.array([_BLUE] * len(ids), dtype=object)
  with _chart(5.4, 4.2) as (axes, png):
    for color, (group, users) in zip(colors, groups.items(), strict=False):
      members = [place for place, each in enumerate(ids) if each in users]
      shades[members] = color
      axes.scatter([], [], color=color, label=group, s=20)
    axes.scatter(places[:, 0], places[:, 1], s=20, c=list(shades), linewidths=0)
    if len(ids) <= 30:
      _name_points(axes, ids, *places.T)
    if groups:
      axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(f"first of two components ({share:.0%} of the variance)")
    axes.set_ylabel("second")
  return png.getvalue()


def cluster_weights(
  ids: Sequence[str],
  weights: Float[np.ndarray, "users C"],
) -> bytes:
  """Heat map: a row a user, a column a cluster."""
  height = min(9.0, 1.6 + 0.16 * len(ids))
  width = min(10.0, 2.6 + 0.28 * weights.shape[1])
  most = float(np.abs(weights).max()) or 1.0
  with _chart(width, height) as (axes, png):
    image = axes.imshow(
      weights, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto"
    )
    _name_ticks(axes, ids, "y")
    axes.set_xlabel("cluster")
    axes.figure.colorbar(image, ax=axes, label="weight")
  return png.getvalue()


@contextlib.contextmanager
def _chart(
  width: float, height: float
) -> Iterator[tuple[mpl_axes.Axes, io.BytesIO]]:
  """Axes to draw in, and what has the PNG once the context is left."""
  settings = ["default", {"text.parse_math": False, "font.family": [_FONT]}]
  png = io.BytesIO()
  with matplotlib.style.context(settings, after_reset=True):
    size = min(width, _LARGEST), min(height, _LARGEST)
    chart = matplotlib.figure.Figure(size, dpi=150, layout="tight")
    axes = chart.subplots()
    yield axes, png
    axes.spines[["top", "right"]].set_visible(False)
    chart.savefig(png, format="png")


def _name(text: str, longest: int = _LONGEST_NAME) -> str:
  """A name of which every character has a picture."""
  drawable = "".join(
    character if ord(character) in _drawable() else display.escaped(character)
    for character in text
  )
  return display.name(drawable, longest)


@functools.cache
def _drawable() -> frozenset[int]:
  file = font_manager.findfont(_FONT)
  return frozenset(font_manager.get_font(file).get_charmap())


def _name_points(axes, names, xs, ys) -> None:
  for name, x, y in zip(names, xs, ys, strict=True):
    axes.annotate(
      _name(name), (x, y), (4, 3), textcoords="offset points", fontsize=7
    )


def _name_ticks(axes, ids: Sequence[str], directions: str) -> None:
  shown = ids if len(ids) <= _MOST_NAMES else []
  names = [_name(each) for each in shown]
  if "x" in directions:
    axes.set_xticks(range(len(names)), names, fontsize=6, rotation=90)
  axes.set_yticks(range(len(names)), names, fontsize=6)
