"""Ratings of texts, as recommenders log them, turned into comparisons.

A folder has a file of ratings (`user_id`, `item_id`, `rating`) and one of the
texts that were rated (`item_id`, `text`), in any format of `formats.py`. Who
rated one text far enough above another chose it.
"""

import collections
import dataclasses
import functools
import math
import pathlib
import random
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import records, splits
from pdpo_jax.data.sources import formats, user_ids

# Texts of a person that pairs are drawn from: of more, so many are drawn first,
# since pairs are as many as their square.
_MOST_TEXTS = 1_000

Examples = list[structs.PreferenceExample]
Pairs = Int[np.ndarray, "pairs 2"]


@dataclasses.dataclass(frozen=True)
class Ratings:
  """Who rated what how.

  Attributes:
    users, items: their ids.
    texts: of the items, in the same order.
    of_user: items that a user rated, and their ratings, by user.
    means: an item's mean rating.
    counts: how many rated it.
  """

  users: tuple[str, ...]
  items: tuple[str, ...]
  texts: tuple[str, ...]
  of_user: Mapping[str, tuple[np.ndarray, np.ndarray]]
  means: Float[np.ndarray, " items"]
  counts: Int[np.ndarray, " items"]


def load(
  data: data_config.DataConfig, seed: int, num_prompts: int
) -> dataset_lib.Dataset:
  """Comparisons of pairs of texts that the same person rated.

  The prompt is that of `data.ratings`. Of each person some texts are kept from
  training. Held-out pairs are of two kinds, equally many of each where there
  are enough: new pairs of texts that the person compares in training, and pairs
  of texts that are new to the person. Nothing says that others did not see
  them; that `evaluation` tells apart.

  Raises:
    ValueError: if files are missing, too many records are broken, or nobody has
      enough pairs.
  """
  options = data.ratings
  tally = records.Tally()
  ratings = _read(pathlib.Path(data.path).expanduser(), options, tally)
  tally.check(data.max_bad_share)
  people = list(ratings.users)
  random.Random(f"people {seed}").shuffle(people)
  dataset = dataset_lib.Dataset([], [], [], tally=tally)
  strangers = round(options.unseen_users * (options.num_users or len(people)))
  few = used = 0
  for person in people:
    if options.num_users and used == options.num_users:
      break
    train, heldout = _of_person(person, ratings, options, seed)
    if len(train) < options.train_per_user:
      few += 1
      continue
    if used < strangers:
      dataset.unseen.extend([*train, *heldout])
    else:
      dataset.train.extend(train)
      dataset.heldout.extend(heldout)
    used += 1
  tally.note("people with too few pairs for training", few)
  if used < options.num_users:
    tally.note(
      "people fewer than data.ratings.num_users", options.num_users - used
    )
  if not dataset.train:
    raise ValueError(
      f"data.path {data.path!r} leaves nobody with {options.train_per_user} "
      "pairs to train on; lower data.ratings.train_per_user or "
      f"data.ratings.least_gap. What was read: {tally}"
    )
  shown = {
    text
    for example in dataset.train
    for text in (example.chosen, *example.rejected)
  }
  return dataclasses.replace(
    dataset,
    prompts=splits.draw_prompts(dataset.heldout, num_prompts, seed),
    # What a base from scratch is taught: each text that is trained on, once.
    sft_pairs=[(options.prompt, text) for text in sorted(shown)],
  )


