"""How services that speak OpenAI's protocol differ, learnt from refusals.

Some know `max_tokens` and some `max_completion_tokens`, reasoning models take
no temperature, and some templates no system message. No list of services stays
true, but each says what it does not take, before anything is paid for:

  Unsupported parameter: 'max_tokens' is not supported with this model. Use
  'max_completion_tokens' instead. (OpenAI, Azure)
  {'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), 'msg':
  'Extra inputs are not permitted'} (vLLM, Mistral)
  gpt-5 models don't support temperature=0.0. Only temperature=1 is supported.
  (LiteLLM)
  System role not supported (templates of Gemma)
"""

import dataclasses
import re
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
