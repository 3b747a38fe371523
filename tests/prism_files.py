"""Writes a folder in PRISM's schema, with the peculiarities of the real one.

  python -m tests.prism_files FOLDER --users=1500

1,500 users are full scale: 104 of them only filled the survey, the others had
8,011 dialogues. Everything depends on the number of users and the seed alone.
"""

import argparse
import collections
import json
import pathlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from pdpo_jax.runs import config as config_lib

FULL_USERS, FULL_SURVEY_ONLY, FULL_DIALOGUES = 1500, 104, 8011
# Of users with dialogues; they cannot be split.
ONE_DIALOGUE_SHARE = 0.02
MAX_DIALOGUES = 7

Record = dict[str, Any]
# Of a turn: what the user said, and each response with whether it was chosen.
Turn = tuple[str, list[tuple[str, bool]]]

WORDS = (
  "the answer is that we can see how a good plan may help people with work, "
  "money and time; some say it was better before, others do not, and naïve "
  "ideas cost €5"
).split()
ASPECTS = (
  "values creativity fluency factuality diversity safety personalisation "
  "helpfulness other"
).split()
PERFORMANCE = [each for each in ASPECTS[:-1] if each != "personalisation"]
UNSAID = "Prefer not to say"
AGES = ("18-24 years old", "25-34 years old", "65+ years old", UNSAID)
GENDERS = ("Female", "Male", "Non-binary / third gender", UNSAID)
EMPLOYMENTS = ("Working full-time", "Student", "Retired", UNSAID)
EDUCATIONS = ("University Bachelors Degree", "Completed Secondary School")
MARITAL = ("Never been married", "Married", "Divorced / Separated", UNSAID)
ENGLISH = ("Native speaker", "Fluent", "Advanced", "Intermediate")
COUNTRIES = (("Kenya", "KEN"), ("Mexico", "MEX"), ("United Kingdom", "GBR"))
RELIGIONS = ("Non-religious", "Christian", "Muslim", UNSAID)
ETHNICITIES = ("White", "Black", "Asian", "Mixed", UNSAID)
TYPES = ("unguided", "values guided", "controversy guided")


def survey_record(user_id: str, rng: random.Random, **changes: Any) -> Record:
  """A record of the survey; stated values are mostly high, and often equal."""
  birth, reside = rng.choice(COUNTRIES), rng.choice(COUNTRIES)
  order = rng.sample(range(1, len(ASPECTS) + 1), len(ASPECTS))
  stated: dict[str, Any] = {
    aspect: rng.choice((None, rng.randint(0, 99), 100)) for aspect in ASPECTS
  }
  stated["other_text"] = rng.choice((None, "It should be brief"))
  record = {
    "user_id": user_id,
    "survey_only": False,
    "num_completed_conversations": 0,
    "consent": "Yes, I consent to take part",
    "consent_age": "I certify that I am 18 years of age or over",
    "lm_familiarity": "Somewhat familiar",
    "lm_indirect_use": "Yes",
    "lm_direct_use": "Yes",
    "lm_frequency_use": "Every week",
    "lm_usecases": {"research": 1, "games": 0, "other": 0, "other_text": None},
    "order_lm_usecases": {"research": 2, "games": 1, "other": 3},
    "self_description": text(rng, rng.randint(5, 60)),
    "system_string": text(rng, rng.randint(5, 60)),
    "stated_prefs": stated,
    "order_stated_prefs": dict(zip(ASPECTS, order, strict=True)),
    "age": rng.choice(AGES),
    "gender": rng.choice(GENDERS),
    "employment_status": rng.choice(EMPLOYMENTS),
    "education": rng.choice(EDUCATIONS),
    "marital_status": rng.choice(MARITAL),
    "english_proficiency": rng.choice(ENGLISH),
    "religion": _categories(rng.choice(RELIGIONS)),
    "ethnicity": _categories(rng.choice(ETHNICITIES)),
    "location": {
      "birth_country": birth[0],
      "birth_countryISO": birth[1],
      "birth_region": "Americas",
      "birth_subregion": "Central America",
      "reside_country": reside[0],
      "reside_countryISO": reside[1],
      "reside_region": "Africa",
      "reside_subregion": "Eastern Africa",
      "same_birth_reside_country": "Yes" if birth == reside else "No",
      "special_region": "Rest of World",
    },
    "included_in_US_REP": False,
    "included_in_UK_REP": rng.random() < 0.2,
    "included_in_balanced_subset": rng.random() < 0.8,
    "study_id": "study",
    "study_locale": "rest_of_world",
    "generated_datetime": "2023-11-22 15:30:44",
    "timing_duration_s": 600.0,
    "timing_duration_mins": 10.0,
  }
  return record | changes