def _of_person(
  person: str,
  ratings: Ratings,
  options: data_config.RatingsConfig,
  seed: int,
) -> tuple[Examples, Examples]:
  """A person's comparisons for training, and held-out ones of both kinds."""
  rng = np.random.default_rng([seed, *person.encode()])
  items, own = ratings.of_user[person]
  drawn = rng.permutation(len(items))[:_MOST_TEXTS]
  items, own = items[drawn], own[drawn]
  is_new = np.zeros(len(items), bool)
  count = round(options.heldout_texts * len(items))
  is_new[rng.permutation(len(items))[:count]] = True
  pairs = rng.permutation(_pairs(items, own, ratings, options))
  new = is_new[pairs].sum(1)
  known_pairs, new_pairs = pairs[new == 0], pairs[new == 2]
  cut = options.train_per_user
  train, known_pairs = known_pairs[:cut], known_pairs[cut:]
  # A pair of texts one of which training does not show is no new pair of known
  # texts: both must have been compared.
  compared = np.isin(known_pairs, train).all(1)
  each = -(-options.heldout_per_user // 2)
  heldout = np.concatenate([known_pairs[compared][:each], new_pairs[:each]])

  def example(pair):
    chosen, rejected = items[pair]
    return structs.PreferenceExample(
      options.prompt,
      ratings.texts[chosen],
      (ratings.texts[rejected],),
      person,
      place=f"{person}: {ratings.items[chosen]} over {ratings.items[rejected]}",
    )

  return [*map(example, train)], [*map(example, heldout)]


def _pairs(
  items: Int[np.ndarray, " rated"],
  own: Float[np.ndarray, " rated"],
  ratings: Ratings,
  options: data_config.RatingsConfig,
) -> Pairs:
  """Places, among what a person rated, of a text and one rated far below."""
  enough: Bool[np.ndarray, "rated rated"]
  enough = own[:, None] - own[None, :] >= options.least_gap
  if options.most_mean_gap:
    # Everybody else's mean.
    others = ratings.counts[items] - 1
    sums = ratings.means[items] * ratings.counts[items] - own
    means = np.where(others > 0, sums / np.maximum(others, 1), np.nan)
    gap = np.abs(means[:, None] - means[None, :])
    enough &= gap <= options.most_mean_gap  # Never where nobody else rated it.
  return np.argwhere(enough)


def _read(
  folder: pathlib.Path,
  options: data_config.RatingsConfig,
  tally: records.Tally,
) -> Ratings:
  """Both files; ratings of texts that are not there are counted as dropped."""
  item, user = options.item_column, options.user_column
  # One for both files, since 7 and "7" must not be two items.
  read_item, read_user = (
    functools.partial(_id, user_ids.Reader(what), name, tally)
    for what, name in (("item", item), ("user", user))
  )
  texts: dict[str, str] = {}

  def add_text(record: records.Record, place: str) -> None:
    key = read_item(record, place)
    text = records.field(record, "text", str).strip()
    if not text:
      raise records.BrokenRecord("empty text", key)
    if texts.setdefault(key, text) != text:
      raise records.BrokenRecord("two texts for one id", key)

  file = _find(folder, options.texts_file)
  _each(file, {item, "text"}, add_text, tally)
  ratings: dict[tuple[str, str], float] = {}

  def add_rating(record: records.Record, place: str) -> None:
    key = read_user(record, place), read_item(record, place)
    value = _number(record)
    if key[1] not in texts:
      tally.drop("ratings of texts that are not there")
    elif ratings.setdefault(key, value) != value:
      tally.drop("ratings of a text that the same person rated otherwise")

  file = _find(folder, options.ratings_file)
  _each(file, {item, user, "rating"}, add_rating, tally)
  return _table(texts, ratings, tally)


def _each(
  file: pathlib.Path,
  columns: set[str],
  add: Callable[[records.Record, str], None],
  tally: records.Tally,
) -> None:
  placed = formats.read(file, tally, columns=columns)
  collections.deque(records.parse(placed, add, tally), maxlen=0)


def _id(
  reader: user_ids.Reader,
  column: str,
  tally: records.Tally,
  record: records.Record,
  place: str,
) -> str:
  if column not in record:
    raise records.BrokenRecord("missing field", column)
  notes: collections.Counter[str] = collections.Counter()
  value = reader.read(place, record[column], notes)
  if value is None:
    raise records.BrokenRecord("no id", column)
  for reason, count in notes.items():
    tally.note(reason, count)
  return value


def _number(record: records.Record) -> float:
  """A rating, which CSV has as text."""
  value = record.get("rating")
  try:
    number = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError, OverflowError):
    number = math.nan
  if not math.isfinite(number):
    raise records.BrokenRecord("rating is no number", f"{value!r:.60}")
  return number


def _table(
  texts: Mapping[str, str],
  ratings: Mapping[tuple[str, str], float],
  tally: records.Tally,
) -> Ratings:
  """Ratings by person. Items whose texts are the same are one."""
  first: dict[str, str] = {}
  for key, text in texts.items():
    first.setdefault(text, key)
  tally.note("texts that are there under several ids", len(texts) - len(first))
  items = {key: place for place, key in enumerate(first.values())}
  by_user: dict[str, dict[int, list[float]]] = {}
  for (user, key), value in ratings.items():
    place = items[first[texts[key]]]
    by_user.setdefault(user, {}).setdefault(place, []).append(value)
  sums, counts = np.zeros(len(items)), np.zeros(len(items), np.int64)
  of_user = {}
  for user in sorted(by_user):
    rated = by_user[user]
    places = np.array(sorted(rated))
    values = np.array([np.mean(rated[place]) for place in places])
    of_user[user] = places, values
    sums[places] += values
    counts[places] += 1
  user_ids.note_alike(of_user, tally)
  return Ratings(
    tuple(of_user),
    tuple(items),
    tuple(first),
    of_user,
    sums / np.maximum(counts, 1),
    counts,
  )


def _find(folder: pathlib.Path, stem: str) -> pathlib.Path:
  """The one file of a folder that has this name, whatever its format."""
  files = []
  if folder.is_dir():
    files = [
      file
      for file in sorted(folder.iterdir())
      if file.name.split(".")[0] == stem and formats.ending(file.name)
    ]
  if len(files) == 1:
    return files[0]
  there = ", ".join(file.name for file in files) or "none"
  raise ValueError(
    f"data.path {str(folder)!r} must be a folder with one file {stem}.jsonl "
    f"(or .csv, .parquet, …), and there is {there}; the names are set by "
    "data.ratings.ratings_file and data.ratings.texts_file"
  )
