import collections
import logging

import numpy as np
import pytest
import tokenizers

from pdpo_jax.core import structs
from pdpo_jax.data import config as data_config
from pdpo_jax.data import prompts, tokenize, users

TEXTS = ("a cat sat on the mat.", "the dog ate the cat food.", " so what?")
CHAT = (
  "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WITHOUT_SYSTEM = (
  "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
  + CHAT
)


DATED = (
  "{% if date_string is not defined %}"
  "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
  "Today is {{ date_string }}." + CHAT
)
IN_TURNS = (
  "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
  "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHAT
)


def make_tokenizer(template=None, bos=False, texts=TEXTS):
  tokenizer = tokenize.train_tokenizer(texts * 3, 300)
  special = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
  tokenizer.add_special_tokens({"additional_special_tokens": special})
  tokenizer.chat_template = template
  if bos:
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    backend = tokenizer.backend_tokenizer
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single="<|begin|> $A",
      special_tokens=[("<|begin|>", tokenizer.bos_token_id)],
    )
  return tokenizer


def dialogue(*texts):
  roles = ("user", "assistant")
  return tuple(
    structs.Message(roles[place % 2], text) for place, text in enumerate(texts)
  )


def encode(tokenizer, prompt, user_text="", template="auto", limit=100):
  counts = collections.Counter()
  encoder = prompts.PromptEncoder(tokenizer, template, limit)
  (ids,) = encoder.encode([structs.PromptExample(prompt, user_text)], counts)
  return None if ids is None else tokenizer.decode(ids), +counts


def test_a_plain_prompt_stands_after_the_user_text():
  text, counts = encode(make_tokenizer(), "the cat", "so what?")
  assert text == "so what?\n\nthe cat"
  assert not counts


def test_a_plain_prompt_loses_its_beginning_and_no_user_text():
  tokenizer = make_tokenizer()
  text, counts = encode(tokenizer, "xyz" * 9 + " the cat", "so", limit=6)
  assert text.startswith("so\n\n")
  assert text.endswith(" the cat")
  assert len(tokenizer(text)["input_ids"]) == 6
  assert counts == {"prompts cut": 1}


def test_a_dialogue_without_a_template_names_the_speakers():
  text, _ = encode(
    make_tokenizer(CHAT), dialogue("the cat", "sat", "so?"), "I", "plain"
  )
  assert (
    text == "I\n\nUser: the cat\n\nAssistant: sat\n\nUser: so?\n\nAssistant:"
  )


def test_the_template_has_the_user_text_as_its_system_message():
  text, _ = encode(make_tokenizer(CHAT), dialogue("a", "b", "c"), "I am")
  assert text == (
    "<|system|>I am<|end|>\n<|user|>a<|end|>\n<|assistant|>b<|end|>\n"
    "<|user|>c<|end|>\n<|assistant|>"
  )
  text, _ = encode(make_tokenizer(CHAT), "a")
  assert text == "<|user|>a<|end|>\n<|assistant|>"


def test_a_system_message_of_the_dialogue_comes_before_the_user_text():
  turns = (structs.Message("system", "Be kind."), *dialogue("a"))
  text, _ = encode(make_tokenizer(CHAT), turns, "I am")
  assert text.startswith("<|system|>Be kind.\n\nI am<|end|>\n<|user|>a<|end|>")


def test_a_prompt_is_the_same_on_any_day():
  text, _ = encode(make_tokenizer(DATED), "the cat")
  assert text.startswith("Today is 26 Jul 2024.")


TWICE = (
  structs.Message("user", "a cat"),
  structs.Message("user", "so what?"),
)


def test_a_dialogue_that_the_template_refuses_is_counted_and_explained():
  counts = collections.Counter()
  encoder = prompts.PromptEncoder(make_tokenizer(IN_TURNS), "auto", 100)
  asked = [structs.PromptExample(TWICE), structs.PromptExample("a cat")]
  refused, whole = encoder.encode_prompts(asked, counts)
  assert refused.ids is None and refused.detail == "roles must alternate"
  assert whole.ids is not None
  assert +counts == {"dialogues that the template refuses": 1}


