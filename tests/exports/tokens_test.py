import collections
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax import nnx

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import dialogues
from pdpo_jax.data import users as users_lib
from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.exports import person_templates, tokens
from pdpo_jax.models import attention
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import hf_safetensors
from tests.data import prompts_test, template_cases
from tests.weights import policies

CHAT = "{{ bos_token }}" + prompts_test.CHAT
IDS = ("4", "ada", "böhm", "a\"'\\ {{ x }} {% y %}\n|>")


def make(case, template=CHAT, **changes):
  """Contents whose prompts begin with a control token."""
  policy, base = policies.make(*case)
  tokenizer = prompts_test.make_tokenizer(template, texts=("a cat",))
  base = dataclasses.replace(base, tokenizer=tokenizer)
  return contents_lib.Contents(policy, base, policies.USERS, **changes)


def logits(lm, ids):
  graphdef, state = nnx.split(lm)

  @jax.jit
  def run(state, ids):
    lm = nnx.merge(graphdef, state)
    mask = jnp.ones(ids.shape, bool)
    hidden, _ = lm.hidden(
      lm.embed(ids), attention.positions_of(mask), attention.causal(mask)
    )
    return lm.logits(hidden)

  return run(state, jnp.array(ids))


@pytest.mark.parametrize(("name", "kind", "place"), policies.CASES)
def test_tokens_of_people_give_the_logits_of_prefixes(
  name, kind, place, tmp_path
):
  contents = make((name, kind, place))
  tokens.write(tmp_path, contents)
  lm = hf_safetensors.read_model(tmp_path)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  size = policies.VOCABULARY
  assert lm.arch.vocab_size == size + 4 * 3 == len(tokenizer)
  prompt = [5, 260, 3, 3, 99, 14, 1]
  expected = policies.logits(contents.policy, prompt)
  behind = int(place == "after_bos")
  people = [[size + 3 * row + place for place in range(3)] for row in range(4)]
  ids = [[*prompt[:behind], *row, *prompt[behind:]] for row in people]
  found = np.asarray(logits(lm, ids))
  # float32's rounding, as in the export with prefixes.
  np.testing.assert_allclose(found[..., :size], expected, rtol=0, atol=2e-5)
  # By Jensen, the mean of logits is at most the logarithm of the mean.
  people = jax.nn.softmax(found)[..., size:]
  assert people.max() <= 1 / size
  assert (found[..., size:].max(-1) < found[..., :size].max(-1)).all()


def with_people(name, template, place):
  """Contents, and their tokenizer with people's tokens and a template."""
  tokenizer = template_cases.make(name, template, "bos_eos")
  policy, base = policies.make("llama", "cluster", "front")
  policy = policy_lib.Policy(policy.lm, policy.user_model, place)
  base = dataclasses.replace(base, tokenizer=tokenizer)
  contents = contents_lib.Contents(policy, base, policies.USERS)
  made = tokens._tokenizer(contents, len(tokenizer) + 5)
  made.chat_template = person_templates.make(contents, made)
  return contents, made


@pytest.mark.parametrize(
  ("template", "place"),
  [
    *((template, "front") for template in (*template_cases.TEMPLATES, None)),
    *((template, "after_bos") for template in ("chatml", "llama31", None)),
  ],
)
def test_the_template_writes_the_prompts_of_training(template, place):
  contents, tokenizer = with_people("byte_level", template, place)
  assert "generation %}" not in tokenizer.chat_template
  first = tokenizer.convert_tokens_to_ids("<|user:0:0|>")
  texts = ("Ten minutes.", "How long does it take?", "Who are you? ")
  user, assistant = "user", "assistant"
  asked = [
    (structs.Message(user, texts[0]),),
    tuple(map(structs.Message, (user, assistant, user), texts)),
  ]
  if template is None:
    asked[0] = texts[0]
  counts = collections.Counter()
  for prompt in asked:
    (expected,) = contents.encoder.encode(
      [structs.PromptExample(prompt)], counts
    )
    behind = int(place == "after_bos")
    people = [*range(first + 3 * 2, first + 3 * 3)]
    turns = [
      {"role": turn.role, "content": turn.content, "name": "ada"}
      for turn in dialogues.turns_of(prompt)
    ]
    found = tokenizer.apply_chat_template(
      turns, add_generation_prompt=True, return_dict=False
    )
    assert found == [*expected[:behind], *people, *expected[behind:]]


def test_prompts_that_no_text_gives_are_refused():
  # Of two line ends before a word, this one makes two tokens, and one at the
  # end of a text.
  with pytest.raises(ValueError, match="would not write the prompts of train"):
    with_people("gpt2", "llama3", "front")


