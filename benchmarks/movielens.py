r"""MovieLens 100k as the two files that `configs/movielens.py` reads.

  python -m benchmarks.movielens --source=ml-100k

`ml-100k` is the folder that https://grouplens.org/datasets/movielens/100k has
as an archive: 943 people, 1,682 films, 100,000 ratings of 1 to 5 (Harper and
Konstan, "The MovieLens Datasets", 2015; for research, to be cited, and not to
be passed on). A film's text is its genres and decade, "Action, Thriller
(1990s)". With titles in it, a model remembers films, and learns nothing that
holds for others.
"""

import json
import pathlib

from absl import flags

from pdpo_jax import command_line

_SOURCE = flags.DEFINE_string("source", "ml-100k", "MovieLens 100k, unpacked.")
_INTO = flags.DEFINE_string("into", "data/movielens", "Folder to write.")

# Of a line of `u.item`: id, title, two dates and an address, then a flag for
# each genre.
_FIRST_GENRE = 5
_RATINGS = tuple("12345")


def _lines(
  name: str, separator: str, columns: int
) -> list[tuple[str, list[str]]]:
  """Where each line is, and its fields."""
  path = pathlib.Path(_SOURCE.value).expanduser() / name
  if not path.is_file():
    raise ValueError(
      f"{path} is missing; --source must be the folder ml-100k of the archive "
      "ml-100k.zip"
    )
  lines = []
  with path.open(encoding="latin-1") as file:
    for number, line in enumerate(file, 1):
      fields = line.rstrip("\n").split(separator)
      if fields == [""]:
        continue
      place = f"{path}, line {number}"
      if len(fields) != columns:
        raise _broken(place, f"{len(fields)} fields in place of {columns}")
      lines.append((place, fields))
  return lines


def _broken(place: str, problem: str) -> ValueError:
  return ValueError(f"{place}: {problem}; unpack ml-100k.zip again")


def _decade(place: str, released: str) -> str:
  """Of a film released on "01-Jan-1995": "1990s"."""
  if not released:  # One film has no date.
    return "no date"
  year = released.rpartition("-")[2]
  if not (len(year) == 4 and year.isdecimal()):
    raise _broken(place, f"{released!r} is no date")
  return f"{year[:3]}0s"


def main() -> None:
  genres = [name for _, (name, _) in _lines("u.genre", "|", 2)]
  films = []
  for place, fields in _lines("u.item", "|", _FIRST_GENRE + len(genres)):
    item, _, released = fields[:3]
    flagged = zip(genres, fields[_FIRST_GENRE:], strict=True)
    names = ", ".join(name for name, flag in flagged if flag == "1")
    names = names or "no genre"
    text = f"{names} ({_decade(place, released)})"
    films.append({"item_id": item, "text": text})
  known = {film["item_id"] for film in films}
  ratings = []
  for place, (user, item, rating, _) in _lines("u.data", "\t", 4):
    if rating not in _RATINGS:
      raise _broken(place, f"{rating!r} is no rating of 1 to 5")
    if item not in known:
      raise _broken(place, f"no film {item!r} in u.item")
    ratings.append({"user_id": user, "item_id": item, "rating": int(rating)})
  folder = pathlib.Path(_INTO.value).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  for name, records in {"items": films, "ratings": ratings}.items():
    with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
      file.writelines(json.dumps(record) + "\n" for record in records)
  print(f"{folder}: {len(films):,} films, {len(ratings):,} ratings")


if __name__ == "__main__":
  command_line.run(main)
