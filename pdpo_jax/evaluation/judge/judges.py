"""Who judges: a service, a model that runs here, or a rule."""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import openai

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import prompt, services
from pdpo_jax.inference import respond, sampling
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

# Of a local judge.
_BATCH_SIZE = 8
# Why no connection was made; by name, as clients differ in their HTTP library.
_NO_CONNECTION = ("ConnectError", "UnsupportedProtocol")
# Of what a service says, characters that are shown; some send whole pages.
_LONGEST_SHOWN = 600


@dataclasses.dataclass(frozen=True)
class Asked:
  """One verdict that is asked for.

  Attributes:
    prompts: what a language model reads.
    a, b: the responses.
    prefers: "shorter" or "longer", where the user is known to; or "".
  """

  prompts: prompt.Prompts
  a: str
  b: str
  prefers: str = ""


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the judge said.

  Attributes:
    text: reasons and verdict.
    input_tokens, output_tokens: as the service counts them; 0 if it does not.
    seconds: from the last try's beginning.
  """

  text: str
  input_tokens: int = 0
  output_tokens: int = 0
  seconds: float = 0.0


class Failed(Exception):
  """One verdict could not be had; others may."""


class Refused(Failed):
  """One that cannot be had, however often it is asked for."""


@runtime_checkable
class Judge(Protocol):
  """Answers in any order, as they come."""

  def answers(
    self, asked: Sequence[Asked]
  ) -> Iterator[tuple[int, Answer | Failed]]:
    """Yields each one's place with its answer.

    Raises:
      ValueError: if no verdict can be had at all, with what to do.
    """
    ...


def make_judge(config: judge_config.JudgeConfig) -> Judge:
  """The judge that the configuration describes.

  Raises:
    ValueError: if it lacks a key or a model.
  """
  return _JUDGES[config.kind](config)


class OpenAIJudge:
  """Any endpoint that speaks OpenAI's chat completions."""

  def __init__(self, config: judge_config.JudgeConfig):
    key = os.environ.get(config.key_variable, "").strip()
    if not key and not config.base_url:
      raise ValueError(
        f"the environment variable {config.key_variable} is not set; put the "
        "key in it, name another by --judge.key_variable, or name one's own "
        "server by --judge.base_url"
      )
    self._config = config
    address = urllib.parse.urlsplit(config.base_url)
    query = urllib.parse.parse_qsl(address.query, keep_blank_values=True)
    self._client = openai.OpenAI(
      # Servers of one's own often want none, and the client wants some.
      api_key=key or "none",
      base_url=address._replace(query="", fragment="").geturl() or None,
      default_query=dict(query),
      timeout=config.timeout,
      max_retries=0,
    )
    place = judge_config.public_address(
      config.base_url or str(self._client.base_url)
    )
    self._place = f"{place} (model {config.model!r})"
    password = address.password or ""
    secrets = {key, password, urllib.parse.unquote(password)}
    secrets |= {value for name, value in query if value not in place}
    # The longest first, since one may hold another. One or two characters are
    # no secret, and would hide much else.
    self._secrets = sorted(
      (each for each in secrets if len(each) > 2), key=len, reverse=True
    )
    # OpenAI's newer models know the one name, most other servers the other.
    self._dialect = services.Dialect(
      "max_tokens" if config.base_url else "max_completion_tokens"
    )
    self._reached = False
    self._pace = services.Pace(config.requests_per_minute)

  def answers(
    self, asked: Sequence[Asked]
  ) -> Iterator[tuple[int, Answer | Failed]]:
    pool = concurrent.futures.ThreadPoolExecutor(self._config.concurrency)
    stop = threading.Event()
    fatal = None
    try:
      waiting = {
        pool.submit(self._answer, verdict.prompts, stop): place
        for place, verdict in enumerate(asked)
      }
      for done in concurrent.futures.as_completed(waiting):
        error = done.exception()
        if error is None:
          yield waiting[done], done.result()
        elif isinstance(error, Failed):
          yield waiting[done], error
        else:
          # What is on its way is paid for, so it is waited for.
          stop.set()
          fatal = fatal or error
    finally:
      stop.set()
      pool.shutdown(cancel_futures=True)
    if fatal:
      raise fatal

  def _answer(self, prompts: prompt.Prompts, stop: threading.Event) -> Answer:
    """One answer, after as many tries as it takes or as are allowed."""
    reason = "it was not asked for"
    for attempt in range(self._config.retries + 1):
      if not stop.is_set():
        self._pace.wait()
      if stop.is_set():
        raise Failed(f"{reason}; then the judge was stopped")
      last = attempt == self._config.retries
      try:
        answer = self._ask(prompts)
        self._reached = True
        return answer
      except openai.OpenAIError as error:
        self._raise_if_final(error, last)
        problem = error
        reason = f"{type(error).__name__}: {self._describe(error)}"
      except (ValueError, TypeError, AttributeError, LookupError) as error:
        problem = error
        reason = f"the answer is malformed ({self._describe(error)})"
      if not last:
        stop.wait(services.seconds_after(problem, attempt))
    raise Failed(f"{reason}, after {self._config.retries + 1} tries")

  def _ask(self, prompts: prompt.Prompts) -> Answer:
    """One answer, in the dialect that the service turns out to speak."""
    dialect, tried = self._dialect, set()
    while True:
      try:
        answer = self._complete(prompts, dialect)
      except openai.APIStatusError as error:
        tried.add(dialect)
        other = dialect.after(services.text_of_error(error))
        if other is None or other in tried:
          raise
        dialect = other
        self._pace.wait()
      else:
        self._learn(dialect)
        return answer

  def _learn(self, dialect: services.Dialect) -> None:
    """Keeps what worked, and says what is not asked as it was configured."""
    before, self._dialect = self._dialect, dialect
    if before.temperature and not dialect.temperature:
      logger.warning(
        "%s takes no temperature: it judges with its own, and not with "
        "judge.temperature %g",
        self._place,
        self._config.temperature,
      )
    if before.system and not dialect.system:
      logger.warning(
        "%s takes no system message: the user's begins with it", self._place
      )

  def _complete(
    self, prompts: prompt.Prompts, dialect: services.Dialect
  ) -> Answer:
    start = time.perf_counter()
    completion = self._client.chat.completions.create(
      model=self._config.model,
      **dialect.request(
        prompts.system,
        prompts.user,
        self._config.max_tokens,
        self._config.temperature,
      ),
    )
    if not completion.choices and getattr(completion, "error", None):
      # With status 200, as OpenRouter does where another service fails.
      raise ValueError(f"it says {completion.error}")
    choice = completion.choices[0]
    text = services.text_of(choice.message.content)
    if not text and choice.finish_reason == "content_filter":
      raise Refused("the answer is withheld by the service's content filter")
    if not text and choice.finish_reason == "length":
      # It is paid for, and the next one would end as this one did.
      logger.warning(
        "an answer was cut off by judge.max_tokens %d before it began; a model "
        "that thinks first needs more",
        self._config.max_tokens,
      )
      text = ""
    if not isinstance(text, str):
      raise TypeError("there is no text in it")
    usage = completion.usage
    return Answer(
      text,
      services.token_count(usage, "prompt_tokens"),
      services.token_count(usage, "completion_tokens"),
      round(time.perf_counter() - start, 3),
    )

  def _describe(self, error: BaseException) -> str:
    """What an error says, without secrets that a service repeats."""
    text = services.text_of_error(error)
    for secret in self._secrets:
      text = text.replace(secret, "…")
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"

  def _raise_if_final(self, error: openai.OpenAIError, last: bool) -> None:
    """Raises what trying again cannot help, or did not at the last try."""
    self._reached |= isinstance(error, openai.APIStatusError)
    text = self._describe(error)
    if isinstance(
      error, openai.AuthenticationError | openai.PermissionDeniedError
    ):
      raise ValueError(
        f"{self._place} refuses the key in {self._config.key_variable}: {text}"
      ) from error
    if isinstance(error, openai.NotFoundError):
      raise ValueError(
        f"{self._place} has no such model, or --judge.base_url is not its API: "
        f"{text}"
      ) from error
    if getattr(error, "code", None) == "insufficient_quota":
      raise ValueError(
        f"{self._place}: the account has no credit: {text}"
      ) from error
    if (
      isinstance(
        error, openai.BadRequestError | openai.UnprocessableEntityError
      )
      or getattr(error, "status_code", 0) == 413
    ):
      raise Refused(f"the request is refused: {text}") from error
    down = type(error.__cause__).__name__ in _NO_CONNECTION
    down |= last and isinstance(error, openai.APIConnectionError)
    if down and not self._reached:
      cause = self._describe(error.__cause__ or error)
      raise ValueError(
        f"nothing answers at {self._place}: {cause}; is the server running, "
        "and --judge.base_url right?"
      ) from error


