"""Small models for the tests of weights, made once."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdpo_jax.models import gptj, layers, llama, policy
from pdpo_jax.weights import hf_safetensors

TIED = llama.Architecture(17, 10, 2, 2, 1, 6, 13, tied_head=True)
ARCHITECTURES = {
  "gptj": gptj.PRESETS["gptj-tiny"],
  "llama": llama.PRESETS["llama-tiny"],
  "llama_tied": TIED,
}


@functools.cache
def make(arch, dtype="float32", targets=()) -> nnx.Module:
  """A model with random weights, those of LoRA on `targets` included."""
  lm = policy.make_language_model(
    arch,
    lora=layers.LoraConfig(targets, rank=3, alpha=7.0, dropout=0.5),
    param_dtype=jnp.dtype(dtype),
    rngs=nnx.Rngs(0),
  )
  rng = np.random.default_rng(0)
  state = nnx.to_flat_state(nnx.state(lm, layers.LoraParam))
  flat = [
    (path, var.replace(jnp.asarray(rng.normal(0, 0.3, var.shape), jnp.float32)))
    for path, var in state
  ]
  nnx.update(lm, nnx.from_flat_state(flat))
  return lm


def tensors(lm) -> dict[str, np.ndarray]:
  made = hf_safetensors.to_tensors(lm).items()
  return {name: np.asarray(tensor.make()) for name, tensor in made}
