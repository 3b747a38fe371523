"""What clients send and are told, in the form of OpenAI's protocol.

Fields that are not known are let pass, as other servers do. Those that ask for
what is not done here are refused, and not ignored.
"""

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic

from pdpo_jax.core import structs
from pdpo_jax.data.sources import turns as turns_lib
from pdpo_jax.inference import engine as engine_lib
from pdpo_jax.serving import not_done

# Of a list that a client sends; more is a mistake, or meant to hurt.
_MOST_CHOICES, _MOST_PROMPTS, _MOST_STOPS, _MOST_TURNS = 16, 64, 16, 1000
# OpenAI's seeds are of 64 bits, ours of 32.
_SEEDS = 2**32
_TYPES = {401: "authentication_error", 404: "not_found_error"}


class ApiError(Exception):
  """Is told to a client.

  Args:
    status: of HTTP.
    message: what is wrong, and what to do.
    param: the field that it is about.
    code: for programs.
    headers: of the answer.
  """

  def __init__(
    self,
    status: int,
    message: str,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
  ):
    super().__init__(message)
    self.status, self.headers = status, headers or {}
    kind = _TYPES.get(status, "invalid_request_error")
    if status == 429:
      kind = "rate_limit_error"
    elif status >= 500:
      kind = "server_error"
    self.body = {
      "error": {"message": message, "type": kind, "param": param, "code": code}
    }


class _Error(pydantic.BaseModel):
  message: str
  type: str
  param: str | None
  code: str | None


class ErrorBody(pydantic.BaseModel):
  """What an `ApiError` is told as."""

  error: _Error


class Body(pydantic.BaseModel):
  """A body; a number is a number."""

  model_config = pydantic.ConfigDict(extra="allow", allow_inf_nan=False)


# Strict, since pydantic reads true and "2" as numbers, and "yes" as true.
_Int = Annotated[int, pydantic.Field(strict=True)]
_Float = Annotated[float, pydantic.Field(strict=True)]
_Bool = Annotated[bool, pydantic.Field(strict=True)]
# Constrained, since pydantic lets half of a surrogate pair pass in a plain str:
# texts cut in the midst of an emoji have one, and no tokenizer takes it.
_Text = Annotated[str, pydantic.StringConstraints(max_length=2**20)]
_Stop = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=256)]
_Id = Annotated[str, pydantic.StringConstraints(max_length=1024)]


class StreamOptions(Body):
  include_usage: _Bool | None = None


class ResponseFormat(Body):
  type: Literal["text"]


_NotDone = pydantic.create_model("NotDone", __base__=Body, **not_done.FIELDS)


class Sampling(_NotDone):
  """What chat and completions have in common."""

  model: _Text
  n: Annotated[_Int, pydantic.Field(ge=1, le=_MOST_CHOICES)] | None = None
  max_tokens: Annotated[_Int, pydantic.Field(ge=1)] | None = None
  temperature: Annotated[_Float, pydantic.Field(ge=0, le=2)] | None = None
  top_p: Annotated[_Float, pydantic.Field(ge=0, le=1)] | None = None
  top_k: Annotated[_Int, pydantic.Field(ge=-1, lt=2**31)] | None = None
  seed: Annotated[_Int, pydantic.Field(ge=-(2**63), lt=2**63)] | None = None
  stop: (
    _Stop
    | Annotated[list[_Stop], pydantic.Field(max_length=_MOST_STOPS)]
    | None
  ) = None
  stream: _Bool | None = None
  stream_options: StreamOptions | None = None
  user: _Id | None = None
  safety_identifier: _Id | None = None
  # Whoever of the run differs most from `user` answers, without a name.
  unlike: _Bool | None = None
  response_format: ResponseFormat | None = None
  best_of: _Int | None = None

  @pydantic.field_validator("best_of")
  @classmethod
  def _check_best_of(cls, value, info):
    n = info.data.get("n") or 1
    if value not in (None, n):
      raise ValueError(f"{value} has to be n, {n}: all answers are given")
    return value

  @property
  def tokens_field(self) -> str:
    """The field that says how long an answer may be."""
    return "max_tokens"

  @property
  def most_tokens(self) -> int | None:
    return getattr(self, self.tokens_field)

  @property
  def told_logprobs(self) -> int | None:
    """Of how many tokens beside the chosen one; None of none at all."""
    return None

  @property
  def stops(self) -> list[str]:
    return [self.stop] if isinstance(self.stop, str) else self.stop or []

  @property
  def wants_usage(self) -> bool:
    return bool(self.stream_options and self.stream_options.include_usage)

  def seeds(self, count: int) -> list[int]:
    """One for each answer; those of a seed are the same every time."""
    first = secrets.randbelow(_SEEDS) if self.seed is None else self.seed
    return [(first + place) % _SEEDS for place in range(count)]


class Part(Body):
  type: Literal["text"]
  text: _Text


class Turn(Body):
  role: Literal["system", "developer", "user", "assistant"]
  content: _Text | list[Part]

  @property
  def text(self) -> str:
    if isinstance(self.content, str):
      return self.content
    return "".join(part.text for part in self.content)


