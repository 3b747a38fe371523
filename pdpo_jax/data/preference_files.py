"""One's own comparisons: JSONL, Parquet, CSV, or a hub data set.

A row has `prompt`, `chosen` and `rejected`, each a text or a list of messages
(`{"role": …, "content": …}`), and may have `user_id` and `user_text`. Several
rejected responses are a list. Without `prompt`, `chosen` and `rejected` are
whole dialogues, and the prompt is what they begin with alike. A cell of a CSV
file may hold a list as JSON.
"""

import csv
import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from pdpo_jax import config as config_lib
from pdpo_jax import structs
from pdpo_jax.data import dataset, rows, splits

logger = logging.getLogger(__name__)

_ROLES = ("system", "user", "assistant")

Examples = list[structs.PreferenceExample]


def load(config: config_lib.Config) -> dataset.Dataset:
  """Reads and splits the comparisons that `data.path` and `data.files` name."""
  data, files = config.data, config.data.files
  tally = rows.Tally()
  examples = read(data.path, files.user_column, tally)
  tally.check(data.max_bad_share)
  if files.heldout_path:
    train = examples
    heldout = read(files.heldout_path, files.user_column, tally)
    tally.check(data.max_bad_share)
    heldout = splits.without_common(train, heldout, tally)
    train, heldout = splits.without_rare_users(train, heldout, files, tally)
  else:
    frequent, _ = splits.without_rare_users(examples, [], files, tally)
    train, heldout = splits.split(frequent, files.heldout_share, config.seed)
  strangers = splits.draw_users(train, files.unseen_users, config.seed)
  tally.drop(
    "training comparisons of unseen users",
    sum(example.user_id in strangers for example in train),
  )
  train = [example for example in train if example.user_id not in strangers]
  limit = "max_per_user", files.max_per_user
  train = splits.at_most(train, *limit, config.seed, tally)
  limit = "max_heldout_per_user", files.max_heldout_per_user
  heldout = splits.at_most(heldout, *limit, config.seed, tally)
  seen = {example.user_id for example in train} | {None}
  known = [example for example in heldout if example.user_id in seen]
  for name, part in (("training", train), ("held-out", known)):
    if not part:
      raise ValueError(
        f"data.path {data.path!r}: no {name} comparison of a seen user is "
        f"left ({tally}); bring more choices, or look at data.files "
        "(heldout_share, heldout_path, min_per_user) and data.max_bad_share"
      )
  splits.note_known(train, heldout, tally)
  tally.note(
    "comparisons without a user, who count as unknown",
    sum(example.user_id is None for example in (*train, *heldout)),
  )
  if config.user.kind != "none" and seen == {None}:
    logger.warning(
      "data.path %r: no comparison says who made it, so that only the generic "
      "embedding is learnt; where the column of users is not %r, name it by "
      "data.files.user_column",
      data.path,
      files.user_column,
    )
  return dataset.Dataset(
    train=train,
    heldout=known,
    unseen=[example for example in heldout if example.user_id not in seen],
    prompts=splits.draw_prompts(known, config.answers.num_prompts, config.seed),
    tally=tally,
  )


def read(path: str, user_column: str, tally: rows.Tally) -> Examples:
  """All comparisons of a file, a folder of files, or a hub data set.

  Args:
    path: a file or folder, or "id" or "id:split" of a hub data set.
    user_column: where user ids are.
    tally: is told of rows that are broken or dropped.

  Raises:
    ValueError: if nothing can be read, a column is missing, or user ids are of
      mixed type.
  """
  reader = _Reader(user_column, tally)
  examples = []
  for place, row in _rows(path, tally):
    example = reader.example(place, row)
    if example is not None:
      examples.append(example)
  return examples


def _rows(path: str, tally: rows.Tally) -> Iterator[tuple[str, rows.Row]]:
  place = pathlib.Path(path).expanduser()
  if place.is_dir():
    files = sorted(f for f in place.iterdir() if f.suffix in _FORMATS)
    if not files:
      raise ValueError(
        f"data.path {path!r} holds no file ending in {', '.join(_FORMATS)}"
      )
  elif place.is_file() or place.suffix in _FORMATS:
    files = [place]
  elif path.startswith((".", "/", "~")):
    raise ValueError(f"data.path: there is no file or folder {path!r}")
  else:
    name, _, split = path.partition(":")
    yield from rows.read_hub(name, tally, split=split or "train")
    return
  for file in files:
    if file.suffix not in _FORMATS:
      raise ValueError(
        f"{file}: the format is told by the name, which must end in one of "
        f"{', '.join(_FORMATS)}"
      )
    if not file.is_file():
      raise ValueError(f"data.path: there is no file {str(file)!r}")
    yield from _FORMATS[file.suffix](file, tally)


