"""All that a run holds of a person, and how another run takes it up.

What people have a right to see and to take with them.
"""

import collections
import dataclasses
import fnmatch
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pydantic

# Pydantic refuses that of `typing` before Python 3.12.
from typing_extensions import TypedDict

from pdpo_jax.core import structs
from pdpo_jax.data import comparisons
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.runs import answers, learning, run_folder
from pdpo_jax.runs import people as people_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.training import rows

_FORMAT = 1
# Files of which lines with a person's id are theirs.
_LINES = (
  run_folder.ANSWERS,
  run_folder.JOURNAL,
  "responses/*.jsonl",
  "*/scores/*.jsonl",
  "*/responses/*.jsonl",
)


class MessageFields(TypedDict):
  """A turn of a prompt."""

  role: Literal["system", "user", "assistant"]
  content: str


_Prompt = str | Annotated[list[MessageFields], pydantic.Field(min_length=1)]


class ChoiceFields(TypedDict):
  """A comparison, as `data/comparisons.py` writes it."""

  prompt: _Prompt
  chosen: str
  rejected: Annotated[list[str], pydantic.Field(min_length=1)]
  user_text: NotRequired[str]


class ThumbFields(TypedDict):
  """A thumb, likewise."""

  prompt: _Prompt
  response: str
  label: pydantic.StrictBool
  user_text: NotRequired[str]


class LearntFields(TypedDict):
  """`people.Learnt`, as JSON has it."""

  row: list[pydantic.FiniteFloat]
  posterior: dict[str, Any]
  num_choices: Annotated[int, pydantic.Field(ge=0, lt=2**31)]
  log_evidence: pydantic.FiniteFloat
  policy: str
  learnt_at: str


class Dossier(TypedDict):
  """Of a person, for the person.

  Attributes:
    choices: kept in the database of people.
    comparisons: by split, that the run's data has; null where that cannot be
      read.
    row: in the table that was trained; null where the person has none there.
    policy: that the row belongs to, as `rows.shared_digest`.
    files: lines about the person, by file.
  """

  format: int
  person: str
  policy: str
  row: list[float] | None
  learnt: LearntFields | None
  choices: list[ChoiceFields | ThumbFields]
  comparisons: dict[str, list[ChoiceFields]] | None
  user_text: str
  persona: dict[str, Any] | None
  files: dict[str, list[Any]]


def make(
  run: run_lib.Run,
  user_id: str,
  dataset: dataset_lib.Dataset | None,
  row_of: Callable[[str], np.ndarray | None] | None = None,
) -> Dossier:
  """All that a run holds of a person.

  Args:
    dataset: of the run, if it can be read.
    row_of: a person's row in the table that was trained; for whoever has it in
      memory, since a table is read whole.

  Raises:
    ValueError: if that is nothing.
  """
  people = run.people
  person = people.get(user_id)
  user = run.config.user
  row = None
  if user.prefix_length:
    row_of = row_of or functools.partial(rows.read, user, run.own.folder)
    row = row_of(user_id)
  of_data = persona = None
  if dataset is not None:
    of_data = {
      split: [
        _fields(example)
        for example in getattr(dataset, split)
        if example.user_id == user_id
      ]
      for split in ("train", "heldout", "unseen")
    }
    if user_id in dataset.personas:
      persona = dataclasses.asdict(dataset.personas[user_id])
  dossier = Dossier(
    format=_FORMAT,
    person=user_id,
    policy=run.own.shared_digest,
    row=None if row is None else _floats(row),
    learnt=None,
    choices=[_fields(example) for example in people.choices(user_id)],
    comparisons=of_data,
    user_text=run.user_texts.get(user_id, ""),
    persona=persona,
    files=_lines_of(run.workdir, user_id),
  )
  if person is not None and person.learnt is not None:
    fields = dataclasses.asdict(person.learnt)
    fields["row"] = _floats(fields["row"])
    fields["posterior"] = {
      name: array.tolist() for name, array in fields["posterior"].items()
    }
    dossier["learnt"] = LearntFields(**fields)
  if not _is_known(dossier, person):
    near = run.own.users.near(user_id)
    hint = f"; near: {', '.join(map(repr, near))}" if near else ""
    raise ValueError(
      f"user id {user_id!r} is none of the people of {run.workdir}{hint}"
    )
  return dossier


def _is_known(dossier: Dossier, person: people_lib.Person | None) -> bool:
  return bool(
    person is not None
    or dossier["row"] is not None
    or any((dossier["comparisons"] or {}).values())
    or dossier["user_text"]
    or dossier["persona"]
    or dossier["files"]
  )


