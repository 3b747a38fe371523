"""People as tokens of the model, for any engine that knows nothing of them.

Each vector of a person's prefix is a row of the token table, under a token of
its own, and the chat template writes a person's tokens where the prefix stood
in training. Rows go along for everybody: U·T rows, in table and head.
"""

import dataclasses
import json
import pathlib

import numpy as np
import tokenizers
import transformers

from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.exports import person_templates
from pdpo_jax.models import policy as policy_lib
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import hf_safetensors, tensor_files

# New rows of the token table; each is a special token, which takes a tokenizer
# some time to read.
_MOST_ROWS = 100_000

_TABLES = ("model.embed_tokens.weight", "transformer.wte.weight")
_HEAD, _HEAD_BIAS = "lm_head.weight", "lm_head.bias"
_README = """\
A model with LoRA merged in, and people as tokens: any engine that reads this
folder answers as whoever is named.

```bash
vllm serve .
```
"""
ASKING = """\
The name stands in the user's message, or in `chat_template_kwargs`:

```json
{{"messages": [{{"role": "user", "name": {name}, "content": "…"}}]}}
{{"messages": […], "chat_template_kwargs": {{"user": {name}}}}}
```

`users.json` has the ids. Whoever is not in it, and who is not named, is the
generic user. Engines ignore OpenAI's field `user`. What a person says of
themselves goes in as a system message, as in training{told}. Completions
without messages have no person; their prompts begin with the tokens of one, as
in `<|user:0:0|>`.

What people write must not be taken for control tokens. The template breaks
tokens of people in it; those of the base are up to the engine, as ever.
"""
_TRANSFORMERS = """
```python
import transformers

model = transformers.AutoModelForCausalLM.from_pretrained(".")
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
inputs = tokenizer.apply_chat_template(
  [{{"role": "user", "name": {name}, "content": "…"}}],
  add_generation_prompt=True,
  return_tensors="pt",
  return_dict=True,
)
output = model.generate(**inputs)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))
```
"""


@dataclasses.dataclass(frozen=True)
class Model:
  """A model that has people as tokens.

  Attributes:
    arch: of the tensors.
    tensors: by Hugging Face's names, LoRA merged in.
    tokenizer: with people's tokens and a template that writes them.
  """

  arch: policy_lib.Architecture
  tensors: dict[str, tensor_files.LazyTensor]
  tokenizer: transformers.PreTrainedTokenizerBase


def make(contents: contents_lib.Contents) -> Model:
  """The policy with people as tokens.

  Raises:
    ValueError: if it has no users, or too many; or if its prompts cannot be
      written with tokens of people.
  """
  if not contents.has_users:
    raise ValueError(
      "the run has no users to be tokens (user.kind 'none'); use "
      "--format=merged"
    )
  width = contents.policy.user_model.num_tokens
  num_rows = len(contents.ids) * width
  if num_rows > _MOST_ROWS:
    raise ValueError(
      f"{len(contents.ids):,} people of {width} tokens each are {num_rows:,} "
      f"rows of the token table, and {_MOST_ROWS:,} are the most; name those "
      "whom you need by --user, or use --format=merged"
    )
  arch = hf_safetensors.merged_architecture(contents.policy.lm)
  tokenizer = _tokenizer(contents, arch.vocab_size)
  tokenizer.chat_template = person_templates.make(contents, tokenizer)
  size = arch.vocab_size + num_rows
  fields = {"vocab_size": size}
  if hasattr(arch, "tied_head"):
    fields["tied_head"] = False
  return Model(
    dataclasses.replace(arch, **fields), _tensors(contents), tokenizer
  )


