"""What a report shows is text, whoever wrote it, and one fault costs a note."""

import html.parser
import json
import stat

import markdown_it
import pytest

from pdpo_jax.evaluation.report import page
from tests.evaluation import hostile

PNG = b"\x89PNG\r\n\x1a\n"


class Page(html.parser.HTMLParser):
  """Tags that are open, sources of images, and text."""

  def __init__(self, text):
    super().__init__()
    self.open, self.sources, self.links, self.text = [], [], [], ""
    self.tags = set()
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    values = dict(attrs)
    self.links += [values[k] for k in ("href", "src") if k in values]
    assert not any(name.startswith("on") for name in values)
    if tag == "img":
      self.sources.append(values["src"])
    if tag not in ("meta", "img", "link"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def report_of(name):
  """One that has a name wherever one can be."""
  numbers = page.Table((name, "words"), name)
  numbers.add("ann", name)
  numbers.add(name, "3.0\nof 4")
  words = page.Table(("a", "b"), numbers=False)
  words.add("c", name)
  section = page.Section(
    f"Of {name}",
    [name, f"A <b>paragraph</b> of {name}."],
    [numbers, words],
    [
      page.Figure("words", name, PNG),
      page.Figure("none", name, b"", f"not drawn: {name}"),
    ],
  )
  note = page.Section(name, problem=name)
  return page.Report(name, name, [section, note], {"words": {name: 3.0}})


def written(folder, name):
  page.write(folder, report_of(name))
  parsed = (folder / "index.html").read_text(encoding="utf-8")
  return Page(parsed), (folder / "report.md").read_text(encoding="utf-8")


def test_the_page_holds_everything_and_loads_nothing(tmp_path):
  parsed, _ = written(tmp_path, "ann")
  assert parsed.open == []
  assert len(parsed.sources) == 1
  assert parsed.sources[0].startswith("data:image/png;base64,iVBOR")
  assert all(link.startswith(("data:", "#")) for link in parsed.links)
  assert "default-src 'none'" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("name", hostile.NAMES)
def test_names_are_text_in_the_page(name, tmp_path):
  parsed, _ = written(tmp_path, name)
  plain, _ = written(tmp_path, "ann")
  assert parsed.open == []
  assert parsed.tags == plain.tags
  assert len(parsed.sources) == 1
  assert all(link.startswith(("data:", "#")) for link in parsed.links)
  # No character that nobody sees, or that turns others round.
  assert all(each.isprintable() or each == "\n" for each in parsed.text)
  shown = name.encode("unicode_escape").decode()
  assert name in parsed.text or shown in parsed.text.replace("\n", r"\n")


@pytest.mark.parametrize("name", hostile.NAMES)
def test_names_are_text_in_markdown(name, tmp_path):
  _, text = written(tmp_path, name)
  _, plain = written(tmp_path, "ann")
  reader = markdown_it.MarkdownIt("commonmark").enable(
    ["table", "strikethrough"]
  )

  def kinds(text):
    tokens = reader.parse(text)
    return [
      inner.type
      for token in tokens
      for inner in (token, *(token.children or ()))
    ]

  assert kinds(text) == kinds(plain)
  html_page = Page(reader.render(text))
  words = html_page.text.replace("\n", " ")
  # Lines are joined; what is unseen is an escape.
  shown = " ".join(name.replace("\n", " ").split())
  escaped = shown.encode("unicode_escape").decode().replace("\\\\", "\\")
  assert shown in words or escaped in words
  assert all(each.isprintable() or each == "\n" for each in text)


def test_markdown_names_figures_beside_it(tmp_path):
  _, text = written(tmp_path, "words & users")
  assert "![words &amp; users](figures/words.png)" in text
  assert "| words &amp; users | 3.0 of 4 |" in text
  assert (tmp_path / "figures" / "words.png").read_bytes()[1:4] == b"PNG"
  assert "\n\n\n\n" not in text


@pytest.mark.parametrize("name", ["ä", *hostile.NAMES])
def test_numbers_are_kept_under_the_very_name(name, tmp_path):
  page.write(tmp_path, report_of(name))
  found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
  assert found["words"] == {name: 3.0}


def test_a_number_that_is_none_is_null_as_in_all_json(tmp_path):
  findings = {"a": [float("nan"), float("inf")], "b": (1.5, 2, True, "nan")}
  page.write(tmp_path, page.Report("Run", "Yes.", [], findings))
  found = json.loads((tmp_path / "report.json").read_text())
  assert found == {"a": [None, None], "b": [1.5, 2, True, "nan"]}


def test_only_the_owner_may_read_a_report(tmp_path):
  folder = tmp_path / "run" / "report"
  page.write(folder, report_of("ann"))
  modes = {
    stat.S_IMODE(each.stat().st_mode)
    for each in folder.rglob("*")
    if each.is_file()
  }
  assert modes == {0o600}
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_no_template_can_render_leaves_a_note(tmp_path, caplog):
  bad = page.Section("Bad", ["So it is."])
  bad.text.append(None)
  good = page.Section("Good", ["All is well."])
  whole = page.Report("Run", "It works.", [bad, good], {"x": 1})
  (problem,) = page.write(tmp_path, whole)
  assert problem.startswith("Section 'Bad' could not be made (")
  for name in ("index.html", "report.md"):
    text = (tmp_path / name).read_text()
    assert "could not be made" in text and "All is well." in text
  assert "Traceback" in caplog.text
  found = json.loads((tmp_path / "report.json").read_text())
  assert found == {"x": 1, "problems": [problem]}


def test_a_figure_that_cannot_be_drawn_leaves_a_note(tmp_path, caplog):
  def draw():
    raise ValueError("$\\frac$ is no mathematics")

  figure = page.figure_or_note("words", "Words & users", draw)
  section = page.Section("Lengths", ["Long ones."], [], [figure])
  page.write(tmp_path, page.Report("Run", "It works.", [section], {}))
  parsed = Page((tmp_path / "index.html").read_text())
  assert "$\\frac$ is no mathematics" in parsed.text
  assert "Long ones." in parsed.text
  assert not (tmp_path / "figures").exists()
  assert "Traceback" in caplog.text


def test_a_row_of_another_width_is_an_error():
  with pytest.raises(ValueError, match="2 columns"):
    page.Table(("a", "b")).add("1")
