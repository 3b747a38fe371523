"""The routes about people: choices, what is known of them, erasure."""

import dataclasses
from typing import Any

import fastapi
import numpy as np
from fastapi import responses
from starlette import concurrency

from pdpo_jax.core import kept, structs, together
from pdpo_jax.data import tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.inference import asking
from pdpo_jax.runs import dossier, locks
from pdpo_jax.runs import people as people_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.runs.erasure import erase as erase_lib
from pdpo_jax.serving import presence, protocol, questions, service, traits

router = fastapi.APIRouter(prefix="/v1")
_in_thread = concurrency.run_in_threadpool
# More of one person's would make each lesson long.
_MOST_CHOICES = 2000


@router.post("/choices", status_code=201)
async def choose(
  request: fastapi.Request, body: protocol.ChoiceRequest
) -> responses.JSONResponse:
  """Keeps a choice, or a thumb. Once this is answered, it is on the disk."""
  room: service.Service = request.app.state.service
  user_id = service.clean(body.user)
  await _enter(request, user_id, writes=True)
  prompt = protocol.prompt_of(body.prompt, "prompt", learnt=True)
  if body.thumb is not None:
    is_up = body.thumb == "up"
    feedback = structs.Thumb(prompt, body.response, is_up, user_id)
  else:
    rejected = body.rejected
    rejected = [rejected] if isinstance(rejected, str) else rejected
    feedback = structs.PreferenceExample(
      prompt, body.chosen, (*rejected,), user_id
    )
    _check_different(feedback)
  content = await _in_thread(_keep, room, feedback)
  return responses.JSONResponse(content, 201)


async def _enter(
  request: fastapi.Request, user_id: str | None, writes: bool = False
) -> None:
  """Notes whom a request is about; see `presence`."""
  room: service.Service = request.app.state.service
  await room.presence.enter(request.scope, user_id, writes=writes)


def _check_different(example: structs.PreferenceExample) -> None:
  if all(
    asking.plain(example.chosen) == asking.plain(other)
    for other in example.rejected
  ):
    raise protocol.ApiError(
      400,
      "both responses read alike, so that the choice says nothing; bring "
      "different ones",
      "rejected",
    )


def _keep(room: service.Service, example: structs.Feedback) -> dict[str, Any]:
  user_id = example.user_id
  people = room.speakers.people
  person = people.get(user_id)
  if person is not None and person.num_choices >= _MOST_CHOICES:
    raise protocol.ApiError(
      409,
      f"{_MOST_CHOICES:,} choices of this person are kept, which is all that "
      "is learnt from at once; train with them",
      "user",
    )
  learns = user_id not in room.speakers.table
  text = room.run.user_texts.get(user_id, "") if not learns else ""
  example = dataclasses.replace(example, user_text=text)
  _check(room, example)
  added = people.add([example])
  if added:
    room.meters.choices.inc()
    if learns:
      room.lessons.wake()
  person = people.get(user_id)
  return {
    "object": "choice",
    "user": user_id,
    "new": bool(added),
    "num_choices": person.num_choices if person else 0,
    # Choices of those who were trained wait for the next training.
    "learns": learns,
  }


def _check(room: service.Service, example: structs.Feedback) -> None:
  """Checks that it can be learnt from, before it is kept.

  Raises:
    protocol.ApiError: if it goes over the run's limits.
  """
  if isinstance(example, structs.Thumb):
    example = structs.PreferenceExample(
      example.prompt, example.response, (), user_text=example.user_text
    )
  try:
    with room.answerer.lock:
      split = tokenized.tokenize_split(
        "choices",
        [example],
        room.run.config.data,
        room.run.tokenizer,
        users_lib.UserIndex([]),
        may_be_none=True,
        alone=True,
      )
  except ValueError as error:
    raise protocol.ApiError(
      400, f"this choice is over the run's limits: {error}"
    ) from error
  if not split.tokenized:
    reasons = ", ".join(split.counts) or "nothing is left of it"
    raise protocol.ApiError(
      400, f"this choice cannot be learnt from: {reasons}"
    )


@router.get("/questions")
async def ask(request: fastapi.Request, user: str = "") -> dict[str, Any]:
  """What to ask somebody first, the most telling first.

  What they have chosen between already comes last.
  """
  room: service.Service = request.app.state.service
  user_id = service.clean(user) if user.strip() else None
  await _enter(request, user_id)

  def find() -> list[Any]:
    asked = []
    if user_id is not None:
      choices = room.speakers.people.choices(user_id)
      asked = [questions.to_json(choice.prompt) for choice in choices]
    return sorted(room.questions, key=lambda x: x in asked)

  return {"object": "list", "data": await _in_thread(find)}


