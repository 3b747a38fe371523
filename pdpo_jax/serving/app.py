"""The application: routes, errors, the page."""

import logging
import urllib.parse
from collections.abc import Sequence
from typing import Any

import fastapi
from fastapi import exceptions, responses
from starlette import concurrency, types
from starlette import exceptions as starlette_exceptions

from pdpo_jax.core import kept
from pdpo_jax.serving import (
  completions,
  guard,
  persons,
  protocol,
  service,
)

logger = logging.getLogger(__name__)

# What pydantic says of a value of which another form was meant.
_OTHER_FORM = ("string_type", "list_type", "dict_type", "model_type")
_PAGE = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}


def make_app(
  room: service.Service, key: str = "", hosts: Sequence[str] = ()
) -> types.ASGIApp:
  """An ASGI application.

  Args:
    key, hosts: as for `guard.Guard`.
  """
  app = fastapi.FastAPI(
    title="pdpo_jax",
    description="A run that answers whoever asks as themselves.",
    responses={
      "4XX": {"model": protocol.ErrorBody, "description": "It is refused."},
      "5XX": {"model": protocol.ErrorBody, "description": "The server fails."},
    },
    docs_url=None,
    redoc_url=None,
  )
  app.state.service = room
  app.include_router(completions.router)
  app.include_router(persons.router)

  @app.get("/health")
  async def health() -> dict[str, str]:
    """Whether it can answer."""
    if room.engine.failure is not None:
      raise protocol.ApiError(503, "the engine does not answer; start it again")
    return {"status": "ok"}

  @app.get("/metrics")
  async def metrics() -> responses.Response:
    return responses.PlainTextResponse(
      room.meters.text(),
      media_type="text/plain; version=0.0.4; charset=utf-8",
    )

  @app.get("/v1/models")
  async def models() -> dict[str, Any]:
    return {"object": "list", "data": [_model(room, room.model)]}

  @app.get("/v1/models/{model:path}")
  async def one_model(request: fastapi.Request, model: str) -> dict[str, Any]:
    user_id = room.who(model)
    await room.presence.enter(request.scope, user_id)
    find = room.speakers.find
    speaker = await concurrency.run_in_threadpool(find, user_id)
    if user_id is not None and not speaker.is_known:
      raise protocol.ApiError(
        404,
        f"nobody of that name is known to {room.model!r}; whoever is unknown "
        "is answered by it as the generic user",
        "model",
        "model_not_found",
      )
    return _model(room, model)

  for path, name in _PAGE.items():
    app.add_api_route(path, _file(name), include_in_schema=False)
  _add_errors(app)

  async def counting(scope, receive, send):
    status = 500

    async def send_noting(message):
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
      await send(message)

    try:
      with room.presence.visiting(scope):
        await app(scope, receive, send_noting)
    finally:
      if scope["type"] == "http":
        route = getattr(scope.get("route"), "path", "none")
        room.meters.requests.labels(route, str(status)).inc()

  return guard.Guard(counting, key, hosts)


def _model(room: service.Service, name: str) -> dict[str, Any]:
  return {
    "id": name,
    "object": "model",
    "created": room.created,
    "owned_by": "pdpo_jax",
  }


def _file(name: str):
  file = service.page_folder() / name

  async def send() -> responses.FileResponse:
    return responses.FileResponse(file)

  return send


def _add_errors(app: fastapi.FastAPI) -> None:
  """All that goes wrong is told in one form."""

  @app.exception_handler(protocol.ApiError)
  async def known(request: fastapi.Request, error: protocol.ApiError):
    return responses.JSONResponse(error.body, error.status, error.headers)

  @app.exception_handler(exceptions.RequestValidationError)
  async def invalid(
    request: fastapi.Request, error: exceptions.RequestValidationError
  ):
    first = _first(error.errors())
    # Without the names of a field's forms, such as list[Part].
    place = [
      str(x)
      for x in first["loc"]
      if x != "body" and (isinstance(x, int) or x.isidentifier())
    ]
    named = ".".join(place[:1] if first["type"] != "json_invalid" else [])
    reason = first["msg"].removeprefix("Value error, ")
    message = f"{'.'.join(place) or 'the body'}: {reason}"
    known = protocol.ApiError(400, message, named or None)
    return responses.JSONResponse(known.body, 400)

  @app.exception_handler(starlette_exceptions.HTTPException)
  async def plain(
    request: fastapi.Request, error: starlette_exceptions.HTTPException
  ):
    message = f"{request.method} {_shown(request.url.path)}: {error.detail}"
    known = protocol.ApiError(error.status_code, message)
    return responses.JSONResponse(
      known.body, error.status_code, dict(error.headers or {})
    )

  @app.exception_handler(kept.Damaged)
  async def damaged(request: fastapi.Request, error: kept.Damaged):
    # What is in the way of answers, such as a database that is down.
    logger.error("%s", error)
    known = protocol.ApiError(
      503, "what is known of people cannot be read at the moment; ask later"
    )
    return responses.JSONResponse(known.body, 503, {"retry-after": "5"})

  @app.exception_handler(Exception)
  async def unknown(request: fastapi.Request, error: Exception):
    known = protocol.ApiError(500, "the server failed; its log says how")
    return responses.JSONResponse(known.body, 500)


def _first(problems: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Of the first field that is wrong, in the form that was most likely meant.

  A field that may be a text or a list has a problem for each of them.
  """
  depth = next(
    (
      place
      for place, x in enumerate(problems[0]["loc"])
      if isinstance(x, str) and not x.isidentifier()
    ),
    len(problems[0]["loc"]),
  )
  field = problems[0]["loc"][:depth]
  return max(
    (x for x in problems if x["loc"][:depth] == field),
    key=lambda x: (x["type"] not in _OTHER_FORM, len(x["loc"])),
  )


def _shown(path: str) -> str:
  return urllib.parse.quote(path)[:100]
