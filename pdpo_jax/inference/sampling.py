"""How the next token is chosen from its logits.

The filters mean what `transformers`' `generate` means by them, and come in its
order: repetition penalty, n-grams, shortest length, temperature, top-k, top-p.
The first two look at generated tokens only, as there where it is given
`inputs_embeds`, or with `penalize_prompt` at the prompt's too, as there where
it is given `input_ids`. The soft prefix of a user has no ids, and is no gap
between those of a prompt.

Axes: B rows, V vocabulary, P prompt tokens, M generated tokens, S stop tokens.
"""

import dataclasses
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from pdpo_jax.core import sections

_Factor = Annotated[float, sections.Range(above=0, below=math.inf)]
# The knobs that decide which tokens are taken.
_SAMPLING = (
  "max_new_tokens",
  "min_new_tokens",
  "temperature",
  "top_k",
  "top_p",
  "repetition_penalty",
  "no_repeat_ngram",
  "penalize_prompt",
)


@dataclasses.dataclass(unsafe_hash=True)
class AnswersConfig(sections.Section):
  """What is generated once training is done, and how."""

  # Held-out prompts, each answered for every speaker.
  num_prompts: sections.Count = 50
  # The users with the most training examples, each a speaker. Or the ids of
  # some.
  num_users: sections.CountOrNone = 10
  users: tuple[str, ...] = ()
  batch_size: sections.Count = 64
  max_new_tokens: sections.CountOrNone = 64
  # Until so many tokens the answer cannot end; 0 allows the empty answer.
  min_new_tokens: sections.CountOrNone = 0
  # 0 is greedy.
  temperature: Annotated[float, sections.Range(least=0, below=math.inf)] = 1.0
  # 1, 0, 1 and 0 turn these off.
  top_p: Annotated[float, sections.Range(above=0, most=1)] = 1.0
  top_k: sections.CountOrNone = 0
  repetition_penalty: _Factor = 1.0
  no_repeat_ngram: sections.CountOrNone = 0
  # These two count the prompt's tokens too (the released code).
  penalize_prompt: bool = False

  def sampling(self) -> dict[str, int | float]:
    """The knobs that decide which tokens are taken."""
    return {name: getattr(self, name) for name in _SAMPLING}

  def check_together(self) -> None:
    if self.min_new_tokens > self.max_new_tokens:
      raise ValueError(
        f"answers.min_new_tokens {self.min_new_tokens} is above "
        f"answers.max_new_tokens {self.max_new_tokens}; lower it"
      )


def penalize_repetition(
  logits: Float[Array, "B V"],
  tokens: Int[Array, "B M"],
  count: Int[Array, ""] | int,
  penalty: float,
) -> Float[Array, "B V"]:
  """Makes each of a row's first `count` tokens less likely, once."""
  rows, size = tokens.shape
  known = jnp.where(jnp.arange(size) < count, tokens, logits.shape[-1])
  seen = jnp.zeros(logits.shape, bool)
  seen = seen.at[jnp.arange(rows)[:, None], known].set(True, mode="drop")
  less = jnp.where(logits < 0, logits * penalty, logits / penalty)
  return jnp.where(seen, less, logits)


def ban_repeated_ngrams(
  logits: Float[Array, "B V"],
  tokens: Int[Array, "B M"],
  count: Int[Array, ""] | int,
  size: int,
) -> Float[Array, "B V"]:
  """Bans each token that would complete an n-gram a second time.

  With size 3, count 5 and a row `a b c a b`, the last two tokens `a b` were
  followed by `c` before, so `c` is banned.
  """
  rows, length = tokens.shape
  windows = length - size + 1
  if windows < 1:
    return logits
  last = jax.lax.dynamic_slice_in_dim(tokens, count - size + 1, size - 1, 1)
  repeats = jnp.arange(windows) + size <= count  # the n-gram is complete
  repeats = jnp.broadcast_to(repeats, (rows, windows))
  for i in range(size - 1):
    repeats &= tokens[:, i : i + windows] == last[:, i : i + 1]
  banned = jnp.where(repeats, tokens[:, size - 1 :], logits.shape[-1])
  return logits.at[jnp.arange(rows)[:, None], banned].set(-jnp.inf, mode="drop")