def _read_csv(
  file: pathlib.Path, tally: rows.Tally
) -> Iterator[tuple[str, rows.Row]]:
  csv.field_size_limit(2**31 - 1)
  # Bytes that are no UTF-8 become surrogates, which the reader finds.
  with file.open(
    encoding="utf-8-sig", errors="surrogateescape", newline=""
  ) as lines:
    reader = csv.DictReader(lines, strict=True)
    number = 0
    # The header, so that lines are counted from it on.
    _ = reader.fieldnames
    while True:
      place = f"{file.name}:{reader.line_num + 1}"
      try:
        row = next(reader)
      except StopIteration:
        break
      except csv.Error as error:
        if "unexpected end" in str(error):
          raise ValueError(
            f"{place}: a quote opens here that is never closed, so that all "
            'rows behind it are one cell; double a quote inside of a cell ("")'
          ) from error
        tally.read()
        tally.break_(place, "malformed CSV", str(error))
        number += 1
        continue
      tally.read()
      number += 1
      if None in row or None in row.values():
        tally.break_(
          place, "malformed CSV", "more or fewer cells than the header has"
        )
        continue
      yield place, {name: _cell(text) for name, text in row.items()}
  if not number:
    raise ValueError(f"{file} is empty; it should have a header and rows")


def _cell(text: str) -> Any:
  """A CSV cell: text, a JSON list, or nothing; a list of numbers is text."""
  if text.startswith("["):
    try:
      items = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
      return text
    if not items or any(isinstance(item, str | dict | list) for item in items):
      return items
  return text or None


def _read_parquet(
  file: pathlib.Path, tally: rows.Tally
) -> Iterator[tuple[str, rows.Row]]:
  # Imported here: JSONL and CSV do without it.
  import pyarrow
  from pyarrow import parquet

  number = 0
  try:
    with parquet.ParquetFile(file) as table:
      for batch in table.iter_batches(4096):
        for row in batch.to_pylist():
          tally.read()
          number += 1
          yield f"{file.name} row {number}", row
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f"{file} cannot be read as Parquet after row {number}: {error}"
    ) from error
  if not number:
    raise ValueError(f"{file} is empty; it should have rows")


_FORMATS = {
  ".jsonl": rows.read_jsonl,
  ".parquet": _read_parquet,
  ".csv": _read_csv,
}


class _Reader:
  """Makes comparisons of rows, one after the other."""

  def __init__(self, user_column: str, tally: rows.Tally):
    self._user_column = user_column
    self._tally = tally
    self._columns_checked = False
    self._first_id: tuple[str, Any] | None = None

  def example(
    self, place: str, row: rows.Row
  ) -> structs.PreferenceExample | None:
    """The comparison of a row, or None where there is none."""
    if not self._columns_checked:
      self._check_columns(place, row)
    try:
      prompt, chosen, rejected = _parse(row)
      user_id = self._user_id(place, row.get(self._user_column))
      user_text = row.get("user_text") or ""
      if not isinstance(user_text, str):
        raise rows.BrokenRow("user_text is no text", f"{user_text!r:.60}")
      _check_unicode(prompt, chosen, *rejected, user_text, user_id or "")
    except rows.BrokenRow as broken:
      self._tally.break_(place, broken.reason, broken.detail)
      return None
    others = tuple(text for text in rejected if text.strip() != chosen.strip())
    if len(others) < len(rejected):
      self._tally.note(
        "rejected responses equal to the chosen one",
        len(rejected) - len(others),
      )
    if not others:
      self._tally.drop("comparisons of equal responses")
      return None
    return structs.PreferenceExample(
      prompt, chosen, others, user_id, user_text, place=place
    )

  def _check_columns(self, place: str, row: rows.Row) -> None:
    self._columns_checked = True
    missing = {"chosen", "rejected"} - row.keys()
    if missing:
      raise ValueError(
        f"{place} has no {' and no '.join(map(repr, sorted(missing)))}; a row "
        f"needs 'prompt', 'chosen' and 'rejected', and this one has "
        f"{', '.join(map(repr, row))}"
      )
    if self._user_column != "user_id" and self._user_column not in row:
      raise ValueError(
        f"{place} has no {self._user_column!r} (data.files.user_column); it "
        f"has {', '.join(map(repr, row))}"
      )

  def _user_id(self, place: str, value: Any) -> str | None:
    if value is None or value == "":
      return None
    if not isinstance(value, str | int) or isinstance(value, bool):
      raise rows.BrokenRow(
        "user id is no text and no integer", f"{value!r:.60}"
      )
    first_place, first = self._first_id = self._first_id or (place, value)
    if type(first) is not type(value):
      raise ValueError(
        f"user ids are of mixed type: {value!r} ({place}) and {first!r} "
        f"({first_place}); 7 and '7' must not be two users, so make all of "
        "them text or all of them integers"
      )
    return str(value)


