"""PRISM: who of four answers preferred which, turn by turn, and who they are.

Kirk et al., "The PRISM Alignment Dataset", arXiv:2404.16019; experiment 2 of
arXiv:2402.05133. 1,396 of 1,500 participants had 8,011 dialogues with language
models. In a dialogue's first turn they chose among up to four responses, later
between two; each turn is a comparison, whose prompt is all that was said
before, with the chosen responses as the assistant's turns.
"""

import dataclasses
import itertools
import pathlib
import random
from collections.abc import Container, Iterator, Sequence

import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import records
from pdpo_jax.data.sources import (
  dialogue_choices,
  formats,
  prism_authors,
  prism_survey,
)

# Of the split in the paper's released code. A dialogue none of whose turns has
# all its responses within that code's limit is not part of it.
_AUTHORS_SEED = 123


@dataclasses.dataclass(frozen=True)
class Dialogue(dialogue_choices.Dialogue):
  authors_keep: bool  # whether it is part of the authors' split


def load(
  data: data_config.DataConfig, seed: int, num_prompts: int
) -> dataset_lib.Dataset:
  """Comparisons of PRISM, split by users and by their dialogues.

  An example's `user_id` is PRISM's, also for the unseen users.

  Raises:
    ValueError: if files are missing, too many records are broken, or no example
      is left for training or to be answered.
  """
  tally = records.Tally()
  texts, personas = _read_survey(data, tally)
  dialogues = _read_dialogues(data, texts, tally)
  tally.check(data.max_bad_share)
  splits = {"train": [], "heldout": [], "unseen": []}
  split_of = _split(data.prism, seed, texts, dialogues, tally)
  for dialogue in dialogues:
    if dialogue.dialogue_id in split_of:
      text = texts[dialogue.user_id]
      examples = splits[split_of[dialogue.dialogue_id]]
      examples.extend(_examples(dialogue, text, data.prism, seed, tally))
  return dialogue_choices.make_dataset(
    splits,
    personas,
    tally,
    path=data.path,
    options=("data.prism.unseen_users", "data.prism.heldout_dialogues"),
    seed=seed,
    num_prompts=num_prompts,
  )


def _read(
  path: str, name: str, tally: records.Tally
) -> Iterator[tuple[str, records.Record]]:
  folder = pathlib.Path(path).expanduser()
  if not folder.exists():
    return records.read_hub(path, tally, name=name, split="train")
  file = formats.find_jsonl(folder, name)
  if file is None:
    raise ValueError(
      f"data.path {path!r} has no {name}.jsonl; give a folder with PRISM's "
      "survey.jsonl and conversations.jsonl"
    )
  return formats.read(file, tally)


def _read_survey(
  data: data_config.DataConfig, tally: records.Tally
) -> tuple[dict[str, str], dict[str, structs.Persona]]:
  """Text and persona of each participant, in the survey's order."""
  prism = data.prism
  texts: dict[str, str] = {}
  personas: dict[str, structs.Persona] = {}

  def read(
    record: records.Record, place: str
  ) -> tuple[str, str, structs.Persona]:
    del place  # Only dialogues become examples.
    user_id = _new_id(record, "user_id", texts)
    text = prism_survey.user_text(record, prism)
    persona = prism_survey.persona(record)
    if prism.stated_preferences and not persona.aspects:
      tally.note("users without stated preferences")
    return user_id, text, persona

  participants = records.parse(_read(data.path, "survey", tally), read, tally)
  for user_id, text, persona in participants:
    texts[user_id] = text
    personas[user_id] = persona
  return texts, personas


def _read_dialogues(
  data: data_config.DataConfig, texts: dict[str, str], tally: records.Tally
) -> list[Dialogue]:
  """All dialogues, in the file's order, those without a comparison too."""
  seen: set[str] = set()

  def read(record: records.Record, place: str) -> Dialogue:
    dialogue_id = _new_id(record, "conversation_id", seen)
    user_id = records.field(record, "user_id", str)
    if user_id not in texts:
      raise records.BrokenRecord("user is not in the survey", repr(user_id))
    spoken = _spoken_turns(records.field(record, "conversation_history", list))
    feedback = dialogue_choices.answer(record, "open_feedback")
    for turn in spoken:
      turn.feedback = feedback
    seen.add(dialogue_id)
    return Dialogue(
      dialogue_id=dialogue_id,
      user_id=user_id,
      turns=tuple(dialogue_choices.comparisons(spoken, tally)),
      place=place,
      authors_keep=any(map(_within_limit, spoken)),
    )

  placed = _read(data.path, "conversations", tally)
  return list(records.parse(placed, read, tally))


def _new_id(record: records.Record, name: str, known: Container[str]) -> str:
  value = records.field(record, name, str)
  if not value:
    raise records.BrokenRecord("empty id", name)
  if value in known:
    raise records.BrokenRecord(f"repeated {name}", repr(value))
  return value


def _within_limit(turn: dialogue_choices.SpokenTurn) -> bool:
  """Whether it is a comparison all of whose texts keep the authors' limit."""
  if not (turn.asked and turn.chosen and turn.rejected):
    return False
  longest = max(map(len, [turn.chosen[0], *turn.rejected]))
  return len(turn.asked[0]) + longest <= prism_authors.EXAMPLE_LIMIT


