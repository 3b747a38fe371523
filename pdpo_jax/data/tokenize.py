"""From comparisons to token ids, and training a tokenizer for them."""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
import transformers
from jaxtyping import Int

from pdpo_jax.core import structs
from pdpo_jax.data import dialogues, prompt_formats, records
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.data import users as users_lib

EOS = "<|endoftext|>"
RESPONSE_CUT = "responses cut"
RESPONSE_TOO_LONG = "responses too long"
ALIKE = "rejected responses with the chosen one's tokens"
DROPPED = "comparisons dropped"

# Comparisons that are text and lists of ids at a time; arrays are far smaller.
_BATCH = 4096

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
    return f"{len(self.examples):,} examples; {listed(self.counts)}"


def train_tokenizer(
  texts: Iterable[str], vocab_size: int
) -> transformers.PreTrainedTokenizerFast:
  """A byte-level BPE tokenizer in the manner of GPT-2 and GPT-J.

  Any text can be encoded; no token is put in front, and the one that ends a
  text is called BOS too. The vocabulary is smaller than `vocab_size` where the
  texts have no more pairs to merge.
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
    bos_token=EOS,
    eos_token=EOS,
    clean_up_tokenization_spaces=False,
  )


def tokenize_examples(
  examples: Sequence[structs.PreferenceExample],
  encoder: prompts_lib.PromptEncoder,
  users: users_lib.UserIndex,
  max_response_tokens: int,
  long_response: str = "error",
  max_bad_share: float = 0.0,
  kept_start: int | None = None,
  *,
  may_be_none: bool = False,
  alone: bool = False,
) -> Tokenized:
  """Token ids of comparisons, with the token that ends a response after each.

  Users that have no row are read as the generic one. An empty response is that
  token alone. A rejected response whose ids are the
  chosen one's is left out.

  Args:
    max_response_tokens: the limit of a response with its end token.
    long_response: what becomes of a response over the limit: "error" stops;
      "drop" leaves a rejected one out, and the comparison where nothing is
      left to compare; "cut" cuts it off, without an end token. A comparison
      whose last turn or system message is too long for a prompt is an error,
      or else dropped.
    max_bad_share: share of dialogues that the chat template may refuse; they
      are dropped.
    may_be_none: whether it is no error that no comparison is left.
    alone: whether chosen responses may be compared to none.
    kept_start: how many first tokens a prompt keeps where it and the longest
      response have more than that and `max_response_tokens` together; responses
      are cut if they still have. Without, limits are of each.

  Raises:
    ValueError: if a prompt is empty, something is over its limit and must not
      be, too much is refused, or nothing is left.
  """
  if max_response_tokens < 1:
    raise ValueError(
      f"max_response_tokens {max_response_tokens} must be 1 or more"
    )
  response_limit = max_response_tokens
  if kept_start is not None:
    response_limit += kept_start
  for place, example in enumerate(examples):
    if not (example.rejected or alone):
      raise ValueError(
        f"{_name(place, example)} has no rejected response; give one or more"
      )
  dialogues.check(examples)
  tokenized = Tokenized([], [], collections.Counter())
  refused = records.Tally()
  refused.read(len(examples))
  for start in range(0, len(examples), _BATCH):
    batch = examples[start : start + _BATCH]
    prompts, bare_prompts = _prompts(batch, encoder, tokenized.counts)
    whole = []
    for place, example in enumerate(batch):
      problem = prompts[place].problem or bare_prompts[place].problem
      if not problem:
        whole.append(place)
      elif problem == prompt_formats.REFUSED:
        detail = prompts[place].detail or bare_prompts[place].detail
        refused.break_(_name(start + place, example), problem, detail)
      elif long_response == "error":
        raise ValueError(
          f"{_name(start + place, example)} is over data.max_prompt_tokens "
          f"{encoder.max_tokens} ({problem}, with the user's text); shorten "
          "it, or train with more, or with data.long_response 'drop'"
        )
    responses = encoder.encode_responses(
      [prompts[place] for place in whole],
      [(batch[place].chosen, *batch[place].rejected) for place in whole],
      tokenized.counts,
    )
    for place, ids in zip(whole, responses, strict=True):
      example = batch[place]
      name = _name(start + place, example)
      asked = prompts[place].ids, bare_prompts[place].ids
      if kept_start is not None:
        limits = kept_start, max_response_tokens
        asked, ids = _keep_start(*asked, ids, limits, tokenized.counts)
      fitting = _fitting(
        ids,
        response_limit,
        long_response,
        tokenized.counts,
        name,
      )
      if len(fitting) > 1 or (fitting and not example.rejected):
        tokenized.kept.append(start + place)
        tokenized.examples.append(
          structs.TokenizedExample(
            users.row_or_generic(example.user_id), *asked, fitting
          )
        )
  tokenized.counts[DROPPED] = len(examples) - len(tokenized.kept)
  refused.check(max_bad_share)
  if not tokenized.examples and not may_be_none:
    raise ValueError(
      f"none of {len(examples):,} comparisons is left ({tokenized}); raise "
      "data.max_prompt_tokens or data.max_response_tokens"
    )
  return tokenized


def _prompts(batch, encoder, counts):
  """Prompts with and without users' texts; the same where there are none."""
  prompts = encoder.encode_prompts(batch, counts)
  with_text = [
    place for place, example in enumerate(batch) if example.user_text
  ]
  bare_prompts = list(prompts)
  bare = encoder.encode_prompts(
    [structs.PromptExample(batch[place].prompt) for place in with_text],
    collections.Counter(),
  )
  for place, encoded in zip(with_text, bare, strict=True):
    bare_prompts[place] = encoded
  return prompts, bare_prompts


