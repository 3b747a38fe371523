"""Chat templates and tokenizers as models have them, small."""

import functools

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers

TEXTS = (
  "Ten minutes.",
  "How long does it take? I am 60 years old.",
  "Today Date: Cutting Knowledge Date: user assistant system model",
  "[INST] <<SYS>> Hi, how are you? [/INST] Not at all. What? Who are you?",
  "Be kind. (Ten) of us sat on the mat.",
)
# Written by some templates; special tokens of the tokenizers here.
MARKS = (
  "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>",
  "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
  "<start_of_turn>", "<end_of_turn>", "<|end|>",
)  # fmt: skip

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] +"
  " '<|im_end|>' + '\n' }}{% endfor %}"
)
LLAMA3 = (
  "{% set turns = messages %}{% for m in turns %}{% set content ="
  " '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content']"
  " | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token"
  " + content %}{% endif %}{{ content }}{% endfor %}{% if"
  " add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>"
  "\n\n' }}{% endif %}"
)
R1 = (
  "{% set ns = namespace(told='') %}{% for m in messages %}"
  "{% if m.role == 'system' %}{% set ns.told = m.content %}{% endif %}"
  "{% endfor %}{{ bos_token }}{{ ns.told }}{% for m in messages %}"
  "{% if m.role == 'user' %}{{ '<|user|>' + m.content }}{% elif m.role =="
  " 'assistant' %}{% set c = m.content %}{% if '</think>' in c %}{% set c ="
  " c.split('</think>')[-1] %}{% endif %}{{ '<|assistant|>' + c + eos_token }}"
  "{% endif %}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|assistant|><think>\n' }}{% endif %}"
)
LLAMA2 = (
  "{% if messages[0].role == 'system' %}{% set told = '<<SYS>>\n' +"
  " messages[0].content + '\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}"
  "{% else %}{% set told = '' %}{% set turns = messages %}{% endif %}"
  "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('roles must alternate') }}{% endif %}"
  "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (told if loop.first"
  " else '') + m.content.strip() + ' [/INST]' }}{% else %}"
  "{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
  "chatml": CHATML
  + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
  "chatml_ignores_generation": CHATML,
  "llama2": LLAMA2,
  "llama3": LLAMA3,
  "llama31": "{{- bos_token }}{%- if not date_string is defined %}"
  "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
  "{%- if messages[0]['role'] == 'system' %}{%- set told ="
  " messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
  "{%- else %}{%- set told = '' %}{%- endif %}"
  "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
  "{{- 'Cutting Knowledge Date: December 2023\n' }}"
  "{{- 'Today Date: ' + date_string + '\n\n' }}{{- told }}{{- '<|eot_id|>' }}"
  "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] +"
  " '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
  "{%- endfor %}{%- if add_generation_prompt %}"
  "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
  "zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content +"
  " eos_token + '\n' }}{% if loop.last and add_generation_prompt %}"
  "{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
  "r1_strips_earlier_thoughts": R1,
  "qwen3_empty_thought": "{% for m in messages %}{% set c = m.content %}"
  "{% set t = '' %}{% if '</think>' in c %}{% set t = c.split('</think>')[0]"
  ".split('<think>')[-1].strip() %}{% set c = c.split('</think>')[-1]"
  ".lstrip() %}{% endif %}{{ '<|im_start|>' + m.role + '\n' }}"
  "{% if m.role == 'assistant' and loop.last %}"
  "{{ '<think>\n' + t + '\n</think>\n\n' }}{% endif %}{{ c + '<|im_end|>\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
  "{% if enable_thinking is defined and enable_thinking is false %}"
  "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
  "strict_gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}"
  "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0)"
  " %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
  "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
  "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim +"
  " '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<start_of_turn>model\n' }}{% endif %}",
  "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
  "{{ '[INST] ' + m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
  "{{ m.content + eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}"
  "{% endfor %}",
  "ends_only_the_last": "{% for m in messages %}{{ '\n' + m.role | upper +"
  " ': ' + m.content | trim }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '\nASSISTANT: ' }}{% else %}{{ eos_token }}{% endif %}",
  "phi": "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\n' +"
  " m['content'] + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
  "generation_tag": "{% for m in messages %}{% if m.role == 'assistant' %}"
  "{{ '<|assistant|>' }}{% generation %}{{ m.content + '<|end|>' }}"
  "{% endgeneration %}{% else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>'"
  " }}{% endif %}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|assistant|>' }}{% endif %}",
  "tools": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages"
  " %}{% if m.tool_calls is defined and m.tool_calls %}{% continue %}"
  "{% endif %}{{ '<|im_start|>' ~ m['role'] ~ '\n' ~ m['content'] ~"
  " '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n' }}{% endif %}",
}


