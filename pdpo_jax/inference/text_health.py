"""Whether answers are still language: as likely as text, and not repeating.

Accuracy does not tell. A margin also grows by making both responses unlikely,
so that a policy can be right about every choice and answer with broken text.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.inference import likelihoods as likelihoods_lib
from pdpo_jax.inference import respond, sampling
from pdpo_jax.training import policies
from pdpo_jax.weights import base as base_lib

# An answer is unlikely where the base finds it less likely, a token, than all
# but this share of its own answers, by so many nats.
_LEAST_LIKELY, _BEYOND_NATS = 0.01, 0.5
# It repeats itself where it has this much more of repeated 3-grams than any
# answer of the base.
_BEYOND_REPETITION = 0.1
# Speakers with more broken answers than this are named.
_BROKEN_SHARE = 0.1
# So are those whose answers end that much less often than the base's.
_FEWER_END = 0.5
_NAMED = 3
# On the way, so many prompts are answered as the generic user and so many
# people.
_PROMPTS, _PEOPLE = 4, 3
# For who reads a table of it.
MEANING = (
  "Broken are answers that the base finds far less likely a token than what it "
  "says itself, and those that repeat their 3-grams as none of the base's "
  "answers does; empty ones are neither."
)
# Thai, Lao, Burmese, Khmer, kana, and Chinese characters: written without
# spaces between words.
_UNSPACED = re.compile(
  "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
  "\uf900-\ufaff\U00020000-\U0003ffff]"
)
_LONGEST_WORD = 24


@dataclasses.dataclass(frozen=True)
class Health:
  """Of a speaker's answers.

  Attributes:
    log_likelihood: under the base, mean per token, in nats.
    ended: share that ended by themselves, before the limit of new tokens.
    unlikely: share that is less likely than what the base says.
    repeating: share that repeats itself as no answer of the base does.
    broken: share that is either. An empty answer is neither.
    repetition: share of 3-grams that an answer had before, mean over answers.
    empty: share without a word.
  """

  log_likelihood: float
  ended: float
  unlikely: float
  repeating: float
  broken: float
  repetition: float
  empty: float


@dataclasses.dataclass(frozen=True)
class Standard:
  """What the base's own answers are like, which others are held against.

  Attributes:
    least_likely: a token, below which an answer is unlikely; in nats.
    most_repeated: share of repeated 3-grams above which one repeats itself.
  """

  least_likely: float
  most_repeated: float

  @classmethod
  def of(
    cls, texts: Sequence[str], likelihoods: likelihoods_lib.Likelihoods
  ) -> "Standard":
    known = likelihoods.per_token[~np.isnan(likelihoods.sums)]
    least = -np.inf
    if known.size:
      least = float(np.quantile(known, _LEAST_LIKELY)) - _BEYOND_NATS
    return cls(least, max(map(repetition, texts)) + _BEYOND_REPETITION)

  def examine(
    self,
    texts: Sequence[str],
    likelihoods: likelihoods_lib.Likelihoods,
    max_new_tokens: int,
  ) -> Health:
    """What is wrong with answers, of one speaker or several."""
    said = np.array([bool(text.strip()) for text in texts])
    repeated = np.array([*map(repetition, texts)])
    unlikely = said & (likelihoods.per_token < self.least_likely)
    repeating = said & (repeated > self.most_repeated)
    return Health(
      likelihoods.mean,
      float(np.mean(likelihoods.tokens <= max_new_tokens)),
      float(np.mean(unlikely)),
      float(np.mean(repeating)),
      float(np.mean(unlikely | repeating)),
      float(np.mean(repeated)),
      float(np.mean(~said)),
    )


def words_of(text: str) -> list[str]:
  """Words, and single letters where there are no spaces to tell words apart.

  Those are letters of Chinese, Japanese, Thai and the like, and of a word that
  is longer than words are: "nononono…", an address, a cell of a table.
  """
  words = []
  for word in _UNSPACED.sub(r" \g<0> ", text).split():
    words.extend(word if len(word) > _LONGEST_WORD else [word])
  return words


def repetition(text: str, size: int = 3) -> float:
  """Share of a text's n-grams of words that it had before; 0 if it is short.

  One minus "distinct-n" (Li et al. 2016, arXiv:1510.03055) of a single text.
  See `words_of` for texts without spaces.
  """
  words = words_of(text)
  grams = [
    tuple(words[start : start + size]) for start in range(len(words) - size + 1)
  ]
  return 1 - len(set(grams)) / len(grams) if grams else 0.0


def sentence(
  health: Mapping[str, Health], names: Mapping[str, str], base: str
) -> str:
  """Says whose text is broken; empty where nobody's is.

  Args:
    health: of all speakers.
    names: of those that are no users.
    base: the speaker that is the base. Where its answers end, those that do not
      are broken too, once they are many.
  """
  broken = {}
  for speaker, of_speaker in health.items():
    share = of_speaker.broken
    if of_speaker.ended < health[base].ended - _FEWER_END:
      share = max(share, 1 - of_speaker.ended)
    if speaker != base and share > _BROKEN_SHARE:
      broken[speaker] = share
  if not broken:
    return ""
  worst = sorted(broken, key=broken.get, reverse=True)
  listed = ", ".join(
    f"{names.get(speaker, f'user {speaker}')} ({broken[speaker]:.0%})"
    for speaker in worst[:_NAMED]
  )
  more = f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
  return (
    "Text is broken, whatever accuracy says: of the answers as "
    f"{listed}{more}, so many are far less likely than what the base says, "
    "repeat themselves, or do not end. Read answers.jsonl; a larger loss.beta "
    "holds the policy to the base, and so do fewer steps."
  )


def examine(
  answers: Mapping[str, Sequence[str]],
  likelihoods: Mapping[str, likelihoods_lib.Likelihoods],
  base: str,
  max_new_tokens: int,
) -> dict[str, Health]:
  """What is wrong with each speaker's answers, beside the base's.

  Args:
    base: the speaker that is the base.
    max_new_tokens: limit of an answer.
  """
  standard = Standard.of(answers[base], likelihoods[base])
  return {
    speaker: standard.examine(texts, likelihoods[speaker], max_new_tokens)
    for speaker, texts in answers.items()
  }


class Watch:
  """Looks at a policy's text on the way: a few people, a few prompts.

  What they answer is what they would if training ended there, so that it costs
  a policy nothing but the time.
  """

  def __init__(
    self,
    base: base_lib.Base,
    prompts: Sequence[structs.PromptExample],
    rows: Mapping[str, int],
    own: Sequence[str],
    answers: sampling.AnswersConfig,
    data: data_config.DataConfig,
    seed: int,
    logits_chunk: int = 0,
  ):
    """
    Args:
      prompts: of which the first few are answered.
      rows: user rows by speaker, of which the first and a few others answer.
      own: the base's answers to all prompts.
      answers, data, seed: as for `respond.answer`.
      logits_chunk: as `recipes.TrainConfig.logits_chunk`.
    """
    first, *others = rows.items()
    spread = np.linspace(0, len(others) - 1, min(_PEOPLE, len(others)))
    people = [others[round(place)] for place in spread]
    self._rows = dict([first, *people])
    self._prompts = prompts[:_PROMPTS]
    self._base, self._answers = base, answers
    self._data, self._seed = data, seed
    self._logits_chunk = logits_chunk
    (likely,) = likelihoods_lib.under_base(
      base, prompts, {"S": own}, data, logits_chunk, answers.max_new_tokens
    ).values()
    self._standard = Standard.of(own, likely)
    self._own = self._standard.examine(own, likely, answers.max_new_tokens)

  def __call__(self, policy: policies.SplitPolicy) -> dict[str, float]:
    """`Health` of all answers, and the base's own, as scalars."""
    answered = respond.answer(
      policy.merge(),
      self._base,
      self._prompts,
      self._rows,
      self._answers,
      self._data,
      self._seed,
    )
    limit = self._answers.max_new_tokens
    likely = likelihoods_lib.under_base(
      self._base,
      self._prompts,
      answered,
      self._data,
      self._logits_chunk,
      limit,
    )
    health = self._standard.examine(
      [text for texts in answered.values() for text in texts],
      likelihoods_lib.Likelihoods.joined(likely.values()),
      limit,
    )
    return {
      "log_likelihood": health.log_likelihood,
      "repetition": health.repetition,
      "ended": health.ended,
      "empty": health.empty,
      "broken": health.broken,
      "base_log_likelihood": self._own.log_likelihood,
      "base_repetition": self._own.repetition,
      "base_ended": self._own.ended,
      "base_empty": self._own.empty,
    }