def _categories(value: str) -> Record:
  return {
    "self_described": value.lower(),
    "categorised": value,
    "simplified": value,
  }


def text(rng: random.Random, num_words: int) -> str:
  return " ".join(rng.choices(WORDS, k=num_words))


def conversation_record(
  dialogue_id: str, user_id: str, turns: Sequence[Turn]
) -> Record:
  history: list[Record] = []
  for number, (asked, responses) in enumerate(turns):
    history.append({"turn": number, "role": "user", "content": asked})
    for place, (content, chosen) in enumerate(responses):
      history.append(
        {
          "turn": number,
          "role": "model",
          "content": content,
          "model_provider": "provider",
          "model_name": f"model-{place}",
          "score": 90 if chosen else 40 - place,
          "if_chosen": chosen,
          "within_turn_id": place,
        }
      )
  return {
    "conversation_id": dialogue_id,
    "user_id": user_id,
    "conversation_type": TYPES[len(history) % len(TYPES)],
    "opening_prompt": turns[0][0] if turns else "",
    "conversation_turns": len(turns),
    "conversation_history": history,
    "performance_attributes": dict.fromkeys(PERFORMANCE, 70),
    "choice_attributes": dict.fromkeys(PERFORMANCE),
    "open_feedback": "It was fine.",
    "included_in_balanced_subset": True,
    "generated_datetime": "2023-11-23 10:00:00",
    "timing_duration_s": 300.0,
    "timing_duration_mins": 5.0,
  }


def random_turns(rng: random.Random) -> list[Turn]:
  """Three to five turns, all of whose texts differ."""
  turns = []
  for number in range(rng.randint(3, 5)):
    count = 2 if number else 4
    chosen = rng.randrange(count)
    texts = [text(rng, rng.randint(8, 40)) for _ in range(count)]
    responses = [
      (f"Nr. {place}: {each}", place == chosen)
      for place, each in enumerate(texts)
    ]
    turns.append((text(rng, rng.randint(4, 20)), responses))
  return turns


def _respond(turns: list[Turn], number: int, change: Callable) -> None:
  """Gives a turn the responses that `change` makes of (chosen, rejected)."""
  asked, responses = turns[number]
  chosen = next(each for each, is_chosen in responses if is_chosen)
  rejected = [each for each, is_chosen in responses if not is_chosen]
  turns[number] = (asked, change(chosen, rejected))


def _pairs(chosen: Sequence[str], rejected: Sequence[str]) -> list:
  return [(each, False) for each in rejected] + [
    (each, True) for each in chosen
  ]


# What becomes of the responses of one turn (its number, and the change).
TRAPS: dict[str, tuple[int, Callable]] = {
  "both chosen": (1, lambda c, r: _pairs([c, c], [])),
  "two chosen": (0, lambda c, r: _pairs([c, c], r[:2])),
  "one rejected is chosen": (0, lambda c, r: _pairs([c], [c, *r[:2]])),
  "only rejected is chosen": (1, lambda c, r: _pairs([c], [c])),
  "rejected repeated": (0, lambda c, r: _pairs([c], [r[0], r[0], r[1]])),
  "rejected empty": (0, lambda c, r: _pairs([c], ["EMPTY STRING", *r[:2]])),
  "chosen empty": (1, lambda c, r: _pairs(["EMPTY STRING"], r)),
  "no chosen": (2, lambda c, r: _pairs([], [c, *r])),
  "no rejected": (0, lambda c, r: _pairs([c], [])),
  "never chosen": (0, lambda c, r: _pairs([], [c, *r])),
}
OTHER_TRAPS = ("asked empty", "all long")
# Each trap comes back after so many dialogues.
TRAP_EVERY = 40
# Of fewer, a single broken record would be too many for the loader.
FEW_DIALOGUES = 100


def spring(name: str, turns: list[Turn]) -> None:
  """Puts a trap into a dialogue."""
  if name in TRAPS:
    _respond(turns, *TRAPS[name])
  elif name == "asked empty":
    turns[1] = ("EMPTY STRING", turns[1][1])
  elif name == "all long":
    for number, (asked, responses) in enumerate(turns):
      turns[number] = (asked + " and" * 600, responses)


def _dialogue_counts(users: int, total: int, rng: random.Random) -> list[int]:
  """One to seven for each of the users; how many have one is fixed.

  As near to `total` as that allows; all but one at least have several.
  """
  single = min(round(users * ONE_DIALOGUE_SHARE) or 1, users - 1)
  several = users - single
  total = min(
    max(total, single + 2 * several), single + MAX_DIALOGUES * several
  )
  counts = [1] * single + [6] * several
  while sum(counts) != total:
    place = rng.randrange(single, users)
    step = 1 if sum(counts) < total else -1
    if 2 <= counts[place] + step <= MAX_DIALOGUES:
      counts[place] += step
  rng.shuffle(counts)
  return counts