def _parse(row: rows.Row) -> tuple[structs.Prompt, str, list[str]]:
  """Prompt, chosen and rejected responses of a row."""
  rejected = row.get("rejected")
  several = isinstance(rejected, list) and not _is_messages(rejected)
  replies = [row.get("chosen"), *(rejected if several else [rejected])]
  if len(replies) < 2:
    raise rows.BrokenRow("no rejected response")
  prompt = row.get("prompt")
  if prompt is None:
    if not all(map(_is_messages, replies)):
      raise rows.BrokenRow("no prompt")
    prompt = _common_start(replies)
  turns = _messages(prompt) if isinstance(prompt, list) else None
  if turns is None and not isinstance(prompt, str):
    raise rows.BrokenRow(
      "prompt is neither text nor messages", f"{prompt!r:.60}"
    )
  if not prompt or (isinstance(prompt, str) and not prompt.strip()):
    raise rows.BrokenRow("empty prompt")
  if turns and turns[-1].role != "user":
    raise rows.BrokenRow("prompt does not end with a turn of the user")
  start = turns or (structs.Message("user", prompt),)
  texts = [_reply(reply, start) for reply in replies]
  return turns or prompt, texts[0], texts[1:]


def _reply(reply: Any, turns: tuple[structs.Message, ...]) -> str:
  """The text of a response: given as text, as a turn, or after the prompt."""
  if _is_messages(reply):
    said = _messages(reply)
    if len(said) > 1 and said[:-1] != turns:
      raise rows.BrokenRow(
        "response is a dialogue that does not go on the prompt"
      )
    if said[-1].role != "assistant":
      raise rows.BrokenRow(
        "response is not the assistant's", f"{said[-1].role!r}"
      )
    reply = said[-1].content
  if not isinstance(reply, str):
    raise rows.BrokenRow(
      "response is neither text nor messages", f"{reply!r:.60}"
    )
  if not reply.strip():
    raise rows.BrokenRow("empty response")
  return reply


def _is_messages(value: Any) -> bool:
  return (
    isinstance(value, list)
    and bool(value)
    and all(isinstance(each, dict) for each in value)
  )


def _messages(value: list) -> tuple[structs.Message, ...]:
  turns = []
  for each in value:
    role = each.get("role") if isinstance(each, dict) else None
    content = each.get("content") if isinstance(each, dict) else None
    if role not in _ROLES or not isinstance(content, str):
      raise rows.BrokenRow(
        "message without a role (system, user, assistant) or content",
        f"{each!r:.60}",
      )
    turns.append(structs.Message(role, content))
  return tuple(turns)


def _common_start(replies: list[list]) -> list:
  """The messages with which all dialogues begin, up to the user's last."""
  shared = []
  for turns in zip(*replies, strict=False):
    if any(turn != turns[0] for turn in turns):
      break
    shared.append(turns[0])
  while shared and shared[-1].get("role") != "user":
    shared.pop()
  return shared


def _check_unicode(prompt: structs.Prompt, *texts: str) -> None:
  contents = (
    [prompt] if isinstance(prompt, str) else [t.content for t in prompt]
  )
  for text in (*contents, *texts):
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise rows.BrokenRow("invalid UTF-8", str(error)) from error
