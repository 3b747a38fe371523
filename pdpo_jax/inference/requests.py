"""What is asked of an engine, and how far it has come.

Axes: T user tokens, D width.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pdpo_jax.core import sections
from pdpo_jax.inference import generate, programs, sampling, streams
from pdpo_jax.models import policy as policy_lib

# Any hotter is the same: all tokens are as likely.
_HOTTEST = 1e9


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt to answer.

  Attributes:
    prompt: token ids, without the person's prefix.
    prefix: float32 `[T, D]`, see `prefixes`; None for a policy without users.
    temperature: 0 is greedy.
    top_p: 1 turns it off.
    top_k: 0 turns it off.
    seed: the same one gives the same answer.
    top_logprobs: of how many likeliest tokens log-probabilities are told,
      beside the chosen one's; None of none at all.
  """

  prompt: Sequence[int]
  prefix: Float[np.ndarray, "T D"] | None
  max_new_tokens: int
  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  seed: int = 0
  top_logprobs: int | None = None


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may be.

  Attributes:
    arch: of the language model.
    prefix_length: of the policy's users, T.
    prefix_place: how many of a prompt's tokens are before it.
    positions: of prefix, prompt and answer together, at most.
  """

  arch: policy_lib.Architecture
  prefix_length: int
  prefix_place: int
  positions: int

  @classmethod
  def of(cls, policy: policy_lib.Policy, positions: int) -> "Limits":
    """Those of a policy's answers."""
    return cls(
      arch=policy.lm.arch,
      prefix_length=policy.user_model.num_tokens,
      prefix_place=0 if policy.prefix_position == "front" else 1,
      positions=positions,
    )

  def check(self, request: Request) -> None:
    """Raises a ValueError that names what can never be answered."""
    prompt = np.asarray(request.prompt)
    if prompt.ndim != 1 or not len(prompt):
      raise ValueError("the prompt must be a list of token ids, one or more")
    if not np.issubdtype(prompt.dtype, np.integer):
      raise ValueError(f"the prompt is of {prompt.dtype}, not of token ids")
    generate.check_ids(
      "prompt token", (prompt.min(), prompt.max()), self.arch.vocab_size
    )
    shape = None if request.prefix is None else np.shape(request.prefix)
    length, width = self.prefix_length, self.arch.width
    if (shape or (0, width)) != (length, width):
      raise ValueError(
        f"the prefix has shape {shape}, and this policy's users have "
        f"{(length, width) if length else 'none'}"
      )
    if shape and not np.isfinite(np.float32(request.prefix)).all():
      raise ValueError("the prefix has numbers that are no finite float32")
    settings = sampling.AnswersConfig(
      max_new_tokens=request.max_new_tokens,
      temperature=request.temperature,
      top_p=request.top_p,
      top_k=request.top_k,
    )
    sections.check(settings, "")
    if not 0 <= request.seed <= generate.MAX_SEED:
      raise ValueError(
        f"seed {request.seed} must be from 0 to {generate.MAX_SEED}"
      )
    if not 0 <= (request.top_logprobs or 0) <= programs.TOP:
      raise ValueError(
        f"top_logprobs {request.top_logprobs} must be from 0 to {programs.TOP}"
      )
    total = length + len(prompt) + request.max_new_tokens
    if total > self.positions:
      raise ValueError(
        f"{total} positions are needed ({length} of the person, {len(prompt)} "
        f"of the prompt and max_new_tokens {request.max_new_tokens}), and "
        f"{self.positions} there are; shorten the prompt or lower "
        "max_new_tokens"
      )

  def run(self, request: Request) -> "Run":
    """A request before its start, with a copy of what others might change."""
    self.check(request)
    request = dataclasses.replace(
      request,
      temperature=min(request.temperature, _HOTTEST),
      top_k=min(request.top_k, self.arch.vocab_size),
    )
    inputs = np.array(request.prompt, np.int32)
    if request.prefix is not None:
      prefix = np.array(request.prefix, np.float32)
      request = dataclasses.replace(request, prefix=prefix)
      place = self.prefix_place
      given = np.full(len(prefix), -1, np.int32)
      inputs = np.concatenate([inputs[:place], given, inputs[place:]])
    return Run(request, streams.Stream(), inputs)


@dataclasses.dataclass
class Run:
  """A request on its way.

  Attributes:
    number: of earlier requests.
    inputs: prompt and prefix, which is -1.
    fed: how many inputs the cache has, those that were made included.
    count: how many tokens were made.
    last: the last one.
  """

  request: Request
  stream: streams.Stream
  inputs: np.ndarray
  number: int = 0
  fed: int = 0
  count: int = 0
  last: int = 0

  @property
  def behind(self) -> int:
    """How many inputs pieces have to bring; the last one is a step's."""
    return max(0, len(self.inputs) - 1 - self.fed)

  def piece(self, size: int) -> tuple[np.ndarray, np.ndarray | None]:
    """The next inputs and their vectors; None where all are tokens."""
    inputs = self.inputs[self.fed :][:size]
    given = np.flatnonzero(inputs < 0)
    if not len(given):
      return inputs, None
    vectors = np.zeros((len(inputs), self.request.prefix.shape[1]), np.float32)
    first = np.flatnonzero(self.inputs < 0)[0]
    vectors[given] = self.request.prefix[self.fed + given - first]
    return inputs, vectors

  def token(self, slot: int, id: int, chosen: programs.Chosen) -> streams.Token:
    """What the stream is told of a token; `chosen` is on the host."""
    count = self.request.top_logprobs
    if count is None:
      return streams.Token(id)
    top = zip(
      chosen.top[slot, :count].tolist(),
      chosen.top_logps[slot, :count].tolist(),
      strict=True,
    )
    return streams.Token(id, float(chosen.logps[slot]), tuple(top))