class LocalJudge:
  """Any base that this project runs, in batches."""

  def __init__(self, config: judge_config.JudgeConfig):
    self._base = base_lib.read_base(
      config.model,
      base_lib.BaseConfig(dtype="bfloat16", param_dtype="bfloat16"),
    )
    room = self._base.lm.arch.max_positions - config.max_tokens
    if room < 1:
      raise ValueError(
        f"judge.max_tokens {config.max_tokens} leaves no room for a prompt in "
        f"the {self._base.lm.arch.max_positions} positions of "
        f"{config.model!r}; lower it"
      )
    self._data = data_config.DataConfig(max_prompt_tokens=room)
    self._encoder = prompts_lib.make_encoder(self._base.tokenizer, self._data)
    self._answers = sampling.AnswersConfig(
      max_new_tokens=config.max_tokens,
      temperature=config.temperature,
      batch_size=_BATCH_SIZE,
    )
    self._policy = policy_lib.base_policy(self._base.lm)

  def answers(
    self, asked: Sequence[Asked]
  ) -> Iterator[tuple[int, Answer | Failed]]:
    prompts = [self._prompt(pair.prompts) for pair in asked]
    fit = []
    too_long = Refused(
      f"it is over the {self._encoder.max_tokens} tokens that the model has "
      "room for; lower judge.max_tokens, or use a model with more positions"
    )
    encoded = self._encoder.encode(prompts, collections.Counter())
    for place, ids in enumerate(encoded):
      if ids is None:
        yield place, too_long
      else:
        fit.append(place)
    for start in range(0, len(fit), _BATCH_SIZE):
      begin = time.perf_counter()
      batch = fit[start : start + _BATCH_SIZE]
      texts = respond.respond(
        self._policy,
        self._base,
        [prompts[place] for place in batch],
        [0] * len(batch),
        batch,
        self._answers,
        self._data,
      )
      seconds = round((time.perf_counter() - begin) / len(batch), 3)
      for place, text in zip(batch, texts, strict=True):
        yield place, Answer(text, seconds=seconds)

  def _prompt(self, prompts: prompt.Prompts) -> structs.PromptExample:
    """A dialogue, of which the last turn and a system message stay whole."""
    system, user = prompts.system, prompts.user
    if not self._encoder.takes_system:
      return structs.PromptExample(
        (structs.Message("user", f"{system}\n\n{user}"),)
      )
    return structs.PromptExample(
      (structs.Message("system", system), structs.Message("user", user))
    )


class RuleJudge:
  """Knows whether a user prefers the longer or the shorter, in words."""

  def __init__(self, config: judge_config.JudgeConfig):
    del config  # It has nothing to be told.

  def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Answer]]:
    for place, pair in enumerate(asked):
      if not pair.prefers:
        raise ValueError(
          "--judge.kind=rule is for users whose taste in length is known, as "
          "with the data sources 'synthetic' and 'tldr'; use 'openai' or "
          "'local'"
        )
      more = len(pair.a.split()) - len(pair.b.split())
      if pair.prefers == "shorter":
        more = -more
      verdict = "Output (a)" if more > 0 else "Output (b)" if more else "TIE"
      yield place, Answer(f"This user prefers the {pair.prefers}.\n{verdict}")


_JUDGES = {"openai": OpenAIJudge, "local": LocalJudge, "rule": RuleJudge}