def test_a_prompt_for_generation_that_the_template_refuses_is_an_error():
  encoder = prompts.PromptEncoder(make_tokenizer(IN_TURNS), "auto", 100)
  message = (
    "refuses a prompt \\(roles must alternate\\), whose last turn begins "
  )
  with pytest.raises(ValueError, match=message + "'so what"):
    tokenize.encode_prompts([structs.PromptExample(TWICE)], encoder)


def test_a_template_without_system_has_the_user_text_in_the_first_turn():
  text, _ = encode(make_tokenizer(WITHOUT_SYSTEM), dialogue("a"), "I am")
  assert text == "<|user|>I am\n\na<|end|>\n<|assistant|>"


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_the_oldest_turns_go_first(template):
  tokenizer = make_tokenizer(CHAT)
  turns = dialogue("the mat", "sat", "the dog", "ate", "the cat")
  whole, _ = encode(tokenizer, turns, "I", template)
  limit = len(tokenizer(whole)["input_ids"]) - 1
  text, counts = encode(tokenizer, turns, "I", template, limit)
  expected, _ = encode(tokenizer, turns[2:], "I", template)
  assert text == expected
  assert counts == {"prompts cut": 1}


def test_a_system_message_is_no_turn_and_stays():
  tokenizer = make_tokenizer(CHAT)
  system = structs.Message("system", "so")
  turns = (system, *dialogue("the mat", "sat", "the cat"))
  whole, _ = encode(tokenizer, turns)
  limit = len(tokenizer(whole)["input_ids"]) - 1
  text, _ = encode(tokenizer, turns, limit=limit)
  assert text == encode(tokenizer, (system, *dialogue("the cat")))[0]


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_the_last_turn_is_never_cut(template):
  turns = dialogue("the mat", "sat", "the dog ate the cat food")
  text, counts = encode(make_tokenizer(CHAT), turns, "", template, 8)
  assert text is None
  assert counts == {"last turns too long": 1}


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_long_system_message_is_reported_as_such(template):
  turns = (structs.Message("system", "the dog ate " * 9), *dialogue("a cat"))
  tokenizer = make_tokenizer(CHAT)
  rest, _ = encode(tokenizer, turns[1:], "", template)
  limit = len(tokenizer(rest)["input_ids"])
  text, counts = encode(tokenizer, turns, "", template, limit)
  assert text is None
  assert counts == {"system messages too long": 1}


JAPANESE = "私は東京に住んでいます。😀 Größe: 静かな本が好きです"


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_user_text_is_never_cut_inside_of_a_character(template):
  tokenizer = make_tokenizer(CHAT)
  size = len(tokenizer(JAPANESE)["input_ids"])
  for limit in range(2, 2 * size + 2):
    counts = collections.Counter()
    encoder = prompts.PromptEncoder(tokenizer, template, limit)
    encoder.encode([structs.PromptExample("a", JAPANESE)], counts)
    (kept,) = encoder._shortened.values()
    assert JAPANESE.startswith(kept)
    assert len(tokenizer(kept)["input_ids"]) <= limit // 2
    # As much as fits.
    more = JAPANESE[: len(kept) + 1]
    assert kept == JAPANESE or len(tokenizer(more)["input_ids"]) > limit // 2
    assert (kept != JAPANESE) == counts["user texts cut"]


@pytest.mark.parametrize(
  "cluster",
  ["e\u0301", "👩\u200d👩\u200d👧", "👍\U0001f3fd", "❤\ufe0f", "\r\n", "नि"],
)
def test_no_text_is_cut_inside_of_what_reads_as_one_character(cluster):
  tokenizer = make_tokenizer()
  text = f"x{cluster}y"
  for limit in range(2, 2 * len(tokenizer(text)["input_ids"])):
    encoder = prompts.PromptEncoder(tokenizer, "plain", limit)
    encoder.encode([structs.PromptExample("a", text)], collections.Counter())
    (kept,) = encoder._shortened.values()
    assert kept in ("", "x", f"x{cluster}", text)
    (prompt,) = encoder.encode_prompts(
      [structs.PromptExample(text)], collections.Counter()
    )
    assert prompt.text in ("y", f"{cluster}y", text)


