"""Answers to the same prompts as different users, kept as JSONL."""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence

import transformers
from typing_extensions import TypedDict

from pdpo_jax.runs import config as config_lib
from pdpo_jax.core import kept, processes, structs
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.data import tokenize
from pdpo_jax.inference import generate, sampling
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import base as base_lib

logger = logging.getLogger(__name__)

# Who answers besides the users, by the name in `answers.jsonl` and Figure 3.
OTHERS = {"S": "the base", "V": "vanilla DPO", "G": "the generic user"}


def sampling_spec(answers: config_lib.AnswersConfig) -> sampling.SamplingSpec:
  """The part of the configuration that the sampler reads."""
  names = {field.name for field in dataclasses.fields(sampling.SamplingSpec)}
  fields = dataclasses.asdict(answers)
  return sampling.SamplingSpec(
    **{k: v for k, v in fields.items() if k in names}
  )


def respond(
  policy: policy_lib.Policy,
  base: base_lib.Base,
  prompts: Sequence[structs.PromptExample],
  rows: Sequence[int],
  seeds: Sequence[int],
  config: config_lib.Config,
) -> list[str]:
  """A response to each prompt, for a user and from a seed of its own.

  Args:
    rows: user rows, 0 for the generic user.
    config: `answers` and the prompt limit apply.
  """
  encoder = _encoder(base.tokenizer, config)
  requests = [
    generate.Request(prompt=prompt, user_row=row, seed=seed)
    for prompt, row, seed in zip(
      tokenize.encode_prompts(prompts, encoder), rows, seeds, strict=True
    )
  ]
  tokens = generate.generate(
    policy,
    requests,
    sampling_spec(config.answers),
    stop_tokens=sorted({*base.stop_tokens, encoder.end_id}),
    pad_id=base.tokenizer.eos_token_id,
    batch_size=config.answers.batch_size,
  )
  return base.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def _encoder(tokenizer, config):
  return prompts_lib.make_encoder(tokenizer, config.data)


def fitting(
  prompts: Sequence[structs.PromptExample],
  tokenizer: transformers.PreTrainedTokenizerBase,
  arch: policy_lib.Architecture,
  config: config_lib.Config,
) -> list[structs.PromptExample]:
  """Those that can be answered; a warning says how many cannot.

  Raises:
    ValueError: if none can, or an answer has no room in the model.
  """
  encoder = _encoder(tokenizer, config)
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
  prefix = config.user.num_tokens if config.user.kind != "none" else 0
  total = prefix + longest + config.answers.max_new_tokens
  if total > arch.max_positions:
    raise ValueError(
      f"answers need up to {total} positions (user.num_tokens {prefix}, a "
      f"prompt of {longest} and answers.max_new_tokens "
      f"{config.answers.max_new_tokens}), and the base has "
      f"{arch.max_positions}; lower one of them, or "
      "data.max_prompt_tokens"
    )
  return [prompt for prompt, _ in kept]


def answer(
  policy: policy_lib.Policy,
  base: base_lib.Base,
  prompts: Sequence[structs.PromptExample],
  rows: Mapping[str, int],
  config: config_lib.Config,
  user_texts: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
  """One answer to each prompt for each speaker.

  Prompt number i has the same seed for every speaker, so that speakers differ
  by their prefix alone.

  Args:
    rows: user rows by speaker.
    config: `answers`, `seed` and the prompt limit apply.
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
    [config.seed + place for place in range(count)] * len(rows),
    config,
  )
  return {
    speaker: texts[place * count : (place + 1) * count]
    for place, speaker in enumerate(rows)
  }


class Line(TypedDict):
  """Of a file of answers."""

  speaker: str
  prompt: structs.Prompt
  user_text: str
  answer: str
  seed: int


def write(
  file: pathlib.Path,
  prompts: Sequence[structs.PromptExample],
  answers: Mapping[str, Sequence[str]],
  seed: int,
) -> None:
  """One line an answer: speaker, prompt (with its user text), answer, seed.

  The file is there when it is whole.
  """
  if processes.is_first():
    kept.write_jsonl(
      file,
      (
        {
          "speaker": speaker,
          **dataclasses.asdict(prompt),
          "answer": text,
          "seed": seed + place,
        }
        for speaker, texts in answers.items()
        for place, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
      ),
    )


def read(
  file: pathlib.Path,
) -> tuple[list[structs.Prompt], dict[str, list[str]]]:
  """The prompts, and each speaker's answers to them, as `write` wrote them.

  Raises:
    ValueError: if there is no such file, or it is damaged.
  """
  remedy = (
    "start its training command again, which goes on where it was and "
    "writes it anew"
  )
  if not kept.was_written(file):
    raise kept.Damaged(
      file, "is missing: the run has not generated any answers yet", remedy
    )
  prompts: dict[int, structs.Prompt] = {}
  texts: dict[str, dict[int, str]] = {}
  for line in kept.read_jsonl(file, Line, remedy):
    prompts[line["seed"]] = line["prompt"]
    texts.setdefault(line["speaker"], {})[line["seed"]] = line["answer"]
  for speaker, answered in texts.items():
    if answered.keys() != prompts.keys():
      raise kept.Damaged(
        file, f"lacks lines: not all prompts are answered by {speaker}", remedy
      )
  if "S" not in texts:
    raise kept.Damaged(file, f"lacks the answers of {OTHERS['S']}", remedy)
  order = sorted(prompts)
  return (
    [prompts[seed] for seed in order],
    {name: [known[seed] for seed in order] for name, known in texts.items()},
  )
