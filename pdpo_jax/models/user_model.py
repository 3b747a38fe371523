"""User models: from a user's row to the soft prefix that speaks for them.

"The implicit user model f_im" of P-RLHF (arXiv:2402.05133, section 2.2). Axes:
B examples, T user tokens, D width, U user rows (row 0 is the generic, unknown
user), C clusters.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from pdpo_jax.core import sections


class UserParam(nnx.Variable):
  """A trained weight of the user model, always float32."""


class UserRowParam(UserParam):
  """One with a row for each user, row 0 being the generic user's."""


class UserOffsetParam(UserRowParam):
  """One whose rows are added to the generic user's; row 0 is never read."""


@dataclasses.dataclass(unsafe_hash=True)
class UserConfig(sections.Section):
  """What a user model is made of."""

  # "individual", "cluster" or "none" (vanilla DPO).
  kind: Literal["individual", "cluster", "none"] = "individual"
  # T, the length of the prefix.
  num_tokens: sections.CountOrNone = 10
  # C, for "cluster".
  num_clusters: sections.Count = 10
  # Cluster weights: "free" (the paper) or "softmax" (the released code).
  weights: Literal["free", "softmax"] = "free"
  # Generic embedding and centers at the start: "vocabulary" or "normal".
  init: Literal["vocabulary", "normal"] = "vocabulary"
  # Offsets at the start: "normal" or "vocabulary" (the released code).
  offset_init: Literal["normal", "vocabulary"] = "normal"
  # Standard deviation of "normal" offsets and of cluster weights at the start.
  # The released code's cluster weights have 1.
  init_std: sections.NotNegative = 0.0
  # "front" of the prompt (the paper) or "after_bos" (the released code).
  prefix_position: Literal["front", "after_bos"] = "front"

  def check_together(self) -> None:
    if self.kind != "none" and self.num_tokens < 1:
      raise ValueError(
        f"user.num_tokens {self.num_tokens} leaves user.kind {self.kind!r} "
        "nothing to learn; use 1 or more, or user.kind 'none'"
      )

  @property
  def prefix_length(self) -> int:
    """Positions that a user takes."""
    return 0 if self.kind == "none" else self.num_tokens

  @property
  def title(self) -> str:
    """What a training with it is called."""
    if self.kind == "none":
      return "vanilla DPO"
    if self.kind == "cluster":
      return f"P-DPO, {self.num_clusters} clusters"
    return f"P-DPO, {self.kind}"


def vocabulary_rows(
  key: Key[Array, ""], table: Float[Array, "V D"], count: int
) -> Float[Array, "count D"]:
  """Random rows of `table`, none twice before all were taken once."""
  size = table.shape[0]
  rounds = math.ceil(count / size)
  keys = jax.random.split(key, max(rounds, 1))
  rows = [jax.random.permutation(key, size) for key in keys]
  return table[jnp.concatenate(rows)[:count]].astype(jnp.float32)


def _prefixes(
  key: Key[Array, ""], table: Float[Array, "V D"], init: str, shape: tuple
) -> Float[Array, "*shape"]:
  """Initial embeddings of shape `[..., D]` that look like tokens."""
  if init == "vocabulary":
    rows = vocabulary_rows(key, table, math.prod(shape[:-1]))
    return rows.reshape(shape)
  table = table.astype(jnp.float32)
  return table.mean(0) + table.std(0) * jax.random.normal(key, shape)


class NoUsers(nnx.Module):
  """No prefix for anyone: P-DPO becomes vanilla DPO."""

  def __init__(self, spec, num_rows, table, rngs):
    del spec, rngs
    self.num_rows = num_rows
    self.num_tokens = 0
    self.width = table.shape[1]

  def __call__(self, user_rows: Int[Array, " B"]) -> Float[Array, "B 0 D"]:
    return jnp.zeros((user_rows.shape[0], 0, self.width))

  def generic(self) -> Float[Array, "0 D"]:
    return jnp.zeros((0, self.width))


