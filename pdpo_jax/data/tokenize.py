"""From comparisons to token ids, and training a tokenizer for them."""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
import transformers
from jaxtyping import Int

from pdpo_jax import structs
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.data import users as users_lib

EOS = "<|endoftext|>"
RESPONSE_CUT = "responses cut"
RESPONSE_TOO_LONG = "responses too long"
DROPPED = "comparisons dropped"

logger = logging.getLogger(__name__)

TextPair = tuple[np.ndarray, np.ndarray]  # prompt and response ids, int32


@dataclasses.dataclass(frozen=True)
class Tokenized:
  """Comparisons as token ids, and what became of them on the way.

  Attributes:
    examples: those that fit.
    kept: the place of each among the comparisons that were given.
    counts: what was cut or dropped, by reason.
  """

  examples: list[structs.TokenizedExample]
  kept: list[int]
  counts: collections.Counter[str]

  def __str__(self) -> str:
    return f"{len(self.examples):,} samples; {listed(self.counts)}"


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
  encoder: prompts_lib.PromptEncoder,
  users: users_lib.UserIndex,
  max_response_tokens: int,
  long_response: str = "error",
) -> Tokenized:
  """Token ids of comparisons, with the token that ends a response after each.

  An empty response is that token alone.

  Args:
    max_response_tokens: the limit of a response with its end token.
    long_response: what becomes of a response over the limit: "error" stops;
      "drop" leaves a rejected one out, and the comparison where nothing is
      left to compare; "cut" cuts it off, without an end token. A comparison
      whose last turn is too long for a prompt is an error, or else dropped.

  Raises:
    ValueError: if a prompt is empty, something is over its limit and must not
      be, a user is not in `users`, or nothing is left.
  """
  for place, example in enumerate(examples):
    _check_example(place, example)
  counts: collections.Counter[str] = collections.Counter()
  prompts = encoder.encode(
    [structs.PromptExample(e.prompt, e.user_text) for e in examples], counts
  )
  bare_prompts = prompts
  if any(example.user_text for example in examples):
    bare = [structs.PromptExample(example.prompt) for example in examples]
    bare_prompts = encoder.encode(bare, collections.Counter())
  responses = _responses(
    examples, encoder, max_response_tokens, long_response, counts
  )
  tokenized = Tokenized([], [], counts)
  for place, (prompt, bare_prompt, fitting) in enumerate(
    zip(prompts, bare_prompts, responses, strict=True)
  ):
    if prompt is None or bare_prompt is None:
      if long_response == "error":
        raise ValueError(
          f"{_name(place, examples[place])} has more than data."
          f"max_prompt_tokens {encoder.max_tokens} in its user's text and last "
          "turn; raise that, or set data.long_response to 'drop'"
        )
    elif fitting:
      row = users.row_of(examples[place].user_id)
      tokenized.kept.append(place)
      tokenized.examples.append(
        structs.TokenizedExample(row, prompt, bare_prompt, fitting)
      )
  if not tokenized.examples:
    raise ValueError(
      f"none of {len(examples):,} comparisons is left ({tokenized}); raise "
      "data.max_prompt_tokens or data.max_response_tokens"
    )
  return tokenized


def count_tokens(
  tokenizer: transformers.PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[int]:
  """Lengths of texts in tokens, without any that stand around them."""
  encoding = tokenizer(list(texts), add_special_tokens=False, verbose=False)
  return [len(ids) for ids in encoding["input_ids"]]


def tokenize_pairs(
  pairs: Sequence[tuple[str, str]], encoder: prompts_lib.PromptEncoder
) -> list[TextPair]:
  """Token ids of (prompt, response) for supervised fine-tuning.

  A response may be empty: then it is just the token that ends it. A prompt
  over the limit loses its beginning.
  """
  asked = [structs.PromptExample(prompt) for prompt, _ in pairs]
  prompts = encoder.encode(asked, collections.Counter())
  return list(zip(prompts, encoder.encode_responses(pairs), strict=True))


def encode_prompts(
  prompts: Sequence[structs.PromptExample], encoder: prompts_lib.PromptEncoder
) -> list[Int[np.ndarray, " tokens"]]:
  """Prompts for generation, as in training. Logs what was cut.

  Raises:
    ValueError: if one is empty, or its last turn over the limit.
  """
  counts: collections.Counter[str] = collections.Counter()
  encoded = encoder.encode(prompts, counts)
  for prompt, ids in zip(prompts, encoded, strict=True):
    if ids is None:
      last = (
        prompt.prompt
        if isinstance(prompt.prompt, str)
        else (prompt.prompt[-1].content)
      )
      raise ValueError(
        "a prompt has more tokens in its user's text and last turn than "
        f"data.max_prompt_tokens {encoder.max_tokens}; shorten it. Its last "
        f"turn begins {last[:60]!r}"
      )
  if counts.total():
    logger.warning(
      "%d prompts of at most %d tokens: %s",
      len(prompts),
      encoder.max_tokens,
      listed(counts),
    )
  return encoded


def _responses(examples, encoder, limit, long_response, counts):
  """Yields each example's responses that fit; () where it must be dropped."""
  if limit < 1:
    raise ValueError(f"max_response_tokens {limit} must be 1 or more")
  encoded = encoder.encode_responses(
    [
      (example.prompt, text)
      for example in examples
      for text in (example.chosen, *example.rejected)
    ]
  )
  for place, example in enumerate(examples):
    fitting = []
    for number in range(1 + len(example.rejected)):
      ids = next(encoded)
      if len(ids) <= limit:
        fitting.append(ids)
      elif long_response == "error":
        raise ValueError(
          f"{_name(place, example)} has a response of {len(ids)} tokens with "
          f"its end token, over the limit of {limit}; raise "
          "data.max_response_tokens, or set data.long_response to 'drop' or "
          "'cut'"
        )
      elif long_response == "cut":
        counts[RESPONSE_CUT] += 1
        fitting.append(ids[:limit])
      else:
        counts[RESPONSE_TOO_LONG] += 1
        # Without its chosen response a comparison says nothing.
        fitting += [None] * (number == 0)
    whole = len(fitting) > 1 and fitting[0] is not None
    counts[DROPPED] += not whole
    yield tuple(fitting) if whole else ()


def _name(place: int, example: structs.PreferenceExample) -> str:
  return f"examples[{place}] (user {example.user_id!r})"


def _check_example(place: int, example: structs.PreferenceExample):
  name = _name(place, example)
  if not example.rejected:
    raise ValueError(f"{name} has no rejected response; give one or more")


def listed(counts: collections.Counter[str]) -> str:
  """What was counted, for a person to read."""
  said = [
    f"{count:,} {reason}" for reason, count in sorted(counts.items()) if count
  ]
  return ", ".join(said) or "nothing cut"