def _merges(texts, pieces) -> list[tuple[str, str]]:
  """A merge for each two of the pieces that make a third."""
  return [
    (piece[:place], piece[place:])
    for piece in pieces
    for place in range(1, len(piece))
    if piece[:place] in pieces and piece[place:] in pieces
  ]


def byte_level() -> tokenizers.Tokenizer:
  """As Llama 3: a word takes one character before it along."""
  model = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(
        tokenizers.Regex(
          r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
      ),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  model.decoder = decoders.ByteLevel()
  return _trained_bpe(model)


def gpt2() -> tokenizers.Tokenizer:
  model = tokenizers.Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  model.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
  return _trained_bpe(model)


def _trained_bpe(model) -> tokenizers.Tokenizer:
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=600,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  # Blank lines and words without a space before them are tokens, too.
  texts = [*TEXTS, "a\n\n", "x\n\n\n", " (Ten", "Ten\n\nHow", "\n"] * 4
  model.train_from_iterator(texts, trainer)
  return model


def _pieces() -> list[str]:
  words = {w for text in TEXTS for w in text.split()} | {"Ten", "How", "H"}
  pieces = {"▁"} | {c for text in TEXTS for c in text if c != " "}
  for word in words:
    pieces |= {word[:n] for n in range(1, len(word) + 1)}
    pieces |= {"▁" + word[:n] for n in range(1, len(word) + 1)}
  return sorted(pieces - {"Ten"})


def sentencepiece_bpe(legacy: bool) -> tokenizers.Tokenizer:
  """As Llama 2: legacy puts a space behind each special token."""
  pieces = _pieces()
  names = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
  vocab = {piece: number for number, piece in enumerate([*names, *pieces])}
  merges = sorted(_merges(TEXTS, set(pieces)), key=lambda m: len(m[0] + m[1]))
  model = tokenizers.Tokenizer(
    models.BPE(
      vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
  )
  if legacy:
    model.normalizer = normalizers.Sequence(
      [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
  else:
    model.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme="first", split=False
    )
  model.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  return model


def unigram(scheme: str = "always") -> tokenizers.Tokenizer:
  pieces = [(piece, -8.0 - 1 / len(piece)) for piece in _pieces()]
  names = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
  vocab = [(name, -20.0) for name in names] + pieces
  model = tokenizers.Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
  model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
  model.decoder = decoders.Metaspace(prepend_scheme=scheme)
  return model


def lowercase_unigram() -> tokenizers.Tokenizer:
  """Strips and lowers what it reads, as ALBERT does."""
  model = unigram()
  model.normalizer = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()]
  )
  return model


def wordpiece() -> tokenizers.Tokenizer:
  letters = sorted({c for text in TEXTS for c in text.lower() if c != " "})
  words = sorted({w for text in TEXTS for w in text.lower().split()})
  names = ["<unk>", "<s>", "</s>", *letters]
  names += [f"##{c}" for c in letters] + [w for w in words if w.isalpha()]
  vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
  model = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
  model.normalizer = normalizers.BertNormalizer()
  model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  model.decoder = decoders.WordPiece()
  return model


TOKENIZERS = {
  "byte_level": byte_level,
  "gpt2": gpt2,
  "sentencepiece_legacy": functools.partial(sentencepiece_bpe, True),
  "sentencepiece_first": functools.partial(sentencepiece_bpe, False),
  "unigram": unigram,
  "unigram_first": functools.partial(unigram, "first"),
  "lowercase_unigram": lowercase_unigram,
  "wordpiece": wordpiece,
}


@functools.cache
def _backend(name: str) -> str:
  return TOKENIZERS[name]().to_str()


def make(
  name: str, template: str | None, post: str = "bos"
) -> transformers.PreTrainedTokenizerFast:
  """A tokenizer with a chat template, by names.

  Args:
    post: what the tokenizer puts around a text: "bos", "bos_eos", "eos", "".
  """
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer.from_str(_backend(name)),
    bos_token="<s>",
    eos_token="</s>",
    clean_up_tokenization_spaces=False,
  )
  tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
  # As models that think have them: added, and no special ones.
  tokenizer.add_tokens(["<think>", "</think>"])
  tokenizer.chat_template = template and TEMPLATES[template]
  pattern = {
    "bos": "<s> $A", "bos_eos": "<s> $A </s>", "eos": "$A </s>", "": "$A"
  }[post]  # fmt: skip
  tokenizer.backend_tokenizer.post_processor = (
    tokenizers.processors.TemplateProcessing(
      single=pattern,
      special_tokens=[("<s>", 1), ("</s>", 2)]
      if name not in ("byte_level", "gpt2")
      else [("<s>", 0), ("</s>", 1)],
    )
  )
  return tokenizer
