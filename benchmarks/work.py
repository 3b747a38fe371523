"""What a step has to do at least, counted by hand."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Work:
  """What a sample costs, in floating-point operations, counted by hand."""

  linear: float
  lora: float
  attention: float
  head: float

  @property
  def total(self) -> float:
    return self.linear + self.lora + self.attention + self.head


def least_work(arch, prompt: int, responses: int, size: int, rank: int) -> Work:
  """Of one sample of both branches, in the shared-prompt layout.

  A product is run forwards, and once backwards towards its input; towards its
  weights only where they are LoRA's. Attention's two products cost twice as
  much backwards, where only pairs of positions that see each other count.
  """
  width, heads = arch.width, arch.num_heads * arch.head_size
  keys = arch.num_kv_heads * arch.head_size
  linears = [(width, heads), (width, keys), (width, keys), (heads, width)]
  linears += [(width, arch.mlp_width)] * 2 + [(arch.mlp_width, width)]
  positions = prompt + responses * size
  seen = prompt * (prompt + 1) / 2
  seen += responses * (size * prompt + size * (size + 1) / 2)
  branches, layers = 2, arch.num_layers
  return Work(
    branches * layers * 4 * sum(i * o for i, o in linears) * positions,
    branches * layers * 6 * rank * sum(i + o for i, o in linears) * positions,
    branches * layers * 3 * 4 * heads * seen,
    branches * 4 * arch.vocab_size * width * responses * size,
  )
