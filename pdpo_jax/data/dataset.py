"""What every source of comparisons yields."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping

from pdpo_jax.core import structs
from pdpo_jax.data import records


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
  tally: records.Tally = dataclasses.field(default_factory=records.Tally)

  def digests(self) -> dict[str, str]:
    """A hash of each field's text; the tally's paths may differ."""
    digests = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, Mapping):
        value = value.items()
      if isinstance(value, Iterable):
        digest = hashlib.sha256()
        for entry in value:
          digest.update(repr(entry).encode())
        digests[field.name] = digest.hexdigest()[:8]
    return digests

  @property
  def digest(self) -> str:
    """Names what is trained on and evaluated on."""
    digests = self.digests()
    return "-".join(digests[name] for name in ("train", "heldout", "unseen"))

  def user_texts(self) -> dict[str, str]:
    """What the users who are trained on say of themselves, the last of it."""
    return {
      example.user_id: example.user_text
      for example in self.train
      if example.user_id is not None and example.user_text
    }
