"""What people chose, ready to be learnt from: comparisons and thumbs.

A comparison is a choice for each of its rejected responses, with

    P(a is preferred to b) = sigma(scale beta (d(a) - d(b))).

Of a thumb on a single response y,

    P(up) = sigma(scale beta s(y)),

where s is how much sooner the model would say y to this person than to the
generic user, less what that is on average for whatever the generic user is told
(`margins.py`). It is a binary classifier of the same reward (KTO,
arXiv:2402.01306; with a cross-entropy, BCO, arXiv:2404.04656). These set its
threshold by a mean over other answers, of which a person with one thumb has
none; here it is the mean over the generic user's, token by token. Without it,
whoever is far from the generic user would seem to dislike nearly all that is
said, since the generic user says it sooner.

A thumb is prepared as a choice between y and nothing, so that all else is the
same for both.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import transformers
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.training import margins as margins_lib


@dataclasses.dataclass(frozen=True)
class Choice:
  """Of one prompt, a person preferred one response to another.

  Of a thumb up the other one is nothing, which has no token, and of a thumb
  down that is what was preferred.

  Attributes:
    user_id: whose it is; None for nobody's, such as one that may be asked.
    place: of its comparison or thumb among those that it was prepared from.
    example: the preferred response and the other one.
    reference_logps: of both, in nats; of a thumb 0, as it needs none.
  """

  user_id: str | None
  place: int
  example: structs.TokenizedExample
  reference_logps: Float[np.ndarray, " 2"]

  @property
  def is_thumb(self) -> bool:
    return not all(map(len, self.example.responses))


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Comparisons and thumbs, ready to be learnt from.

  Attributes:
    choices: one for each rejected response that differs from the chosen one,
      and for each thumb.
    counts: what was cut or left out, by reason.
  """

  choices: list[Choice]
  counts: collections.Counter[str]


class Preparer:
  """Prepares feedback for a policy.

  Args:
    data: of the policy's run, whose limits apply.
    tokenizer: of its base.
    margins: of the policy.
  """

  def __init__(
    self,
    data: data_config.DataConfig,
    tokenizer: transformers.PreTrainedTokenizerBase,
    margins: margins_lib.Margins,
  ):
    self._data, self._tokenizer = data, tokenizer
    self._margins = margins

  def prepare(self, feedback: Sequence[structs.Feedback]) -> Prepared:
    """Token ids and what the reference thinks, computed once.

    Choices that say nothing, between responses with the same tokens, are
    counted and left out, and so are those that training would leave out.
    """
    comparisons, thumbs = {}, {}
    for place, each in enumerate(feedback):
      kind = thumbs if isinstance(each, structs.Thumb) else comparisons
      kind[place] = each
    prepared = self._of_comparisons(comparisons)
    of_thumbs = self._of_thumbs(thumbs)
    choices = [*prepared.choices, *of_thumbs.choices]
    return Prepared(
      sorted(choices, key=lambda choice: choice.place),
      prepared.counts + of_thumbs.counts,
    )

  def _tokenized(
    self, examples: Mapping[int, structs.PreferenceExample]
  ) -> tuple[list[int], tokenized.TokenizedSplit]:
    """Which of these examples are kept, by place, and their token ids."""
    split = tokenized.tokenize_split(
      "choices",
      [*examples.values()],
      self._data,
      self._tokenizer,
      users_lib.UserIndex([]),
      may_be_none=True,
      alone=True,
    )
    places = [*examples]
    return [places[each] for each in split.kept], split

  def _of_comparisons(
    self, comparisons: Mapping[int, structs.PreferenceExample]
  ) -> Prepared:
    places, split = self._tokenized(comparisons)
    owners, pairs = [], []
    for place, example in zip(places, split.tokenized, strict=True):
      chosen, *others = example.responses
      for rejected in others:
        owners.append((comparisons[place].user_id, place))
        pairs.append(dataclasses.replace(example, responses=(chosen, rejected)))
    logps = self._margins.reference_logps(pairs)
    choices = [
      Choice(*owner, pair, reference)
      for owner, pair, reference in zip(owners, pairs, logps, strict=True)
    ]
    return Prepared(choices, split.counts)

  def _of_thumbs(self, thumbs: Mapping[int, structs.Thumb]) -> Prepared:
    places, split = self._tokenized(
      {
        place: structs.PreferenceExample(
          thumb.prompt,
          thumb.response,
          (),
          thumb.user_id,
          thumb.user_text,
          place=thumb.place,
        )
        for place, thumb in thumbs.items()
      }
    )
    nothing = np.zeros(0, np.int32)
    pairs = [
      dataclasses.replace(example, responses=(*example.responses, nothing))
      for example in split.tokenized
    ]
    choices = []
    for place, pair in zip(places, pairs, strict=True):
      first = 1 if thumbs[place].is_up else -1
      choices.append(
        Choice(
          thumbs[place].user_id,
          place,
          dataclasses.replace(pair, responses=pair.responses[::first]),
          np.zeros(2, np.float32),
        )
      )
    return Prepared(choices, split.counts)
