import pytest

from pdpo_jax.core import structs
from pdpo_jax.data import template_worker, templates
from tests.data import template_cases

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
LOOP = (
  "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
  "{% endfor %}"
)
DOUBLE = (
  "{% set ns = namespace(x='x') %}{% for i in range(40) %}"
  "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
)


def tokenizer_of(template):
  tokenizer = template_cases.make("wordpiece", None)
  tokenizer.name_or_path = "some/base"
  tokenizer.chat_template = template
  return tokenizer


@pytest.fixture
def impatient(monkeypatch):
  worker = templates._Worker(seconds=1, patience=20.0)
  monkeypatch.setattr(templates, "_worker", worker)
  yield worker
  worker.close()


@pytest.mark.parametrize(
  ("template", "message"),
  [
    (LOOP, "more than 1 seconds"),
    (LOOP.replace("{% endfor %}", "x" * 99 + "{% endfor %}", 1), "characters"),
    ("{{ 'x' * 2147483648 }}", "memory"),
    ("{{ 'x' | center(2147483648) }}", "memory"),
    ("{{ '%2147483648d' % 1 }}", "memory"),
    (DOUBLE, "memory|1 seconds"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "Recursion"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages }", "is broken .line 1: unexpected"),
    ("{% for m in messages %}\n{{ m.content }}", "is broken .line 2"),
    ("{{ messages | swallow }}", "is broken .line 1: No filter"),
    ("{{ unheard.of }}", "'unheard' is undefined"),
  ],
)
def test_a_template_that_is_broken_or_asks_too_much_is_an_error(
  template, message, impatient
):
  with pytest.raises(ValueError, match=message) as error:
    templates.ChatTemplate(tokenizer_of(template + TURNS))
  assert "the chat template of some/base" in str(error.value)
  templates.ChatTemplate(tokenizer_of(TURNS))


def test_a_worker_that_does_not_answer_is_ended_and_started_again(impatient):
  impatient._patience = 1.0
  slow = "{{ 9 ** (9 ** 9) }}" + TURNS
  with pytest.raises(ValueError, match=r"its process bears, .* -9\)?; mend"):
    templates.ChatTemplate(tokenizer_of(slow))
  impatient._patience = 20.0
  templates.ChatTemplate(tokenizer_of(TURNS))


def test_a_limit_holds_for_what_some_dialogues_alone_set_off(impatient):
  template = TURNS + "{% if messages | length > 3 %}" + LOOP + "{% endif %}"
  chat = templates.ChatTemplate(tokenizer_of(template))
  with pytest.raises(ValueError, match="more than 1 seconds"):
    chat.render([[structs.Message("user", "x")] * 4])


def test_a_template_without_the_answer_is_an_error():
  with pytest.raises(ValueError, match="leaves the text of an answer out"):
    templates.ChatTemplate(tokenizer_of("Hello."))


def test_a_template_that_asks_for_a_system_message_is_taken():
  strict = (
    "{% if messages[0].role != 'system' %}{{ raise_exception('who am I') }}"
    "{% endif %}" + TURNS
  )
  chat = templates.ChatTemplate(tokenizer_of(strict))
  assert chat.takes_system
  bare, told = chat.render(
    [
      [structs.Message("user", "x")],
      [structs.Message("system", "y"), structs.Message("user", "x")],
    ]
  )
  assert bare == templates.Refused("who am I")
  assert told == "<system>y<user>x"


def test_today_is_always_the_same_day():
  template = "{{ strftime_now('%B %Y') }}, {{ date_string }}" + TURNS
  chat = templates.ChatTemplate(tokenizer_of(template))
  (text,) = chat.render([[structs.Message("user", "x")]])
  assert text == "July 2024, 26 Jul 2024<user>x"
  assert template_worker.DATE.year == 2024


@pytest.mark.parametrize(
  ("name", "asked", "before"),
  [
    ("chatml_ignores_generation", "<|im_end|>\\n'", "assistant\\n'"),
    ("r1_strips_earlier_thoughts", "<think>\\n'", "<|assistant|>'"),
    ("qwen3_empty_thought", "assistant\\n'", "</think>\\n\\n'"),
  ],
)
def test_a_generation_prompt_that_no_answer_follows_is_warned_of(
  name, asked, before, caplog
):
  templates._warn.cache_clear()
  tokenizer = template_cases.make("gpt2", name)
  templates.ChatTemplate(tokenizer)
  templates.ChatTemplate(tokenizer)
  (record,) = caplog.records
  first, _, second = record.getMessage().partition(", and writes ")
  assert first.endswith(asked)
  assert second.partition(" before an answer")[0].endswith(before)


def test_an_ordinary_generation_prompt_is_not_warned_of(caplog):
  for name in ("chatml", "llama2", "llama31", "zephyr", "mistral", "phi"):
    templates.ChatTemplate(template_cases.make("gpt2", name))
  assert not caplog.records
