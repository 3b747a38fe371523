"""What a step has to do at least, by arithmetic."""

import dataclasses

from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import loading


@dataclasses.dataclass(frozen=True)
class Work:
  """What an example costs, in floating-point operations, by arithmetic."""

  linear: float
  lora: float
  attention: float
  head: float

  @property
  def total(self) -> float:
    return self.linear + self.lora + self.attention + self.head

  def times(self, count: int) -> "Work":
    return Work(*(count * part for part in dataclasses.astuple(self)))


def least_work(
  arch: policy_lib.Architecture,
  prompt: int,
  responses: int,
  size: int,
  rank: int,
) -> Work:
  """Of one example of both branches, in the shared-prompt layout.

  A branch has S = P + N R positions, prefix included, and costs

    linear layers, I to O   4 S I O        forward, and towards the input
    LoRA of rank r          6 S r (I + O)  the same, and towards A and B
    attention               12 H E pairs   4 forward, 8 backward
    head                    4 N R D V      logits, and towards the input

  where pairs are those of positions that see each other:

    pairs = P (P + 1) / 2 + N (R P + R (R + 1) / 2)

  The base being frozen, nothing is computed towards its weights.

  Args:
    prompt: P, prefix included.
    responses: N.
    size: R.
    rank: of LoRA, on all linear layers.
  """
  kernels = [
    variable.get_value().shape
    for path, variable in loading.variables(loading.abstract_model(arch))
    if path[-1] == "kernel"
  ]  # [L, I, O] each
  answers = responses * size
  positions = prompt + answers
  seen = prompt * (prompt + 1) / 2
  seen += responses * (size * prompt + size * (size + 1) / 2)
  branches, heads = 2, arch.num_heads * arch.head_size
  return Work(
    float(branches * 4 * positions) * sum(n * i * o for n, i, o in kernels),
    float(branches * 6 * positions)
    * rank
    * sum(n * (i + o) for n, i, o in kernels),
    branches * arch.num_layers * 12 * heads * seen,
    float(branches * 4 * answers * arch.width * arch.vocab_size),
  )
