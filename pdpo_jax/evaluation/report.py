"""A report that can be shown to others: HTML, Markdown and JSON.

A report is a list of sections with paragraphs, tables and figures; one template
each turns it into a page and into Markdown. The page holds its figures, so that
it opens anywhere, without a network.
"""

import base64
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2

_TEMPLATES = pathlib.Path(__file__).parent / "templates"


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells as they are shown; the first column names the rows.

  Attributes:
    note: what a reader must know to read it.
    numbers: whether the cells after the first are, or else text.
  """

  columns: tuple[str, ...]
  rows: list[tuple[str, ...]]
  note: str = ""
  numbers: bool = True

  def __post_init__(self):
    for row in self.rows:
      if len(row) != len(self.columns):
        raise ValueError(f"{len(self.columns)} columns, and a row {row}")


@dataclasses.dataclass(frozen=True)
class Figure:
  """A PNG in the report's folder of figures."""

  file: pathlib.Path
  caption: str


@dataclasses.dataclass(frozen=True)
class Section:
  """Part of a report; what is empty is left out."""

  title: str
  text: list[str] = dataclasses.field(default_factory=list)
  tables: list[Table] = dataclasses.field(default_factory=list)
  figures: list[Figure] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Report:
  """What `write` writes.

  Attributes:
    verdict: the first thing to be read.
    sections: in their order.
    findings: every number, for `report.json`.
  """

  title: str
  verdict: str
  sections: list[Section]
  findings: Mapping[str, Any]


def write(folder: pathlib.Path, report: Report) -> pathlib.Path:
  """Writes `index.html`, `report.md` and `report.json`.

  Args:
    folder: holds, or its subfolders hold, the figures.

  Returns:
    The page.
  """
  folder.mkdir(parents=True, exist_ok=True)
  findings = json.dumps(report.findings, indent=2, ensure_ascii=False) + "\n"
  (folder / "report.json").write_text(findings)
  page = folder / "index.html"
  for file, template in (
    (page, "report.html"),
    (folder / "report.md", "report.md"),
  ):
    file.write_text(_environment(folder, template).render(report=report))
  return page


def _environment(folder: pathlib.Path, name: str) -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_TEMPLATES),
    autoescape=name.endswith(".html"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters["data_url"] = _data_url
  environment.filters["beside"] = lambda file: file.relative_to(folder)
  environment.filters["cell"] = _cell
  return environment.get_template(name)


def _cell(text: str) -> str:
  """In Markdown, a cell is one line."""
  return " ".join(text.split()).replace("|", "\\|")


def _data_url(file: pathlib.Path) -> str:
  encoded = base64.b64encode(file.read_bytes()).decode()
  return f"data:image/png;base64,{encoded}"
