"""What becomes of each kind of file when somebody is erased from a run."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Set
from typing import Any

from pdpo_jax.core import kept, structs
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import held_out
from pdpo_jax.runs import answers, roster, run_folder
from pdpo_jax.runs import config as config_lib

_EVERY = (*(config_lib.VANILLA, config_lib.PDPO), run_folder.BEFORE)


@dataclasses.dataclass(frozen=True)
class Leaver:
  """Somebody who is erased, and what is theirs.

  Attributes:
    user_id: their id.
    people: everyone whom the run knows, and they.
    knows_data: whether the run's data could be read. Without it, nobody knows
      which prompts are theirs.
    prompts, user_texts: that are theirs alone.
    pairs: digests of pairs of responses, likewise.
    shared: prompts that somebody else compared responses to as well.
  """

  user_id: str
  people: Set[str]
  knows_data: bool = False
  prompts: Set[structs.Prompt] = frozenset()
  user_texts: Set[str] = frozenset()
  pairs: Set[str] = frozenset()
  shared: Set[structs.Prompt] = frozenset()

  @classmethod
  def of(
    cls,
    user_id: str,
    people: Set[str],
    dataset: dataset_lib.Dataset | None,
  ) -> "Leaver":
    """Somebody of a run, whose data set is None where it cannot be read."""
    people = people | {user_id}
    if dataset is None:
      return cls(user_id, people)
    prompts, texts = roster.own_texts(dataset, {user_id})
    pairs, others, theirs = set(), set(), set()
    for example in (*dataset.train, *dataset.heldout, *dataset.unseen):
      is_theirs = example.user_id == user_id
      (pairs if is_theirs else others).update(held_out.digests(example))
      if is_theirs:
        theirs.add(example.prompt)
    return cls(
      user_id, people, True, prompts, texts, pairs - others, theirs - prompts
    )


# The content of a file afterwards, or None where there is to be none.
Handler = Callable[[pathlib.Path, Leaver], bytes | None]


def _lines(file: pathlib.Path) -> list[tuple[bytes, dict[str, Any]]]:
  """The lines of a file of JSON, as they are and what they say.

  Raises:
    ValueError: if one cannot be read.
  """
  lines = kept.read(file).splitlines(keepends=True)
  return [(line, json.loads(line)) for line in lines]


def _without_lines(
  file: pathlib.Path, is_theirs: Callable[[dict[str, Any]], bool]
) -> bytes | None:
  lines = [line for line, fields in _lines(file) if not is_theirs(fields)]
  return b"".join(lines) or None


def _by_user(file: pathlib.Path, leaver: Leaver) -> bytes | None:
  return _without_lines(file, lambda x: x["user_id"] == leaver.user_id)


def _answers(file: pathlib.Path, leaver: Leaver) -> bytes | None:
  """All answers to prompts of theirs go, whoever gives them."""
  if not leaver.knows_data:
    return None
  speaker = None if leaver.user_id in answers.OTHERS else leaver.user_id

  def is_theirs(line):
    prompt = line["prompt"]
    if not isinstance(prompt, str):
      prompt = tuple(structs.Message(**turn) for turn in prompt)
    return (
      line["speaker"] == speaker
      or prompt in leaver.prompts
      or line["user_text"] in leaver.user_texts
    )

  return _without_lines(file, is_theirs)


def _json(value: Any) -> bytes:
  return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _config(file: pathlib.Path, leaver: Leaver) -> bytes:
  fields = json.loads(kept.read_text(file))
  listed = fields.get("answers", {}).get("users", [])
  if leaver.user_id not in listed:
    return kept.read(file)
  listed.remove(leaver.user_id)
  return (json.dumps(fields, indent=2) + "\n").encode()


def _user_texts(file: pathlib.Path, leaver: Leaver) -> bytes | None:
  texts = json.loads(kept.read_text(file))
  texts.pop(leaver.user_id, None)
  return _json(texts) if texts else None


def _held_out(file: pathlib.Path, leaver: Leaver) -> bytes:
  fields = kept.read_json(file, held_out.Fields)
  fields["users"] = [x for x in fields["users"] if x != leaver.user_id]
  for name in ("trained", "heldout"):
    fields[name] = [x for x in fields[name] if x not in leaver.pairs]
  return (json.dumps(fields) + "\n").encode()


def _results(file: pathlib.Path, leaver: Leaver) -> bytes:
  """Numbers by person or speaker go without theirs, whatever they are of."""
  people = leaver.people | answers.OTHERS.keys()

  def without(value):
    if isinstance(value, dict):
      is_of_people = value.keys() <= people
      if leaver.user_id in answers.OTHERS:
        # They share it with somebody who answers, but not among users.
        is_of_people = value.keys() <= leaver.people
      return {
        name: without(part)
        for name, part in value.items()
        if not (is_of_people and name == leaver.user_id)
      }
    if isinstance(value, list):
      return [without(part) for part in value if part != leaver.user_id]
    return value

  return _json(without(json.loads(kept.read_text(file))))


def _journal(file: pathlib.Path, leaver: Leaver) -> bytes | None:
  """Without lines that cannot be read, too, which may be anyone's."""
  lines = []
  for line in file.read_bytes().splitlines(keepends=True):
    try:
      if json.loads(line)["user_id"] != leaver.user_id:
        lines.append(line)
    except (ValueError, TypeError, KeyError):
      continue
  return b"".join(lines) or None


def gone(file: pathlib.Path, leaver: Leaver) -> None:
  """Is made again by the command that made it, if anybody wants it."""
  del file, leaver


# By the patterns of `run_folder.PERSONAL`.
HANDLERS: Mapping[str, Handler] = {
  run_folder.CONFIG: _config,
  run_folder.USER_TEXTS: _user_texts,
  run_folder.HELD_OUT: _held_out,
  run_folder.ANSWERS: _answers,
  run_folder.RESULTS: _results,
  run_folder.JOURNAL: _journal,
  run_folder.DATA_REPORT: gone,
  "responses/base_*.jsonl": _by_user,
  **{
    f"{training}/{name}": _by_user
    for training in _EVERY
    for name in (
      "scores/heldout_*.jsonl",
      "scores/unseen_*.jsonl",
      "responses/*.jsonl",
    )
  },
  f"{run_folder.REPORT}/index.html": gone,
  f"{run_folder.REPORT}/report.md": gone,
  f"{run_folder.REPORT}/report.json": gone,
  f"{run_folder.REPORT}/figures/*.png": gone,
}
# What `erase.py` sees to itself.
BESIDES = (
  run_folder.PEOPLE,
  *(f"{run_folder.PEOPLE}-{name}" for name in ("journal", "wal", "shm")),
  run_folder.ROSTER,
  *(
    f"{training}/{name}/*"
    for training in (config_lib.VANILLA, config_lib.PDPO)
    for name in ("checkpoints", "checkpoints_unreadable")
  ),
)
