"""What vLLM's server says of itself, and what is told of its errors."""

import contextlib
import os
import urllib.parse
from collections.abc import Iterator

import openai

PDPO_ENGINE_KEY = "PDPO_ENGINE_KEY"
# Until somebody has answered a call.
SECONDS = 10.0


def base_url(url: str) -> str:
  """With "/v1" at its end.

  Raises:
    ValueError: if it is none.
  """
  parts = urllib.parse.urlsplit(url)
  if parts.scheme not in ("http", "https") or not parts.hostname:
    raise ValueError(
      f"--engine {url!r} is neither 'jax' nor an address such as "
      "http://127.0.0.1:8001"
    )
  return url.rstrip("/").removesuffix("/v1") + "/v1"


def key() -> str:
  """What the server wants clients to bring."""
  return os.environ.get(PDPO_ENGINE_KEY, "").strip() or "none"


@contextlib.contextmanager
def errors(url: str) -> Iterator[None]:
  """Says of what went wrong at the start where, and what to do."""
  try:
    yield
  except openai.BadRequestError as error:
    raise ValueError(
      f"--engine {url} takes no embeddings ({message(error)}); start vLLM with "
      "--enable-prompt-embeds"
    ) from error
  except openai.AuthenticationError as error:
    raise ValueError(
      f"--engine {url} wants another key; give it in {PDPO_ENGINE_KEY}"
    ) from error
  except openai.APIConnectionError as error:
    raise ValueError(
      f"--engine {url} does not answer ({error.__cause__ or error}); start "
      "`vllm serve` there first, or give its address"
    ) from error
  except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
    raise ValueError(
      f"--engine {url} is no vLLM that answers as one ({message(error)})"
    ) from error


def message(error: BaseException) -> str:
  """What an error says, in short."""
  return str(error)[:300]


def model_of(url: str, positions: int) -> str:
  """The name that a server has for its model.

  Raises:
    ValueError: if it has none, or one of too few positions.
  """
  client = openai.OpenAI(
    base_url=url, api_key=key(), max_retries=0, timeout=SECONDS
  )
  with errors(url), client:
    models = [*client.models.list()]
  if not models:
    raise ValueError(f"--engine {url} has no model")
  most = (models[0].model_extra or {}).get("max_model_len")
  if most is None:
    raise ValueError(
      f"--engine {url} is no vLLM: it does not say how long its model's texts "
      "may be (max_model_len)"
    )
  if most < positions:
    raise ValueError(
      f"--engine {url} has {most} positions, and {positions} are needed; start "
      f"vLLM with --max-model-len={positions}, or give --positions={most}"
    )
  return models[0].id