def ban_early_stop(
  logits: Float[Array, "B V"],
  stop_tokens: Int[Array, " S"],
  count: Int[Array, ""] | int,
  min_new_tokens: int,
) -> Float[Array, "B V"]:
  """Bans the stop tokens while there are too few tokens."""
  banned = logits.at[:, stop_tokens].set(-jnp.inf)
  return jnp.where(count < min_new_tokens, banned, logits)


def keep_top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
  """Bans tokens less likely than the k-th; ties with it stay."""
  best, _ = jax.lax.top_k(logits, min(k, logits.shape[-1]))
  return jnp.where(logits < best[:, -1:], -jnp.inf, logits)


def keep_top_k_by_row(
  logits: Float[Array, "B V"], k: Int[Array, " B"]
) -> Float[Array, "B V"]:
  """`keep_top_k` with a k for each row; 0 leaves a row as it is.

  The k-th largest logit is bisected, as in `keep_top_p`.
  """
  bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
  # As integers, ordered as the floats are: magnitudes of negative ones turn.
  order = jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)
  k = jnp.minimum(k, logits.shape[-1])

  def halve(_, bounds):
    # At least k are `low` or more, and fewer are `high` or more.
    low, high = bounds
    middle = (low & high) + ((low ^ high) >> 1)  # Their sum may overflow.
    enough = (order >= middle[:, None]).sum(-1) >= k
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  bounds = (order.min(-1), order.max(-1) + 1)
  low, _ = jax.lax.fori_loop(0, 32, halve, bounds)
  goes = (order < low[:, None]) & (k > 0)[:, None]
  return jnp.where(goes, -jnp.inf, logits)


def keep_top_p(
  logits: Float[Array, "B V"], p: float | Float[Array, " B"]
) -> Float[Array, "B V"]:
  """Bans the least likely tokens, of probability `1 - p` at most together.

  The likeliest token always stays (nucleus sampling, arXiv:1904.09751). Tokens
  of the same probability stay or go together, where `transformers` lets the
  order of its sort decide.

  The smallest probability that stays is bisected: on a CPU, 30 sums over 50k
  tokens took a thirtieth of the time of one sort. Bits of a float that is not
  negative, read as an integer, are ordered as the float is, so the bisection
  ends at neighbouring floats.

  Args:
    p: one for all, or one for each row; 1 leaves a row as it is.
  """
  probabilities = jax.nn.softmax(logits, -1)

  def bits(x):
    return jax.lax.bitcast_convert_type(x, jnp.int32)

  def halve(_, bounds):
    # All up to `low` is to go; the likeliest token, from `high` on, stays.
    low, high = bounds
    middle = low + (high - low) // 2
    value = jax.lax.bitcast_convert_type(middle, jnp.float32)
    tail = probabilities <= value[:, None]
    goes = jnp.where(tail, probabilities, 0.0).sum(-1) <= 1 - p
    return jnp.where(goes, middle, low), jnp.where(goes, high, middle)

  high = bits(probabilities.max(-1))
  bounds = (jnp.zeros_like(high), high)
  # Probabilities are at most 1.0, whose bits are below 2 ** 30.
  low, _ = jax.lax.fori_loop(0, 30, halve, bounds)
  goes = (bits(probabilities) <= low[:, None]) & (jnp.asarray(p)[..., None] < 1)
  return jnp.where(goes, -jnp.inf, logits)


def filter_logits(
  logits: Float[Array, "B V"],
  tokens: Int[Array, "B M"],
  count: Int[Array, ""] | int,
  stop_tokens: Int[Array, " S"],
  spec: AnswersConfig,
  prompt: Int[Array, "B P"] | None = None,
) -> Float[Array, "B V"]:
  """Applies all filters of `spec`; one that is off costs nothing.

  Args:
    logits: of the next token.
    tokens: generated so far, in the first `count` columns.
    count: how many tokens every row has.
    stop_tokens: what ends an answer.
    spec: the filters.
    prompt: what `penalize_prompt` counts besides, padded on the left with an id
      that is in no vocabulary.
  """
  history, size = tokens, count
  if spec.penalize_prompt:
    history = jnp.concatenate([prompt, tokens], 1)
    size = prompt.shape[1] + count
  if spec.repetition_penalty != 1:
    logits = penalize_repetition(logits, history, size, spec.repetition_penalty)
  if spec.no_repeat_ngram:
    logits = ban_repeated_ngrams(logits, history, size, spec.no_repeat_ngram)
  if spec.min_new_tokens:
    logits = ban_early_stop(logits, stop_tokens, count, spec.min_new_tokens)
  if spec.temperature == 0:
    return logits
  logits = logits / spec.temperature
  if spec.top_k:
    logits = keep_top_k(logits, spec.top_k)
  if spec.top_p < 1:
    logits = keep_top_p(logits, spec.top_p)
  return logits


