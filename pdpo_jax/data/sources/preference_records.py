"""What a record says of somebody's taste, as people's files have it.

It is a comparison (`chosen`, `rejected`), several responses from the best to
the worst (`ranking`), or one that was liked or not (`response`, `label`).
"""

import collections
from collections.abc import Sequence
from typing import Any

from pdpo_jax.core import structs
from pdpo_jax.data import records
from pdpo_jax.data.sources import thumbs, turns, user_ids

# What tells taste, in this order where a record has more than one.
_KINDS = (("chosen", "rejected"), ("ranking",), ("response", "label"))
# What is read of a record, besides the columns of prompts and of users.
COLUMNS = (*(name for kind in _KINDS for name in kind), "user_text")


class Reader:
  """Reads the records of one path, one after the other."""

  def __init__(
    self, user_column: str, prompt_column: str, tally: records.Tally
  ):
    self._user_column = user_column
    self._prompt_column = prompt_column
    self._tally = tally
    self._ids = user_ids.Reader()
    self._file = ""
    self._columns = {*COLUMNS, user_column, prompt_column}
    self._labels = thumbs.Labels()

  def read(self, place: str, record: records.Record) -> list[structs.Feedback]:
    """What a record says: comparisons, or one thumb.

    Raises:
      ValueError: if the first record of a file lacks a column, or user ids are
        of mixed type.
    """
    self._check_columns(place, record)
    notes: turns.Notes = collections.Counter()
    try:
      feedback = self._feedback(place, record, notes)
    except records.BrokenRecord as broken:
      self._tally.break_(place, broken.reason, broken.detail)
      return []
    for reason, count in notes.items():
      self._tally.note(reason, count)
    if not feedback:
      self._tally.drop("comparisons of equal responses")
    return feedback

  def _check_columns(self, place: str, record: records.Record) -> None:
    for column in record.keys() - self._columns:
      self._tally.leave_out(str(column), records.COLUMN)
    file = place.rpartition(":")[0] or place.rpartition(" row ")[0]
    if file == self._file:
      return
    self._file = file
    columns = ", ".join(map(repr, record))
    lacking = [[each for each in x if each not in record] for x in _KINDS]
    if all(lacking):
      # Of the kind that it has a part of, if any.
      missing = next(
        (
          x
          for x, kind in zip(lacking, _KINDS, strict=True)
          if len(x) < len(kind)
        ),
        lacking[0],
      )
      raise ValueError(
        f"{place} has no {' and no '.join(map(repr, missing))}; a record needs "
        "'prompt', and either 'chosen' and 'rejected', or 'ranking', or "
        f"'response' and 'label', and this one has {columns}"
      )
    for option, column, usual in (
      ("user_column", self._user_column, "user_id"),
      ("prompt_column", self._prompt_column, "prompt"),
    ):
      if column != usual and column not in record:
        raise ValueError(
          f"{place} has no {column!r} (data.files.{option}); it has {columns}"
        )

  def _feedback(
    self, place: str, record: records.Record, notes: turns.Notes
  ) -> list[structs.Feedback]:
    """What a record says; nothing where all responses are equal."""
    kind = self._kind(record)
    if kind == ("ranking",):
      ranks = _ranks(record["ranking"], notes)
    elif kind == ("response", "label"):
      ranks = [[_single(record, notes)]]
    else:
      chosen, rejected = _responses(record, notes)
      ranks = [[chosen], rejected]
    prompt, texts = _parse(
      record.get(self._prompt_column),
      [y for rank in ranks for y in rank],
      notes,
    )
    user_id = self._ids.read(place, record.get(self._user_column), notes)
    user_text = _user_text(record.get("user_text"), notes)
    contents = (
      [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
    )
    _check_texts((*contents, *texts, user_text, user_id or ""), notes)
    if kind == ("response", "label"):
      is_up = self._labels.is_up(record.get("label"))
      return [
        structs.Thumb(prompt, texts[0], is_up, user_id, user_text, place=place)
      ]
    left = iter(texts)
    ranked = _different([[next(left) for _ in rank] for rank in ranks], notes)
    return [
      structs.PreferenceExample(
        prompt, text, tuple(worse), user_id, user_text, place=place
      )
      for number, rank in enumerate(ranked)
      for text in rank
      if (worse := [y for rank in ranked[number + 1 :] for y in rank])
    ]

  def _kind(self, record: records.Record) -> tuple[str, ...]:
    """Which one of `_KINDS` a record is of; the others' columns are listed."""
    given = [
      kind
      for kind in _KINDS
      if any(not turns.is_missing(record.get(name)) for name in kind)
    ]
    for kind in given[1:]:
      for name in kind:
        if not turns.is_missing(record.get(name)):
          self._tally.leave_out(
            name, f"{records.COLUMN} beside {given[0][0]!r}"
          )
    # Without any, what is missing is said of what the record has columns for.
    there = [kind for kind in _KINDS if all(name in record for name in kind)]
    return (given or there or _KINDS)[0]


def _different(
  ranks: Sequence[Sequence[str]], notes: turns.Notes
) -> list[list[str]]:
  """Without responses that are there already, at a better place."""
  chosen = ranks[0][0].strip()
  seen: set[str] = set()
  different = []
  for rank in ranks:
    left = []
    for text in rank:
      if text.strip() not in seen:
        seen.add(text.strip())
        left.append(text)
      elif text.strip() == chosen:
        notes["rejected responses equal to the chosen one"] += 1
      else:
        notes["rejected responses equal to another"] += 1
    if left:
      different.append(left)
  return different


def _parse(
  prompt: Any, replies: Sequence[Any], notes: turns.Notes
) -> tuple[structs.Prompt, list[str]]:
  """The prompt of a record, and the texts of its responses."""
  dialogues = [_dialogue(reply, notes) for reply in replies]
  if turns.is_missing(prompt):
    if any(isinstance(reply, str) for reply in dialogues):
      raise records.BrokenRecord("no prompt")
    start = _common_start(dialogues)
    prompt = start
  else:
    prompt, start = _prompt(prompt, notes)
  if not start:
    raise records.BrokenRecord("empty prompt")
  if start[-1].role != "user":
    raise records.BrokenRecord("prompt does not end with a turn of the user")
  turns.note_order(start, notes)
  return prompt, [_reply(reply, start) for reply in dialogues]


def _responses(
  record: records.Record, notes: turns.Notes
) -> tuple[Any, list[Any]]:
  """The chosen response and the rejected ones, each a text or messages."""
  chosen, rejected = record.get("chosen"), record.get("rejected")
  for name, value in (("chosen", chosen), ("rejected", rejected)):
    if turns.is_missing(value):
      raise records.BrokenRecord(f"no {name} response")
  written = turns.read_written(rejected) if isinstance(rejected, str) else None
  # Where the chosen one is such a text too, both answer with a list.
  if _is_several(written) and not _is_data(chosen):
    notes["lists of responses written as text, which are read"] += 1
    rejected = written
  chosen, rejected = turns.unpack(chosen, notes), turns.unpack(rejected, notes)
  if not isinstance(rejected, list):
    rejected = [rejected]
  elif turns.is_dialogue(rejected):
    # Answers alone do not follow each other.
    alone = all(turns.is_reply(item) for item in rejected)
    rejected = [[item] for item in rejected] if alone else [rejected]
  if not rejected:
    raise records.BrokenRecord("no rejected response")
  return chosen, rejected


def _single(record: records.Record, notes: turns.Notes) -> Any:
  """The response of a thumb, a text or messages."""
  response = record.get("response")
  if turns.is_missing(response):
    raise records.BrokenRecord("no response")
  return turns.unpack(response, notes)


def _ranks(value: Any, notes: turns.Notes) -> list[list[Any]]:
  """The responses of a ranking, each a text or messages, the best first.

  Responses of one rank are a list of texts within the list.
  """
  if turns.is_missing(value):
    raise records.BrokenRecord("no ranking")
  if isinstance(value, str):
    written = turns.read_written(value)
    if isinstance(written, list):
      notes["lists of responses written as text, which are read"] += 1
      value = written
  if not isinstance(value, list | tuple):
    raise records.BrokenRecord("ranking is no list", f"{value!r:.60}")
  ranks = []
  for item in turns.unpack(value, notes):
    is_tie = isinstance(item, list) and all(isinstance(y, str) for y in item)
    if isinstance(item, dict):
      item = [item]
    ranks.append(item if is_tie else [item])
  if not all(ranks):
    raise records.BrokenRecord("ranking with an empty rank", f"{value!r:.60}")
  if len(ranks) < 2:
    raise records.BrokenRecord(
      "ranking of less than two ranks", f"{value!r:.60}"
    )
  return ranks


def _is_several(written: Any) -> bool:
  """Whether a list that was written as text may be one of responses."""
  return (
    isinstance(written, list)
    and not turns.is_dialogue(written)
    and (not written or any(isinstance(item, str) for item in written))
    and all(
      item is None or item is ... or isinstance(item, str | list | dict)
      for item in written
    )
  )


def _is_data(chosen: Any) -> bool:
  """Whether a text is JSON or the like, and no messages."""
  written = turns.read_written(chosen) if isinstance(chosen, str) else None
  return (
    written is not None
    and turns.unpack(chosen, collections.Counter()) == chosen
  )


def _dialogue(
  reply: Any, notes: turns.Notes
) -> str | tuple[structs.Message, ...]:
  if isinstance(reply, list) and any(isinstance(item, dict) for item in reply):
    return turns.read_messages(reply, notes)
  if not isinstance(reply, str):
    raise records.BrokenRecord(
      "response is neither text nor messages", f"{reply!r:.60}"
    )
  return reply


def _prompt(
  value: Any, notes: turns.Notes
) -> tuple[structs.Prompt, tuple[structs.Message, ...]]:
  """The prompt, and the same as messages."""
  if isinstance(value, str):
    written = turns.read_written(value)
    if (
      isinstance(written, list)
      and written
      and not turns.is_dialogue(turns.unpack(written, collections.Counter()))
      and all(isinstance(item, str) for item in written)
    ):
      raise records.BrokenRecord("prompt is a list of texts", f"{value!r:.60}")
  value = turns.unpack(value, notes)
  if isinstance(value, list):
    messages = turns.read_messages(value, notes)
    return messages, messages
  if not isinstance(value, str):
    raise records.BrokenRecord(
      "prompt is neither text nor messages", f"{value!r:.60}"
    )
  if turns.is_blank(value):
    raise records.BrokenRecord("empty prompt")
  return value, (structs.Message("user", value),)


def _common_start(
  dialogues: list[tuple[structs.Message, ...]],
) -> tuple[structs.Message, ...]:
  """The messages with which all dialogues begin, up to the user's last."""
  shared: list[structs.Message] = []
  for messages in zip(*dialogues, strict=False):
    if any(message != messages[0] for message in messages):
      break
    shared.append(messages[0])
  while shared and shared[-1].role != "user":
    shared.pop()
  return tuple(shared)


def _reply(
  reply: str | tuple[structs.Message, ...], start: tuple[structs.Message, ...]
) -> str:
  """The text of a response: given as text, as a turn, or after the prompt."""
  if not isinstance(reply, str):
    if not reply:
      raise records.BrokenRecord("empty response")
    if len(reply) > 1 and reply[:-1] != start:
      raise records.BrokenRecord(
        "response is a dialogue that does not go on the prompt"
      )
    if reply[-1].role != "assistant":
      raise records.BrokenRecord(
        "response is not the assistant's", f"{reply[-1].role!r}"
      )
    reply = reply[-1].content
  if turns.is_blank(reply):
    raise records.BrokenRecord("empty response")
  return reply


def _user_text(value: Any, notes: turns.Notes) -> str:
  if turns.is_missing(value):
    return ""
  if not isinstance(value, str):
    raise records.BrokenRecord("user_text is no text", f"{value!r:.60}")
  if turns.is_blank(value):
    return ""
  if turns.is_nothing(value):
    notes["user texts like 'nan', 'None' and 'null', read as none"] += 1
    return ""
  if turns.read_written(value) is not None:
    notes[f"user {turns.STAY_TEXT}"] += 1
  return value


def _check_texts(texts: tuple[str, ...], notes: turns.Notes) -> None:
  for text in texts:
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise records.BrokenRecord("invalid UTF-8", str(error)) from error
    if "\0" in text:
      notes["texts with the character NUL"] += 1
    if turns.is_nothing(text):
      notes["texts that are just 'nan', 'None', 'null' or the like"] += 1
