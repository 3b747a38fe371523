"""The numbers to be matched, computed in torch, transformers and PEFT.

Nothing here imports `pdpo_jax`, and nothing is done the way it is done there:
every response of every example is a plain forward pass of its own, without
padding and without a shared prompt. `compute` gives one flat dictionary of
arrays a model; `tests/golden_cases.py` says which key holds what.
"""

import json
import warnings

import numpy as np
import peft
import torch
import torch.nn.functional as F

from tests.parity import torch_models

_BLOCK_LINEARS = {
  "gptj": ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"],
  "llama": [
    *["q_proj", "k_proj", "v_proj", "o_proj"],
    *["gate_proj", "up_proj", "down_proj"],
  ],
}
_TABLE = {"gptj": "wte", "llama": "embed_tokens"}

# (user model, whether the token table has LoRA, place of the prefix).
CASES = {
  "gptj": {
    "individual": ("individual", False, "front"),
    "cluster": ("cluster", True, "front"),
  },
  "llama": {
    "individual": ("individual", False, "front"),
    "cluster": ("cluster", True, "front"),
  },
  "llama_tied": {"softmax": ("softmax", True, "after_bos")},
}
RANK, LORA_ALPHA = 3, 7.0
BETA, ALPHA, SMOOTHING = 0.3, 0.35, 0.15
NUM_TOKENS, NUM_ROWS, NUM_CLUSTERS = 4, 13, 6


def make_batch(rng: np.random.Generator, vocab: int) -> dict[str, np.ndarray]:
  """Five examples of ragged lengths, some with one rejected response only."""
  prompt_sizes = [11, 4, 7, 1, 9]
  response_sizes = [[7, 3, 5], [2, 6, 0], [4, 1, 7], [6, 5, 2], [3, 4, 0]]
  rows, prompt_size, num_responses, size = 5, 11, 3, 7
  batch = {
    "user_row": np.array([3, 0, 12, 3, 7], np.int32),
    "prompt": np.zeros((rows, prompt_size), np.int32),
    "prompt_mask": np.zeros((rows, prompt_size), bool),
    "responses": np.zeros((rows, num_responses, size), np.int32),
    "response_mask": np.zeros((rows, num_responses, size), bool),
    "weight": np.array([1.0, 0.5, 2.0, 1.0, 0.25], np.float32),
  }
  for row, length in enumerate(prompt_sizes):
    batch["prompt"][row, -length:] = rng.integers(0, vocab, length)
    batch["prompt_mask"][row, -length:] = True
    for place, count in enumerate(response_sizes[row]):
      tokens = rng.integers(0, vocab, count)
      batch["responses"][row, place, :count] = tokens
      batch["response_mask"][row, place, :count] = True
  return batch


def add_lora(
  model: torch.nn.Module, name: str, table: bool, rng: np.random.Generator
) -> peft.PeftModel:
  """Puts LoRA with random weights on every linear layer of the blocks."""
  targets = list(_BLOCK_LINEARS[torch_models.family(name)])
  if table:
    targets.append(_TABLE[torch_models.family(name)])
  config = peft.LoraConfig(
    r=RANK,
    lora_alpha=LORA_ALPHA,
    lora_dropout=0.0,
    target_modules=targets,
    task_type="CAUSAL_LM",
  )
  with warnings.catch_warnings():
    # PEFT remarks that a table with LoRA is tied; that is what is tested.
    warnings.simplefilter("ignore", UserWarning)
    adapted = peft.get_peft_model(model, config).eval()
  for key, weight in sorted(adapted.named_parameters()):
    if "lora_" in key:
      with torch.no_grad():
        value = rng.normal(0, 0.2, tuple(weight.shape))
        weight.copy_(torch.tensor(value))
  return adapted


def lora_weights(adapted: peft.PeftModel) -> dict[str, torch.nn.Parameter]:
  """PEFT's weights, by the layer's name and `lora_a` or `lora_b`.

  `[r, in]` and `[out, r]` for linear layers, `[r, V]` and `[D, r]` for a table.
  """
  found = {}
  for key, weight in adapted.named_parameters():
    if "lora_" not in key:
      continue
    layer, which = key.removeprefix("base_model.model.").split(".lora_", 1)
    letter = which.removeprefix("embedding_")[0].lower()
    found[f"{layer}.lora_{letter}"] = weight
  return found