def _floats(array: np.ndarray) -> list[float]:
  # The fewest digits that are read back as the same float32.
  return [float(str(x)) for x in np.asarray(array, np.float32).ravel()]


def _fields(example: structs.Feedback) -> Any:
  return json.loads(comparisons.to_json(example))


def _lines_of(folder: pathlib.Path, user_id: str) -> dict[str, list[Any]]:
  """Lines about a person, by the name of their file."""
  lines: dict[str, list[Any]] = {}
  for file in sorted(folder.rglob("*.jsonl")):
    name = file.relative_to(folder).as_posix()
    if not any(fnmatch.fnmatchcase(name, each) for each in _LINES):
      continue
    for line in file.read_bytes().splitlines():
      try:
        fields = json.loads(line)
      except ValueError:
        continue  # Cut off by a kill.
      speaker = fields.get("speaker")
      is_speaker = speaker == user_id and speaker not in answers.OTHERS
      if is_speaker or fields.get("user_id") == user_id:
        lines.setdefault(name, []).append(fields)
  return lines


def read(file: pathlib.Path) -> Dossier:
  """What `make` gave, of whichever run.

  Raises:
    ValueError: if it is none.
  """
  try:
    dossier = pydantic.TypeAdapter(Dossier).validate_json(file.read_bytes())
  except OSError as error:
    raise ValueError(f"{file} cannot be read ({error.strerror})") from error
  except pydantic.ValidationError as error:
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    raise ValueError(
      f"{file} is none that `export` wrote ({place}: {first['msg']})"
    ) from error
  if dossier["format"] != _FORMAT:
    raise ValueError(
      f"{file} is of format {dossier['format']}, and this program reads "
      f"{_FORMAT}"
    )
  return dossier


def examples(dossier: Dossier) -> list[structs.Feedback]:
  """The choices that a person can be learnt from, each once."""
  of_data = (dossier["comparisons"] or {}).get("train", [])
  return [
    comparisons.from_json(json.dumps(each), dossier["person"])
    for each in (*dossier["choices"], *of_data)
  ]


def learnt(dossier: Dossier) -> people_lib.Learnt | None:
  """What was learnt of them, after training; None where that is spoilt."""
  fields = dossier["learnt"]
  if fields is None:
    return None
  try:
    posterior = {k: np.asarray(v) for k, v in fields["posterior"].items()}
  except ValueError:  # Of lists of different lengths.
    return None
  with np.errstate(over="ignore"):  # `take_up` looks at it.
    row = np.asarray(fields["row"], np.float32)
  return people_lib.Learnt(**(fields | {"row": row, "posterior": posterior}))


def take_up(
  run: run_lib.Run,
  user_id: str,
  examples: Sequence[structs.Feedback],
  learnt: people_lib.Learnt | None,
) -> learning.Lesson:
  """Takes up somebody whom another run exported.

  Args:
    learnt: what the other run had learnt, which counts if its policy is this
      one's and it is of all these choices; otherwise they are learnt again.

  Raises:
    ValueError: if they are known already, or there is nothing to learn from.
  """
  user_id = learning.check_id(user_id)
  examples = [
    dataclasses.replace(example, user_id=user_id) for example in examples
  ]
  database = run.people
  if user_id in database.ids() or user_id in run.own.table:
    raise ValueError(
      f"user id {user_id!r} is known to {run.workdir} already; give one of the "
      "two another id (`rename`), and `merge` them"
    )
  if not examples:
    raise ValueError(f"there are no choices of {user_id!r} to learn from")
  if not _is_own(run, learnt, examples):
    return learning.learn(run, examples)
  learning.warn_of_near(run, [user_id])
  added = database.add(examples, learnt)
  return learning.Lesson(added, {user_id: learnt}, collections.Counter())


def _is_own(
  run: run_lib.Run,
  learnt: people_lib.Learnt | None,
  examples: Sequence[structs.Feedback],
) -> bool:
  """Whether it is what this run would have learnt; its file may be spoilt."""
  if learnt is None or learnt.policy != run.own.shared_digest:
    return False
  newcomer = dataclasses.asdict(run.own.learner.nobody())
  size = np.size(newcomer.pop("row"))
  return (
    _are_numbers(learnt.row, (size,))
    and learnt.posterior.keys() == newcomer.keys()
    and all(
      _are_numbers(values, np.shape(newcomer[name]))
      for name, values in learnt.posterior.items()
    )
    and learnt.num_choices == len({*map(comparisons.to_json, examples)})
  )


def _are_numbers(values: np.ndarray, shape: tuple[int, ...]) -> bool:
  numbers = values.dtype.kind in "biuf" and bool(np.isfinite(values).all())
  return numbers and values.shape == shape
