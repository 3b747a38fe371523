"""The data types that cross modules, and the axes their arrays have.

B rows of a batch, examples or dialogues · N responses of a row (of an example,
0 is the chosen one, 1.. are rejected) · P prompt positions · R response
positions · T user tokens · D width · H query heads · K key/value heads · E head
size · F feed-forward · V vocabulary · U user rows (row 0 is the generic user) ·
C clusters · r LoRA rank · L layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Message:
  """One turn of a dialogue."""

  role: str  # "user", "assistant" or, first of all, "system"
  content: str


# A plain text, or the turns of a dialogue up to the one that is to be answered.
Prompt = str | tuple[Message, ...]


@dataclasses.dataclass(frozen=True)
class PromptExample:
  """Something to be answered, and what its author says of themselves."""

  prompt: Prompt
  user_text: str = ""


@dataclasses.dataclass(frozen=True)
class Persona:
  """What is known of a user besides their choices; any part may be empty.

  Attributes:
    facts: attributes by name, e.g. {"Age": "25-34 years old"}.
    self_description: in their own words.
    system_string: how they want an assistant to behave.
    aspects: of an answer, what matters most to them first.
  """

  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  self_description: str = ""
  system_string: str = ""
  aspects: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PreferenceExample:
  """One comparison, as text: a user preferred `chosen` to each `rejected`."""

  prompt: Prompt
  chosen: str
  rejected: tuple[str, ...]  # one or more
  user_id: str | None = None  # None: an unknown user
  user_text: str = ""  # what the user says of themselves; may be empty
  dialogue_id: str = ""  # the dialogue that the comparison is a turn of, if any
  feedback: str = ""  # what the user said of that dialogue afterwards
  # File and line that it was read from, for messages; no part of what it says,
  # so that equality, `repr` and digests leave it out.
  place: str = dataclasses.field(default="", compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Thumb:
  """One response, as text, that somebody liked, or did not."""

  prompt: Prompt
  response: str
  is_up: bool
  user_id: str | None = None  # None: an unknown user
  user_text: str = ""
  # As of a `PreferenceExample`.
  place: str = dataclasses.field(default="", compare=False, repr=False)


# What may be said of somebody's taste.
Feedback = PreferenceExample | Thumb


@dataclasses.dataclass(frozen=True)
class TokenizedExample:
  """One comparison, as token ids."""

  user_row: int  # row of the user table; 0 is the generic user
  prompt: np.ndarray  # int32 [tokens], user text included
  bare_prompt: np.ndarray  # int32 [tokens], without it
  responses: tuple[np.ndarray, ...]  # int32 [tokens] each; chosen first


@dataclasses.dataclass(frozen=True)
class Packed:
  """How far rows can be packed: the room that is enough for any group of them.

  Attributes:
    rows: of a group, which lie beside each other.
    positions: real positions of a group's prompts and responses, at most.
    response_positions: of its responses alone.
  """

  rows: int
  positions: int
  response_positions: int

  def __mul__(self, times: int) -> "Packed":
    """For groups of `times` as many rows."""
    return Packed(
      times * self.rows,
      times * self.positions,
      times * self.response_positions,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decisions:
  """Which comparison each response is of, where rows are dialogues.

  The last decision's prompt is the trunk: it holds those of all earlier ones
  and what was chosen there. Two decisions, with prompts p and p c u:

      trunk      p p c c u u
      responses  c           0  read off the trunk, where it stands
                 c'          0  chosen last, behind the whole trunk
                 r           1  rejected first, behind p alone
                 r'          2  rejected last, behind the whole trunk

  Chosen responses that stand on the trunk come first, then the one behind it,
  then all that were rejected.
  """

  example: Any  # int32 [B, N], its example's place in the data set; -1 for none
  chosen: Any  # int32 [B, N], which response was chosen in its comparison
  # Trunk positions that it does not follow: those after its own prompt.
  remaining: Any  # int32 [B, N]
  # Responses of each row that are read off the trunk, the first so many.
  on_trunk: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PreferenceBatch:
  """Rows whose N responses share their prompt: comparisons, or dialogues.

  The prompt is padded on the left and responses on the right, so that a
  response begins right after its prompt's last token. A row with fewer than N
  responses, or one that only fills the batch, has false masks there.
  """

  # int32 [B], the place in the data set of the example whose prompt it is; -1
  # fills up.
  index: Any
  user_row: Any  # int32 [B]
  prompt: Any  # int32 [B, P]
  prompt_mask: Any  # bool [B, P]
  responses: Any  # int32 [B, N, R]
  response_mask: Any  # bool [B, N, R]
  reference_logps: Any  # float32 [B, N], nats
  weight: Any  # float32 [B]; 0 for a row that only fills the batch
  # What the generic branch reads, where it is not `prompt`.
  bare_prompt: Any = None  # int32 [B, P]
  bare_prompt_mask: Any = None  # bool [B, P]
  # None: each row is one comparison, whose first response is the chosen one.
  decisions: Decisions | None = None
  # Room for the real positions of a group of examples; None: rows run as they
  # are, padding included.
  packed: Packed | None = dataclasses.field(
    default=None, metadata={"static": True}
  )

  @property
  def examples(self) -> Any:
    """Place in the data set of each response's example, `[B, N]` or `[B, 1]`.

    -1 where there is none.
    """
    if self.decisions is None:
      return self.index[:, None]
    return self.decisions.example

  @property
  def chosen(self) -> Any:
    """As `Decisions.chosen`; None where it is each row's first response."""
    return None if self.decisions is None else self.decisions.chosen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextBatch:
  """Plain sequences for supervised fine-tuning, padded on the right."""

  tokens: Any  # int32 [B, S]
  mask: Any  # bool [B, S], true at real tokens
  target_mask: Any  # bool [B, S], true at tokens to be predicted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a step changes."""

  step: Any  # int32 scalar, optimizer steps done
  trainable: Any  # nnx.State of the trained variables
  opt_state: Any  # the optimizer's
