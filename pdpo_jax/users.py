r"""The people of a run: who come, are asked, are known, and leave.

  python -m pdpo_jax.users --workdir=RUN list
  python -m pdpo_jax.users --workdir=RUN show ID
  python -m pdpo_jax.users --workdir=RUN learn --data=choices.jsonl
  python -m pdpo_jax.users --workdir=RUN ask ID --prompt="…"
  python -m pdpo_jax.users --workdir=RUN rename OLD NEW
  python -m pdpo_jax.users --workdir=RUN merge ID INTO
  python -m pdpo_jax.users --workdir=RUN export ID --to=ann.json
  python -m pdpo_jax.users --workdir=RUN import ann.json
  python -m pdpo_jax.users --workdir=RUN choices
  python -m pdpo_jax.users --workdir=RUN erase ID --retrain

`learn` knows people from a few choices in seconds, without training
(docs/people.md); without --data, it learns again whoever was learnt with other
weights. `ask` says which pairs of responses a person should be shown. `export`
gives all that the run holds of a person, which `import` takes up elsewhere.
`choices` prints everybody's, as a file for a training. `erase` leaves nothing
of it, and says what it cannot undo (docs/privacy.md). An id that begins with a
dash stands behind `--`.
"""

import collections
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from absl import flags

from pdpo_jax import command_line
from pdpo_jax.core import display, kept, structs, together
from pdpo_jax.data import tokenize
from pdpo_jax.evaluation import accuracy
from pdpo_jax.runs import choice_records, learning, locks, run_folder, scores
from pdpo_jax.runs import dossier as dossier_lib
from pdpo_jax.runs import people as people_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs.erasure import erase as erase_lib

_WORKDIR = command_line.workdir_flag()
_DATABASE = command_line.database_flag()
_DATA = flags.DEFINE_string(
  "data",
  None,
  "learn, ask: comparisons, in any format that `data.path` of a training has; "
  "learn: also thumbs.",
)
_PROMPTS = command_line.prompt_flag()
_COUNT = flags.DEFINE_integer("count", 1, "ask: how many pairs.", lower_bound=1)
_TO = flags.DEFINE_string(
  "to", None, "export: a new file to write to; default: stdout."
)
_RETRAIN = flags.DEFINE_bool(
  "retrain", False, "erase: print how to train anew without the person."
)
# Places of comparisons that are printed.
_PLACES = 20


def _name(user_id: str) -> str:
  return display.name(user_id, 256)


def list_people(run: run_lib.Run) -> None:
  """Prints everyone who has a row, or is to have one."""
  came = run.people.all()
  lines = [(user_id, "trained") for user_id in run.own.table.ids]
  lines += [(user_id, _state(run, came[user_id])) for user_id in came]
  width = max((len(_name(user_id)) for user_id, _ in lines), default=0)
  for user_id, state in lines:
    print(f"{_name(user_id):<{width}}  {state}")
  if not lines:
    print(f"{display.name(str(run.workdir), 1000)} knows nobody")


def _state(run: run_lib.Run, person: people_lib.Person) -> str:
  choices = f"{person.num_choices:,} choices"
  if person.learnt is None:
    return f"{choices}, not learnt yet"
  if not person.is_answered(run.own.shared_digest):
    return f"{choices}, learnt with other weights than this run has now"
  return (
    f"learnt from {person.learnt.num_choices:,} of {choices}, "
    f"{person.learnt.learnt_at}"
  )


def show(run: run_lib.Run, user_id: str) -> None:
  """Prints what is known of a person, in short."""
  dataset = erase_lib.read_dataset(run)
  dossier = dossier_lib.make(run, user_id, dataset)
  lines = [_name(user_id)]
  if dossier["row"] is not None:
    lines.append(f"row {run.own.users.row_of(user_id)} of the trained table")
  comparisons = dossier["comparisons"] or {}
  counts = [f"{len(x):,} {split}" for split, x in comparisons.items() if x]
  if counts:
    lines.append(f"comparisons in the run's data: {', '.join(counts)}")
  person = run.people.get(user_id)
  if person is not None:
    lines.append(_state(run, person))
    if person.learnt is not None:
      evidence = person.learnt.log_evidence / max(person.learnt.num_choices, 1)
      lines.append(f"log evidence {evidence:.3f} nats a choice")
  start = f"{run.config.training_name}/scores/heldout_"
  scored = [x for name, x in dossier["files"].items() if name.startswith(start)]
  if scored:
    # Of the newest policy, as names are sorted.
    share = accuracy.of_scores(scores.from_lines(scored[-1])).pairs
    lines.append(f"held-out pairs told right: {share:.0%}")
  if dossier["user_text"]:
    lines.append(f"says: {display.name(dossier['user_text'], 200)}")
  for name, of_file in dossier["files"].items():
    lines.append(f"{name}: {len(of_file):,} lines")
  print("\n  ".join(lines))


