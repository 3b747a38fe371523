"""Writes a file in Community Alignment's schema, with its peculiarities.

  python -m tests.community_alignment_files FILE.csv --users=3500

3,500 users are full scale: 90,256 dialogues with some 233,000 choices, two
thirds of them on openings that ten and more people judge. Everything depends on
the number of users and the seed alone.
"""

import argparse
import collections
import csv
import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import Any

from pdpo_jax.runs import config as config_lib

FULL_USERS, FULL_DIALOGUES = 3500, 90_256
TURNS = ("first", "second", "third", "fourth")
LETTERS = "abcd"
END = "<|end_of_text|>"
LANGUAGES = {"en": "united states", "fr": "france", "it": "italy"} | {
  "pt": "brazil",
  "hi": "india",
}
# A share of dialogues so that 90,256 of them have 233,319 choices.
LENGTHS = (1, 2, 2, 2, 3, 3, 4, 4)
WORDS = (
  "the answer is that we can see how a good plan may help people with work, "
  "money and time; some say it was better before, others do not; नमस्ते दुनिया, "
  "ça coûte 5 €"
).split()

Record = dict[str, Any]
# What was asked, the four responses, and the letter of the one chosen.
Turn = tuple[str | None, Sequence[str | None], str | None]


def make_record(
  dialogue_id: str, user: str, turns: Sequence[Turn], **changes: Any
) -> Record:
  record: Record = {
    "conversation_id": dialogue_id,
    "assigned_lang": "en",
    "annotator_id": user,
  }
  nothing: Turn = (None, (None,) * 4, None)
  for number, name in enumerate(TURNS):
    asked, responses, chosen = turns[number] if number < len(turns) else nothing
    record[f"{name}_turn_prompt"] = asked
    for letter, text in zip(LETTERS, responses, strict=True):
      record[f"{name}_turn_response_{letter}"] = text
    preferred = chosen and f"response_{chosen}"
    record[f"{name}_turn_preferred_response"] = preferred
    record[f"{name}_turn_feedback"] = f"Turn {number}." if chosen else None
  return record | {
    "annotator_age": "18-34",
    "annotator_gender": "female",
    "annotator_education_level": "Some post-secondary",
    "annotator_political": "Prefer not to say",
    "annotator_ethnicity": None,
    "annotator_country": "united states",
    "is_pregenerated_first_prompt": True,
    "in_balanced_subset": False,
    **changes,
  }


def write(
  file: pathlib.Path, records: Iterable[Record], header: Record | None = None
) -> None:
  """Writes a table, with empty cells where there is nothing."""
  with file.open("w", encoding="utf-8", newline="") as out:
    writer = None
    for record in records:
      if writer is None:
        writer = csv.DictWriter(out, list(header or record))
        writer.writeheader()
      writer.writerow(record)


def make_config(file: pathlib.Path | str, **options: Any) -> config_lib.Config:
  """A config that reads the file; `options` go to its section."""
  config = config_lib.Config()
  config.data.source = "community_alignment"
  config.data.path = str(file)
  for name, value in options.items():
    setattr(config.data.community_alignment, name, value)
  return config


def words(rng: random.Random, count: int) -> str:
  return " ".join(rng.choices(WORDS, k=count))


def random_turn(rng: random.Random) -> Turn:
  texts = [
    f"Nr. {letter}: {words(rng, rng.randint(40, 120))}{END}"
    for letter in LETTERS
  ]
  return words(rng, rng.randint(5, 30)), texts, rng.choice(LETTERS)


def _with_trap(name: str, turns: list[Turn], rng: random.Random) -> None:
  """Puts a trap into a dialogue of three turns."""
  asked, texts, _ = turns[1]
  if name == "missing in the middle":
    turns[1] = (None, (None,) * 4, None)
  elif name == "not chosen":
    turns[1] = (asked, texts, None)
  elif name == "chosen without text":
    turns[1] = (asked, [None, *texts[1:]], "a")
  elif name == "one without text":
    turns[1] = (asked, [None, *texts[1:]], "b")
  elif name == "two alike":
    turns[1] = (asked, [texts[0], texts[0], *texts[2:]], "c")
  elif name == "one as the chosen":
    turns[1] = (asked, [texts[0], texts[0], *texts[2:]], "a")
  elif name == "all alike":
    turns[1] = (asked, [texts[0]] * 4, "a")


TRAPS = (
  "missing in the middle",
  "not chosen",
  "chosen without text",
  "one without text",
  "two alike",
  "one as the chosen",
  "all alike",
)


def generate(
  users: int, seed: int, planted: collections.Counter[str]
) -> Iterable[Record]:
  """Records of a file, and in `planted` how often each trap is in them."""
  rng = random.Random(f"community alignment files {users} {seed}")
  dialogues = round(users * FULL_DIALOGUES / FULL_USERS)
  # Some 2,500 openings of the full data are judged by ten people and more.
  shared = [random_turn(rng) for _ in range(max(2, round(users * 0.8)))]
  people = []
  for _ in range(users):
    language, country = rng.choice(list(LANGUAGES.items()))
    people.append({
      "assigned_lang": language,
      "annotator_country": country,
      "annotator_age": rng.choice(("18-34", "35-45", "46-54", "55+")),
      "annotator_gender": rng.choice(("male", "female", None)),
      "annotator_political": rng.choice(
        ("Somewhat left-leaning", "Very right-leaning", "Prefer not to say")
      ),
    })  # fmt: skip
  for number in range(dialogues):
    # Everybody has one before anybody has another.
    user = number if number < users else rng.randrange(users)
    given = rng.random() < 0.69
    turns = [random_turn(rng) for _ in range(rng.choice(LENGTHS))]
    if given:
      asked, texts, _ = rng.choice(shared)
      turns[0] = (asked, texts, rng.choice(LETTERS))
    if number % 20 < len(TRAPS):
      turns = [*turns[:1], random_turn(rng), random_turn(rng)]
      _with_trap(TRAPS[number % 20], turns, rng)
      planted[TRAPS[number % 20]] += 1
    yield make_record(
      f"{10_000 + number}",
      f"{user}",
      turns,
      is_pregenerated_first_prompt=given,
      **people[user],
    )


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("file", type=pathlib.Path)
  parser.add_argument("--users", type=int, default=FULL_USERS)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  counts: collections.Counter[str] = collections.Counter()
  write(flags.file, generate(flags.users, flags.seed, counts))
  for name, count in counts.most_common():
    print(f"{count:6,} {name}")
