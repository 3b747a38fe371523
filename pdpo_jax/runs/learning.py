"""People are learnt from choices that they bring after training, and are asked.

Whose choices a run was trained on has a row of the trained table, and is not
learnt here: on its own choices alone, the row would lose what the old ones
said. A training that starts from the run goes on with both.
"""

import collections
import dataclasses
import logging
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.data import records
from pdpo_jax.data.sources import preference_files, user_ids
from pdpo_jax.inference import asking
from pdpo_jax.runs import people as people_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs import trained
from pdpo_jax.training import people as training_people

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Lesson:
  """What was learnt.

  Attributes:
    added: choices that were not kept before.
    people: who was learnt, by id.
    counts: comparisons that were cut or left out, by reason.
  """

  added: int
  people: dict[str, people_lib.Learnt]
  counts: collections.Counter[str]


def read_choices(run: run_lib.Run, path: str) -> list[structs.Feedback]:
  """The comparisons and thumbs of a file, as a training reads them.

  Raises:
    ValueError: if nothing can be read, or too much is broken.
  """
  tally = records.Tally()
  columns = run.config.data.files
  examples = preference_files.read(
    path, columns.user_column, tally, columns.prompt_column
  )
  tally.check(run.config.data.max_bad_share, "mend them")
  if tally.noted or tally.dropped:
    logger.warning("%s: %s", path, tally)
  if not examples:
    raise ValueError(f"{path!r} has no comparison and no thumb ({tally})")
  return examples


def check_id(user_id: str) -> str:
  """An id as files of comparisons have it.

  Raises:
    ValueError: if it is none.
  """
  try:
    clean = user_ids.Reader().read("id", user_id, collections.Counter())
  except records.BrokenRecord as problem:
    raise ValueError(str(problem)) from problem
  if clean is None:
    raise ValueError(f"user id {user_id!r} is none; name somebody")
  return clean


def warn_of_near(run: run_lib.Run, ids: Iterable[str]) -> None:
  """Warns of new ids that look like somebody's who is there."""
  known = [*run.own.table.ids, *run.people.ids()]
  for user_id in {*ids} - {*known}:
    for near in user_ids.near(user_id, known):
      logger.warning(
        "user id %r is new, and looks like %r, who is somebody else; `merge` "
        "makes them one, if they came after training",
        user_id,
        near,
      )


def check_not_trained(run: run_lib.Run, ids: Iterable[str]) -> None:
  """Checks that none of these people has a row that was trained.

  Raises:
    ValueError: naming those who have.
  """
  trained = [user_id for user_id in ids if user_id in run.own.table]
  if trained:
    raise ValueError(
      f"{', '.join(map(repr, trained[:5]))}: a row of the table of "
      f"{run.workdir} was trained on their choices, and says more than new "
      "ones alone would. A training with --config.train.start_from="
      f"{run.workdir} goes on with both"
    )


def learn(
  run: run_lib.Run, examples: Sequence[structs.Feedback] = ()
) -> Lesson:
  """Keeps choices, and learns everyone whose row is not of all that is known.

  Raises:
    ValueError: if choices are nobody's, somebody has a row that was trained, or
      what they chose goes over the run's limits. Nothing is kept then.
  """
  nobodys = sum(example.user_id is None for example in examples)
  if nobodys:
    raise ValueError(
      f"{nobodys:,} of {len(examples):,} comparisons do not say whose they "
      f"are; name the person of each in {run.config.data.files.user_column!r}"
    )
  ids = dict.fromkeys(example.user_id for example in examples)
  check_not_trained(run, ids)
  if not run.config.user.prefix_length:
    raise ValueError(
      f"{run.workdir} has no user model (user.kind 'none'), so that nobody can "
      "be learnt"
    )
  warn_of_near(run, ids)
  # Before anything is kept, since it may be refused.
  if examples:
    run.own.learner.prepare(examples)
  added = run.people.add(examples)
  return dataclasses.replace(learn_waiting(run), added=added)


def learn_waiting(run: run_lib.Run, leave_out: Collection[str] = ()) -> Lesson:
  """Learns everyone whose row is not of all that is known.

  Args:
    leave_out: ids of people who go on waiting.
  """
  policy = run.own.shared_digest
  waiting = [
    user_id
    for user_id in run.people.waiting(policy)
    if user_id not in run.own.table and user_id not in leave_out
  ]
  choices = {user_id: run.people.choices(user_id) for user_id in waiting}
  if not waiting:
    return Lesson(0, {}, collections.Counter())
  prepared = run.own.learner.prepare(
    [example for of_person in choices.values() for example in of_person]
  )
  found = run.own.learner.learn(prepared.choices, waiting)
  learnt = {
    user_id: _learnt(person, len(choices[user_id]), policy)
    for user_id, person in found.items()
  }
  run.people.set_learnt(learnt, choices)
  return Lesson(0, learnt, prepared.counts)


def _learnt(
  person: training_people.Person, num_choices: int, policy: str
) -> people_lib.Learnt:
  fields = dataclasses.asdict(person)
  row = fields.pop("row")
  posterior = {name: np.asarray(value) for name, value in fields.items()}
  return people_lib.Learnt(
    row, posterior, num_choices, person.log_evidence, policy
  )


