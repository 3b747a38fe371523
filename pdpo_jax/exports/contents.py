"""What is exported of a run, whatever the format."""

import copy
import dataclasses
import functools
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import transformers
from jaxtyping import Float

from pdpo_jax.core import kept
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.data import template_worker
from pdpo_jax.data import users as users_lib
from pdpo_jax.exports import cards
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.training import host_users
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import tensor_files

# Who is who, in every format.
USERS = "users.json"
_TODAY = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


@dataclasses.dataclass(frozen=True)
class Contents:
  """A policy, and whom of its users it is exported with.

  Attributes:
    policy: of `base`.
    base: what it was trained on.
    users: of the policy.
    people: ids of those who come along; all of `users` where it is None. The
      generic user always does.
    data: how prompts are written.
    card: where all of it comes from.
  """

  policy: policy_lib.Policy
  base: base_lib.Base
  users: users_lib.UserIndex
  people: tuple[str, ...] | None = None
  data: data_config.DataConfig = dataclasses.field(
    default_factory=data_config.DataConfig
  )
  card: cards.Card = dataclasses.field(default_factory=cards.Card)

  @property
  def ids(self) -> tuple[str | None, ...]:
    """Whose each exported row is; that of None is the generic user's."""
    people = self.users.ids if self.people is None else self.people
    return (None, *dict.fromkeys(people))

  @property
  def has_users(self) -> bool:
    return self.policy.user_model.num_tokens > 0

  @functools.cached_property
  def encoder(self) -> prompts_lib.PromptEncoder:
    """Of prompts as in training, however long."""
    return prompts_lib.PromptEncoder(
      copy.copy(self.base.tokenizer),
      self.data.template,
      2**31,
      self.data.add_bos,
    )

  @functools.cached_property
  def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
    """The base's, with the template that prompts were written with."""
    tokenizer = copy.copy(self.base.tokenizer)
    if self.encoder.chat:
      # As in training, it is the same day whenever somebody asks.
      tokenizer.chat_template = _TODAY.sub(
        lambda call: repr(template_worker.DATE.strftime(call[2])),
        self.encoder.chat.template.source,
      )
    return tokenizer

  @property
  def stop_tokens(self) -> tuple[int, ...]:
    """Answers end as they do here, also where only the template says how."""
    return tuple(dict.fromkeys((*self.base.stop_tokens, self.encoder.end_id)))

  def base_with(self, lm) -> base_lib.Base:
    """What is written with the weights of `lm`."""
    return dataclasses.replace(
      self.base,
      lm=lm,
      tokenizer=self.tokenizer,
      end_of_turn=self.stop_tokens[1:],
    )

  def prefixes(self) -> Float[np.ndarray, "U T D"]:
    """A row for each of `ids`."""
    rows = jnp.array([self.users.row_of(user_id) for user_id in self.ids])
    model = host_users.on_one_device(self.policy.user_model)
    return np.asarray(model(rows), np.float32)

  def write_users(self, folder: pathlib.Path) -> None:
    """Writes whose which row is."""
    described = {
      "prefix_position": self.policy.prefix_position,
      "users": self.ids,
    }
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    with kept.writing(folder / USERS, summed=False) as out:
      out.write(text.encode())


def lazy(array: np.ndarray) -> tensor_files.LazyTensor:
  return tensor_files.LazyTensor(array.shape, array.dtype, lambda: array)