def learn(run: run_lib.Run) -> None:
  """Learns people from choices, or those again who are to be."""
  examples = learning.read_choices(run, _DATA.value) if _DATA.value else []
  _print_lesson(run, learning.learn(run, examples))


def _print_lesson(run: run_lib.Run, lesson: learning.Lesson) -> None:
  if +lesson.counts:
    print(tokenize.listed(lesson.counts))
  for user_id, learnt in lesson.people.items():
    print(f"{_name(user_id)}: learnt from {learnt.num_choices:,} choices")
  print(
    f"{lesson.added:,} new choices kept, {len(lesson.people):,} people learnt; "
    f"python -m pdpo_jax.generate --workdir={_place(run)} --user=ID answers "
    "as one"
  )


def _place(run: run_lib.Run) -> str:
  return display.for_shell(str(run.workdir))


def ask(run: run_lib.Run, user_id: str) -> None:
  """Prints the pairs whose answers tell most of a person, as JSON lines."""
  if bool(_DATA.value) == bool(_PROMPTS.value):
    raise ValueError(
      "ask: name either comparisons to choose from, by --data, or prompts that "
      "the model is to answer in several ways, by --prompt"
    )
  user_id = learning.check_id(user_id)
  learning.warn_of_near(run, [user_id])
  if _DATA.value:
    candidates = learning.read_choices(run, _DATA.value)
  else:
    prompts = map(command_line.parse_prompt, command_line.read_prompts())
    candidates = learning.make_candidates(
      run, user_id, [structs.PromptExample(prompt) for prompt in prompts]
    )
  for question in learning.ask(run, user_id, candidates, _COUNT.value):
    line = {"user_id": user_id} | dataclasses.asdict(question)
    print(display.visible(json.dumps(line, ensure_ascii=False)))


def rename(run: run_lib.Run, old: str, new: str) -> None:
  """Gives a person another id."""
  new = learning.rename(run, old, new)
  print(f"{_name(old)} is {_name(new)} now")


def merge(run: run_lib.Run, user_id: str, into: str) -> None:
  """Makes two people one."""
  _print_lesson(run, learning.merge(run, user_id, into))


def take_up(run: run_lib.Run, file: str) -> None:
  """Takes up a person whom another run exported."""
  dossier = dossier_lib.read(pathlib.Path(file).expanduser())
  lesson = dossier_lib.take_up(
    run,
    dossier["person"],
    dossier_lib.examples(dossier),
    dossier_lib.learnt(dossier),
  )
  _print_lesson(run, lesson)


def export(run: run_lib.Run, user_id: str) -> None:
  """Writes all that the run holds of a person."""
  dataset = erase_lib.read_dataset(run)
  dossier = dossier_lib.make(run, user_id, dataset)
  text = json.dumps(dossier, indent=2, ensure_ascii=False) + "\n"
  if _TO.value is None:
    print(display.visible(text), end="")
    return
  file = pathlib.Path(_TO.value).expanduser()
  try:
    with open(
      os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w"
    ) as out:
      out.write(text)
  except FileExistsError as error:
    raise ValueError(f"--to {str(file)!r} is there; name a new file") from error
  except OSError as error:
    raise kept.Unwritable(file, error) from error
  print(f"{file}: all that {run.workdir} holds of {_name(user_id)}")


def choices(run: run_lib.Run) -> None:
  """Prints all choices that are kept, as a file of comparisons."""
  left_out: collections.Counter[str] = collections.Counter()
  for record in choice_records.of_run(run, left_out):
    print(json.dumps(record, ensure_ascii=True))
  if left_out:
    print(
      f"{left_out.total():,} choices are left out, since a file of comparisons "
      f"has none like them: {tokenize.listed(left_out)}",
      file=sys.stderr,
    )


def erase(run: run_lib.Run, user_id: str) -> None:
  """Removes a person from a run, and says what that does not undo."""
  erased = erase_lib.erase(run, user_id)
  place = _place(run)
  print(f"Erased: nothing in {place} is {_name(user_id)}'s any more.")
  for line in _remarks(run, erased, place):
    print(f"- {line}")
  if _RETRAIN.value:
    print("\n" + "\n".join(_how_to_retrain(run, erased, place)))


