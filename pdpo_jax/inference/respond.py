"""Text in, text out: what a policy says to prompts, as one user or another."""

import collections
import dataclasses
import logging
from collections.abc import Mapping, Sequence

import transformers

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.data import tokenize
from pdpo_jax.inference import generate, sampling
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)


def respond(
  policy: policy_lib.Policy,
  base: base_lib.Base,
  prompts: Sequence[structs.PromptExample],
  rows: Sequence[int],
  seeds: Sequence[int],
  answers: sampling.AnswersConfig,
  data: data_config.DataConfig,
) -> list[str]:
  """A response to each prompt, for a user and from a seed of its own.

  Args:
    rows: user rows, 0 for the generic user.
    data: how prompts are written, and how long they may be.
  """
  encoder = prompts_lib.make_encoder(base.tokenizer, data)
  requests = [
    generate.Request(prompt=prompt, user_row=row, seed=seed)
    for prompt, row, seed in zip(
      tokenize.encode_prompts(prompts, encoder), rows, seeds, strict=True
    )
  ]
  tokens = generate.generate(
    policy,
    requests,
    answers,
    stop_tokens=sorted({*base.stop_tokens, encoder.end_id}),
    pad_id=base.tokenizer.eos_token_id,
    batch_size=answers.batch_size,
  )
  return base.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def fitting(
  prompts: Sequence[structs.PromptExample],
  tokenizer: transformers.PreTrainedTokenizerBase,
  arch: policy_lib.Architecture,
  answers: sampling.AnswersConfig,
  data: data_config.DataConfig,
  prefix_length: int,
) -> list[structs.PromptExample]:
  """Those that can be answered; a warning says how many cannot.

  Raises:
    ValueError: if none can, or an answer has no room in the model.
  """
  encoder = prompts_lib.make_encoder(tokenizer, data)
  counts: collections.Counter[str] = collections.Counter()
  encoded = encoder.encode(prompts, counts)
  kept = [
    (prompt, len(ids))
    for prompt, ids in zip(prompts, encoded, strict=True)
    if ids is not None
  ]
  if not kept:
    raise ValueError(
      f"none of the {len(prompts)} prompts to be answered fits into "
      f"data.max_prompt_tokens {encoder.max_tokens} "
      f"({tokenize.listed(counts)}); raise that"
    )
  if len(kept) < len(prompts):
    logger.warning(
      "%d of %d prompts are left out of the answers, at data.max_prompt_tokens "
      "%d: %s",
      len(prompts) - len(kept),
      len(prompts),
      encoder.max_tokens,
      tokenize.listed(counts),
    )
  longest = max(length for _, length in kept)
  total = prefix_length + longest + answers.max_new_tokens
  if total > arch.max_positions:
    raise ValueError(
      f"answers need up to {total} positions (user.num_tokens "
      f"{prefix_length}, a prompt of {longest} and answers.max_new_tokens "
      f"{answers.max_new_tokens}), and the base has {arch.max_positions}; "
      "lower one of them, or data.max_prompt_tokens"
    )
  return [prompt for prompt, _ in kept]


def answer(
  policy: policy_lib.Policy,
  base: base_lib.Base,
  prompts: Sequence[structs.PromptExample],
  rows: Mapping[str, int],
  answers: sampling.AnswersConfig,
  data: data_config.DataConfig,
  seed: int,
  user_texts: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
  """One answer to each prompt for each speaker.

  Prompt number i has the same seed for every speaker, so that speakers differ
  by their prefix alone.

  Args:
    rows: user rows by speaker.
    data: as for `respond`.
    seed: of the first prompt; those that follow have the next ones.
    user_texts: what speakers say of themselves, in place of the prompts' own.
  """
  count = len(prompts)
  asked = list(prompts) * len(rows)
  if user_texts is not None:
    asked = [
      dataclasses.replace(prompt, user_text=user_texts.get(speaker, ""))
      for speaker in rows
      for prompt in prompts
    ]
  texts = respond(
    policy,
    base,
    asked,
    [row for row in rows.values() for _ in prompts],
    [seed + place for place in range(count)] * len(rows),
    answers,
    data,
  )
  return {
    speaker: texts[place * count : (place + 1) * count]
    for place, speaker in enumerate(rows)
  }