class IndividualUsers(nnx.Module):
  """`e_i = e_0 + o_i`, one offset for each user ("individualized").

  Row 0 of `offsets` is never read: the generic user has no offset.
  """

  def __init__(self, spec, num_rows, table, rngs):
    shape = (spec.num_tokens, table.shape[1])
    generic = _prefixes(rngs.params(), table, spec.init, shape)
    self.generic_prefix = UserParam(generic)
    offsets_shape = (num_rows, *shape)
    if spec.offset_init == "vocabulary":
      offsets = _prefixes(rngs.params(), table, "vocabulary", offsets_shape)
    else:
      normal = jax.random.normal(rngs.params(), offsets_shape)
      offsets = spec.init_std * normal
    self.offsets = UserOffsetParam(offsets)

  @property
  def num_rows(self) -> int:
    return self.offsets.shape[0]

  @property
  def num_tokens(self) -> int:
    return self.offsets.shape[1]

  def __call__(self, user_rows: Int[Array, " B"]) -> Float[Array, "B T D"]:
    known = (user_rows > 0)[:, None, None]
    offsets = jnp.where(known, self.offsets[...][user_rows], 0.0)
    return self.prefixes(offsets)

  def prefixes(self, rows: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Of people whose rows need not be in the table."""
    return self.generic_prefix[...] + rows

  def generic(self) -> Float[Array, "T D"]:
    return self.generic_prefix[...]


class ClusterUsers(nnx.Module):
  """`e_i = V w_i`: users share C centers and differ in their weights."""

  def __init__(self, spec, num_rows, table, rngs):
    self.softmax = spec.weights == "softmax"
    shape = (spec.num_clusters, spec.num_tokens, table.shape[1])
    centers = _prefixes(rngs.params(), table, spec.init, shape)
    self.centers = UserParam(centers)
    common = 0.0 if self.softmax else 1.0 / spec.num_clusters
    noise = jax.random.normal(rngs.params(), (num_rows, spec.num_clusters))
    self.weights = UserRowParam(common + spec.init_std * noise)

  @property
  def num_rows(self) -> int:
    return self.weights.shape[0]

  @property
  def num_tokens(self) -> int:
    return self.centers.shape[1]

  def __call__(self, user_rows: Int[Array, " B"]) -> Float[Array, "B T D"]:
    return self.prefixes(self.weights[...][user_rows])

  def prefixes(self, rows: Float[Array, "B C"]) -> Float[Array, "B T D"]:
    """Of people whose rows need not be in the table."""
    return jnp.einsum("bc,ctd->btd", self._mixing_of(rows), self.centers[...])

  def mixing(self, user_rows: Int[Array, " B"]) -> Float[Array, "B C"]:
    """The weights w_i of users' centers."""
    return self._mixing_of(self.weights[...][user_rows])

  def _mixing_of(self, rows):
    return jax.nn.softmax(rows, -1) if self.softmax else rows

  def generic(self) -> Float[Array, "T D"]:
    return self(jnp.zeros((1,), jnp.int32))[0]


USER_MODELS = {
  "individual": IndividualUsers,
  "cluster": ClusterUsers,
  "none": NoUsers,
}


def make_user_model(
  spec: UserConfig,
  num_rows: int,
  table: Float[Array, "V D"],
  rngs: nnx.Rngs,
) -> nnx.Module:
  """A user model for rows `0 .. num_rows - 1`.

  Args:
    spec: kind, sizes and initial values.
    num_rows: U, the number of known users plus one for the generic user.
    table: the language model's token embeddings.
    rngs: stream `params` is drawn from.

  Returns:
    A module with two calls: `model(user_rows) -> [B, T, D]` and
    `model.generic() -> [T, D]`, and with its `num_rows` U and `num_tokens` T.
    Where it has rows, `model.prefixes(rows) -> [B, T, D]` takes such as are
    not in its table.
  """
  if num_rows < 1:
    raise ValueError(f"num_rows {num_rows} must be 1 (generic) or more")
  sections.check(spec, "user.")
  return USER_MODELS[spec.kind](spec, num_rows, table, rngs)
