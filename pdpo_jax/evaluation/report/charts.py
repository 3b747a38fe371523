"""What the report's figures have in common: PNGs that bear any name.

Names are data: no figure takes a name for mathematics, sees two equal ones as
one, or loses its shape to a long one. Nothing here depends on matplotlib's
settings of whoever runs it, or on its global state.
"""

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence

import matplotlib
import matplotlib.figure
import matplotlib.style
import numpy as np
from jaxtyping import Float
from matplotlib import axes as mpl_axes
from matplotlib import font_manager

from pdpo_jax.core import display

BLUE, ORANGE, GREEN, GRAY = "#3c78b4", "#d9822b", "#5aa469", "#5f6368"
LIGHT_GRAY = "#9aa0a6"
# More names than this along an axis cannot be read.
_MOST_NAMES = 60
# Characters of a name; and inches, which matplotlib needs a limit for too.
_LONGEST_NAME, _LARGEST = 24, 40.0
# Matplotlib's own, so that it is there everywhere.
_FONT = "DejaVu Sans"


@contextlib.contextmanager
def chart(
  width: float, height: float
) -> Iterator[tuple[mpl_axes.Axes, io.BytesIO]]:
  """Axes to draw in, and what has the PNG once the context is left."""
  settings = ["default", {"text.parse_math": False, "font.family": [_FONT]}]
  png = io.BytesIO()
  with matplotlib.style.context(settings, after_reset=True):
    size = min(width, _LARGEST), min(height, _LARGEST)
    figure = matplotlib.figure.Figure(size, dpi=150, layout="tight")
    axes = figure.subplots()
    yield axes, png
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, format="png")


def name(text: str, longest: int = _LONGEST_NAME) -> str:
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


def name_points(
  axes: mpl_axes.Axes,
  names: Sequence[str],
  xs: Float[np.ndarray, " points"],
  ys: Float[np.ndarray, " points"],
) -> None:
  for text, x, y in zip(names, xs, ys, strict=True):
    axes.annotate(
      name(text), (x, y), (4, 3), textcoords="offset points", fontsize=7
    )


def name_ticks(
  axes: mpl_axes.Axes, ids: Sequence[str], directions: str
) -> None:
  """Names along the axes `directions`, "y" or "xy", where there is room."""
  shown = ids if len(ids) <= _MOST_NAMES else []
  names = [name(text) for text in shown]
  if "x" in directions:
    axes.set_xticks(range(len(names)), names, fontsize=6, rotation=90)
  axes.set_yticks(range(len(names)), names, fontsize=6)
