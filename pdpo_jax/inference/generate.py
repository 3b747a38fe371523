"""Answers any number of prompts, each for its user and from its seed."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from pdpo_jax.core import processes, sections
from pdpo_jax.data import batching
from pdpo_jax.inference import decode, sampling
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.models import stack
from pdpo_jax.training import host_users

MAX_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt to answer."""

  prompt: np.ndarray  # int32 [tokens], user text included; one or more
  user_row: int = 0  # row of the user table; 0 is the generic user
  seed: int = 0  # 0 to MAX_SEED; the same seed gives the same answer


def rows_per_batch(num_requests: int, batch_size: int) -> int:
  """Spreads requests evenly, so that few rows only fill the last batch.

  Rounded up to a multiple of 8 (batch_size at most): 65 requests in batches of
  64 run as two of 40.
  """
  num_batches = math.ceil(num_requests / batch_size)
  even = math.ceil(num_requests / num_batches)
  return min(batch_size, 8 * math.ceil(even / 8))


def check_ids(name, ids, vocab_size):
  for token in ids:
    if not 0 <= token < vocab_size:
      raise ValueError(
        f"{name} {token} is not in the vocabulary (0 to {vocab_size - 1}); "
        "does the tokenizer belong to the model?"
      )


def _check(policy, requests, spec, stop_tokens, pad_id, batch_size):
  """Raises a ValueError that names the first wrong argument."""
  if batch_size < 1:
    raise ValueError(f"batch_size {batch_size} must be 1 or more")
  arch = policy.lm.arch
  check_ids("pad_id", [pad_id], arch.vocab_size)
  check_ids("stop token", stop_tokens, arch.vocab_size)
  num_rows = policy.user_model.num_rows
  prefix = policy.user_model.num_tokens
  for index, request in enumerate(requests):
    prompt = request.prompt
    if prompt.ndim != 1 or not np.issubdtype(prompt.dtype, np.integer):
      raise ValueError(
        f"the prompt of request {index} has shape {prompt.shape} and type "
        f"{prompt.dtype}; it must be a list of integers"
      )
    if not len(prompt):
      raise ValueError(
        f"the prompt of request {index} is empty; give it a token at least, "
        "for instance the one that begins a text"
      )
    check_ids(
      f"request {index}: prompt token",
      (prompt.min(), prompt.max()),
      arch.vocab_size,
    )
    if not 0 <= request.user_row < num_rows:
      raise ValueError(
        f"user_row {request.user_row} of request {index} is outside the user "
        f"table of {num_rows} rows; use 0 (generic) to {num_rows - 1}"
      )
    if not 0 <= request.seed <= MAX_SEED:
      raise ValueError(
        f"seed {request.seed} of request {index} must be from 0 to {MAX_SEED}"
      )
    total = prefix + len(prompt) + spec.max_new_tokens
    if total > arch.max_positions:
      raise ValueError(
        f"request {index} needs {total} positions ({prefix} user tokens, "
        f"{len(prompt)} prompt tokens and max_new_tokens "
        f"{spec.max_new_tokens}), and the model has {arch.max_positions}; "
        "shorten the prompt or lower max_new_tokens"
      )


def _pays_apart(lm, steps):
  """Whether the programs of layers apart save the time that they take.

  Of each byte of a layer, a step without them takes about 0.1 ns more.
  """
  state = nnx.state(getattr(lm, lm.stacked))
  layer_bytes = (
    sum(x.nbytes for x in jax.tree.leaves(state)) / lm.arch.num_layers
  )
  return steps * layer_bytes > 3e9 and stack.can_be_apart(nnx.state(lm))


def _run_batch(graphdef, state, requests, spec, stop_tokens, pad_id, rows):
  """Answers one batch; copies of its last request fill it up."""
  filled = list(requests) + [requests[-1]] * (rows - len(requests))
  width = batching.padded_length(
    max(len(request.prompt) for request in requests)
  )
  prompt = np.full((rows, width), pad_id, np.int32)
  mask = np.zeros((rows, width), bool)
  for row, request in enumerate(filled):
    prompt[row, width - len(request.prompt) :] = request.prompt
    mask[row, width - len(request.prompt) :] = True
  user_rows = np.array([request.user_row for request in filled], np.int32)
  state, user_rows = host_users.narrow(state, user_rows)
  tokens, lengths = decode.decode(
    graphdef,
    state,
    prompt,
    mask,
    user_rows,
    np.asarray([request.seed for request in filled], np.uint32),
    stop_tokens,
    spec=spec,
    pad_id=pad_id,
  )
  tokens, lengths = processes.fetch(tokens), processes.fetch(lengths)
  return [tokens[row, : lengths[row]].copy() for row in range(len(requests))]


def generate(
  policy: policy_lib.Policy,
  requests: Sequence[Request],
  spec: sampling.AnswersConfig,
  *,
  stop_tokens: Sequence[int],
  pad_id: int,
  batch_size: int,
) -> list[np.ndarray]:
  """Answers every request, in the order of the requests.

  Requests are run longest first, so that rows of a batch need little padding
  and a batch too large for memory fails at once.

  Args:
    policy: the model; its weights may change between calls at no cost.
    requests: may mix users and prompt lengths.
    spec: how tokens are chosen.
    stop_tokens: what ends an answer.
    pad_id: a token that fills rows; masked, so its choice does not matter.
    batch_size: rows that are run together, at most.

  Returns:
    int32 token ids of each answer, without the stop token; may be empty.

  Raises:
    ValueError: if a prompt is empty or too long, or if a token, user row or
      seed is out of range.
  """
  spec = dataclasses.replace(spec)  # Compiled code is kept by it.
  sections.check(spec, "answers.")
  _check(policy, requests, spec, stop_tokens, pad_id, batch_size)
  if spec.max_new_tokens == 0 or not requests:
    return [np.zeros((0,), np.int32) for _ in requests]
  graphdef, state = nnx.split(policy)
  batches = math.ceil(len(requests) / batch_size)
  if _pays_apart(policy.lm, batches * spec.max_new_tokens):
    graphdef, state = nnx.split(stack.without_lora(policy))
    state = stack.apart(state, policy.lm.stacked)
  stop_array = np.asarray(stop_tokens, np.int32)
  order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt))
  rows = rows_per_batch(len(requests), batch_size)
  answers = {}
  for start in range(0, len(order), rows):
    batch = order[start : start + rows]
    texts = _run_batch(
      graphdef,
      state,
      [requests[i] for i in batch],
      spec,
      stop_array,
      pad_id,
      rows,
    )
    answers.update(zip(batch, texts, strict=True))
  return [answers[i] for i in range(len(requests))]