@pytest.mark.parametrize("limit", range(5, 40))
def test_a_plain_prompt_keeps_as_much_of_its_end_as_fits(limit):
  tokenizer = make_tokenizer(bos=True)
  prompt = "the dog ate the cat food, so what? 静かな本😀"
  text, counts = encode(tokenizer, prompt, "", "plain", limit)
  kept = text.removeprefix("<|begin|>")
  assert prompt.endswith(kept) and kept
  assert len(tokenizer(kept)["input_ids"]) <= limit
  assert (kept != prompt) == counts["prompts cut"]


def test_a_long_user_text_keeps_its_beginning_and_half_the_room():
  tokenizer = make_tokenizer(CHAT)
  text, counts = encode(tokenizer, dialogue("a"), "the cat ate " * 9, limit=20)
  kept = text.removeprefix("<|system|>").partition("<|end|>")[0]
  assert "the cat ate the cat ate".startswith(kept[:20])
  assert 8 <= len(tokenizer(kept)["input_ids"]) <= 10
  assert counts == {"user texts cut": 1}


@pytest.mark.parametrize("template", [None, CHAT, "<|begin|>" + CHAT])
def test_there_is_exactly_one_bos(template):
  tokenizer = make_tokenizer(template, bos=True)
  text, _ = encode(tokenizer, "the cat", "I")
  assert text.startswith("<|begin|>")
  assert text.count("<|begin|>") == 1
  plain, _ = encode(tokenizer, "xyz the cat", limit=3)
  assert template or plain == "<|begin|> the cat"


def test_no_bos_where_the_tokenizer_adds_none():
  text, _ = encode(make_tokenizer(), "the cat")
  assert text == "the cat"


def encode_response(tokenizer, template, prompt, text):
  """Ids of a prompt and of the response to it, and what was counted."""
  counts = collections.Counter()
  encoder = prompts.PromptEncoder(tokenizer, template, 50)
  encoded = encoder.encode_prompts([structs.PromptExample(prompt)], counts)
  ((ids,),) = encoder.encode_responses(encoded, [(text,)], counts)
  return encoded[0].ids, ids, +counts


def test_a_response_ends_as_the_template_ends_a_turn():
  tokenizer = make_tokenizer(CHAT)
  for template, prompt, expected in (
    ("chat", "a", "sat<|end|>"),
    ("plain", "a", " sat <|endoftext|>"),
    ("plain", dialogue("a"), " sat<|endoftext|>"),
  ):
    _, ids, _ = encode_response(tokenizer, template, prompt, " sat ")
    assert tokenizer.decode(ids) == expected


def test_of_a_template_without_end_tokens_a_turn_ends_with_the_texts():
  # What stands after a turn is before the next one, and no part of it.
  named = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
  )
  tokenizer = make_tokenizer(named)
  prompt, ids, _ = encode_response(tokenizer, "chat", dialogue("a"), "sat")
  assert tokenizer.decode(prompt) == "user: a\n\nassistant: "
  assert tokenizer.decode(ids) == "sat<|endoftext|>"


def test_prompt_and_response_are_what_the_template_writes():
  tokenizer = make_tokenizer(CHAT)
  turns = dialogue("the cat", "sat", "so?")
  prompt, response, _ = encode_response(tokenizer, "chat", turns, "the mat")
  whole = tokenizer.apply_chat_template(
    [
      {"role": t.role, "content": t.content}
      for t in dialogue("the cat", "sat", "so?", "the mat")
    ],
    tokenize=False,
  )
  assert tokenizer.decode(np.concatenate([prompt, response])) == whole.rstrip()


