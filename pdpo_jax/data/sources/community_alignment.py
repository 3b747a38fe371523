"""Community Alignment: who of four answers preferred which, in five languages.

Zhang et al., "Cultivating Pluralism In Algorithmic Monoculture: The Community
Alignment Dataset", arXiv:2507.09650. A record is a dialogue of up to four
turns. In each, the person chose among four responses; each turn is a
comparison, whose prompt is all that was said before, with the chosen responses
as the assistant's turns.

Many people judge the same opening with the same responses. A dialogue is
therefore held out by its opening, so that nobody compares in training what
somebody else's held-out dialogue compares.
"""

import collections
import random
from collections.abc import Sequence
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import records
from pdpo_jax.data.sources import dialogue_choices, locations, user_ids

_TURNS = ("first_turn", "second_turn", "third_turn", "fourth_turn")
_RESPONSES = ("response_a", "response_b", "response_c", "response_d")
_FACTS = (
  ("Age", "annotator_age"),
  ("Gender", "annotator_gender"),
  ("Education", "annotator_education_level"),
  ("Political leaning", "annotator_political"),
  ("Ethnicity", "annotator_ethnicity"),
  ("Country", "annotator_country"),
)
_PREGENERATED = "is_pregenerated_first_prompt"
_NEEDED = {"conversation_id", "annotator_id", "assigned_lang"} | {
  f"{turn}_{name}"
  for turn in _TURNS
  for name in ("prompt", "preferred_response", *_RESPONSES)
}
_COLUMNS = (
  _NEEDED
  | {_PREGENERATED}
  | {column for _, column in _FACTS}
  | {f"{turn}_feedback" for turn in _TURNS}
)
# Many responses end so, which is no part of what people read.
_END = "<|end_of_text|>"


def load(
  data: data_config.DataConfig, seed: int, num_prompts: int
) -> dataset_lib.Dataset:
  """Comparisons of Community Alignment, split by people and openings.

  Raises:
    ValueError: if nothing can be read, too many records are broken, no dialogue
      is in a language that is asked for, or no example is left for training or
      to be answered.
  """
  tally = records.Tally()
  reader = _Reader(data.community_alignment, tally)
  try:
    location = locations.find(data.path)
    placed = location.records(location.training_split(), tally, _COLUMNS)
  except ValueError as error:
    raise ValueError(f"data.path: {error}") from error
  read = records.parse(placed, reader.read, tally)
  dialogues = [dialogue for dialogue in read if dialogue is not None]
  tally.check(data.max_bad_share)
  reader.check_languages(data.path)
  told = data.community_alignment.demographics
  texts = {
    user_id: dialogue_choices.introduction(facts) if told else ""
    for user_id, facts in reader.facts.items()
  }
  split = _split(dialogues, data.community_alignment, seed, tally)
  return dialogue_choices.make_dataset(
    {
      name: [
        dialogue_choices.example(dialogue, turn, texts[dialogue.user_id])
        for dialogue in of_split
        for turn in dialogue.turns
      ]
      for name, of_split in split.items()
    },
    {user: structs.Persona(facts) for user, facts in reader.facts.items()},
    tally,
    path=data.path,
    options=[
      f"data.community_alignment.{name}"
      for name in ("unseen_users", "heldout_openings", "languages")
    ],
    seed=seed,
    num_prompts=num_prompts,
  )


class _Reader:
  """Makes dialogues of records, and keeps what these say of people.

  Attributes:
    facts: of each person, as the first record has it that has any.
  """

  def __init__(
    self, config: data_config.CommunityAlignmentConfig, tally: records.Tally
  ):
    self.facts: dict[str, dict[str, str]] = {}
    self._config = config
    self._tally = tally
    self._users = user_ids.Reader()
    self._dialogue_ids: set[str] = set()
    self._languages: collections.Counter[str] = collections.Counter()
    self._differ: set[str] = set()

  def read(
    self, record: records.Record, place: str
  ) -> dialogue_choices.Dialogue | None:
    """The dialogue of a record; None where it is not wanted, or has no choice.

    Raises:
      records.BrokenRecord: if a field is missing, or is not what it should be.
      ValueError: if ids of people are of mixed type.
    """
    tally = self._tally
    for column in record.keys() - _COLUMNS:
      tally.leave_out(str(column), records.COLUMN)
    if missing := _NEEDED - record.keys():
      raise records.BrokenRecord("missing field", min(missing))
    dialogue_id = _id(record["conversation_id"])
    if dialogue_id in self._dialogue_ids:
      raise records.BrokenRecord("repeated conversation_id", repr(dialogue_id))
    user_id = self._users.read(place, record["annotator_id"], tally.noted)
    if user_id is None:
      raise records.BrokenRecord("no annotator_id")
    language = records.field(record, "assigned_lang", str)
    spoken = [_spoken_turn(record, turn, tally) for turn in _TURNS]
    facts = {label: dialogue_choices.answer(record, c) for label, c in _FACTS}
    pregenerated = not self._config.pregenerated_only or _flag(record)
    # What is above raises where the record is broken.
    self._dialogue_ids.add(dialogue_id)
    self._languages[language] += 1
    if self._config.languages and language not in self._config.languages:
      tally.drop("dialogues in other languages")
      return None
    if not pregenerated:
      tally.drop("dialogues that people opened themselves")
      return None
    self._learn(user_id, {label: fact for label, fact in facts.items() if fact})
    while spoken and spoken[-1] == dialogue_choices.SpokenTurn():
      spoken.pop()  # Not all go on for four turns.
    turns = tuple(dialogue_choices.comparisons(spoken, tally))
    if not turns:
      tally.drop("dialogues without a comparison")
      return None
    return dialogue_choices.Dialogue(dialogue_id, user_id, turns, place)

  def _learn(self, user_id: str, facts: dict[str, str]) -> None:
    known = self.facts.get(user_id) or facts
    self.facts[user_id] = known
    if facts and known != facts and user_id not in self._differ:
      self._differ.add(user_id)
      self._tally.note(
        "people of whom dialogues say different things, the first of which is "
        "taken"
      )

  def check_languages(self, path: str) -> None:
    """Raises a ValueError if a language that is asked for is not there."""
    for language in self._config.languages:
      if language not in self._languages:
        listed = ", ".join(f"{a} ({n:,})" for a, n in self._languages.items())
        raise ValueError(
          f"data.community_alignment.languages has {language!r}, in which "
          f"{path} has no dialogue; it has {listed}"
        )