@router.get("/people/{user_id:path}/export")
async def export(
  request: fastapi.Request, user_id: str
) -> responses.JSONResponse:
  """All that is held of a person, for the person."""
  if not request.scope["raw_path"].endswith(b"/export"):
    # The slash was quoted: it is of the id.
    return responses.JSONResponse(await show(request, f"{user_id}/export"))
  room: service.Service = request.app.state.service
  user = service.clean(user_id)
  await _enter(request, user)

  def make() -> dossier.Dossier:
    try:
      dataset = erase_lib.read_dataset(room.run)
      held = dossier.make(room.run, user, dataset, room.speakers.trained_row)
      # It takes a while, in which another server may have erased them.
      if not room.speakers.is_there(user):
        raise _nobody(user)
      return held
    except kept.Damaged:
      raise
    except ValueError as error:
      raise _nobody(user) from error

  return responses.JSONResponse(
    await _in_thread(make),
    headers={"content-disposition": 'attachment; filename="choices.json"'},
  )


@router.get("/people/{user_id:path}")
async def show(request: fastapi.Request, user_id: str) -> dict[str, Any]:
  """What is known of a person, and how surely."""
  room: service.Service = request.app.state.service
  user = service.clean(user_id)
  await _enter(request, user)
  return await _in_thread(_describe, room, user)


def _describe(room: service.Service, user_id: str) -> dict[str, Any]:
  person = room.speakers.people.get(user_id)
  known = room.speakers.known_as(user_id, person)
  if known == "unknown":
    raise _nobody(user_id)
  described = {
    "object": "person",
    "id": user_id,
    "known": known,
    "num_choices": person.num_choices if person else 0,
    "since": person.since if person else None,
    "learnt": None,
    "says": room.run.user_texts.get(user_id, "") if known == "trained" else "",
  }
  if person is None:
    return described
  choices = room.speakers.people.choices(user_id)
  described["traits"] = traits.of_choices(choices)
  if known == "learnt":
    described["learnt"] = _learnt(room, person)
  return described


def _learnt(room: service.Service, person: people_lib.Person) -> dict[str, Any]:
  learnt = person.learnt
  groups = np.asarray(learnt.posterior["groups"])
  return {
    "num_choices": learnt.num_choices,
    "at": learnt.learnt_at,
    # Of what may be known of somebody new, as squares of distances.
    "certainty": room.speakers.certainty(learnt),
    "groups": [round(float(share), 4) for share in groups],
    "log_evidence": learnt.log_evidence,
  }


@router.delete("/people/{user_id:path}")
async def erase(request: fastapi.Request, user_id: str) -> dict[str, Any]:
  """Erases a person: once this is answered, nothing is theirs any more."""
  room: service.Service = request.app.state.service
  user = service.clean(user_id)
  leaving = [user]
  if user in room.speakers.table:
    # They may be answering in the place of somebody else.
    leaving.append(presence.ANYBODY)
  async with room.presence.leaving(*leaving):
    return await _in_thread(_erase, room, user)


def _erase(room: service.Service, user_id: str) -> dict[str, Any]:
  """From the database at once, and from the run's files where they are.

  Whoever came after training is in the database alone.
  """
  folder = room.run.workdir
  content = {"object": "person.deleted", "id": user_id, "deleted": True}
  person = room.speakers.people.get(user_id)
  in_files = erase_lib.is_in_files(folder, user_id)
  if person is None and not in_files:
    raise _nobody(user_id)
  if not in_files:
    room.speakers.people.erase(lambda each: each == user_id)
    room.speakers.forget()
    return content
  try:
    command = f"python -m pdpo_jax.serve --workdir={folder}"
    with locks.writing(folder, command=command):
      if together.is_unfinished(folder):
        erase_lib.finish(folder)
      room.speakers.people.erase(lambda each: each == user_id)
      run = run_lib.Run.open(folder, database=room.database)
      erased = erase_lib.erase(run, user_id)
  except kept.Damaged:
    raise
  except ValueError as error:
    raise protocol.ApiError(
      409, f"nobody was erased from the run's files: {error}", "user"
    ) from error
  room.speakers.forget()
  # It knows how people differ from their row, too.
  room.lessons.begin_again()
  return content | {
    # What that does not undo; docs/privacy.md.
    "trained_choices": erased.trained,
    "records_in_data": len(erased.places),
  }


def _nobody(user_id: str) -> protocol.ApiError:
  return protocol.ApiError(
    404,
    f"nothing is known of {user_id[:100]!r}",
    "user",
    "person_not_found",
  )
