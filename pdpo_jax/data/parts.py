"""The parts of a data set (train, held out, unseen users) as samples.

What a sample reads depends on the objective: who sees the user's text, and
whether generic rows are samples of their own.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
import transformers
from jaxtyping import Float

from pdpo_jax.core import structs
from pdpo_jax.data import batching, prompts, tokenize
from pdpo_jax.data import config as data_config
from pdpo_jax.data import users as users_lib
from pdpo_jax.runs import config as config_lib

TRAIN = "train"

Rows = list[structs.TokenizedExample]


@dataclasses.dataclass(frozen=True)
class Part:
  """Comparisons of one purpose.

  Attributes:
    name: "train", "heldout" or "unseen".
    examples: those that fit.
    tokenized: the same as token ids.
    counts: what was cut and dropped, by reason.
  """

  name: str
  examples: list[structs.PreferenceExample]
  tokenized: Rows
  counts: collections.Counter[str]

  @property
  def owners(self) -> list[str | None]:
    return [example.user_id for example in self.examples]

  def __str__(self) -> str:
    counts = tokenize.listed(self.counts)
    return f"{self.name}: {len(self.examples):,} samples; {counts}"


def tokenize_part(
  name: str,
  examples: Sequence[structs.PreferenceExample],
  data: data_config.DataConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  users: users_lib.UserIndex,
) -> Part:
  """Token ids of one part; users that have no row are read as the generic."""
  known = [
    example
    if example.user_id in users
    else dataclasses.replace(example, user_id=None)
    for example in examples
  ]
  result = tokenize.tokenize_examples(
    known,
    prompts.make_encoder(tokenizer, data),
    users,
    data.max_response_tokens,
    data.long_response,
    data.max_bad_share,
    data.max_prompt_tokens if data.truncation == "keep_start" else None,
  )
  kept = [examples[place] for place in result.kept]
  return Part(name, kept, result.examples, result.counts)


def sample_rows(config: config_lib.Config, part: Part) -> Rows:
  """What the policy is trained or evaluated on.

  With `loss.mixing` "batch", every training sample comes twice: as its user's
  and as the generic user's, the latter after all of the former.
  """
  loss, vanilla = config.loss, config.user.kind == "none"
  rows = part.tokenized
  if vanilla and part.name == TRAIN and not loss.vanilla_sees_text:
    rows = _bare(rows)
  if not _apart(config, part):
    return rows
  generic = rows if vanilla or loss.generic_sees_text else _bare(rows)
  generic = [dataclasses.replace(row, user_row=0) for row in generic]
  return [*rows, *generic]


def reference_rows(config: config_lib.Config, rows: Rows) -> Rows:
  """What the reference reads of `sample_rows`."""
  return rows if config.loss.reference_sees_text else _bare(rows)


def make_batches(
  config: config_lib.Config,
  part: Part,
  rows: Rows,
  reference_logps: Float[np.ndarray, "samples N"] | None,
  devices: int = 1,
  *,
  trained: bool,
) -> batching.PreferenceBatches:
  """Batches of `sample_rows` or `reference_rows`.

  Args:
    devices: that will split a batch; where they cannot, it is whole on each.
    trained: whether a batch is trained on, in `accumulation_steps` parts. Where
      it is only read, one of such a part's size is enough.
  """
  users = config.user.kind != "none"
  batch_size, parts = config.train.batch_size, config.train.accumulation_steps
  if not trained:
    # More devices than it was trained on get a sample each.
    batch_size = -(-batch_size // parts // devices) * devices
    parts = 1
  return batching.PreferenceBatches(
    rows,
    reference_logps,
    batch_size,
    config.seed,
    config.user.num_tokens if users else 0,
    max_shapes=config.data.max_shapes,
    devices=devices if batch_size % devices == 0 else 1,
    parts=parts,
    pack=config.data.pack,
    # For the generic branch, where it is run on the same samples.
    with_bare_prompt=config.learns_generic
    and reference_logps is not None
    and not config.loss.generic_sees_text
    and not _apart(config, part),
  )


def _apart(config: config_lib.Config, part: Part) -> bool:
  """Whether generic rows are samples of their own."""
  return (
    config.loss.mixing == "batch"
    and config.train.learn == "all"
    and part.name == TRAIN
  )


def _bare(rows: Rows) -> Rows:
  return [dataclasses.replace(row, prompt=row.bare_prompt) for row in rows]
