"""What stands before every request: its size, its host, its key."""

import hmac
import json
import urllib.parse
from collections.abc import Sequence

from starlette import types

from pdpo_jax.serving import protocol

# Of a body, in bytes.
_MOST = 2**20
# The page loads nothing from elsewhere, and is framed by nobody.
_PAGE_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; "
  "connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
  (b"content-security-policy", _PAGE_POLICY.encode()),
  (b"x-content-type-options", b"nosniff"),
  (b"referrer-policy", b"no-referrer"),
  (b"cache-control", b"no-store"),
)


class Guard:
  """An ASGI application around another one.

  Args:
    app: is called with what may pass.
    key: that clients have to bring for what begins with /v1; empty: none.
    hosts: by which this server may be called; empty: any. It keeps pages of
      others, whose names suddenly lead here, from asking.
  """

  def __init__(self, app: types.ASGIApp, key: str, hosts: Sequence[str]):
    self._app, self._hosts = app, hosts
    self._key = key.encode()

  async def __call__(
    self, scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return

    async def send_guarded(message):
      if message["type"] == "http.response.start":
        message = {**message, "headers": [*message["headers"], *_HEADERS]}
      await send(message)

    try:
      self._check(scope)
    except protocol.ApiError as error:
      await _refuse(send_guarded, error)
      return
    began = False

    async def send_noting(message):
      nonlocal began
      began = True
      await send_guarded(message)

    size = 0

    async def receive_limited():
      nonlocal size
      message = await receive()
      size += len(message.get("body", b""))
      if size > _MOST:
        raise _too_large()
      return message

    try:
      await self._app(scope, receive_limited, send_noting)
    except protocol.ApiError as error:
      if not began:
        await _refuse(send_guarded, error)

  def _check(self, scope: types.Scope) -> None:
    headers = dict(scope["headers"])
    host = headers.get(b"host", b"").decode("latin-1")
    if self._hosts and name_of(host) not in self._hosts:
      raise protocol.ApiError(
        403,
        f"this server is not called by that name but by "
        f"{', '.join(self._hosts)}; use one of these, or give it a key",
        code="host_not_allowed",
      )
    if scope["path"].startswith("/v1") and self._key:
      scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
      same = hmac.compare_digest(given.strip(), self._key)
      if scheme.lower() != b"bearer" or not same:
        raise protocol.ApiError(
          401,
          "the API key is missing or wrong; send it as Authorization: Bearer",
          code="invalid_api_key",
          headers={"www-authenticate": "Bearer"},
        )
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > _MOST:
      raise _too_large()


def _too_large() -> protocol.ApiError:
  return protocol.ApiError(
    413,
    f"the body is larger than {_MOST:,} bytes; send less",
    code="request_too_large",
  )


def name_of(host: str) -> str:
  """The name in a Host header, in lower case; empty where there is none."""
  try:
    return urllib.parse.urlsplit(f"//{host}").hostname or ""
  except ValueError:
    return ""


async def _refuse(send: types.Send, error: protocol.ApiError) -> None:
  body = json.dumps(error.body).encode()
  headers = {
    "content-type": "application/json",
    "content-length": str(len(body)),
    **error.headers,
  }
  await send(
    {
      "type": "http.response.start",
      "status": error.status,
      "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }
  )
  await send({"type": "http.response.body", "body": body})