def person_of(run: run_lib.Run, user_id: str) -> training_people.Person:
  """What is known of somebody who came after training, or of a newcomer.

  Raises:
    ValueError: if they have a row that was trained, or are to be learnt first.
  """
  check_not_trained(run, [user_id])
  person = run.people.get(user_id)
  if person is None:
    return run.own.learner.nobody()
  if not person.is_answered(run.own.shared_digest):
    raise trained.not_learnt(run.workdir, user_id)
  posterior = {
    name: value if value.ndim else value.item()
    for name, value in person.learnt.posterior.items()
  }
  row = person.learnt.row.reshape(run.own.learner.population.shape)
  return training_people.Person(row=row, **posterior)


@dataclasses.dataclass(frozen=True)
class Question:
  """A pair that somebody is to choose from.

  Attributes:
    information: that the answer is expected to give, in nats.
    probability: that they prefer the first.
  """

  prompt: structs.Prompt
  responses: tuple[str, str]
  information: float
  probability: float


def ask(
  run: run_lib.Run,
  user_id: str,
  candidates: Sequence[structs.Feedback],
  count: int,
) -> list[Question]:
  """The pairs whose answers would tell most of a person, best first.

  Pairs that they chose from before are left out, and so are responses that read
  alike. A comparison of several responses is a pair for each rejected one.

  Raises:
    ValueError: as `person_of`, or if no pair is left.
  """
  thumbs = sum(isinstance(each, structs.Thumb) for each in candidates)
  if thumbs:
    raise ValueError(
      f"{thumbs:,} of {len(candidates):,} records have a single response, and "
      "a person is asked which one of two they prefer; bring comparisons "
      "(chosen, rejected) or rankings"
    )
  person = person_of(run, user_id)
  asked = {
    _pair(example.prompt, example.chosen, rejected)
    for example in run.people.choices(user_id)
    if isinstance(example, structs.PreferenceExample)
    for rejected in example.rejected
  }
  pairs = [
    dataclasses.replace(example, rejected=(rejected,), user_id=None)
    for example in candidates
    for rejected in example.rejected
    if not _read_alike(example.chosen, rejected)
  ]
  pairs = {
    pair: example
    for example in pairs
    if (pair := _pair(example.prompt, example.chosen, *example.rejected))
    not in asked
  }
  prepared = run.own.learner.prepare([*pairs.values()])
  if not prepared.choices:
    raise ValueError(
      f"none of {len(candidates):,} comparisons is left to ask {user_id!r}: "
      "they chose from it before, its responses read alike, or it is over the "
      "run's limits; bring others"
    )
  outlook = run.own.learner.outlook(person, prepared.choices)
  information, probability = outlook.information, outlook.probability
  examples = [*pairs.values()]
  order = np.argsort(-information, kind="stable")[:count]
  return [
    Question(
      examples[prepared.choices[place].place].prompt,
      (
        examples[prepared.choices[place].place].chosen,
        examples[prepared.choices[place].place].rejected[0],
      ),
      float(information[place]),
      float(probability[place]),
    )
    for place in order
  ]


def make_candidates(
  run: run_lib.Run, user_id: str, prompts: Sequence[structs.PromptExample]
) -> list[structs.PreferenceExample]:
  """Pairs that the run's model makes: answers as people whom this may be.

  Raises:
    ValueError: as `person_of`, or if its answers read alike or are too long.
  """
  candidates = asking.make_candidates(
    run.own.split_policy,
    run.base,
    person_of(run, user_id),
    run.own.learner.population,
    prompts,
    run.config.answers,
    run.config.data,
    seed=run.config.seed,
  )
  if not candidates:
    raise ValueError(
      f"whoever {user_id!r} may be, the model gives them the same answers to "
      "these prompts, so that nothing can be asked; bring other prompts, or "
      "pairs of responses (--data)"
    )
  return candidates


def _read_alike(one: str, other: str) -> bool:
  return asking.plain(one) == asking.plain(other)


def _pair(
  prompt: structs.Prompt, one: str, other: str
) -> tuple[structs.Prompt, frozenset[str]]:
  return prompt, frozenset((asking.plain(one), asking.plain(other)))


def rename(run: run_lib.Run, old: str, new: str) -> str:
  """Gives somebody who came after training another id, which is returned.

  Raises:
    ValueError: if they did not, or the id is somebody's.
  """
  new = check_id(new)
  database = run.people
  _check_came(run, database.ids(), old)
  if new in database.ids() or new in run.own.table:
    raise ValueError(
      f"user id {new!r} is somebody's already; `merge {old} {new}` makes them "
      "one, or choose another id"
    )
  warn_of_near(run, [new])
  database.rename(old, new)
  return new


def merge(run: run_lib.Run, user_id: str, into: str) -> Lesson:
  """Makes one person's choices another's, who is learnt again.

  Raises:
    ValueError: if one of them did not come after training.
  """
  database = run.people
  for each in (user_id, into):
    _check_came(run, database.ids(), each)
  if user_id == into:
    raise ValueError(f"{user_id!r} is to be merged with somebody else")
  database.merge(user_id, into)
  return learn(run)


def _check_came(run: run_lib.Run, ids: Collection[str], user_id: str) -> None:
  if user_id in run.own.table:
    raise ValueError(
      f"user id {user_id!r} is in the data of {run.workdir}, and its row was "
      "trained; change the id there, and train anew"
    )
  if user_id not in ids:
    near = user_ids.near(user_id, ids)
    hint = f"; near: {', '.join(map(repr, near))}" if near else ""
    raise ValueError(
      f"user id {user_id!r} is nobody's who came to {run.workdir} after "
      f"training{hint}"
    )
