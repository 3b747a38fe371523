"""The frozen base: a language model with its tokenizer, and its fingerprint."""

import dataclasses
import hashlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import nnx

from pdpo_jax import config as config_lib
from pdpo_jax.weights import gguf, gguf_tokenizer, hf_safetensors

# Values of each tensor that a fingerprint reads.
_SAMPLED = 4096


@dataclasses.dataclass(frozen=True)
class Base:
  """What a run is built on and never changes.

  Attributes:
    lm: the language model, without LoRA.
    tokenizer: with the end-of-text token that ends a response.
    fingerprint: names the weights.
  """

  lm: nnx.Module
  tokenizer: transformers.PreTrainedTokenizerBase
  fingerprint: str

  @property
  def params(self) -> nnx.State:
    """The frozen variables, by the paths they have in a `Policy`."""
    flat = nnx.to_flat_state(nnx.state(self.lm, nnx.Param))
    return nnx.from_flat_state([(("lm", *path), var) for path, var in flat])

  @property
  def stop_tokens(self) -> tuple[int, ...]:
    return (self.tokenizer.eos_token_id,)


def fingerprint(lm: nnx.Module) -> str:
  """Sixteen hexadecimal digits that two different bases do not share.

  Hashes each weight's path, shape, dtype and some thousand evenly spaced
  values, so that it takes no longer for a large model.
  """
  digest = hashlib.sha256()
  for path, array in sorted(hf_safetensors.base_params(lm).items()):
    digest.update(f"{path} {array.shape} {array.dtype}".encode())
    stride = max(1, array.size // _SAMPLED)
    sample = jnp.ravel(array)[::stride]
    digest.update(np.asarray(jax.device_get(sample), np.float32).tobytes())
  return digest.hexdigest()[:16]


def read_base(path: pathlib.Path, config: config_lib.BaseConfig) -> Base:
  """Reads weights and tokenizer.

  Args:
    path: a folder in Hugging Face format, or a `.gguf` file.
    config: the types of the model.

  Raises:
    ValueError: if files are missing or damaged, weights do not fit, or the
      tokenizer has more tokens than the model.
  """
  model = {
    "dtype": jnp.dtype(config.dtype),
    "param_dtype": jnp.dtype(config.param_dtype),
    "remat": config.remat,
  }
  if path.suffix == ".gguf":
    file = gguf.open_file(path)
    tokenizer = gguf_tokenizer.read_tokenizer(file)
    lm = gguf.read_model(file, **model)
  else:
    lm = hf_safetensors.read_model(path, **model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
  if len(tokenizer) > lm.arch.vocab_size:
    raise ValueError(
      f"{path}: the tokenizer has {len(tokenizer)} tokens and the model "
      f"{lm.arch.vocab_size}; use the tokenizer the model was trained with"
    )
  if tokenizer.eos_token_id is None:
    raise ValueError(
      f"{path}: the tokenizer has no eos_token, which ends a response; set "
      "one in tokenizer_config.json"
    )
  return Base(lm, tokenizer, fingerprint(lm))


def write_base(folder: pathlib.Path, base: Base) -> None:
  """Writes a folder that `read_base` and `transformers` read; weights last."""
  folder.mkdir(parents=True, exist_ok=True)
  base.tokenizer.save_pretrained(folder)
  special = {
    name: getattr(base.tokenizer, name)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id")
  }
  hf_safetensors.write_model(folder, base.lm, special)


def is_whole(folder: pathlib.Path) -> bool:
  """Whether `write_base` came to its end there."""
  return (folder / "model.safetensors").is_file()