_Turns = Annotated[
  list[Turn], pydantic.Field(min_length=1, max_length=_MOST_TURNS)
]


class ChatRequest(Sampling):
  messages: _Turns
  max_completion_tokens: Annotated[_Int, pydantic.Field(ge=1)] | None = None
  logprobs: _Bool | None = None
  top_logprobs: (
    Annotated[_Int, pydantic.Field(ge=0, le=engine_lib.MAX_TOP_LOGPROBS)] | None
  ) = None
  # Templates write what stands around texts.
  add_special_tokens: not_done.field([False]) = None

  @pydantic.model_validator(mode="after")
  def _check(self):
    if self.top_logprobs is not None and not self.logprobs:
      raise ValueError("top_logprobs needs logprobs true")
    return self

  @property
  def tokens_field(self) -> str:
    newer = self.max_completion_tokens is not None
    return "max_completion_tokens" if newer else "max_tokens"

  @property
  def told_logprobs(self) -> int | None:
    return (self.top_logprobs or 0) if self.logprobs else None


_Token = Annotated[_Int, pydantic.Field(ge=0, lt=2**31)]
_Ids = Annotated[list[_Token], pydantic.Field(min_length=1)]


class CompletionRequest(Sampling):
  prompt: (
    _Text
    | _Ids
    | Annotated[
      list[_Text], pydantic.Field(min_length=1, max_length=_MOST_PROMPTS)
    ]
    | Annotated[
      list[_Ids], pydantic.Field(min_length=1, max_length=_MOST_PROMPTS)
    ]
  )
  logprobs: (
    Annotated[_Int, pydantic.Field(ge=0, le=engine_lib.MAX_TOP_LOGPROBS)] | None
  ) = None
  add_special_tokens: not_done.field([True]) = None

  @pydantic.model_validator(mode="after")
  def _check(self):
    if len(self.prompts) * (self.n or 1) > _MOST_PROMPTS:
      raise ValueError(
        f"{len(self.prompts)} prompts with n {self.n} are more than "
        f"{_MOST_PROMPTS} answers; ask in several requests"
      )
    return self

  @property
  def prompts(self) -> list[str | list[int]]:
    if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
      return [self.prompt]
    return self.prompt

  @property
  def told_logprobs(self) -> int | None:
    return self.logprobs


class ChoiceRequest(Body):
  """Somebody preferred one response to others, or liked one or did not."""

  user: _Id
  prompt: _Text | _Turns
  chosen: _Text | None = None
  rejected: (
    _Text
    | Annotated[
      list[_Text], pydantic.Field(min_length=1, max_length=_MOST_CHOICES)
    ]
    | None
  ) = None
  response: _Text | None = None
  thumb: Literal["up", "down"] | None = None

  @pydantic.model_validator(mode="after")
  def _check(self):
    pair = (self.chosen is not None, self.rejected is not None)
    thumb = (self.response is not None, self.thumb is not None)
    if (pair, thumb) not in (
      ((True, True), (False, False)),
      ((False, False), (True, True)),
    ):
      raise ValueError("give either chosen and rejected, or response and thumb")
    return self


def prompt_of(
  value: str | Sequence[Turn], field: str, learnt: bool = False
) -> structs.Prompt:
  """What is asked, as a training has it.

  A dialogue of one turn is a text, as in files of comparisons. The first turns
  of a system, or a developer, are one, without those that are blank.

  Args:
    field: that it came in, for messages.
    learnt: whether it is to be learnt from, so that what a file of comparisons
      may not have is refused: a blank message.

  Raises:
    ApiError: if it is no dialogue that a user ends.
  """
  if isinstance(value, str):
    if not value or (learnt and turns_lib.is_blank(value)):
      raise ApiError(400, "the prompt is blank; give it a text", field)
    return value
  system, turns = [], [*value]
  while turns and turns[0].role in ("system", "developer"):
    system.append(turns.pop(0).text)
  place = len(system)
  system = [text for text in system if not turns_lib.is_blank(text)]
  if not turns or turns[-1].role != "user":
    raise ApiError(
      400, "the last message has to be the user's; add what is asked", field
    )
  if any(turn.role in ("system", "developer") for turn in turns):
    raise ApiError(
      400,
      "a system message has to come before all others; move it there",
      field,
    )
  if not turns[-1].text:
    raise ApiError(400, "the last message is empty; give it a text", field)
  for turn in turns if learnt else ():
    if turns_lib.is_blank(turn.text):
      raise ApiError(
        400,
        f"message {place + turns.index(turn)}, of the {turn.role}, is blank; "
        "give it a text, or leave it out",
        field,
      )
  if len(turns) == 1 and not system:
    return turns[0].text
  messages = [structs.Message(turn.role, turn.text) for turn in turns]
  if system:
    messages.insert(0, structs.Message("system", "\n\n".join(system)))
  return tuple(messages)


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
  """What every answer begins with."""
  return {
    "id": f"{prefix}-{secrets.token_hex(12)}",
    "object": kind,
    "created": int(time.time()),
    "model": model,
  }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
  return {
    "prompt_tokens": prompt_tokens,
    "completion_tokens": completion_tokens,
    "total_tokens": prompt_tokens + completion_tokens,
  }
