"""How services that speak OpenAI's protocol are asked, and what they say.

They differ. Some know `max_tokens` and some `max_completion_tokens`, reasoning
models take no temperature, and some templates no system message. No list of
services stays true, but each says what it does not take, before anything is
paid for:

  Unsupported parameter: 'max_tokens' is not supported with this model. Use
  'max_completion_tokens' instead. (OpenAI, Azure)
  {'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), 'msg':
  'Extra inputs are not permitted'} (vLLM, Mistral)
  gpt-5 models don't support temperature=0.0. Only temperature=1 is supported.
  (LiteLLM)
  System role not supported (templates of Gemma)
"""

import dataclasses
import random
import re
import threading
import time
from typing import Any

# What a limit that is too large, or a prompt that is too long, is not told.
_REFUSES = re.compile(
  r"un(?:support|known|recogni[sz]ed|expected)"
  r"|(?:\bnot|n't|\bcannot|\bno longer) (?:be |currently |yet )*"
  r"(?:support|permit|allow|accept|recogni[sz]e|available|find|used|specified)"
  r"|extra_forbidden|deprecated|\binstead\b"
  r"|\bonly (?:the default|(?:be )?(?:set to |temperature ?= ?)?1\b)",
  re.IGNORECASE,
)
_SYSTEM_ROLE = re.compile(
  r"\bsystem\b.{0,40}\b(?:role|messages?|prompts?|instructions?)\b"
  r"|\brole\b.{0,60}\bsystem\b",
  re.IGNORECASE | re.DOTALL,
)
# Of templates, which say what they know and not what they do not.
_ROLES = re.compile(
  r"roles must alternate|only user(?:,| and) (?:assistant|model)", re.IGNORECASE
)
_LIMITS = ("max_tokens", "max_completion_tokens")
# Seconds between two tries: at first, and at most.
FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0


@dataclasses.dataclass(frozen=True)
class Dialect:
  """What a request has.

  Attributes:
    limit: what the limit of an answer's tokens is called.
    temperature: whether there is one.
    system: whether the instructions are a system message, or else begin the
      user's.
  """

  limit: str
  temperature: bool = True
  system: bool = True

  def request(
    self, system: str, user: str, max_tokens: int, temperature: float
  ) -> dict[str, Any]:
    """Arguments of a chat completion."""
    messages = [{"role": "user", "content": f"{system}\n\n{user}"}]
    if self.system:
      messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
      ]
    fields = {"messages": messages, self.limit: max_tokens}
    return fields | ({"temperature": temperature} if self.temperature else {})

  def after(self, refusal: str) -> "Dialect | None":
    """The dialect that a refusal asks for; None where it is of another kind."""
    if self.system and _ROLES.search(refusal):
      return dataclasses.replace(self, system=False)
    if not _REFUSES.search(refusal):
      return None
    if any(re.search(rf"\b{limit}\b", refusal) for limit in _LIMITS):
      other = _LIMITS[1 - _LIMITS.index(self.limit)]
      return dataclasses.replace(self, limit=other)
    if self.temperature and re.search(r"\btemperature\b", refusal, re.I):
      return dataclasses.replace(self, temperature=False)
    if self.system and _SYSTEM_ROLE.search(refusal):
      return dataclasses.replace(self, system=False)
    return None


class Pace:
  """Keeps requests of all threads to so many a minute; 0 is no limit."""

  def __init__(self, per_minute: int):
    self._gap = 60 / per_minute if per_minute else 0.0
    self._lock = threading.Lock()
    self._next = 0.0

  def wait(self) -> None:
    with self._lock:
      now = time.monotonic()
      turn = max(now, self._next)
      self._next = turn + self._gap
    time.sleep(turn - now)


def seconds_after(error: Exception, attempt: int) -> float:
  """How long to wait after a failed try, counted from 0.

  Twice as long each time up to a minute, and never less than the service asks
  for, which may be less than it takes. The client's own retries wait as long as
  the service asks for, even if that is next to nothing, and know of no limit a
  minute.
  """
  ours = FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.5)
  return max(min(ours, _LONGEST_WAIT), _seconds_asked_for(error))


def _seconds_asked_for(error: Exception) -> float:
  """Seconds of the service's Retry-After; 0 without."""
  response = getattr(error, "response", None)
  try:
    return float(response.headers["retry-after"])
  except (AttributeError, KeyError, TypeError, ValueError):
    return 0.0


def text_of_error(error: BaseException) -> str:
  """What an error says, and what the service sent, where that is more."""
  text, body = str(error), getattr(error, "body", None)
  return text if body is None or str(body) in text else f"{text} - {body}"


def text_of(content: Any) -> Any:
  """The text of an answer that some services send in parts."""
  if not isinstance(content, list):
    return content
  return "".join(part["text"] for part in content if part.get("type") == "text")


def token_count(usage: Any, name: str) -> int:
  """Tokens as the service counts them; 0 where it does not."""
  count = getattr(usage, name, None)
  return count if isinstance(count, int) else 0
