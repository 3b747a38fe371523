"""The routes that answer: chat, completions, and pairs to choose from."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

import fastapi
from fastapi import responses
from starlette import concurrency

from pdpo_jax.serving import answers as answers_lib
from pdpo_jax.serving import presence, protocol, service, speakers

router = fastapi.APIRouter(prefix="/v1")
_in_thread = concurrency.run_in_threadpool
_WATCH_SECONDS = 0.5
# Between looks at whether another server erased whom an answer is for.
_LOOK_SECONDS = 1.0


class _Gone(Exception):
  """Whoever asked is not there any more."""


@router.post("/chat/completions")
async def chat(
  request: fastapi.Request, body: protocol.ChatRequest
) -> responses.Response:
  """Answers a dialogue, as whoever asks."""
  room: service.Service = request.app.state.service
  user_id, visit = await _enter(request, body)

  def ask():
    speaker = _speaker(room, user_id, body)
    prompt = protocol.prompt_of(body.messages, "messages")
    return [room.answerer.encode(prompt, speaker)]

  return await _answer(request, body, await _in_thread(ask), _Chat, visit)


@router.post("/completions")
async def completions(
  request: fastapi.Request, body: protocol.CompletionRequest
) -> responses.Response:
  """Goes on with a text, without the chat template, or with token ids."""
  room: service.Service = request.app.state.service
  user_id, visit = await _enter(request, body)

  def ask():
    speaker = _speaker(room, user_id, body)
    return [
      room.answerer.encode(
        protocol.prompt_of(prompt, "prompt"), speaker, plain=True
      )
      if isinstance(prompt, str)
      else answers_lib.Asked(speaker, prompt, "prompt")
      for prompt in body.prompts
    ]

  return await _answer(request, body, await _in_thread(ask), _Completion, visit)


@router.post("/pairs")
async def pairs(
  request: fastapi.Request, body: protocol.ChatRequest
) -> responses.Response:
  """Answers a dialogue twice: as whoever asks, and as who else they may be.

  Which of both they prefer tells of who they are. The seed says which comes
  first. Answers end where longer ones could not be learnt from; otherwise it is
  as /v1/chat/completions with n of 2.
  """
  room: service.Service = request.app.state.service
  user_id, visit = await _enter(request, body)

  def ask():
    speaker = _speaker(room, user_id, body)
    prompt = protocol.prompt_of(body.messages, "messages", learnt=True)
    voices = room.speakers.pair(speaker)
    (seed,) = body.seeds(1)
    voices = voices[::-1] if seed % 2 else voices
    return [room.answerer.encode(prompt, voice) for voice in voices]

  asked = await _in_thread(ask)
  return await _answer(request, body, asked, _Chat, visit, learnt=True)


async def _enter(
  request: fastapi.Request, body: protocol.Sampling
) -> tuple[str | None, presence.Visit]:
  """Who asks, as somebody who is there until they are answered."""
  header = request.headers.get(service.USER_HEADER)
  room: service.Service = request.app.state.service
  user_id = room.who(body.model, body, header)
  visit = await room.presence.enter(
    request.scope, user_id, presence.ANYBODY if body.unlike else None
  )
  return user_id, visit


def _speaker(
  room: service.Service, user_id: str | None, body: protocol.Sampling
) -> speakers.Speaker:
  speaker = room.speakers.find(user_id)
  return room.speakers.unlike(speaker) if body.unlike else speaker


class _Chat:
  """How a chat is told."""

  kind, prefix, chunk = "chat.completion", "chatcmpl", "chat.completion.chunk"

  def __init__(self, answerer: answers_lib.Answerer):
    self._names = answerer.names

  def whole(self, place: int, piece: answers_lib.Piece, body) -> dict[str, Any]:
    message = {"role": "assistant", "content": piece.text, "refusal": None}
    return {
      "index": place,
      "message": message,
      "logprobs": self._logprobs(piece, body),
      "finish_reason": piece.finish,
    }

  def first(self, place: int) -> dict[str, Any]:
    delta = {"role": "assistant", "content": ""}
    return {"index": place, "delta": delta, "finish_reason": None}

  def part(self, place: int, piece: answers_lib.Piece, body) -> dict[str, Any]:
    return {
      "index": place,
      "delta": {"content": piece.text} if piece.text else {},
      "logprobs": self._logprobs(piece, body),
      "finish_reason": piece.finish,
    }

  def _logprobs(self, piece: answers_lib.Piece, body) -> dict[str, Any] | None:
    if body.told_logprobs is None:
      return None
    content = [
      self._token(token.id, token.logprob)
      | {"top_logprobs": [self._token(*each) for each in token.top]}
      for token in piece.tokens
    ]
    return {"content": content, "refusal": None}

  def _token(self, token: int, logprob: float) -> dict[str, Any]:
    return {
      "token": self._names.text_of(token),
      "logprob": logprob,
      "bytes": self._names.bytes_of(token),
    }


class _Completion:
  """How a completion is told."""

  kind = chunk = "text_completion"
  prefix = "cmpl"

  def __init__(self, answerer: answers_lib.Answerer):
    self._names = answerer.names

  def whole(self, place: int, piece: answers_lib.Piece, body) -> dict[str, Any]:
    return {
      "index": place,
      "text": piece.text,
      "logprobs": self._logprobs(piece, body),
      "finish_reason": piece.finish,
    }

  part = whole

  def first(self, place: int) -> None:
    return None

  def _logprobs(self, piece: answers_lib.Piece, body) -> dict[str, Any] | None:
    if body.told_logprobs is None:
      return None
    name = self._names.text_of
    return {
      "tokens": [name(token.id) for token in piece.tokens],
      "token_logprobs": [token.logprob for token in piece.tokens],
      "top_logprobs": [
        {name(other): logprob for other, logprob in token.top}
        for token in piece.tokens
      ],
      "text_offset": [token.offset for token in piece.tokens],
    }


async def _answer(
  request: fastapi.Request,
  body: protocol.Sampling,
  asked: Sequence[answers_lib.Asked],
  form: type[_Chat] | type[_Completion],
  visit: presence.Visit,
  learnt: bool = False,
) -> responses.Response:
  room: service.Service = request.app.state.service
  start = time.monotonic()
  answers = room.answerer.start(asked, body, learnt)
  visit.may_be_broken_off(lambda: answers_lib.cancel(answers))
  teller = form(room.answerer)
  speaker = asked[0].speaker
  person = {"id": speaker.id, "known": speaker.is_known}
  head = {
    **protocol.head(form.kind, form.prefix, body.model),
    "system_fingerprint": room.speakers.digest,
    "person": person,
    "prompt_cut": any(each.cut for each in asked),
  }
  headers = {"pdpo-person": "known" if speaker.is_known else "generic"}
  prompt_tokens = sum(
    len(each.ids) + room.answerer.prefix_length for each in asked
  )
  route = request.scope["route"].path

  async def check_there() -> None:
    visit.check()
    if speaker.id is not None and speaker.is_known:
      is_there = await _in_thread(room.speakers.is_there, speaker.id)
      if not is_there:
        raise presence.erased()

  def note_end() -> dict[str, int]:
    room.meters.seconds.labels(route).observe(time.monotonic() - start)
    return protocol.usage(
      prompt_tokens, sum(answer.new_tokens for answer in answers)
    )

  if body.stream:
    head["object"] = form.chunk

    async def events() -> AsyncIterator[str]:
      for place in range(len(answers)):
        if (first := teller.first(place)) is not None:
          yield _event({**head, "choices": [first]})
      told, looked = False, start
      try:
        pieces = room.answerer.all_pieces(answers)
        async with contextlib.aclosing(pieces):
          async for place, piece in pieces:
            visit.check()
            if time.monotonic() > looked + _LOOK_SECONDS:
              await check_there()
              looked = time.monotonic()
            if not told:
              room.meters.first_token.observe(time.monotonic() - start)
              told = True
            part = teller.part(place, piece, body)
            yield _event({**head, "choices": [part]})
      except protocol.ApiError as error:
        yield _event(error.body)
        return
      finally:
        answers_lib.cancel(answers)
        usage = note_end()
      if body.wants_usage:
        yield _event({**head, "choices": [], "usage": usage})
      yield "data: [DONE]\n\n"

    return responses.StreamingResponse(
      events(), media_type="text/event-stream", headers=headers
    )
  try:
    pieces = await _unless_gone(request, room.answerer.whole(answers))
  except _Gone:
    # Nobody reads it.
    return responses.Response(status_code=499)
  finally:
    answers_lib.cancel(answers)
    usage = note_end()
  await check_there()
  visit.is_given_out()
  choices = [
    teller.whole(place, piece, body) for place, piece in enumerate(pieces)
  ]
  content = {**head, "choices": choices, "usage": usage}
  return responses.JSONResponse(content, headers=headers)


def _event(value: Any) -> str:
  return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _unless_gone(request: fastapi.Request, work: Awaitable[Any]) -> Any:
  """What the work gives; it is broken off when the client goes.

  Raises:
    _Gone: then.
  """
  task = asyncio.ensure_future(work)
  try:
    while True:
      done, _ = await asyncio.wait([task], timeout=_WATCH_SECONDS)
      if done:
        return task.result()
      if await request.is_disconnected():
        raise _Gone
  finally:
    task.cancel()
