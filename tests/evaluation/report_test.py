import html.parser
import json

import pytest

from pdpo_jax.evaluation import lengths, report


class Page(html.parser.HTMLParser):
  """Tags that are open, sources of images, and text."""

  def __init__(self, text):
    super().__init__()
    self.open, self.sources, self.links, self.text = [], [], [], ""
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.links += [values[k] for k in ("href", "src") if k in values]
    if tag == "img":
      self.sources.append(values["src"])
    if tag not in ("meta", "img", "link"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


@pytest.fixture
def written(tmp_path):
  figure = tmp_path / "figures" / "words.png"
  figure.parent.mkdir()
  words = {"S": lengths.Words(3.0, 0.1, 0.0)}
  lengths.figure(figure, words, (), "title")
  section = report.Section(
    "Lengths",
    ["A <b>paragraph</b>."],
    [
      report.Table(
        ("user", "words"), [("a|b <script>", "3.0\nof 4")], "A note."
      )
    ],
    [report.Figure(figure, "Words & users")],
  )
  made = report.Report("Run", "It works.", [section], {"words": {"ä": 3.0}})
  page = report.write(tmp_path, made)
  return tmp_path, Page(page.read_text())


def test_the_page_holds_everything_and_loads_nothing(written):
  _, page = written
  assert page.open == []
  assert len(page.sources) == 1
  assert page.sources[0].startswith("data:image/png;base64,iVBOR")
  assert all(link.startswith(("data:", "#")) for link in page.links)


def test_text_of_users_cannot_become_markup(written):
  _, page = written
  assert "a|b <script>" in page.text
  assert "A <b>paragraph</b>." in page.text


def test_markdown_names_figures_beside_it(written):
  folder, _ = written
  text = (folder / "report.md").read_text()
  assert "![Words & users](figures/words.png)" in text
  assert "| user | words |\n|---|---:|\n| a\\|b <script> | 3.0 of 4 |" in text
  assert "\n\n\n\n" not in text


def test_numbers_are_kept(written):
  folder, _ = written
  found = json.loads((folder / "report.json").read_text())
  assert found == {"words": {"ä": 3.0}}


def test_a_row_of_another_width_is_an_error():
  with pytest.raises(ValueError, match="2 columns"):
    report.Table(("a", "b"), [("1",)])
