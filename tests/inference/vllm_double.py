"""Stands in for vLLM's server: answers vectors, one pass of all a token.

It speaks as vLLM 0.32 does where `remote` asks it. What is sent is written by
NumPy here, where there is no torch.
"""

import asyncio
import base64
import contextlib
import functools
import io
import json
import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
import uvicorn
from flax import nnx
from starlette import applications, responses, routing

from pdpo_jax.models import attention


def to_base64(array: np.ndarray) -> str:
  """In the place of `remote._torch_to_base64`'s."""
  file = io.BytesIO()
  np.save(file, array)
  return base64.b64encode(file.getvalue()).decode()


class Server:
  """Of a policy's language model.

  Attributes:
    asked: bodies of requests, in their order.
    running: answers that are being sent.
    problem: what goes wrong; see `_completions`.
  """

  def __init__(self, policy, key="", positions=4096):
    self.lm, self.key, self.positions = policy.lm, key, positions
    self.problem = ""
    self.pause = 0.0
    self.asked, self.running = [], 0

  @contextlib.contextmanager
  def listening(self):
    """The address, until it is left."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    routes = [
      routing.Route("/v1/models", self._models),
      routing.Route("/v1/completions", self._completions, methods=["POST"]),
    ]
    app = applications.Starlette(routes=routes)
    config = uvicorn.Config(app, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(
      target=server.run, kwargs={"sockets": [listener]}, daemon=True
    )
    thread.start()
    try:
      yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
      server.should_exit = True
      thread.join(20)

  def _refuses(self, request):
    if self.key and request.headers["authorization"] != f"Bearer {self.key}":
      return _error(401, "Unauthorized")
    return None

  async def _models(self, request):
    model = {"id": "merged", "object": "model", "created": 1, "owned_by": "x"}
    if self.problem != "no vLLM":
      model["max_model_len"] = self.positions
    models = [] if self.problem == "no model" else [model]
    return self._refuses(request) or responses.JSONResponse(
      {"object": "list", "data": models}
    )

  async def _completions(self, request):
    body = await request.json()
    if self.problem == "no embeddings":
      return _error(400, "You must set `--enable-prompt-embeds`")
    if self.problem == "fails":
      return _error(500, "EngineCore died")
    if body["prompt"] is not None:
      return _error(400, "The decoder prompt cannot be empty")
    self.asked.append(body)
    vectors = np.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])))
    parts = self._parts(body, vectors)
    if body.get("stream"):
      return responses.StreamingResponse(
        self._events(parts), media_type="text/event-stream"
      )
    (choice,) = parts
    return responses.JSONResponse(
      {"id": "x", "object": "text_completion", "created": 1, "model": "merged"}
      | {"choices": [choice]}
    )

  async def _events(self, parts):
    self.running += 1
    try:
      for choice in parts:
        await asyncio.sleep(self.pause)
        yield f"data: {json.dumps({'choices': [choice]})}\n\n"
        if self.problem == "breaks off":
          return
      yield "data: [DONE]\n\n"
    finally:
      self.running -= 1

  def _parts(self, body, vectors):
    """Choices of two tokens each, the one that stops an answer included."""
    ids, logps = [], []
    end = None
    while end is None:
      logp = np.asarray(_next(self.lm, vectors))
      ids.append(int(logp.argmax()))
      logps.append(logp + (1.0 if self.problem == "another model" else 0.0))
      vectors = np.concatenate(
        [vectors, np.asarray(self.lm.embed(jnp.asarray(ids[-1:])))]
      )
      if ids[-1] in body["stop_token_ids"]:
        end = "stop"
      elif len(ids) == body["max_tokens"]:
        end = "length"
      if len(ids) % 2 == 0 or end:
        size = 2 - len(ids) % 2
        yield self._choice(body, ids[-size:], logps[-size:], end)

  def _choice(self, body, ids, logps, end):
    choice = {"index": 0, "text": "", "finish_reason": end, "logprobs": None}
    if self.problem != "no ids":
      choice["token_ids"] = ids
    if body.get("logprobs") is not None:
      tops = [np.argsort(-logp)[: max(1, body["logprobs"])] for logp in logps]
      choice["logprobs"] = {
        "tokens": [f"token_id:{id}" for id in ids],
        "token_logprobs": [
          float(x[id]) for x, id in zip(logps, ids, strict=True)
        ],
        "top_logprobs": [
          {f"token_id:{id}": float(logp[id]) for id in top[::-1]}
          for logp, top in zip(logps, tops, strict=True)
        ],
        "text_offset": [0] * len(ids),
      }
    return choice


def _next(lm, vectors):
  """Log-probabilities of what follows; few sizes are compiled."""
  size = len(vectors)
  padded = np.zeros((-(-size // 64) * 64, vectors.shape[1]), np.float32)
  padded[:size] = vectors
  return _next_padded(*nnx.split(lm), padded, size)


@functools.partial(jax.jit, static_argnums=0)
def _next_padded(graphdef, state, vectors, size):
  lm = nnx.merge(graphdef, state)
  mask = (jnp.arange(len(vectors)) < size)[None]
  hidden, _ = lm.hidden(
    vectors[None],
    attention.positions_of(mask),
    attention.causal(mask, lm.kernel),
  )
  return jax.nn.log_softmax(lm.logits(hidden[0, size - 1][None])[0])


def _error(status, message):
  return responses.JSONResponse(
    {"error": {"message": message, "type": "x", "code": status}}, status
  )