@pytest.mark.parametrize(
  ("prompt", "message"),
  [
    ((), "prompt 0 of 1 is empty"),
    (dialogue("a", "b"), "ends with a turn of 'assistant'"),
    ((structs.Message("robot", "a"),), r"the roles \['robot'\]"),
  ],
)
def test_faulty_prompts_are_named(prompt, message):
  with pytest.raises(ValueError, match=message):
    encode(make_tokenizer(), prompt)


def test_a_chat_without_a_template_is_an_error():
  with pytest.raises(ValueError, match="the tokenizer has no chat template"):
    prompts.PromptEncoder(make_tokenizer(), "chat", 50)


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_prompts_for_generation_are_those_of_training(template, caplog):
  tokenizer = make_tokenizer(CHAT)
  encoder = prompts.PromptEncoder(tokenizer, template, 20)
  asked = [
    structs.PromptExample("the cat", "so what? " * 9),
    structs.PromptExample("a dog"),
  ]
  examples = [
    structs.PreferenceExample(p.prompt, "a", ("b",), None, p.user_text)
    for p in asked
  ]
  trained = tokenize.tokenize_examples(
    examples, encoder, users.UserIndex([]), 20
  )
  with caplog.at_level(logging.WARNING):
    found = tokenize.encode_prompts(asked, encoder)
  for ids, example in zip(found, trained.examples, strict=True):
    np.testing.assert_array_equal(ids, example.prompt)
  assert "2 prompts of at most 20 tokens: 1 user texts cut" in caplog.text


@pytest.mark.parametrize(
  ("template", "begins"),
  [(None, False), (CHAT, False), ("{{ bos_token }}" + CHAT, True)],
)
@pytest.mark.parametrize("puts_bos", [False, True])
@pytest.mark.parametrize("add_bos", [False, True])
def test_a_prompt_begins_with_one_bos_where_anyone_puts_it(
  template, begins, puts_bos, add_bos
):
  tokenizer = make_tokenizer(template, bos=puts_bos)
  bos = tokenizer.bos_token_id
  encoder = prompts.PromptEncoder(tokenizer, "auto", 100, add_bos)
  asked = [structs.PromptExample("the cat", text) for text in ("", "so what?")]
  expected = puts_bos or add_bos or begins
  assert encoder.begins_with_bos == expected
  for ids in encoder.encode(asked, collections.Counter()):
    assert (ids[0] == bos) == expected
    assert (ids == bos).sum() == expected


def test_bos_is_asked_for_in_vain_of_a_tokenizer_that_has_none():
  tokenizer = make_tokenizer()
  tokenizer.bos_token = None
  assert not prompts.PromptEncoder(tokenizer, "plain", 9).begins_with_bos
  with pytest.raises(ValueError, match="tokenizer has no bos_token"):
    prompts.PromptEncoder(tokenizer, "plain", 9, add_bos=True)


def test_a_template_may_be_given_in_place_of_the_tokenizers():
  ours = CHAT.replace("<|end|>", "<|end|>!")
  for template in (None, IN_TURNS):
    text, _ = encode(make_tokenizer(template), "a", "I am", ours)
    assert text == "<|system|>I am<|end|>!\n<|user|>a<|end|>!\n<|assistant|>"


def test_with_keep_start_the_encoder_leaves_prompts_and_texts_whole():
  data = data_config.DataConfig(max_prompt_tokens=12, template="plain")
  asked = structs.PromptExample("the cat sat on the mat", "I am " * 9)
  lengths = {}
  for data.truncation in ("turns", "keep_start"):
    encoder = prompts.make_encoder(make_tokenizer(), data)
    counts = collections.Counter()
    (ids,) = encoder.encode([asked], counts)
    lengths[data.truncation] = len(ids), counts.total() > 0
  assert lengths["turns"] == (12, True)
  assert lengths["keep_start"][0] > 20 and not lengths["keep_start"][1]