def row_keys(seeds: UInt[Array, " B"]) -> Key[Array, " B"]:
  """One key a row. Threefry, whose bits do not depend on the batch."""
  return jax.vmap(lambda seed: jax.random.key(seed, impl="threefry2x32"))(seeds)


def largest(logits: Float[Array, "B V"]) -> Int[Array, " B"]:
  """The first of each row's largest: `argmax`, in a quarter of the time.

  XLA's CPU backend has no fast loop for a maximum and its place at once.
  """
  size = logits.shape[-1]
  places = jnp.arange(size, dtype=jnp.int32)
  is_largest = logits == logits.max(-1, keepdims=True)
  # Where a row is not finite, nothing is; its answer means nothing either.
  return jnp.minimum(jnp.where(is_largest, places, size).min(-1), size - 1)


def with_noise(
  logits: Float[Array, "B V"],
  keys: Key[Array, " B"],
  count: Int[Array, "*B"] | int,
) -> Float[Array, "B V"]:
  """Their largest is a draw, from `fold_in(a row's key, its count)` alone."""

  def noise(key, count):
    key = jax.random.fold_in(key, count)
    return jax.random.gumbel(key, logits.shape[1:], logits.dtype)

  counts = jnp.broadcast_to(count, keys.shape)
  return logits + jax.vmap(noise)(keys, counts)


def choose(
  logits: Float[Array, "B V"],
  keys: Key[Array, " B"],
  count: Int[Array, ""] | int,
  spec: AnswersConfig,
) -> Int[Array, " B"]:
  """Draws each row's next token."""
  if spec.temperature > 0:
    logits = with_noise(logits, keys, count)
  return largest(logits)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowSettings:
  """For rows that are each sampled in their own way, as `AnswersConfig` is."""

  temperature: Float[Any, " B"]
  top_p: Float[Any, " B"]
  top_k: Int[Any, " B"]
  seed: UInt[Any, " B"]


def choose_by_row(
  logits: Float[Array, "B V"],
  counts: Int[Array, " B"],
  settings: RowSettings,
) -> Int[Array, " B"]:
  """Each row's next token: what `filter_logits` and `choose` make of it.

  What no row asks for is not computed.

  Args:
    counts: how many tokens each row has.
  """
  hot = settings.temperature > 0

  def draw(logits):
    sampled = logits / jnp.where(hot, settings.temperature, 1.0)[:, None]
    sampled = jax.lax.cond(
      (hot & (settings.top_k > 0)).any(),
      lambda x: keep_top_k_by_row(x, settings.top_k),
      lambda x: x,
      sampled,
    )
    sampled = jax.lax.cond(
      (hot & (settings.top_p < 1)).any(),
      lambda x: keep_top_p(x, settings.top_p),
      lambda x: x,
      sampled,
    )
    sampled = with_noise(sampled, row_keys(settings.seed), counts)
    return largest(jnp.where(hot[:, None], sampled, logits))

  return jax.lax.cond(hot.any(), draw, largest, logits)


def likeliest(
  logits: Float[Array, "B V"], tokens: Int[Array, " B"], count: int
) -> tuple[Float[Array, " B"], Int[Array, "B K"], Float[Array, "B K"]]:
  """Log-probabilities in nats, before temperature and filters.

  Returns:
    Those of the tokens; which are the likeliest, `count` of them or V; theirs.
  """
  logps = jax.nn.log_softmax(logits, -1)
  top, ids = jax.lax.top_k(logps, min(count, logits.shape[-1]))
  chosen = jnp.take_along_axis(logps, tokens[:, None], 1)[:, 0]
  return chosen, ids, top


def is_stop(
  tokens: Int[Array, " B"], stop_tokens: Int[Array, " S"]
) -> Bool[Array, " B"]:
  return (tokens[:, None] == stop_tokens).any(-1)
