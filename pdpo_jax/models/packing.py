"""Real positions side by side, for layers that do not care whose they are.

Axes: B rows, S positions of a row, G groups of B / G rows that lie beside each
other, M positions of a packed group.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packing:
  """Where the real positions of a group's rows go, and where they came from.

  A group of two rows of four positions, packed into six (x: real):

      rows    x x . x | . x . .     packed  0 1 3 5 . .

  What is at padding, on either side, is zero and has no gradient.
  """

  source: Any  # int32 [G, M], a position of the group's B / G * S
  filled: Any  # bool [G, M]
  place: Any  # int32 [G, B / G * S], a packed position
  real: Any  # bool [G, B / G * S]
  fits: Any  # bool [G]; false where there were more than M
  rows: int = dataclasses.field(metadata={"static": True})  # B / G

  @classmethod
  def of(cls, real: Bool[Array, "B S"], rows: int, positions: int) -> "Packing":
    """Packs groups of `rows` rows, which have at most `positions` real ones."""
    size = rows * real.shape[1]
    real = real.reshape(-1, size)
    count = real.sum(-1, keepdims=True)
    # Real positions first, in their order.
    order = jnp.argsort(~real, axis=-1, stable=True)
    order = jnp.pad(order, ((0, 0), (0, max(0, positions - size))))
    return cls(
      order[:, :positions].astype(jnp.int32),
      jnp.arange(positions) < count,
      jnp.clip(jnp.cumsum(real, -1) - 1, 0, positions - 1).astype(jnp.int32),
      real,
      count[:, 0] <= positions,
      rows,
    )

  def pack(self, x: Shaped[Array, "B S *rest"]) -> Shaped[Array, "G M *rest"]:
    flat = x.reshape(*self.real.shape, *x.shape[2:])
    back = (self.place, self.real)
    return move(flat, (self.source, self.filled), back)

  def unpack(self, x: Shaped[Array, "G M *rest"]) -> Shaped[Array, "B S *rest"]:
    """`pack` undone."""
    back = (self.source, self.filled)
    flat = move(x, (self.place, self.real), back)
    return flat.reshape(x.shape[0] * self.rows, -1, *x.shape[2:])

  def checked(self, x: Float[Array, "B *rest"]) -> Float[Array, "B *rest"]:
    """NaN for groups that did not fit, so that nothing is quietly wrong."""
    fits = jnp.repeat(self.fits, self.rows).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.where(fits, x, jnp.nan)

  def around(self, attend):
    """An `Attend` of packed positions, given one of rows."""

    def packed(q, k, v, past):
      out, present = attend(*map(self.unpack, (q, k, v)), past)
      return self.pack(out), present

    return packed


@jax.custom_vjp
def move(x, to, back):
  """Takes positions `to`; `back` says which took those of `x`.

  Both are an index of each row, and whether anything is there; where nothing
  is, the result is zero. A position is taken once, so that the gradient is
  taken as well, where autodiff would add it up place by place.
  """
  del back
  index, kept = to
  moved = jax.vmap(lambda x, index: x[index])(x, index)
  kept = kept.reshape(kept.shape + (1,) * (x.ndim - 2))
  return jnp.where(kept, moved, jnp.zeros((), x.dtype))


def _move_forward(x, to, back):
  return move(x, to, back), (to, back)


def _move_backward(inputs, slope):
  to, back = inputs
  return move(slope, back, to), None, None


move.defvjp(_move_forward, _move_backward)
