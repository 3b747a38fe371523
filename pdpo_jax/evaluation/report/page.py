"""A page that can be shown to others: HTML, Markdown and JSON.

A report is a list of sections with paragraphs, tables and figures, and numbers
for `report.json`. One template each turns it into a page and into Markdown. The
page holds its figures, so that it opens anywhere, without a network. Names of
users, runs and facts are data, and no markup.

What took hours is not lost to a figure: a section or a figure that cannot be
made leaves a note.
"""

import base64
import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from pdpo_jax.core import display, kept, processes
from pdpo_jax.evaluation import accuracy, statistics

logger = logging.getLogger(__name__)

# What people open.
PAGE = "index.html"

_TEMPLATES = pathlib.Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Table:
  """Lines of cells as they are shown, of which the first is a name.

  Attributes:
    note: what a reader must know to read it.
    numbers: whether the cells after the first are, or else text.
  """

  columns: tuple[str, ...]
  note: str = ""
  numbers: bool = True
  lines: list[tuple[str, ...]] = dataclasses.field(default_factory=list)

  def add(self, *cells: str) -> None:
    """Adds a line of cells.

    Raises:
      ValueError: if it is not as wide as the table.
    """
    if len(cells) != len(self.columns):
      raise ValueError(f"{len(self.columns)} columns, and a row {cells}")
    self.lines.append(cells)


@dataclasses.dataclass(frozen=True)
class Figure:
  """A PNG.

  Attributes:
    name: of its file, without a suffix.
    problem: why there is none.
  """

  name: str
  caption: str
  png: bytes
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
  """Part of a report; what is empty is left out.

  Attributes:
    numbers: by their names in `report.json`.
    problem: why there is nothing but a title.
  """

  title: str
  text: list[str] = dataclasses.field(default_factory=list)
  tables: list[Table] = dataclasses.field(default_factory=list)
  figures: list[Figure] = dataclasses.field(default_factory=list)
  numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  problem: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
  """What `write` writes.

  Attributes:
    verdict: the first thing to be read.
    sections: in their order; empty ones are left out.
    numbers: besides those of sections, for `report.json`.
  """

  title: str
  verdict: str
  sections: list[Section]
  numbers: Mapping[str, Any]


def section_or_note(title: str, make: Callable[[], Section]) -> Section:
  """A section as it is made, or else one that says why it could not be.

  For what describes and shows results. What results hang on is no part of
  `make`, since its errors have to stop the command.
  """
  try:
    return make()
  except Exception as error:
    return Section(title, problem=_problem(f"Section {title!r}", error))


def figure_or_note(
  name: str, caption: str, draw: Callable[[], bytes]
) -> Figure:
  """A figure as it is drawn, or else one that says why it could not be."""
  try:
    return Figure(name, caption, draw())
  except Exception as error:
    return Figure(name, caption, b"", _problem(f"Figure {name!r}", error))


def _problem(subject: str, error: Exception) -> str:
  """What the report says of what is missing; the log has the traceback."""
  if isinstance(error, kept.Damaged) or (
    processes.several() and processes.is_broken_off(error)
  ):
    raise error
  logger.error("%s of the report could not be made", subject, exc_info=error)
  return (
    f"{subject} could not be made ({type(error).__name__}: {error}). "
    "The rest of the report does not hang on it."
  )


def write(folder: pathlib.Path, report: Report) -> list[str]:
  """Writes `index.html`, `report.md`, `report.json` and the figures.

  Returns:
    What is wrong with sections and figures that could not be made, or that a
    template could not render.
  """
  templates = [_template(name) for name in ("report.md", "report.html")]
  numbers = dict(report.numbers)
  for section in report.sections:
    numbers |= section.numbers
  sections = [
    _rendered(section, report, templates)
    for section in report.sections
    if section.text or section.tables or section.figures or section.problem
  ]
  report = dataclasses.replace(report, sections=sections)
  problems = [
    part.problem
    for section in report.sections
    for part in (section, *section.figures)
    if part.problem
  ]
  if problems:
    numbers["problems"] = problems
  numbers = json.dumps(
    _plain(numbers), indent=2, ensure_ascii=False, allow_nan=False
  )
  text, page = (template.render(report=report) for template in templates)
  for section in report.sections:
    for figure in section.figures:
      if figure.png:
        kept.write(folder / "figures" / f"{figure.name}.png", figure.png)
  # Half a character is no text, but can be escaped.
  kept.write(
    folder / "report.json", f"{numbers}\n".encode(errors="backslashreplace")
  )
  kept.write(folder / "report.md", text)
  kept.write(folder / PAGE, page)
  return problems


def _rendered(
  section: Section, report: Report, templates: Sequence[jinja2.Template]
) -> Section:
  """The section, or what says why no template renders it."""

  def check() -> Section:
    for template in templates:
      template.render(report=dataclasses.replace(report, sections=[section]))
    return section

  return section_or_note(section.title, check)


def _plain(value: Any) -> Any:
  """A value as JSON has it, where a number that is none is null."""
  if isinstance(value, np.generic | np.ndarray):
    value = value.tolist()
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  return (
    None if isinstance(value, float) and not math.isfinite(value) else value
  )


def _template(name: str) -> jinja2.Template:
  is_page = name.endswith(".html")
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=is_page,
    # In Markdown, that is a filter's work.
    finalize=(lambda value: display.visible(str(value))) if is_page else None,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters["data_url"] = _data_url
  environment.filters["text"] = display.markdown
  return environment.get_template(name)


def percent(value: float | None) -> str:
  known = value is not None and math.isfinite(value)
  return f"{100 * value:.1f}" if known else "–"


def with_interval(
  value: float | None, interval: statistics.Interval | None
) -> str:
  """In percent."""
  if value is None or interval is None:
    return percent(value)
  low, high = interval
  return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def points(gain: accuracy.Gain | None) -> str:
  """A gain in percentage points, with its interval."""
  if gain is None:
    return "–"
  low, high = gain.interval
  return f"{100 * gain.mean:+z.1f} [{100 * low:+z.1f}, {100 * high:+z.1f}]"


def _data_url(png: bytes) -> str:
  return f"data:image/png;base64,{base64.b64encode(png).decode()}"