def _keep_start(prompt, bare_prompt, responses, limits, counts):
  """Prompts and responses, cut as TRL's `truncation_mode` "keep_start" does.

  Args:
    limits: of a prompt and of a response where the example is cut.
  """
  longest = max((len(ids) for ids in responses if ids is not None), default=0)

  def is_long(ids):
    return len(ids) + longest > sum(limits)

  kept = [
    ids[: limits[0]] if is_long(ids) else ids for ids in (prompt, bare_prompt)
  ]
  counts[prompts_lib.PROMPT_CUT] += len(kept[0]) < len(prompt)
  if is_long(kept[0]):
    long = [ids is not None and len(ids) > limits[1] for ids in responses]
    counts[RESPONSE_CUT] += sum(long)
    responses = [
      ids[: limits[1]] if is_cut else ids
      for ids, is_cut in zip(responses, long, strict=True)
    ]
  return kept, responses


def _fitting(responses, limit, long_response, counts, name):
  """The responses that are to be compared, of which the chosen one is first.

  Without it there is none.
  """
  fitting = []
  for number, ids in enumerate(responses):
    if ids is not None and len(ids) > limit:
      if long_response == "error":
        raise ValueError(
          f"{name} has a response of {len(ids)} tokens with its end token, "
          f"over the limit of {limit}; shorten it, or train with a larger "
          "data.max_response_tokens, or data.long_response 'drop' or 'cut'"
        )
      cut = long_response == "cut"
      counts[RESPONSE_CUT if cut else RESPONSE_TOO_LONG] += 1
      ids = ids[:limit] if cut else None
    if number > 0 and ids is not None and np.array_equal(ids, fitting[0]):
      counts[ALIKE] += 1
      ids = None
    if ids is not None:
      fitting.append(ids)
    elif number == 0:
      # Without its chosen response a comparison says nothing.
      return ()
  return tuple(fitting)


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
  counts: collections.Counter[str] = collections.Counter()
  asked = [structs.PromptExample(prompt) for prompt, _ in pairs]
  prompts = encoder.encode_prompts(asked, counts)
  responses = encoder.encode_responses(
    prompts, [(text,) for _, text in pairs], counts
  )
  return [
    (prompt.ids, ids) for prompt, (ids,) in zip(prompts, responses, strict=True)
  ]


def encode_prompts(
  prompts: Sequence[structs.PromptExample], encoder: prompts_lib.PromptEncoder
) -> list[Int[np.ndarray, " tokens"]]:
  """Prompts for generation, as in training. Logs what was cut or changed.

  Raises:
    ValueError: if one is empty, refused by the template, or too long with the
      last turn alone.
  """
  counts: collections.Counter[str] = collections.Counter()
  encoded = encoder.encode_prompts(prompts, counts)
  for prompt, result in zip(prompts, encoded, strict=True):
    if result.problem == prompt_formats.REFUSED:
      raise ValueError(
        f"the chat template refuses a prompt ({result.detail}), whose last "
        f"turn begins {_beginning(prompt.prompt)}; change its turns, or use "
        "data.template 'plain'"
      )
    if result.problem:
      raise ValueError(
        f"a prompt is over data.max_prompt_tokens {encoder.max_tokens} "
        f"({result.problem}, with the user's text); shorten it. Its "
        f"last turn begins {_beginning(prompt.prompt)}"
      )
  if counts.total():
    logger.warning(
      "%d prompts of at most %d tokens: %s",
      len(prompts),
      encoder.max_tokens,
      listed(counts),
    )
  return [result.ids for result in encoded]


def _name(place: int, example: structs.PreferenceExample) -> str:
  where = f", from {example.place}" if example.place else ""
  return (
    f"examples[{place}] (user {example.user_id!r}){where}, whose last turn "
    f"begins {_beginning(example.prompt)},"
  )


def _beginning(prompt: structs.Prompt) -> str:
  """Of the last turn."""
  text = prompt if isinstance(prompt, str) else prompt[-1].content
  return repr(text if len(text) <= 40 else f"{text[:40]}…")


def listed(counts: collections.Counter[str]) -> str:
  """What was counted, for a person to read."""
  phrases = [
    f"{count:,} {reason}" for reason, count in sorted(counts.items()) if count
  ]
  return ", ".join(phrases) or "nothing cut"
