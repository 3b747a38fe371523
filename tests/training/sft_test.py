"""What a base is taught before preferences are learnt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.data import batching, prompts, tokenize
from pdpo_jax.data import dataset as dataset_lib
from pdpo_jax.models import attention, llama
from pdpo_jax.runs import config as config_lib
from pdpo_jax.training import sft
from pdpo_jax.weights import base as base_lib

EXAMPLES = [
  structs.PreferenceExample(
    user_id=str(number % 3),
    user_text="I like it short.",
    prompt=f"What about {number}?",
    chosen=" yes, do",
    rejected=(" well no",),
  )
  for number in range(8)
]


def make_config(folder, **fields) -> config_lib.Config:
  config = config_lib.Config(workdir=str(folder / "run"))
  config.sft.path = str(folder / "given")
  config.sft.batch_size = 4
  config.sft.steps = 20
  config.sft.warmup_steps = 2
  config.sft.learning_rate = 1e-2
  config.data.source = "files"
  config.data.path = "choices.jsonl"
  config.data.max_shapes = 1
  for name, value in fields.items():
    setattr(config.data, name, value)
  config_lib.validate(config)
  return config


def make_base(folder, end_of_turn=()) -> base_lib.Base:
  texts = [example.prompt + example.chosen for example in EXAMPLES]
  tokenizer = tokenize.train_tokenizer(texts, 270)
  arch = llama.Architecture(len(tokenizer), 24, 2, 4, 2, 6, 40)
  lm = llama.Llama(arch, rngs=nnx.Rngs(0))
  made = base_lib.Base(lm, tokenizer, base_lib.fingerprint(lm), end_of_turn)
  base_lib.write_base(folder / "given", made)
  return made


def loss_of(base: base_lib.Base, responses: list[str]) -> float:
  encoder = prompts.PromptEncoder(base.tokenizer, "plain", 100)
  pairs = [
    (example.prompt, response)
    for example, response in zip(EXAMPLES, responses, strict=True)
  ]
  sequences = tokenize.tokenize_pairs(pairs, encoder)
  batches = batching.TextBatches(sequences, 8, 0, max_shapes=1)
  batch = jax.tree.map(jnp.asarray, next(batches.in_order()))
  return float(sft.text_loss(base.lm, batch))


def test_the_loss_is_the_mean_over_response_tokens(tmp_path):
  lm = make_base(tmp_path).lm
  tokens = jnp.array([[5, 6, 7, 8], [9, 10, 0, 0]], jnp.int32)
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], jnp.bool_)
  targets = jnp.array([[0, 0, 1, 1], [0, 1, 0, 0]], jnp.bool_)
  loss = sft.text_loss(lm, structs.TextBatch(tokens, mask, targets))
  expected = []
  for row, places in ((tokens[:1], (2, 3)), (tokens[1:, :2], (1,))):
    attend = attention.causal(jnp.ones(row.shape, bool), lm.kernel)
    hidden, _ = lm.hidden(lm.embed(row), jnp.arange(row.shape[1])[None], attend)
    logps = jax.nn.log_softmax(lm.logits(hidden))[0]
    expected += [-logps[place - 1, row[0, place]] for place in places]
  np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-6)


def train_base(config, *others):
  return sft.train_base(config.sft, config.recipe, *others)


def test_a_base_is_taught_the_chosen_responses(tmp_path):
  given = make_base(tmp_path, end_of_turn=(3,))
  dataset = dataset_lib.Dataset(EXAMPLES, [], [])
  taught = train_base(make_config(tmp_path), dataset, tmp_path / "base")
  chosen = [example.chosen for example in EXAMPLES]
  rejected = [example.rejected[0] for example in EXAMPLES]
  before = loss_of(given, chosen)
  assert loss_of(taught, chosen) < 0.5 * before
  assert loss_of(taught, rejected) > loss_of(given, rejected)
  assert taught.fingerprint != given.fingerprint
  assert taught.stop_tokens == given.stop_tokens
  assert taught.tokenizer.get_vocab() == given.tokenizer.get_vocab()
  assert base_lib.is_whole(tmp_path / "base")
  untouched = base_lib.read_base(str(tmp_path / "given"), base_lib.BaseConfig())
  assert untouched.fingerprint == given.fingerprint


def test_a_base_that_was_cut_off_between_two_shards_is_written_again(tmp_path):
  make_base(tmp_path)
  dataset = dataset_lib.Dataset(EXAMPLES, [], [])
  config, folder = make_config(tmp_path), tmp_path / "base"
  taught = train_base(config, dataset, folder)
  (folder / "model.safetensors").rename(
    folder / "model-00001-of-00002.safetensors"
  )
  again = train_base(config, dataset, folder)
  assert again.fingerprint == taught.fingerprint
  assert sorted(each.name for each in folder.glob("model*")) == [
    "model.safetensors"
  ]


def test_a_base_that_was_taught_on_other_data_is_an_error(tmp_path):
  make_base(tmp_path)
  dataset = dataset_lib.Dataset(EXAMPLES, [], [])
  config, folder = make_config(tmp_path), tmp_path / "base"
  train_base(config, dataset, folder, "one")
  sft.check_data(folder, "one")
  with pytest.raises(ValueError, match="taught on other data"):
    sft.check_data(folder, "other")
  (folder / "model.safetensors").unlink()
  with pytest.raises(ValueError, match="data is 'one' there and 'other' here"):
    train_base(config, dataset, folder, "other")


def test_what_is_taught_keeps_to_the_limits_of_a_response(tmp_path):
  make_base(tmp_path)
  config = make_config(tmp_path, max_response_tokens=2)
  dataset = dataset_lib.Dataset(EXAMPLES, [], [])
  with pytest.raises(ValueError, match="over the limit of 2"):
    train_base(config, dataset, tmp_path / "base")


@pytest.mark.parametrize(
  ("path", "taught", "message"),
  [
    ("models/a", "models/b", "sft.path 'models/b' is not taught where"),
    ("", "", "base.path '' does not go with data.source 'files'"),
  ],
)
def test_a_run_has_one_base(path, taught, message):
  config = config_lib.Config()
  config.data.source, config.data.path = "files", "choices.jsonl"
  config.base.path, config.sft.path = path, taught
  with pytest.raises(ValueError, match=message):
    config_lib.validate(config)
