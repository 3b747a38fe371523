"""From texts to token ids: training a tokenizer, and using any."""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
import transformers
from jaxtyping import Int

from pdpo_jax import structs
from pdpo_jax.data import users as users_lib

EOS = "<|endoftext|>"
PROMPT_CUT = "prompt cut"

# Texts that are Python lists of ids at a time; arrays are far smaller.
_BATCH = 8192

TextPair = tuple[np.ndarray, np.ndarray]  # prompt and response ids, int32


@dataclasses.dataclass
class Report:
  """What tokenizing did to the data, apart from tokenizing it."""

  num_examples: int
  counts: collections.Counter[str]  # by reason

  def __str__(self) -> str:
    cut = self.counts[PROMPT_CUT]
    return f"{self.num_examples:,} examples tokenized: {cut:,} {PROMPT_CUT}"


def train_tokenizer(
  texts: Iterable[str], vocab_size: int
) -> transformers.PreTrainedTokenizerFast:
  """A byte-level BPE tokenizer in the manner of GPT-2 and GPT-J.

  Any text can be encoded; no token is put in front. The vocabulary is smaller
  than `vocab_size` where the texts have no more pairs to merge.
  """
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  smallest = len(alphabet) + 1
  if vocab_size < smallest:
    raise ValueError(
      f"vocab_size {vocab_size} must be {smallest} or more: {len(alphabet)} "
      f"bytes and {EOS}"
    )
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[EOS],
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )
  model.train_from_iterator(texts, trainer)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=model,
    eos_token=EOS,
    clean_up_tokenization_spaces=False,
  )


def tokenize_examples(
  examples: Sequence[structs.PreferenceExample],
  tokenizer: transformers.PreTrainedTokenizerBase,
  users: users_lib.UserIndex,
  max_prompt_tokens: int,
  max_response_tokens: int,
) -> tuple[list[structs.TokenizedExample], Report]:
  """Token ids of comparisons, with the end-of-text token after a response.

  A user's text stands before the prompt, with a blank line between. A prompt
  over its limit loses its beginning, and is counted in the report. A response
  is never cut: the policy would learn to break off.

  Args:
    max_prompt_tokens: the limit of user text and prompt together.
    max_response_tokens: the limit of a response with its end-of-text.

  Raises:
    ValueError: if a prompt or response is empty, a response is over its limit,
      or a user is not in `users`.
  """
  for place, example in enumerate(examples):
    _check_example(place, example)
  counts: collections.Counter[str] = collections.Counter()
  prompts = _prompts(
    [example.prompt for example in examples],
    [example.user_text for example in examples],
    tokenizer,
    max_prompt_tokens,
    counts,
  )
  texts = [
    text for example in examples for text in (example.chosen, *example.rejected)
  ]
  responses = iter(_responses(texts, tokenizer, max_response_tokens))
  tokenized = [
    structs.TokenizedExample(
      user_row=users.row_of(example.user_id),
      prompt=prompt,
      responses=tuple(next(responses) for _ in (0, *example.rejected)),
    )
    for example, prompt in zip(examples, prompts, strict=True)
  ]
  return tokenized, Report(len(examples), counts)


def tokenize_pairs(
  pairs: Sequence[tuple[str, str]],
  tokenizer: transformers.PreTrainedTokenizerBase,
  max_prompt_tokens: int,
  max_response_tokens: int,
) -> tuple[list[TextPair], Report]:
  """Token ids of (prompt, response) for supervised fine-tuning.

  As `tokenize_examples`, but a response may be empty: then it is just the
  end-of-text token.
  """
  counts: collections.Counter[str] = collections.Counter()
  prompts = _prompts(
    [prompt for prompt, _ in pairs],
    [""] * len(pairs),
    tokenizer,
    max_prompt_tokens,
    counts,
  )
  responses = _responses(
    [response for _, response in pairs], tokenizer, max_response_tokens
  )
  tokenized = list(zip(prompts, responses, strict=True))
  return tokenized, Report(len(pairs), counts)


def encode_prompts(
  prompts: Sequence[str],
  user_texts: Sequence[str],
  tokenizer: transformers.PreTrainedTokenizerBase,
  max_prompt_tokens: int,
) -> list[Int[np.ndarray, " tokens"]]:
  """Prompts for generation, as in training. Logs how many were cut."""
  counts: collections.Counter[str] = collections.Counter()
  encoded = _prompts(prompts, user_texts, tokenizer, max_prompt_tokens, counts)
  if counts[PROMPT_CUT]:
    logging.warning(
      "%d of %d prompts lost their beginning: over %d tokens",
      counts[PROMPT_CUT],
      len(prompts),
      max_prompt_tokens,
    )
  return encoded


def _check_example(place: int, example: structs.PreferenceExample):
  def sample() -> str:
    return f"examples[{place}] (user {example.user_id!r})"

  if not example.rejected:
    raise ValueError(f"{sample()} has no rejected response; give one or more")
  for name, text in (
    ("chosen response", example.chosen),
    *(("rejected response", text) for text in example.rejected),
  ):
    if not text:
      raise ValueError(
        f"{sample()} has an empty {name}; its prompt begins "
        f"{example.prompt[:60]!r}. Drop the comparison"
      )


def _prompts(prompts, user_texts, tokenizer, limit, counts):
  """Ids of at most `limit` tokens; a leading BOS survives a cut."""
  _check_limit("max_prompt_tokens", limit)
  texts = []
  for place, (prompt, user_text) in enumerate(
    zip(prompts, user_texts, strict=True)
  ):
    if not prompt:
      raise ValueError(
        f"prompt {place} of {len(prompts)} is empty; a response needs at "
        "least one token before it"
      )
    texts.append(f"{user_text}\n\n{prompt}" if user_text else prompt)
  encoded = []
  for ids in _encode(texts, tokenizer, special=True):
    if len(ids) > limit:
      counts[PROMPT_CUT] += 1
      start = ids[:1] if ids[0] == tokenizer.bos_token_id else ids[:0]
      rest = limit - len(start)
      ids = np.concatenate([start, ids[len(ids) - rest :]])
    encoded.append(ids)
  return encoded


def _responses(texts, tokenizer, limit):
  """Ids and end-of-text, at most `limit` in all."""
  _check_limit("max_response_tokens", limit)
  if tokenizer.eos_token_id is None:
    raise ValueError(
      "the tokenizer has no eos_token, which ends a response; set one"
    )
  end = np.array([tokenizer.eos_token_id], np.int32)
  encoded = []
  for text, ids in zip(
    texts, _encode(texts, tokenizer, special=False), strict=True
  ):
    if len(ids) + 1 > limit:
      raise ValueError(
        f"a response has {len(ids) + 1} tokens with its end-of-text, over the "
        f"limit of {limit}; raise data.max_response_tokens, or drop it. It "
        f"begins {text[:60]!r}"
      )
    encoded.append(np.concatenate([ids, end]))
  return encoded


def _encode(texts, tokenizer, special):
  """Yields int32 ids; `special` adds what the tokenizer puts around a text."""
  for start in range(0, len(texts), _BATCH):
    encoding = tokenizer(
      list(texts[start : start + _BATCH]),
      add_special_tokens=special,
      return_attention_mask=False,
      return_token_type_ids=False,
      verbose=False,
    )
    for ids in encoding["input_ids"]:
      yield np.array(ids, np.int32)


def _check_limit(name, value):
  if value < 1:
    raise ValueError(f"{name} {value} must be 1 or more")
