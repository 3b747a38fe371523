"""From a prompt and who asks to an answer, piece by piece."""

import asyncio
import collections
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Sequence

from pdpo_jax.core import structs
from pdpo_jax.data import prompt_formats
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.inference import engine as engine_lib
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import learnable as learnable_lib
from pdpo_jax.serving import protocol, speakers, texts

_RETRY = {"retry-after": "1"}


@dataclasses.dataclass(frozen=True)
class TokenText:
  """A token, as it is told with log-probabilities.

  Attributes:
    offset: where its text begins in the answer.
  """

  id: int
  logprob: float
  top: tuple[tuple[int, float], ...]
  offset: int


@dataclasses.dataclass(frozen=True)
class Piece:
  """What came of an answer.

  Attributes:
    finish: why it ended; None while it goes on.
  """

  text: str
  tokens: tuple[TokenText, ...]
  finish: str | None = None


@dataclasses.dataclass
class Answer:
  """One of the answers to a request.

  Attributes:
    speaker: whom it is for.
    prompt_tokens: with those of the speaker's prefix.
    learnable: where it ends since no more could be learnt from; None for
      nowhere.
    new_tokens: made until now.
  """

  speaker: speakers.Speaker
  prompt_tokens: int
  stream: engine_lib.Stream
  stops: Sequence[str]
  learnable: learnable_lib.Learnable | None = None
  new_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Asked:
  """A prompt of somebody's, as token ids.

  Attributes:
    field: that it came in, for messages.
    cut: whether its oldest part was left out.
    encoded: what the ids are of; None where they were given.
  """

  speaker: speakers.Speaker
  ids: Sequence[int]
  field: str
  cut: bool = False
  encoded: prompt_formats.EncodedPrompt | None = None