def _tensors(
  contents: contents_lib.Contents,
) -> dict[str, tensor_files.LazyTensor]:
  """Tensors with people's rows behind the others.

  A person's token must never be an answer. Its row of the head is the mean of
  all others: its logit is the mean of theirs, so it is never the largest, and
  its probability is at most one over their number, by Jensen's inequality.
  """
  tensors = dict(hf_safetensors.to_tensors(contents.policy.lm))
  (table,) = [name for name in _TABLES if name in tensors]
  prefixes = contents.prefixes()
  prefixes = prefixes.reshape(-1, prefixes.shape[-1])
  # The table as the head reads it, where it does.
  tensors.setdefault(_HEAD, tensors[table])
  for name in (_HEAD, _HEAD_BIAS):
    if name in tensors:
      tensors[name] = _with_means(tensors[name], len(prefixes))
  tensors[table] = _with_rows(tensors[table], prefixes)
  return tensors


def _with_rows(
  tensor: tensor_files.LazyTensor, rows: np.ndarray
) -> tensor_files.LazyTensor:
  return tensor_files.LazyTensor(
    (tensor.shape[0] + len(rows), *tensor.shape[1:]),
    tensor.dtype,
    lambda: np.concatenate([tensor.make(), rows.astype(tensor.dtype)]),
  )


def _with_means(
  tensor: tensor_files.LazyTensor, count: int
) -> tensor_files.LazyTensor:
  def make():
    array = np.asarray(tensor.make())
    mean = array.mean(0, dtype=np.float64).astype(tensor.dtype)
    return np.concatenate([array, np.broadcast_to(mean, (count, *mean.shape))])

  shape = (tensor.shape[0] + count, *tensor.shape[1:])
  return tensor_files.LazyTensor(shape, tensor.dtype, make)


def _tokenizer(
  contents: contents_lib.Contents, size: int
) -> transformers.PreTrainedTokenizerFast:
  """The tokenizer with people's tokens, whose ids begin at `size`.

  It puts no token around a text: the template writes a BOS where there is to
  be one, which is behind the person's tokens most often.

  Raises:
    ValueError: if the names are taken.
  """
  ours = contents.tokenizer
  described = json.loads(ours.backend_tokenizer.to_str())
  described |= {"post_processor": None, "padding": None, "truncation": None}
  backend = tokenizers.Tokenizer.from_str(json.dumps(described))
  people = [
    person_templates.token_name(row, place)
    for row in range(len(contents.ids))
    for place in range(contents.policy.user_model.num_tokens)
  ]
  vocabulary = backend.get_vocab()
  if not vocabulary.keys().isdisjoint(people):
    raise ValueError(
      f"the base has tokens such as {people[0]!r} already: it is itself an "
      "export with people as tokens; use --format=merged"
    )
  # Rows of the table that no token has.
  unused = range(max(vocabulary.values()) + 1, size)
  names = [f"<|unused:{number}|>" for number in unused]
  backend.add_special_tokens(
    [
      tokenizers.AddedToken(name, special=True, normalized=False)
      for name in (*names, *people)
    ]
  )
  assert [backend.token_to_id(name) for name in people] == [
    *range(size, size + len(people))
  ]
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    **ours.special_tokens_map,
    model_max_length=ours.model_max_length,
    clean_up_tokenization_spaces=False,
  )


def asking(contents: contents_lib.Contents, code: str = "") -> str:
  """What a card says about asking as somebody.

  Args:
    code: shown behind the requests, likewise with a name in it.
  """
  name = json.dumps(contents.ids[-1] or "", ensure_ascii=False)
  told = ""
  if not contents.encoder.takes_system:
    told = ", or where the template refuses one, before the first message"
  return (ASKING + code).format(name=name, told=told)


def write(folder: pathlib.Path, contents: contents_lib.Contents) -> None:
  """Writes model, tokenizer, ids and a card; weights last.

  Raises:
    ValueError: as `make`, or if the folder cannot be written.
  """
  tensor_files.refuse_weights(folder)
  model = make(contents)
  contents.write_users(folder)
  contents.card.write(folder, _README + asking(contents, _TRANSFORMERS))
  special = base_lib.write_tokenizer(
    folder, model.tokenizer, contents.stop_tokens
  )
  hf_safetensors.write_tensors(folder, model.arch, model.tensors, special)