def _id(value: Any) -> str:
  """A text or an integer, as a text."""
  if isinstance(value, bool) or not isinstance(value, str | int):
    raise records.BrokenRecord(
      "wrong type", f"conversation_id {value!r:.60} must be text or an integer"
    )
  if not str(value).strip():
    raise records.BrokenRecord("empty id", "conversation_id")
  return str(value)


def _flag(record: records.Record) -> bool:
  """Whether a dialogue's opening was given; a table of text has a word."""
  value = record.get(_PREGENERATED)
  flag = {"true": True, "false": False}.get(str(value).strip().lower())
  if flag is None:
    raise records.BrokenRecord(
      "wrong type", f"{_PREGENERATED} {value!r:.60} must be true or false"
    )
  return flag


def _spoken_turn(
  record: records.Record, turn: str, tally: records.Tally
) -> dialogue_choices.SpokenTurn:
  """A turn of a record; empty where the dialogue has none."""
  texts = {name: _text(record, f"{turn}_{name}", tally) for name in _RESPONSES}
  asked = _text(record, f"{turn}_prompt", tally)
  preferred = records.optional(record, f"{turn}_preferred_response", str)
  if preferred is not None and preferred not in _RESPONSES:
    raise records.BrokenRecord(
      "unknown preferred response",
      f"{turn}_preferred_response {preferred!r:.60} is none of "
      f"{', '.join(_RESPONSES)}",
    )
  spoken = dialogue_choices.SpokenTurn()
  if asked is None and preferred is None and not any(texts.values()):
    return spoken
  if asked is not None:
    spoken.asked.append(asked)
  for name, text in texts.items():
    side = spoken.chosen if name == preferred else spoken.rejected
    side.append(text or "")
  spoken.feedback = dialogue_choices.answer(record, f"{turn}_feedback")
  return spoken


def _text(
  record: records.Record, name: str, tally: records.Tally
) -> str | None:
  text = records.optional(record, name, str)
  if text is None or not text.rstrip().endswith(_END):
    return text
  tally.note(f"texts without the {_END!r} at their end")
  while (text := text.rstrip()).endswith(_END):
    text = text.removesuffix(_END)
  return text


def _split(
  dialogues: Sequence[dialogue_choices.Dialogue],
  config: data_config.CommunityAlignmentConfig,
  seed: int,
  tally: records.Tally,
) -> dict[str, list[dialogue_choices.Dialogue]]:
  """The dialogues of each split, in the file's order.

  A share of the people is unseen, and of the openings a share is held out,
  whoever they are judged by. Shares are rounded up.
  """
  rng = random.Random(f"community alignment {seed}")
  users = sorted({dialogue.user_id for dialogue in dialogues})
  count = dialogue_choices.share(len(users), config.unseen_users)
  unseen = set(rng.sample(users, count))
  openings = sorted(set(map(_opening, dialogues)))
  count = dialogue_choices.share(len(openings), config.heldout_openings)
  kept_back = set(rng.sample(openings, count))
  seen = [each for each in dialogues if each.user_id not in unseen]
  train = [each for each in seen if _opening(each) not in kept_back]
  trained = set(map(_opening, train))
  known = {each.user_id for each in train}
  tally.note(
    "users with no comparison for training, who are unseen",
    len(set(users) - unseen - known),
  )
  strangers = [each for each in dialogues if each.user_id not in known]
  left = [each for each in strangers if _opening(each) not in trained]
  tally.drop(
    "dialogues of unseen users whose opening is trained on by others",
    len(strangers) - len(left),
  )
  heldout = [each for each in seen if _opening(each) in kept_back]
  return {
    "train": train,
    "heldout": [each for each in heldout if each.user_id in known],
    "unseen": left,
  }


def _opening(dialogue: dialogue_choices.Dialogue) -> str:
  return dialogue.turns[0].prompt[0].content.strip()