def _traps(owners: Sequence[str]) -> list[str]:
  """The trap of each dialogue, mostly "plain"; each in turn, over and over.

  Users with few dialogues keep theirs whole, so that they can be counted. Only
  one dialogue is of an unknown user: it is a broken record; few are allowed.
  """
  counts = collections.Counter(owners)
  names = [*TRAPS, *OTHER_TRAPS]
  names += ["plain"] * (TRAP_EVERY - len(names))
  many = [place for place, owner in enumerate(owners) if counts[owner] > 2]
  traps = ["plain"] * len(owners)
  for number, place in enumerate(many):
    traps[place] = names[number % TRAP_EVERY]
  if len(owners) >= FEW_DIALOGUES:
    traps[many[-1]] = "unknown user"
  return traps


def write(
  folder: pathlib.Path, users: int = 30, seed: int = 0
) -> collections.Counter[str]:
  """Writes both files; returns how often each trap was put in.

  Args:
    users: 4 or more, for some to be trained on; 20 or more, for every trap to
      occur.

  Raises:
    ValueError: if there are no users.
  """
  if users < 1:
    raise ValueError(f"--users={users}; a folder has at least one")
  rng = random.Random(f"prism files {users} {seed}")
  survey_only = round(users * FULL_SURVEY_ONLY / FULL_USERS) or 1
  survey_only = min(survey_only, users - 1)
  total = round(users * FULL_DIALOGUES / FULL_USERS)
  counts = _dialogue_counts(users - survey_only, total, rng)
  counts += [0] * survey_only
  rng.shuffle(counts)
  planted: collections.Counter[str] = collections.Counter()
  planted["survey only"] = survey_only
  planted["one dialogue"] = counts.count(1)
  survey, owners = [], []
  for number, count in enumerate(counts):
    user_id = f"user{number}"
    record = survey_record(
      user_id, rng, survey_only=not count, num_completed_conversations=count
    )
    if number % 10 == 3:
      record["stated_prefs"] = dict.fromkeys(record["stated_prefs"])
      planted["no stated preferences"] += 1
    survey.append(record)
    owners += [user_id] * count
  rng.shuffle(owners)
  conversations = []
  drawn = zip(owners, _traps(owners), strict=True)
  for number, (user_id, name) in enumerate(drawn):
    if name == "unknown user":
      user_id = "stranger"
    turns = random_turns(rng)
    spring(name, turns)
    planted[name] += 1
    conversations.append(conversation_record(f"c{number}", user_id, turns))
  write_records(folder, survey, conversations)
  return planted


# Three turns, in short.
TURNS: list[Turn] = [
  ("q0", [("r0a", False), ("r0b", False), ("y0", True), ("r0c", False)]),
  ("q1", [("y1", True), ("r1", False)]),
  ("q2", [("r2", False), ("y2", True)]),
]
# Of dialogues: whose they are, and their turns.
Dialogues = dict[str, tuple[str, Sequence[Turn]]]


def one_user(turns: Sequence[Turn], copies: int = 2) -> Dialogues:
  """Dialogues of one user, all with the same turns."""
  return {f"c{number}": ("user0", turns) for number in range(copies)}


def write_dialogues(
  folder: pathlib.Path,
  dialogues: Dialogues,
  survey: Sequence[Record] | None = None,
  **changes: Any,
) -> None:
  """Writes these dialogues and, if not given, a survey of their users.

  Args:
    changes: what all records of that survey say.
  """
  if survey is None:
    rng = random.Random(0)
    users = dict.fromkeys(user for user, _ in dialogues.values())
    survey = [survey_record(user, rng, **changes) for user in users]
  records = [
    conversation_record(name, user, turns)
    for name, (user, turns) in dialogues.items()
  ]
  write_records(folder, survey, records)


def make_config(
  folder: pathlib.Path | str, **options: Any
) -> config_lib.Config:
  """A config that reads the folder; `options` go to its PRISM section."""
  config = config_lib.Config()
  config.data.source = "prism"
  config.data.path = str(folder)
  for name, value in options.items():
    setattr(config.data.prism, name, value)
  return config


def write_records(
  folder: pathlib.Path,
  survey: Sequence[Record],
  conversations: Sequence[Record],
) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  for name, records in (("survey", survey), ("conversations", conversations)):
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--users", type=int, default=FULL_USERS)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  planted = write(flags.folder, flags.users, flags.seed)
  for name, count in planted.most_common():
    print(f"{count:6,} {name}")
