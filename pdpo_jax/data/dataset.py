"""What every source of comparisons yields."""

import dataclasses
from collections.abc import Mapping

from pdpo_jax.core import structs
from pdpo_jax.data import rows


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What a run is trained and evaluated on.

  Attributes:
    train: comparisons to learn from.
    heldout: other comparisons of the same users.
    prompts: held-out prompts to be answered for every user.
    unseen: comparisons of users that `train` has nothing of.
    sft_pairs: (prompt, answer) for a base from scratch; empty without one.
    short_users, long_users: whose taste in length is known, for the claims of
      the paper's first experiment; empty where it is not.
    personas: what is known of users besides, by id; empty where nothing is.
    tally: what was read, left out and changed.
  """

  train: list[structs.PreferenceExample]
  heldout: list[structs.PreferenceExample]
  prompts: list[structs.PromptExample]
  unseen: list[structs.PreferenceExample] = dataclasses.field(
    default_factory=list
  )
  sft_pairs: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  short_users: tuple[str, ...] = ()
  long_users: tuple[str, ...] = ()
  personas: Mapping[str, structs.Persona] = dataclasses.field(
    default_factory=dict
  )
  tally: rows.Tally = dataclasses.field(default_factory=rows.Tally)