class Answerer:
  """Answers as a run does.

  Args:
    run: that was trained.
    engine: of its policy.
    positions: of the engine.
  """

  def __init__(
    self, run: run_lib.Run, engine: engine_lib.Answering, positions: int
  ):
    self.engine, self._positions = engine, positions
    self._tokenizer = run.tokenizer
    self.prefix_length = run.config.user.prefix_length
    self._defaults = run.config.answers
    self._most_learnt = run.config.data.max_response_tokens
    # Answers are as long as those that it was trained on.
    self._most_tokens = max(
      run.config.answers.max_new_tokens, self._most_learnt
    )
    self._chat = prompts_lib.make_encoder(run.tokenizer, run.config.data)
    self._plain = self._chat
    if self._chat.chat is not None:
      data = dataclasses.replace(run.config.data, template="plain")
      self._plain = prompts_lib.make_encoder(run.tokenizer, data)
    # Templates are rendered by another process, one at a time.
    self.lock = threading.Lock()
    self.names = texts.TokenNames(run.tokenizer)

  def encode(
    self, prompt: structs.Prompt, speaker: speakers.Speaker, plain: bool = False
  ) -> Asked:
    """A prompt as in training, the speaker's text included.

    Args:
      plain: without the chat template.

    Raises:
      protocol.ApiError: if the template refuses it, or it is too long.
    """
    encoder = self._plain if plain else self._chat
    field = "prompt" if plain else "messages"
    counts: collections.Counter[str] = collections.Counter()
    example = structs.PromptExample(prompt, speaker.user_text)
    with self.lock:
      (encoded,) = encoder.encode_prompts([example], counts)
    if encoded.problem == prompt_formats.REFUSED:
      raise protocol.ApiError(
        400,
        f"the chat template refuses these messages ({encoded.detail}); change "
        "their turns",
        field,
      )
    if encoded.problem:
      raise protocol.ApiError(
        400,
        f"the prompt is over this run's {encoder.max_tokens} tokens "
        f"({encoded.problem}, with what the person says of themselves); "
        "shorten it",
        field,
        "context_length_exceeded",
      )
    is_cut = counts[prompts_lib.PROMPT_CUT] > 0
    return Asked(speaker, encoded.ids.tolist(), field, is_cut, encoded)

  def start(
    self,
    asked: Sequence[Asked],
    body: protocol.Sampling,
    learnt: bool = False,
  ) -> list[Answer]:
    """Lets `n` answers to each prompt be made.

    Args:
      learnt: whether they may be learnt from, so that they end before they are
        too long for that. They are to chats.

    Raises:
      protocol.ApiError: if they cannot be, or too many wait.
    """
    many = body.n or 1
    answers: list[Answer] = []
    seeds = body.seeds(many)
    try:
      for each in asked:
        room = self._room(each, body)
        for seed in seeds:
          request = self._request(each, body, seed, room, learnt)
          answers.append(
            Answer(
              each.speaker,
              len(each.ids) + self.prefix_length,
              self.engine.submit(request),
              body.stops,
              self._learnable(each) if learnt else None,
            )
          )
    except engine_lib.Full as error:
      cancel(answers)
      raise protocol.ApiError(
        429, str(error), code="rate_limit_exceeded", headers=_RETRY
      ) from error
    except engine_lib.Stopped as error:
      cancel(answers)
      raise protocol.ApiError(503, "the model is not there; ask later") from (
        error
      )
    except ValueError as error:
      cancel(answers)
      raise protocol.ApiError(400, str(error), each.field) from error
    except protocol.ApiError:
      cancel(answers)
      raise
    return answers

  def _room(self, asked: Asked, body: protocol.Sampling) -> int:
    """For how many tokens of an answer there is room.

    Raises:
      protocol.ApiError: if it is none, or more are asked for.
    """
    taken = self.prefix_length + len(asked.ids)
    room = self._positions - taken
    full = (
      f"this server has {self._positions} positions, of which the prompt takes "
      f"{taken} ({self.prefix_length} of them for the person)"
    )
    if room < 1:
      raise protocol.ApiError(
        400,
        f"{full}, so that no answer has room; shorten it",
        asked.field,
        "context_length_exceeded",
      )
    if (body.most_tokens or 0) > room:
      name = body.tokens_field
      raise protocol.ApiError(
        400,
        f"{name} {body.most_tokens} is more than there is room for: {full}; "
        f"lower {name} to {room}, leave it out, or shorten the prompt",
        name,
        "context_length_exceeded",
      )
    return room

  def _learnable(self, asked: Asked) -> learnable_lib.Learnable:
    return learnable_lib.Learnable(
      self._chat, asked.encoded, self._most_learnt, self.lock
    )

  def _request(
    self,
    asked: Asked,
    body: protocol.Sampling,
    seed: int,
    room: int,
    learnt: bool,
  ) -> engine_lib.Request:
    most = body.most_tokens
    if most is None:
      # What is learnt from has an end token besides.
      most = max(1, self._most_learnt - 1) if learnt else self._most_tokens
      most = min(most, room)
    temperature, top_p = body.temperature, body.top_p
    if temperature is None:
      temperature = self._defaults.temperature
    if top_p is None:
      top_p = self._defaults.top_p
    if top_p == 0:  # The likeliest token alone.
      temperature, top_p = 0.0, 1.0
    top_k = self._defaults.top_k if body.top_k is None else max(0, body.top_k)
    return engine_lib.Request(
      asked.ids,
      asked.speaker.prefix,
      max_new_tokens=most,
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      seed=seed,
      top_logprobs=body.told_logprobs,
    )

  async def pieces(self, answer: Answer) -> AsyncIterator[Piece]:
    """An answer's text as it comes; the last piece says why it ended."""
    detokenizer = texts.Detokenizer(self._tokenizer)
    stopper = texts.Stopper(answer.stops)
    # Tokens whose text is not given out yet.
    held: collections.deque[TokenText] = collections.deque()
    sure = 0

    def piece(text: str, finish: str | None = None) -> Piece:
      tokens = []
      while held and (
        held[0].offset < stopper.length
        or (finish is not None and not stopper.stopped)
      ):
        tokens.append(held.popleft())
      return Piece(text, tuple(tokens), finish)

    async for token in answer.stream:
      answer.new_tokens += 1
      if token.logprob is not None:
        held.append(TokenText(token.id, token.logprob, token.top, sure))
      new = detokenizer.add(token.id)
      sure += len(new)
      text = stopper.add(new)
      if not await _takes(answer, text):
        answer.stream.cancel()
        yield Piece("", (), "length")
        return
      if stopper.stopped:
        answer.stream.cancel()
        yield piece(text, "stop")
        return
      if text:
        yield piece(text)
    text = stopper.add(detokenizer.end())
    finish = "stop" if stopper.stopped else answer.stream.finish_reason
    text += stopper.end()
    if not await _takes(answer, text):
      yield Piece("", (), "length")
      return
    yield piece(text, finish or "stop")

  async def all_pieces(
    self, answers: Sequence[Answer]
  ) -> AsyncIterator[tuple[int, Piece]]:
    """Those of all answers as they come, each with its answer's place.

    Raises:
      protocol.ApiError: if the engine ends meanwhile.
    """
    queue: asyncio.Queue = asyncio.Queue()

    async def pump(place: int, answer: Answer) -> None:
      try:
        async for piece in self.pieces(answer):
          queue.put_nowait((place, piece))
      except Exception as error:
        queue.put_nowait((place, error))

    tasks = [asyncio.create_task(pump(*each)) for each in enumerate(answers)]
    left = len(answers)
    try:
      while left:
        place, piece = await queue.get()
        if isinstance(piece, Exception):
          raise protocol.ApiError(
            503, "the model ended in the midst; ask again"
          ) from piece
        left -= piece.finish is not None
        yield place, piece
    finally:
      cancel(answers)
      for task in tasks:
        task.cancel()

  async def whole(self, answers: Sequence[Answer]) -> list[Piece]:
    """All answers, once they are there."""
    parts: list[list[Piece]] = [[] for _ in answers]
    async with contextlib.aclosing(self.all_pieces(answers)) as pieces:
      async for place, piece in pieces:
        parts[place].append(piece)
    return [
      Piece(
        "".join(piece.text for piece in of_answer),
        tuple(token for piece in of_answer for token in piece.tokens),
        of_answer[-1].finish,
      )
      for of_answer in parts
    ]


async def _takes(answer: Answer, text: str) -> bool:
  """Whether an answer may have this at its end."""
  if answer.learnable is None or not text:
    return True
  return await answer.learnable.takes(text)


def cancel(answers: Sequence[Answer]) -> None:
  """Nobody reads on; their slots are for others."""
  for answer in answers:
    answer.stream.cancel()