def make_users(
  kind: str, width: int, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
  """The user model's weights; `kind` is a third element of a case."""
  shapes = {"centers": (NUM_CLUSTERS, NUM_TOKENS, width)}
  shapes["weights"] = (NUM_ROWS, NUM_CLUSTERS)
  if kind == "individual":
    shapes = {"generic_prefix": (NUM_TOKENS, width)}
    shapes["offsets"] = (NUM_ROWS, NUM_TOKENS, width)
  return {
    name: torch.tensor(rng.normal(0, 0.7, shape)).float().requires_grad_()
    for name, shape in shapes.items()
  }


def prefix_of(users: dict[str, torch.Tensor], kind: str, row: int):
  """`e_i`, `[T, D]` (section 2.2 of the paper)."""
  if kind == "individual":
    generic = users["generic_prefix"]
    return generic if row == 0 else generic + users["offsets"][row]
  weights = users["weights"][row]
  if kind == "softmax":
    weights = weights.softmax(-1)
  return torch.tensordot(weights, users["centers"], 1)


def response_logp(model, prompt, response, prefix, place) -> torch.Tensor:
  """`log pi(response | prompt, prefix)` by one plain forward pass."""
  tokens = torch.tensor([[*prompt, *response]])
  embeddings = model.get_input_embeddings()(tokens)
  count = len(response)
  if prefix is not None:
    at = 0 if place == "front" else 1
    parts = [embeddings[:, :at], prefix[None], embeddings[:, at:]]
    embeddings = torch.cat(parts, 1)
  logits = model(inputs_embeds=embeddings).logits[0, -count - 1 : -1]
  logps = logits.log_softmax(-1)
  return logps[torch.arange(count), torch.tensor(response)].sum()


def pair_loss(kind: str, ratio: torch.Tensor, smoothing: float):
  """The loss of `d(chosen) - d(rejected)`, from the papers' formulas."""
  margin = BETA * ratio
  if kind == "ipo":  # arXiv:2310.12036, equation 17
    return (ratio - 1 / (2 * BETA)) ** 2
  if kind == "hinge":  # arXiv:2305.10425
    return torch.clamp(1 - margin, min=0)
  right, wrong = -F.logsigmoid(margin), -F.logsigmoid(-margin)
  if kind == "robust":  # arXiv:2403.00409
    mixed = (1 - smoothing) * right - smoothing * wrong
    return mixed / (1 - 2 * smoothing)
  return (1 - smoothing) * right + smoothing * wrong


def case_arrays(
  name: str,
  case: str,
  model: torch.nn.Module,
  batch: dict[str, np.ndarray],
  rng: np.random.Generator,
) -> dict[str, np.ndarray]:
  """P-DPO's loss and gradients (section 2.3): four passes for each pair."""
  kind, table, place = CASES[name][case]
  adapted = add_lora(model, name, table, rng)
  lora = lora_weights(adapted)
  width = model.get_input_embeddings().weight.shape[1]
  users = make_users(kind, width, rng)
  examples = []  # a list of (weight, ratio with user, generic ratio) of pairs
  rows, num_responses = batch["responses"].shape[:2]
  logps = np.zeros((3, rows, num_responses), np.float32)
  for row in range(rows):
    prompt = batch["prompt"][row][batch["prompt_mask"][row]].tolist()
    prefixes = (
      prefix_of(users, kind, int(batch["user_row"][row])),
      prefix_of(users, kind, 0),
    )
    ratios = []
    for number in range(num_responses):
      mask = batch["response_mask"][row, number]
      response = batch["responses"][row, number][mask].tolist()
      if not response:
        continue
      with torch.no_grad(), adapted.disable_adapter():
        reference = response_logp(adapted, prompt, response, None, place)
      policy = [
        response_logp(adapted, prompt, response, prefix, place)
        for prefix in prefixes
      ]
      values = [reference.item(), *(value.item() for value in policy)]
      logps[:, row, number] = values
      ratios.append([value - reference for value in policy])
    chosen, *rejected = ratios
    for other in rejected:
      pair = [mine - theirs for mine, theirs in zip(chosen, other, strict=True)]
      examples.append((float(batch["weight"][row]), *pair))

  def mean_loss(loss_kind, smoothing):
    total = sum(weight for weight, _, _ in examples)
    terms = (
      weight
      * (
        ALPHA * pair_loss(loss_kind, with_user, smoothing)
        + (1 - ALPHA) * pair_loss(loss_kind, generic, smoothing)
      )
      for weight, with_user, generic in examples
    )
    return sum(terms) / total

  trained = lora | users
  gradients = torch.autograd.grad(
    mean_loss("sigmoid", 0.0), [*trained.values()]
  )
  out = {f"batch/{key}": value for key, value in batch.items()}
  out |= {f"lora/{key}": value.detach().numpy() for key, value in lora.items()}
  out |= {
    f"users/{key}": value.detach().numpy() for key, value in users.items()
  }
  out |= {
    f"gradients/{key}": value.numpy()
    for key, value in zip(trained, gradients, strict=True)
  }
  for label, loss_kind, smoothing in (
    ("sigmoid", "sigmoid", 0.0),
    ("smoothed", "sigmoid", SMOOTHING),
    ("ipo", "ipo", 0.0),
    ("hinge", "hinge", 0.0),
    ("robust", "robust", SMOOTHING),
  ):
    loss = mean_loss(loss_kind, smoothing).detach().numpy()
    out[f"loss/{label}"] = loss
  for label, value in zip(("reference", "user", "generic"), logps, strict=True):
    out[f"logps/{label}"] = value
  adapted.unload()
  return out


def compute(name: str, seed: int = 0) -> dict[str, np.ndarray]:
  """Everything about one model of `torch_models.MODELS`, from one seed."""
  rng = np.random.default_rng([seed, *name.encode()])
  model = torch_models.make_model(name, rng)
  fields = model.config.to_dict()
  del fields["transformers_version"]
  arrays = {"config": np.array(json.dumps(fields))}
  arrays |= torch_models.weights_of(model)
  arrays |= torch_models.logits_arrays(model, rng)
  arrays |= torch_models.greedy_arrays(model, rng)
  vocab = model.get_input_embeddings().weight.shape[0]
  batch = make_batch(rng, vocab)
  for case in CASES[name]:
    found = case_arrays(name, case, model, batch, rng)
    arrays |= {f"{case}/{key}": value for key, value in found.items()}
  return arrays
