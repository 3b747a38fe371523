"""Tiny models of `transformers` with random weights, and what they answer.

Nothing here imports `pdpo_jax`.
"""

import math

import numpy as np
import torch
import transformers

# More threads than one only wait for each other at these sizes.
torch.set_num_threads(1)

# Sizes are distinct primes where the models allow it.
GPTJ = {
  "vocab_size": 101,
  "n_embd": 26,
  "n_layer": 3,
  "n_head": 2,
  "n_inner": 59,
  "rotary_dim": 6,
  "n_positions": 64,
  "layer_norm_epsilon": 1e-3,
  "activation_function": "gelu_new",
  "resid_pdrop": 0.0,
  "embd_pdrop": 0.0,
  "attn_pdrop": 0.0,
  "tie_word_embeddings": False,
}
LLAMA = {
  "vocab_size": 103,
  "hidden_size": 42,
  "num_hidden_layers": 3,
  "num_attention_heads": 6,
  "num_key_value_heads": 2,
  "head_dim": 10,
  "intermediate_size": 47,
  "rms_norm_eps": 1e-3,
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
  "max_position_embeddings": 512,
  # Of the five frequencies one is kept, one blended, three are divided.
  "rope_theta": 5_000.0,
  "rope_scaling": {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
  },
  "tie_word_embeddings": False,
}
MODELS = {
  "gptj": GPTJ,
  "llama": LLAMA,
  "llama_tied": LLAMA
  | {
    "num_key_value_heads": 1,
    "rope_scaling": None,
    "tie_word_embeddings": True,
  },
}
NEW_TOKENS = 8


def family(name: str) -> str:
  return name.split("_")[0]


def make_model(name: str, rng: np.random.Generator) -> torch.nn.Module:
  """A float32 model with eager attention, with all weights from `rng`."""
  config_class, model_class = {
    "gptj": (transformers.GPTJConfig, transformers.GPTJForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
  }[family(name)]
  config = config_class(
    **MODELS[name],
    bos_token_id=None,
    eos_token_id=None,
    attn_implementation="eager",
  )
  model = model_class(config).to(torch.float32).eval()
  for key, weight in model.named_parameters():
    shape = tuple(weight.shape)
    if "ln_" in key or "norm" in key:
      centre = 0.0 if key.endswith("bias") else 1.0
      value = centre + rng.normal(0, 0.2, shape)
    elif key.endswith("bias"):
      value = rng.normal(0, 0.2, shape)
    else:
      value = rng.normal(0, 1 / math.sqrt(shape[-1]), shape)
    with torch.no_grad():
      weight.copy_(torch.tensor(value))
    weight.requires_grad_(False)
  return model


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """Weights by Hugging Face's names; a tied head is not there twice."""
  return {
    f"weights/{key}": value.detach().numpy().copy()
    for key, value in model.named_parameters()
  }


def logits_arrays(
  model: torch.nn.Module, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Logits of a padded batch of prefixes and tokens, as `inputs_embeds`."""
  vocab, width = model.get_input_embeddings().weight.shape
  prefix_size, rows, size = 4, 3, 17
  tokens = rng.integers(0, vocab, (rows, size))
  mask = np.ones((rows, prefix_size + size), bool)
  mask[0, :5] = False  # padded on the left, so that one prefix entry is left
  mask[2, 15:] = False  # padded on the right
  prefix = torch.tensor(rng.normal(0, 1, (rows, prefix_size, width))).float()
  table = model.get_input_embeddings()
  with torch.no_grad():
    embeddings = torch.cat([prefix, table(torch.tensor(tokens))], 1)
    output = model(
      inputs_embeds=embeddings,
      attention_mask=torch.tensor(mask).long(),
      position_ids=torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0)),
    )
  return {
    "logits/embeddings": embeddings.numpy(),
    "logits/mask": mask,
    "logits/out": np.where(mask[..., None], output.logits.numpy(), 0.0),
  }


def _generate(model, embeddings, mask, **kwargs) -> np.ndarray:
  with torch.no_grad():
    tokens = model.generate(
      inputs_embeds=embeddings,
      attention_mask=mask.long(),
      max_new_tokens=NEW_TOKENS,
      do_sample=False,
      pad_token_id=0,
      **kwargs,
    )
  return tokens.numpy().astype(np.int32)


def greedy_arrays(
  model: torch.nn.Module, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Greedy answers in which no decision is close, so that rounding is none."""
  while True:
    arrays = _greedy_arrays(model, rng)
    if greedy_by_hand(model, arrays)[1] > 2e-3:
      return arrays


def _greedy_arrays(
  model: torch.nn.Module, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Greedy answers of `transformers` to a prefix and left-padded prompts."""
  vocab, width = model.get_input_embeddings().weight.shape
  lengths, prefix_size = [9, 2, 5], 4
  rows, size = len(lengths), max(lengths)
  prefix = rng.normal(0, 1, (rows, prefix_size, width)).astype(np.float32)
  prompt = np.zeros((rows, size), np.int32)
  prompt_mask = np.zeros((rows, size), bool)
  embeddings = torch.zeros((rows, prefix_size + size, width))
  mask = torch.zeros((rows, prefix_size + size), dtype=torch.bool)
  for row, length in enumerate(lengths):
    prompt[row, -length:] = rng.integers(0, vocab, length)
    prompt_mask[row, -length:] = True
    # All padding comes first here, whatever a batch of ours does.
    table = model.get_input_embeddings()
    with torch.no_grad():
      embeddings[row, -length:] = table(torch.tensor(prompt[row, -length:]))
    embeddings[row, -length - prefix_size : -length] = torch.tensor(prefix[row])
    mask[row, -length - prefix_size :] = True
  tokens = _generate(model, embeddings, mask)
  # A token that one answer has in its middle ends an answer the second time.
  end = int(tokens[1, 3])
  ended = _generate(model, embeddings, mask, eos_token_id=end)
  padded = np.zeros_like(tokens)
  padded[:, : ended.shape[1]] = ended
  return {
    "greedy/prefix": prefix,
    "greedy/prompt": prompt,
    "greedy/prompt_mask": prompt_mask,
    "greedy/tokens": tokens,
    "greedy/end_token": np.array(end, np.int32),
    "greedy/tokens_until_end": padded,  # 0 after the end token
  }


def greedy_by_hand(
  model: torch.nn.Module, arrays: dict[str, np.ndarray]
) -> tuple[np.ndarray, float]:
  """The same answers without cache or padding, and the closest decision.

  The second value is the smallest difference between the best and the second
  logit; while it is well above rounding, the tokens are well defined.
  """
  answers, closest = [], math.inf
  table = model.get_input_embeddings()
  for row, prompt in enumerate(arrays["greedy/prompt"]):
    tokens = [int(t) for t in prompt[arrays["greedy/prompt_mask"][row]]]
    start = len(tokens)
    prefix = torch.tensor(arrays["greedy/prefix"][row])[None]
    while len(tokens) < start + NEW_TOKENS:
      with torch.no_grad():
        embeddings = torch.cat([prefix, table(torch.tensor([tokens]))], 1)
        logits = model(inputs_embeds=embeddings).logits[0, -1]
      best, second = torch.topk(logits, 2).values.tolist()
      closest = min(closest, best - second)
      tokens.append(int(logits.argmax()))
    answers.append(tokens[start:])
  return np.array(answers, np.int32), closest