def _remarks(
  run: run_lib.Run, erased: erase_lib.Erased, place: str
) -> list[str]:
  """What whoever erases has to know."""
  lines = []
  if erased.trained:
    lines.append(
      "Cannot be undone: what all users share (LoRA, generic prefix or cluster "
      f"centers) was trained on {erased.trained:,} choices of theirs, too, and "
      "so was the base, if the run taught it. --retrain says how to train "
      "without them."
    )
  if erased.places:
    lines.append(
      f"The run's data still has {len(erased.places):,} comparisons of theirs, "
      "which this run reads no more: "
      + _listed([display.name(each, 100) for each in erased.places])
    )
  elif erased.trained:
    lines.append("The run's data is outside of its folder, and is as it was.")
  if not erased.knows_data:
    lines.append(
      "The run's data could not be read, so that nobody knows which prompts "
      f"were theirs: {run_folder.ANSWERS} is gone as a whole, and digests of "
      f"their pairs stay in {run_folder.HELD_OUT}."
    )
  if erased.shared:
    lines.append(
      "Prompts of theirs that others compared responses to as well stay with "
      f"those: {erased.shared:,}."
    )
  if erased.removed:
    lines.append(f"Gone as a whole: {_listed(erased.removed)}")
  if erased.trained and erased.knows_data:
    lines.append(
      "The report is gone; to make it again: python -m pdpo_jax.evaluate "
      f"--workdir={place}"
    )
  for folder in erased.others:
    lines.append(
      f"{display.for_shell(str(folder))} may know them as well: python -m "
      f"pdpo_jax.users --workdir={display.for_shell(str(folder))} list"
    )
  if erased.unknown:
    lines.append(f"Not looked into: {_listed(erased.unknown)}")
  lines.append(
    "Not reached: what was exported, backups and copies, folders of runs that "
    f"this one was compared with, and {display.name(run.config.cache, 200)}, "
    "which has numbers without names and may be deleted."
  )
  return lines


def _listed(names: Sequence[str]) -> str:
  more = len(names) - _PLACES
  named = ", ".join(names[:_PLACES])
  return f"{named} and {more:,} more" if more > 0 else named


def _how_to_retrain(
  run: run_lib.Run, erased: erase_lib.Erased, place: str
) -> list[str]:
  """The command that trains without whoever was erased."""
  config = display.for_shell(str(run.workdir / run_folder.CONFIG))
  data = run.config.data
  source = display.name(data.path, 1000) or f"its data ({data.source})"
  lines = []
  if run.config.start:
    start = display.for_shell(str(run.config.start))
    lines.append(
      f"This run started from {start}. Where that knows them, train it anew "
      "without them first, and name the new one by --config.train.start_from."
    )
  return [
    *lines,
    f"1. Take every record of theirs out of {source}"
    + (f": {_listed(erased.places)}." if erased.places else "."),
    "2. Train anew, from the same config:",
    f"  python -m pdpo_jax.main --config={config} "
    f"--config.workdir={place}-anew",
    "3. Remove this run.",
  ]


class _Command(NamedTuple):
  run: Callable[..., None]
  words: tuple[str, ...]
  writes: bool


_COMMANDS: Mapping[str, _Command] = {
  "list": _Command(list_people, (), False),
  "show": _Command(show, ("ID",), False),
  "learn": _Command(learn, (), True),
  "ask": _Command(ask, ("ID",), False),
  "rename": _Command(rename, ("OLD", "NEW"), True),
  "merge": _Command(merge, ("ID", "INTO"), True),
  "export": _Command(export, ("ID",), False),
  "choices": _Command(choices, (), False),
  "import": _Command(take_up, ("FILE",), True),
  "erase": _Command(erase, ("ID",), True),
}


def main(words: Sequence[str]) -> None:
  usage = ", ".join(
    " ".join((name, *command.words)) for name, command in _COMMANDS.items()
  )
  name, *arguments = words or [""]
  command = _COMMANDS.get(name)
  if command is None or len(arguments) != len(command.words):
    raise ValueError(
      f"{' '.join(words)!r} is not what this command does: it has {usage}"
    )
  if _WORKDIR.value is None:
    raise ValueError(
      f"--workdir is missing; e.g. --workdir=runs/quickstart {name}"
    )
  folder = pathlib.Path(_WORKDIR.value).expanduser()
  # Others may be told of the command, but not of whom it is about.
  title = f"python -m pdpo_jax.users --workdir={folder} {name}"
  if together.is_unfinished(folder):
    with locks.writing(folder, command=title):
      erase_lib.finish(folder)
    print("An erasure that was interrupted is finished.", file=sys.stderr)
  run = run_lib.Run.open(folder, database=_DATABASE.value)
  if not command.writes:
    command.run(run, *arguments)
    return
  with locks.writing(folder, command=title):
    command.run(run, *arguments)


if __name__ == "__main__":
  command_line.run(main, takes_words=True)