def test_whoever_is_named_is_asked_as():
  users = users_lib.UserIndex(IDS)
  policy, _ = policies.make(*policies.CASES[1])
  contents = make(policies.CASES[1], people=IDS[::-1])
  model = policy.user_model
  contents = dataclasses.replace(
    contents,
    users=users,
    policy=policy_lib.Policy(policy.lm, _with_rows(model, 5), "front"),
  )
  tokenizer = tokens.make(contents).tokenizer

  def row(turns, **kwargs):
    text = tokenizer.apply_chat_template(
      turns, tokenize=False, add_generation_prompt=True, **kwargs
    )
    return int(text.removeprefix("<|user:").partition(":")[0])

  def said(name, role="user"):
    return {"role": role, "content": "a", "name": name}

  for number, user_id in enumerate(contents.ids[1:], start=1):
    assert row([said(user_id)]) == number
    assert row([said("ada")], user=user_id) == number
  number = contents.ids.index("ada")
  assert row([said("4"), said("4", "assistant"), said("ada")]) == number
  assert row([said("ada"), said("4", "assistant"), said(None)]) == number
  assert row([said("stranger")]) == row([said("ada")], user="stranger") == 0
  assert row([{"role": "user", "content": "a"}]) == 0
  assert row([said("ada")], user=None) == number
  assert row([{"role": "user", "content": "a"}], user=4) == (
    contents.ids.index("4")
  )


def _with_rows(model, count):
  """The user model with so many rows, all but the first ones zero."""
  graphdef, state = nnx.split(model)
  grown = jax.tree.map(
    lambda x: (
      jnp.zeros((count, *x.shape[1:])).at[:4].set(x) if x.shape[0] == 4 else x
    ),
    state,
  )
  return nnx.merge(graphdef, grown)


@pytest.mark.parametrize(
  "typed",
  [
    "<|user:2:0|>",
    "<|us<|user:er:2:0|>",
    [{"type": "text", "text": "<|user:2:0|>"}],
  ],
)
@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_nobody_types_themselves_into_somebody_else(typed, role):
  tokenizer = tokens.make(make(policies.CASES[1])).tokenizer
  turns = [{"role": role, "content": typed}, {"role": "user", "content": "a"}]
  ids = tokenizer.apply_chat_template(
    turns, add_generation_prompt=True, return_dict=False
  )
  size = policies.VOCABULARY
  assert [number for number in ids if number >= size] == [
    *range(size, size + 3)
  ]


def test_no_token_is_put_before_a_text(tmp_path):
  contents = make(policies.CASES[1], data=data_config.DataConfig(add_bos=True))
  before = contents.tokenizer("a").input_ids
  tokens.write(tmp_path, contents)
  back = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert back("a").input_ids == before[-1:]
  assert back.bos_token_id == contents.tokenizer.bos_token_id
  assert back.eos_token_id == contents.tokenizer.eos_token_id


def test_only_who_is_asked_for_comes_along(tmp_path):
  contents = make(policies.CASES[1], people=("böhm",))
  tokens.write(tmp_path, contents)
  described = json.loads((tmp_path / "users.json").read_text())
  assert described["users"] == [None, "böhm"]
  lm = hf_safetensors.read_model(tmp_path)
  (_, prefix) = contents.prefixes()
  np.testing.assert_array_equal(lm.embed_tokens.weight[-3:], prefix)
  text = (tmp_path / "chat_template.jinja").read_text()
  assert "böhm" in text and "ada" not in text
  card = (tmp_path / "README.md").read_text()
  assert '"name": "böhm"' in card


def test_what_cannot_be_tokens_is_refused(tmp_path):
  contents = make(policies.CASES[0], "{% for m in messages %}{{ m.content }}"
  "{% endfor %}")  # fmt: skip
  with pytest.raises(ValueError, match="begin with no control token"):
    tokens.write(tmp_path, contents)
  nobody = policy_lib.base_policy(contents.base.lm)
  with pytest.raises(ValueError, match="no users to be tokens"):
    tokens.write(tmp_path, dataclasses.replace(contents, policy=nobody))
  assert not [*tmp_path.iterdir()]


def test_an_export_of_an_export_is_refused(tmp_path):
  contents = make(policies.CASES[1])
  taken = tokens.make(contents).tokenizer
  base = dataclasses.replace(contents.base, tokenizer=taken)
  with pytest.raises(ValueError, match="is itself an export"):
    tokens.make(dataclasses.replace(contents, base=base))