def _spoken_turns(history: list) -> list[dialogue_choices.SpokenTurn]:
  """What was said, by turns."""
  spoken: list[dialogue_choices.SpokenTurn] = []
  for message in history:
    if not isinstance(message, dict):
      raise records.BrokenRecord("wrong type", f"message {message!r:.60}")
    number = records.field(message, "turn", int)
    if not 0 <= number < len(history):
      raise records.BrokenRecord("turn out of range", str(number))
    while len(spoken) <= number:
      spoken.append(dialogue_choices.SpokenTurn())
    turn = spoken[number]
    role = records.field(message, "role", str)
    content = records.field(message, "content", str)
    if role == "user":
      turn.asked.append(content)
    elif role != "model":
      raise records.BrokenRecord("unknown role", repr(role))
    elif records.field(message, "if_chosen", bool):
      turn.chosen.append(content)
    else:
      turn.rejected.append(content)
  return spoken


def _split(
  prism: data_config.PrismConfig,
  seed: int,
  texts: dict[str, str],
  dialogues: Sequence[Dialogue],
  tally: records.Tally,
) -> dict[str, str]:
  """The split of each dialogue: "train", "heldout" or "unseen".

  Shares are rounded up: of 1,396 users 140 are unseen, and of six dialogues
  one is held out. "authors" draws as the paper's released code does, users in
  the survey's order and dialogues in the file's. At the default shares and of
  the full data, that makes 1,234 seen and 162 unseen users.
  """
  if prism.split == "authors":
    order, shuffle = list, np.random.RandomState(_AUTHORS_SEED).shuffle
  else:
    order, shuffle = sorted, random.Random(f"prism {seed}").shuffle
  by_user = _dialogues_by_user(texts, dialogues, prism.split, tally)
  users = order(by_user)
  shuffle(users)
  unseen = dialogue_choices.share(len(users), prism.unseen_users)
  num_seen = len(users) - unseen
  everything = itertools.chain.from_iterable(by_user.values())
  split_of = {each.dialogue_id: "unseen" for each in everything}
  for user_id in users[:num_seen]:
    ids = order(each.dialogue_id for each in by_user[user_id])
    shuffle(ids)
    if len(ids) == 1:
      tally.note("users with one dialogue")
      continue
    # However large the share, one dialogue is left for training.
    held = dialogue_choices.share(len(ids), prism.heldout_dialogues)
    cut = max(1, len(ids) - held)
    usable = {each.dialogue_id for each in by_user[user_id] if each.turns}
    if usable.isdisjoint(ids[:cut]):
      tally.note("users with no comparison for training")
      continue
    split_of |= dict.fromkeys(ids[:cut], "train")
    split_of |= dict.fromkeys(ids[cut:], "heldout")
  return split_of


def _dialogues_by_user(
  texts: dict[str, str],
  dialogues: Sequence[Dialogue],
  split: str,
  tally: records.Tally,
) -> dict[str, list[Dialogue]]:
  """What is to be split, in the order of the survey and of the dialogues."""
  by_user: dict[str, list[Dialogue]] = {user_id: [] for user_id in texts}
  for dialogue in dialogues:
    by_user[dialogue.user_id].append(dialogue)
  kept = {}
  for user_id, of_user in by_user.items():
    if not of_user:
      tally.drop("users without a dialogue")
    left = [
      dialogue
      for dialogue in of_user
      if (dialogue.authors_keep if split == "authors" else dialogue.turns)
    ]
    if left:
      kept[user_id] = left
    if len(left) < len(of_user):
      reason = "dialogues without a comparison"
      if split == "authors":
        reason += f" of at most {prism_authors.EXAMPLE_LIMIT:,} characters"
      tally.drop(reason, len(of_user) - len(left))
  return kept


def _examples(
  dialogue: Dialogue,
  user_text: str,
  prism: data_config.PrismConfig,
  seed: int,
  tally: records.Tally,
) -> Iterator[structs.PreferenceExample]:
  for turn in dialogue.turns:
    prompt, rejected = turn.prompt, turn.rejected
    if prism.prompt == "authors":
      asked = prompt[-1].content
      rejected = prism_authors.fitting(asked, turn.chosen, rejected)
      limit = f"{prism_authors.EXAMPLE_LIMIT:,} characters"
      tally.drop(
        f"rejected responses of turns over {limit}",
        len(turn.rejected) - len(rejected),
      )
      prompt = prism_authors.cut(prompt, user_text)
      if prompt != turn.prompt:
        tally.note("dialogues cut")
    grouped = [rejected] if rejected else []
    if prism.rejected == "each":
      grouped = [(text,) for text in rejected]
    elif prism.rejected == "one" and rejected:
      # Seeded by the place, so that a turn's draw depends on no other's.
      place = f"{seed} {dialogue.dialogue_id} {turn.number}"
      rng = random.Random(f"rejected {place}")
      grouped = [(rng.choice(rejected),)]
    for texts in grouped:
      cut = dataclasses.replace(turn, prompt=prompt, rejected=texts)
      yield dialogue_choices.example(dialogue, cut, user_text)
