"""The files of MovieLens 100k, whole and broken."""

import json
import re

import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import movielens

GENRES = ["unknown|0", "Action|1", "Drama|2", ""]
FILMS = [
  "1|Toy Tale (1995)|01-Jan-1995||http://a|0|1|1",
  "2|Caf\u00e9 (1967)|01-Jan-1967||http://b|0|0|0",
  "3|Nobody knows||||1|0|0",
]
RATINGS = ["196\t1\t5\t881250949", "22\t3\t1\t878887116"]


def convert(folder, **changed):
  files = {"u.genre": GENRES, "u.item": FILMS, "u.data": RATINGS}
  source = folder / "ml-100k"
  source.mkdir()
  for name, lines in (files | changed).items():
    if lines is not None:
      (source / name).write_text("\n".join(lines) + "\n", encoding="latin-1")
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["tests"])
  out = folder / "out"
  with flagsaver.as_parsed(source=str(source), into=str(out)):
    movielens.main()
  return [
    list(map(json.loads, (out / f"{name}.jsonl").read_text().splitlines()))
    for name in ("items", "ratings")
  ]


def test_films_are_their_genres_and_decade_and_ratings_stay(tmp_path):
  films, ratings = convert(tmp_path)
  assert films == [
    {"item_id": "1", "text": "Action, Drama (1990s)"},
    {"item_id": "2", "text": "no genre (1960s)"},
    {"item_id": "3", "text": "unknown (no date)"},
  ]
  assert ratings == [
    {"user_id": "196", "item_id": "1", "rating": 5},
    {"user_id": "22", "item_id": "3", "rating": 1},
  ]


@pytest.mark.parametrize(
  ("name", "lines", "message"),
  [
    ("u.item", None, "u.item is missing; --source must be the folder ml-100k"),
    ("u.data", ["1\t1\t5\t8", "1\t1\t5"], "u.data, line 2: 3 fields"),
    ("u.item", [FILMS[0] + "|1"], "u.item, line 1: 9 fields in place of 8"),
    ("u.data", ["", "1\t1\tfive\t8"], "u.data, line 2: 'five' is no rating"),
    ("u.data", ["1\t1\t4.5\t8"], "u.data, line 1: '4.5' is no rating"),
    ("u.data", ["1\t1\t6\t8"], "u.data, line 1: '6' is no rating"),
    ("u.data", ["1\t9\t3\t8"], "u.data, line 1: no film '9' in u.item"),
    ("u.item", [FILMS[0].replace("1995|", "9|", 1)], "'01-Jan-9' is no date"),
  ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, lines, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    convert(tmp_path, **{name: lines})
  assert not (tmp_path / "out").exists()
