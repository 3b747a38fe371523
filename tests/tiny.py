"""A tiny run for tests: an untrained base, ten comparisons a worker.

  python -m tests.tiny FOLDER [field=value ...]

trains P-DPO in FOLDER and writes a digest of the final state to FOLDER/digest.
"""

import ast
import hashlib
import pathlib
import sys

import jax
import numpy as np
from flax import nnx

from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.data import tokenize, tokenized
from pdpo_jax.data import users as users_lib
from pdpo_jax.models import gptj
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import branch_batches, checkpoint, pdpo, policies
from pdpo_jax.weights import base as base_lib
from tests import loading


def tiny_config(folder: pathlib.Path) -> config_lib.Config:
  config = config_lib.Config(name="tiny", workdir=str(folder))
  config.cache = str(folder / "cache")
  config.sft.num_posts = 20
  config.data.synthetic.num_workers = 3
  config.data.synthetic.short_workers = ("2",)
  config.data.synthetic.train_per_worker = 8
  config.data.synthetic.heldout_per_worker = 3
  config.data.max_response_tokens = 128
  config.data.max_shapes = 1
  config.answers.num_prompts = 2
  config.user.num_tokens = 3
  config.user.init_std = 0.01
  config.lora.rank = 2
  config.train.batch_size = 8
  config.train.epochs = 4
  config.train.learning_rate = 1e-2
  config.train.warmup_steps = 2
  config.train.log_every = 1
  config.train.eval_every = 5
  config.train.checkpoint_every = 2
  config.train.logits_chunk = 1024
  return config


def tiny_base(dataset: dataset_lib.Dataset, seed: int = 0) -> base_lib.Base:
  texts = [prompt + answer for prompt, answer in dataset.sft_pairs]
  tokenizer = tokenize.train_tokenizer(texts, 300)
  arch = gptj.Architecture(len(tokenizer), 20, 2, 2, 28, 6, max_positions=256)
  lm = gptj.GPTJ(arch, rngs=nnx.Rngs(seed))
  return base_lib.Base(lm, tokenizer, base_lib.fingerprint(lm))


def tiny_split(config, base, users, name) -> tokenized.TokenizedSplit:
  examples = getattr(loading.load(config), name)
  return tokenized.tokenize_split(
    name, examples, config.data, base.tokenizer, users
  )


def tiny_parts(config: config_lib.Config, seed: int = 0):
  """Base, users, train and held-out batches, and the data set."""
  dataset = loading.load(config)
  base = tiny_base(dataset, seed)
  users = users_lib.UserIndex.from_examples(dataset.train)
  batches, heldout = (
    branch_batches.with_reference(
      config.recipe,
      base,
      tiny_split(config, base, users, name),
      config.cache_folder,
    )
    for name in ("train", "heldout")
  )
  return base, users, batches, heldout, dataset


def train(config: config_lib.Config, made=None) -> policies.SplitPolicy:
  base, users, batches, heldout, dataset = made or tiny_parts(config)
  return pdpo.train(
    config.recipe,
    base,
    users,
    batches,
    heldout,
    dataset.train,
    config.folder / "pdpo",
  )


def digest_of_newest(folder: pathlib.Path) -> str:
  """Of the newest checkpoint's arrays: LoRA, users and optimizer."""
  digest = hashlib.sha256()
  with checkpoint.Checkpoints(folder / "checkpoints") as saved:
    step = saved.steps[-1]
    items = saved.load_as_saved(step, ("lora", "users", "optimizer"))
  for path, leaf in jax.tree_util.tree_leaves_with_path(items):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.asarray(leaf).tobytes())
  return f"{step} {digest.hexdigest()}"


def main() -> None:
  folder = pathlib.Path(sys.argv[1])
  config = tiny_config(folder)
  for argument in sys.argv[2:]:
    path, value = argument.split("=")
    holder = config
    *sections, name = path.split(".")
    for section in sections:
      holder = getattr(holder, section)
    setattr(holder, name, ast.literal_eval(value))
  train(config)
  (folder / "digest").write_text(digest_of_newest(folder / "pdpo"))


if __name__ == "__main__":
  main()
