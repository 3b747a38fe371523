"""The policy of a golden file in torch and PEFT, for one response at a time.

Nothing here imports `pdpo_jax`.
"""

import numpy as np
import torch

from tests import golden_cases
from tests.parity import torch_models, torch_reference


class TorchPolicy:
  """The same model, LoRA and users as `golden_cases.make_policy` has."""

  def __init__(self, arrays, name: str, case: str):
    rng = np.random.default_rng([0, *name.encode()])
    self.kind, table, self.place = torch_reference.CASES[name][case]
    model = torch_models.make_model(name, rng)
    self.model = torch_reference.add_lora(model, name, table, rng)
    self.lora = torch_reference.lora_weights(self.model)
    for key, value in golden_cases.section(arrays, f"{case}/lora").items():
      with torch.no_grad():
        self.lora[key].copy_(torch.tensor(value))
    self.users = {
      key: torch.tensor(value).requires_grad_()
      for key, value in golden_cases.section(arrays, f"{case}/users").items()
    }

  @property
  def trained(self) -> dict[str, torch.Tensor]:
    return self.lora | self.users

  def logp(self, prompt, response, user: int) -> torch.Tensor:
    """`log pi(response | prompt, user)`, in nats."""
    prefix = torch_reference.prefix_of(self.users, self.kind, user)
    return torch_reference.response_logp(
      self.model, prompt.tolist(), response.tolist(), prefix, self.place
    )

  def reference_logp(self, prompt, response) -> torch.Tensor:
    with torch.no_grad(), self.model.disable_adapter():
      return torch_reference.response_logp(
        self.model, prompt.tolist(), response.tolist(), None, self.place
      )
