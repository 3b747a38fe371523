"""Another machine answers: vLLM's server, told who asks by embeddings.

vLLM has the run's merged weights (`export --format=merged`) and takes prompts
as vectors, which are made here: of a prompt's tokens, and of a person's prefix
in its place. So it answers as whoever asks, and knows nobody.

Its answers are as close to those of `engine.Engine` as its arithmetic is. With
a temperature it draws in its own way, so that a seed gives another answer.
"""

import asyncio
import base64
import contextlib
import functools
import io
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import openai
from jaxtyping import Float

from pdpo_jax.inference import (
  engine,
  prefixes,
  remote_server,
  requests,
  streams,
)
from pdpo_jax.models import policy as policy_lib

# A prompt's vectors are looked up by few programs.
_ROUNDED = 64
# In nats: arithmetic in bfloat16 differs by less, and another model by more.
_NEAR = 0.5
# Without a token, as where many wait in vLLM's own queue.
_PATIENCE_SECONDS = 300.0
_TOKEN = "token_id:"


class RemoteEngine:
  """Answers requests by vLLM's server, as `engine.Engine` does by itself.

  Args:
    url: of the server, with or without "/v1".
    policy: whose merged weights it has.
    stop_tokens: what ends an answer.
    slots: how many requests it is sent at once.
    positions: of prefix, prompt and answer together, at most.
    queue: how many requests may wait for that.

  Attributes:
    failure: what kept it from answering last; None once it answers again.

  Raises:
    ValueError: if nobody answers there, or no vLLM, or it takes no embeddings,
      has too few positions, or another model.
  """

  def __init__(
    self,
    url: str,
    policy: policy_lib.Policy,
    *,
    stop_tokens: Sequence[int],
    slots: int = 16,
    positions: int = 1024,
    queue: int = 64,
  ):
    self._to_base64 = _torch_to_base64()
    self._policy = policy
    self._limits = requests.Limits.of(policy, positions)
    self._stop_tokens = sorted({*map(int, stop_tokens)})
    self._slots, self._queue = slots, queue
    self.failure: BaseException | None = None
    self._running = self._waiting = 0
    self._prompt_tokens = self._new_tokens = 0
    self._lock = threading.Lock()
    self._streams: set[streams.Stream] = set()
    self._closing = False
    self._url = remote_server.base_url(url)
    self._model = remote_server.model_of(self._url, positions)
    self._loop = asyncio.new_event_loop()
    self._free = asyncio.Semaphore(slots)
    self._client = openai.AsyncOpenAI(
      base_url=self._url,
      api_key=remote_server.key(),
      max_retries=0,
      timeout=openai.Timeout(_PATIENCE_SECONDS, connect=remote_server.SECONDS),
    )
    self._thread = threading.Thread(
      target=self._loop.run_forever, name="engine", daemon=True
    )
    self._thread.start()
    try:
      self._check_answers()
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> "RemoteEngine":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def close(self) -> None:
    """Ends all streams with `engine.Stopped`, and then the thread."""
    with self._lock:
      self._closing = True
      left = [*self._streams]
    for stream in left:
      stream.finish(engine.Stopped("the engine was closed"))
    if self._thread.is_alive():
      asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
      self._loop.call_soon_threadsafe(self._loop.stop)
      self._thread.join()
      self._loop.close()

  async def _end(self):
    own = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not own]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await self._client.close()
    await self._loop.shutdown_asyncgens()

  def submit(self, request: requests.Request) -> streams.Stream:
    """Has a request answered; from any thread.

    Raises:
      engine.Full: if as many wait as may.
      engine.Stopped: if the engine was closed.
      ValueError: if the request can never be answered.
    """
    run = self._limits.run(request)
    if run.request.max_new_tokens == 0:
      run.stream.finish("length")
      return run.stream
    with self._lock:
      if self._closing:
        raise engine.Stopped("the engine was closed")
      if self._running + self._waiting >= self._slots + self._queue:
        raise engine.Full(
          f"{self._queue} requests wait for one of {self._slots} slots "
          "already; ask again later"
        )
      self._waiting += 1
      self._streams.add(run.stream)
    asyncio.run_coroutine_threadsafe(self._answer(run), self._loop)
    return run.stream

  def status(self) -> engine.Status:
    with self._lock:
      return engine.Status(
        slots=self._slots,
        running=self._running,
        waiting=self._waiting,
        prompt_tokens=self._prompt_tokens,
        new_tokens=self._new_tokens,
      )

  # What follows is of the engine's thread.

  async def _answer(self, run: requests.Run) -> None:
    stream, waits = run.stream, True
    try:
      async with self._free:
        with self._lock:
          self._waiting -= 1
          self._running += 1
        waits = False
        if not stream.cancelled:
          stream.finish(await self._stream(run))
    except asyncio.CancelledError:
      stream.finish(engine.Stopped("the engine was closed"))
      raise
    except Exception as error:  # Whoever waits is told.
      if isinstance(error, openai.APIConnectionError):
        self.failure = error
      stopped = engine.Stopped(f"{self._url} did not answer: {error}")
      stopped.__cause__ = error
      stream.finish(stopped)
    finally:
      with self._lock:
        if waits:
          self._waiting -= 1
        else:
          self._running -= 1
        self._streams.discard(stream)

  async def _stream(self, run: requests.Run) -> streams.FinishReason:
    """Hands out tokens as they come; returns why there are no more."""
    vectors = await asyncio.to_thread(self._vectors, run)
    chunks = await self._client.completions.create(
      **self._asked(run.request, vectors), stream=True
    )
    self.failure = None
    with self._lock:
      self._prompt_tokens += len(run.inputs)
    end: streams.FinishReason | None = None
    async with contextlib.aclosing(_choices(chunks)) as choices:
      async for choice in choices:
        for token in _tokens(choice, run.request.top_logprobs):
          if token.id in self._stop_tokens:
            end = "stop"
          if end is None:  # Read on to the end, which frees the connection.
            run.stream.put(token)
            with self._lock:
              self._new_tokens += 1
        if run.stream.cancelled:
          return "cancelled"
        end = end or choice.finish_reason
    if end is None:
      raise ConnectionError("the answer broke off")
    return "length" if end == "length" else "stop"

  def _asked(
    self, request: requests.Request, vectors: Float[np.ndarray, "S D"]
  ) -> dict[str, Any]:
    return {
      "model": self._model,
      "prompt": None,
      "max_tokens": request.max_new_tokens,
      "temperature": request.temperature,
      "top_p": request.top_p,
      "seed": request.seed,
      "logprobs": request.top_logprobs,
      "extra_body": {
        "prompt_embeds": self._to_base64(vectors),
        "top_k": request.top_k or -1,
        "stop_token_ids": self._stop_tokens,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
      },
    }

  def _vectors(self, run: requests.Run) -> Float[np.ndarray, "S D"]:
    """Of a prompt and the prefix in it."""
    given = run.inputs < 0
    size = -(-len(given) // _ROUNDED) * _ROUNDED
    ids = np.zeros(size, np.int32)
    ids[: len(given)] = np.where(given, 0, run.inputs)
    vectors = np.array(self._embed(ids)[: len(given)], np.float32)
    if run.request.prefix is not None:
      vectors[given] = run.request.prefix
    return vectors

  def _embed(self, ids):
    return self._policy.lm.embed(jnp.asarray(ids))

  def _check_answers(self) -> None:
    """Has it say what the policy itself would.

    Raises:
      ValueError: if it does not.
    """
    limits = self._limits
    room = limits.positions - limits.prefix_length - 1
    prompt = np.arange(min(8, room)) % limits.arch.vocab_size
    prefix = prefixes.of_row(self._policy, 0)
    run = self._limits.run(
      requests.Request(prompt.tolist(), prefix, 1, top_logprobs=5)
    )
    vectors = self._vectors(run)
    expected = np.asarray(_next_logps(self._policy, prompt, prefix))
    call = self._client.completions.create(**self._asked(run.request, vectors))
    with remote_server.errors(self._url):
      reply = asyncio.run_coroutine_threadsafe(call, self._loop).result()
      (token,) = _tokens(reply.choices[0], 5)
    there = dict(token.top)
    far = max(
      abs(value - expected[id]) if id < len(expected) else np.inf
      for id, value in there.items()
    )
    if not far <= _NEAR:
      raise ValueError(
        f"--engine {self._url} has another model than the run's: its "
        f"log-probabilities differ by {far:.2f}; serve what `python -m "
        "pdpo_jax.export --format=merged` writes of this run"
      )


def _next_logps(
  policy: policy_lib.Policy,
  prompt: np.ndarray,
  prefix: Float[np.ndarray, "T D"] | None,
) -> Float[jax.Array, " V"]:
  """Log-probabilities of what follows a prompt."""
  if prefix is None:
    prefix = np.zeros((0, policy.lm.arch.width), np.float32)
  tokens = jnp.asarray(prompt, jnp.int32)[None]
  one = jnp.ones((1, 1, 1), bool)
  hidden = policy.response_hidden(
    tokens,
    jnp.ones(tokens.shape, bool),
    jnp.zeros((1, 1, 1), jnp.int32),
    one,
    jnp.asarray(prefix)[None],
  )
  logits = policy.lm.logits(hidden[0, 0, :1]).astype(jnp.float32)
  return jax.nn.log_softmax(logits[0])


async def _choices(chunks: Any) -> AsyncIterator[Any]:
  """Those of a streamed answer, whose connection is closed behind them."""
  try:
    async for chunk in chunks:
      for choice in chunk.choices:
        yield choice
  finally:
    # vLLM stops where nobody listens any more.
    await chunks.close()


def _tokens(choice: Any, top_logprobs: int | None) -> list[streams.Token]:
  """What a part of an answer has.

  Raises:
    ValueError: if no ids of tokens are told.
  """
  ids = (choice.model_extra or {}).get("token_ids")
  if ids is None:
    raise ValueError("it tells no token ids; take vLLM 0.11 or newer")
  if top_logprobs is None:
    return [streams.Token(id) for id in ids]
  told = choice.logprobs
  tokens = []
  for id, logprob, top in zip(
    ids, told.token_logprobs, told.top_logprobs, strict=True
  ):
    likeliest = sorted(top.items(), key=lambda each: -each[1])[:top_logprobs]
    tokens.append(
      streams.Token(
        id,
        logprob,
        tuple((int(n.removeprefix(_TOKEN)), value) for n, value in likeliest),
      )
    )
  return tokens


def _torch_to_base64():
  """Writes an array as `torch.save` does, which vLLM reads.

  Raises:
    ValueError: if torch is not there.
  """
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      "--engine with an address needs torch, which writes what vLLM reads; "
      "pip install torch"
    ) from error
  return functools.partial(_to_base64, torch)


def _to_base64(torch: Any, array: np.ndarray) -> str:
  file = io.BytesIO()
  torch.save(torch.from_numpy(array), file)
  return base64.b64encode(file.getvalue()).decode()
