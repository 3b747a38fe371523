import functools
import json

import numpy as np
import pytest
import tokenizers
import transformers
from flax import nnx

from pdpo_jax.models import llama, policy
from pdpo_jax.weights import base as base_lib
from pdpo_jax.weights import gguf as gguf_lib
from pdpo_jax.weights import gguf_tokenizer
from tests import tiny_gguf

# As in the tokenizer.json of GPT-2, SmolLM2 and Llama 3 on the hub.
BYTES = {
  "type": "ByteLevel",
  "add_prefix_space": False,
  "trim_offsets": True,
  "use_regex": True,
}
PRE_TOKENIZERS = {
  "gpt-2": BYTES,
  "smollm": {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES],
  },
  "llama-bpe": {
    "type": "Sequence",
    "pretokenizers": [
      {
        "type": "Split",
        "pattern": {
          "Regex": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
          "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
          "\\s+(?!\\S)|\\s+"
        },
        "behavior": "Isolated",
        "invert": False,
      },
      BYTES | {"use_regex": False},
    ],
  },
}
VOCAB_SIZE = 600
BOS, EOS, TOOL = "<|begin|>", "<|end|>", "<tool>"
CORPUS = """
The quick brown fox jumps over 1234567890 lazy dogs, and doesn't mind: 10 20 30.
DON'T you'll they've I'm it's we'd YOU'REX — “quotes” … naïve café Ünïcödé
def f(x):\n    return x  +  1\n\n\n\tif x == 100:   pass\r\n
日本語のテキスト 你好，世界！ مرحبا بالعالم Привет мир
κόσμος ½ ² Ⅻ 🙂🚀👍🏽 e\u0301
"""
TEXTS = [
  "",
  " ",
  "Hello, world!",
  "The quick brown fox  jumps   over    the lazy dog.",
  "1234567890 and 12  34   56, 3.14, ½ Ⅻ ² ٣٤٥",
  "x=1\n\n\n  y = 100\t\tz\r\n\r\n end  ",
  "don't DON'T you'll We'Ve YOU'REX 'S 's ''d",
  "naïve café cafe\u0301 日本語のテキスト 你好，世界！ مرحبا Привет κόσμος",
  "🙂🚀 👍🏽 \u200d \ufeff \x00 \u00a0 nbsp\u2003em",
  f"{BOS}{EOS} a{EOS}b  {TOOL}1{TOOL} <|end|",
  "quick",
  "[PAD699] unquick quickly\tquick",
]


TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
)


def random_texts(count):
  rng = np.random.default_rng(0)
  pieces = [*CORPUS, "  ", "\n\n", "'s", "12", BOS, EOS, TOOL, "quick", " the"]
  for _ in range(count):
    yield "".join(rng.choice(pieces, rng.integers(1, 40)))


@functools.cache
def original(pre):
  """A `tokenizer.json` with the settings of a published one."""
  trained = tokenizers.Tokenizer(tokenizers.models.BPE())
  # Words are not kept apart, so that whatever a pre-tokenizer joins wrongly
  # gives another token.
  trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=VOCAB_SIZE,
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )
  trained.train_from_iterator(CORPUS.splitlines(keepends=True) * 2, trainer)
  fields = json.loads(trained.to_str())
  fields["pre_tokenizer"] = PRE_TOKENIZERS[pre]
  fields["decoder"] = BYTES | {"add_prefix_space": True}
  vocab = fields["model"]["vocab"]
  # A token that no merges lead to.
  vocab["quick"] = len(vocab)
  fields["model"]["ignore_merges"] = pre == "llama-bpe"
  for token in (BOS, EOS, TOOL):
    fields["added_tokens"].append(
      {
        "id": len(vocab) + len(fields["added_tokens"]),
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": token != TOOL,
      }
    )
  if pre == "llama-bpe":
    index = len(vocab)
    fields["post_processor"] = {
      "type": "TemplateProcessing",
      "single": [
        {"SpecialToken": {"id": BOS, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
      ],
      "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {BOS: {"id": BOS, "ids": [index], "tokens": [BOS]}},
    }
  return json.dumps(fields)


def ids_of_special(pre):
  made = tokenizers.Tokenizer.from_str(original(pre))
  return made.token_to_id(BOS), made.token_to_id(EOS)


def write(file, pre, *more, name=None, size=None, **changes):
  """A GGUF file with the original tokenizer; `name` gives it another name."""
  bos, eos = ids_of_special(pre)
  fields = {
    "bos_token_id": bos,
    "eos_token_id": eos,
    "pad_token_id": eos,
    "context_length": 64,
    "chat_template": TEMPLATE,
  } | changes
  return tiny_gguf.write(
    file,
    tiny_gguf.tokenizer(original(pre), name or pre, size),
    lambda writer: [
      getattr(writer, f"add_{field}")(value)
      for field, value in fields.items()
      if value is not None
    ],
    *more,
  )


def read(file):
  return gguf_tokenizer.read_tokenizer(gguf_lib.open_file(file))


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_ids_are_those_of_the_original_tokenizer(pre, tmp_path):
  theirs = tokenizers.Tokenizer.from_str(original(pre))
  found = read(write(tmp_path / "x.gguf", pre, size=700))
  assert len(found) == theirs.get_vocab_size()
  for text in (*TEXTS, *random_texts(300)):
    expected = theirs.encode(text).ids
    assert found(text)["input_ids"] == expected, text
    for skip in (False, True):
      assert found.decode(expected, skip_special_tokens=skip) == theirs.decode(
        expected, skip_special_tokens=skip
      )


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_the_texts_tell_one_pre_tokenizer_from_another(pre, tmp_path):
  theirs = tokenizers.Tokenizer.from_str(original(pre))
  for other in PRE_TOKENIZERS.keys() - {pre}:
    found = read(write(tmp_path / "x.gguf", pre, name=other))
    differ = [
      text
      for text in TEXTS
      if found.encode(text, add_special_tokens=False)
      != theirs.encode(text, add_special_tokens=False).ids
    ]
    assert differ, other


def test_special_tokens_and_length_are_the_files(tmp_path):
  found = read(write(tmp_path / "x.gguf", "smollm", pad_token_id=None))
  assert (found.bos_token, found.eos_token, found.pad_token) == (BOS, EOS, None)
  assert found.model_max_length == 64
  assert found.chat_template == TEMPLATE


@pytest.mark.parametrize(
  ("pre", "flag", "count"),
  [
    ("llama-bpe", None, 1),
    ("llama-bpe", True, 1),
    ("llama-bpe", False, 0),
    ("smollm", None, 0),
    ("smollm", False, 0),
    ("smollm", True, 1),
    ("gpt-2", None, 0),
  ],
)
def test_a_text_has_one_bos_where_the_model_wants_one(
  pre, flag, count, tmp_path
):
  found = read(write(tmp_path / "x.gguf", pre, add_bos_token=flag))
  bos = found.bos_token_id
  ids = found("The quick fox")["input_ids"]
  assert ids.count(bos) == count
  assert ids[:count] == [bos] * count
  assert bos not in found.encode("The fox", add_special_tokens=False)
  assert found("a", "b")["input_ids"].count(bos) == 2 * count


@pytest.mark.parametrize("flag", [False, True])
def test_a_chat_has_the_one_bos_that_its_template_writes(flag, tmp_path):
  found = read(write(tmp_path / "x.gguf", "llama-bpe", add_bos_token=flag))
  messages = [{"role": "user", "content": "Hi"}]
  ids = found.apply_chat_template(messages, return_dict=False)
  assert ids.count(found.bos_token_id) == 1
  assert ids[0] == found.bos_token_id
  assert ids[-1] == found.eos_token_id


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_a_base_is_written_as_a_folder_with_the_same_ids_and_weights(
  pre, tmp_path
):
  arch = llama.Architecture(701, 24, 2, 6, 2, 4, 28, tied_head=True)
  lm = policy.make_language_model(arch, rngs=nnx.Rngs(0))
  file = write(
    tmp_path / "x.gguf",
    pre,
    *tiny_gguf.model(lm),
    size=arch.vocab_size,
    context_length=None,
    eot_token_id=3,
    eom_token_id=5,
  )
  base = base_lib.read_base(str(file), base_lib.BaseConfig())
  assert base.lm.arch == arch
  assert base.stop_tokens == (ids_of_special(pre)[1], 3, 5)
  folder = tmp_path / "folder"
  base_lib.write_base(folder, base)
  back = base_lib.read_base(str(folder), base_lib.BaseConfig())
  assert back.fingerprint == base.fingerprint
  assert back.stop_tokens == base.stop_tokens
  auto = transformers.AutoTokenizer.from_pretrained(folder)
  assert auto.chat_template == TEMPLATE
  for text in (*TEXTS, *random_texts(100)):
    expected = base.tokenizer(text)["input_ids"]
    assert auto(text)["input_ids"] == expected, text
    assert back.tokenizer(text)["input_ids"] == expected, text


def error_of(file):
  with pytest.raises(ValueError) as error:
    read(file)
  assert str(file) in str(error.value)
  return str(error.value)


def test_what_is_not_supported_is_named_with_what_is(tmp_path):
  file = tiny_gguf.write(
    tmp_path / "x.gguf",
    tiny_gguf.tokenizer(original("gpt-2"), "tekken"),
  )
  message = error_of(file)
  assert "tokenizer.ggml.pre 'tekken' is not supported" in message
  assert "'gpt-2', 'smollm', 'llama-bpe' are" in message
  tiny_gguf.write(file, lambda writer: writer.add_tokenizer_model("llama"))
  assert "tokenizer.ggml.model 'llama' is not supported" in error_of(file)
  write(file, "gpt-2", add_eos_token=True)
  assert "add_eos_token ends every prompt" in error_of(file)


def test_what_is_missing_or_does_not_fit_is_named(tmp_path):
  file = tmp_path / "x.gguf"
  write(file, "gpt-2", eos_token_id=None)
  assert "'tokenizer.ggml.eos_token_id' is missing" in error_of(file)
  write(file, "gpt-2", bos_token_id=9_999)
  assert "bos_token_id 9999 is not one of" in error_of(file)
  write(file, "llama-bpe", bos_token_id=None)
  assert "tokenizer.ggml.bos_token_id is missing" in error_of(file)
  tiny_gguf.write(file)
  assert "'tokenizer.ggml.model' is missing" in error_of(file)


def test_merges_and_types_that_do_not_fit_the_tokens_are_named(tmp_path):
  def write_with(types, merges):
    return tiny_gguf.write(
      tmp_path / "x.gguf",
      lambda writer: (
        writer.add_tokenizer_model("gpt2"),
        writer.add_tokenizer_pre("gpt-2"),
        writer.add_token_list(["a", "b", EOS]),
        writer.add_eos_token_id(2),
        writer.add_token_types(types),
        writer.add_token_merges(merges),
      ),
    )

  assert "3 tokens and 2 token types" in error_of(write_with([1, 3], ["a b"]))
  for merge in ("a b", "ab"):
    message = error_of(write_with([1, 1, 3], [merge]))
    assert "merges do not fit the tokens" in message
