"""What is trained on is what the template would say, for all of them."""

import itertools

import numpy as np
import pytest

from pdpo_jax import structs
from pdpo_jax.data import prompts, tokenize, users
from tests.data import template_cases

DIALOGUE = (
  ("user", "Hi, how are you?"),
  ("assistant", "Not at all."),
  ("user", "How long does it take?"),
)
RESPONSES = ("Ten minutes.", "Who are you?", "60 of us sat.", "(Ten)")
TEXT = "I am 60 years old."


def render(tokenizer, turns):
  return tokenizer.apply_chat_template(
    [{"role": role, "content": content} for role, content in turns],
    tokenize=False,
    date_string="26 Jul 2024",
  )


def with_text(tokenizer, turns, text):
  """A user's text as the system message, or in the first turn."""
  if not text:
    return turns
  try:
    told = (("system", text), *turns)
    if text in render(tokenizer, [*told, ("assistant", "x")]):
      return told
  except Exception as error:
    assert "System" in str(error) or str(error) == "no"
  role, content = turns[0]
  return ((role, f"{text}\n\n{content}"), *turns[1:])


def ids_of(tokenizer, text):
  return tokenizer(text, add_special_tokens=False)["input_ids"]


def encode(tokenizer, template, prompt, text, responses, counts=None):
  encoder = prompts.PromptEncoder(tokenizer, template, 500)
  tokenized = tokenize.tokenize_examples(
    [
      structs.PreferenceExample(prompt, responses[0], responses[1:], None, text)
    ],
    encoder,
    users.UserIndex([]),
    100,
  )
  if counts is not None:
    counts.update(+tokenized.counts)
  return tokenized.examples[0]


def up_to_end(tokenizer, ids, start):
  """Ids up to the first special token from a place on, or to an EOS."""
  special = {
    number
    for number, token in tokenizer.added_tokens_decoder.items()
    if token.special
  }
  for place in range(start, len(ids)):
    if ids[place] in special:
      return ids[: place + 1]
  return [*ids, tokenizer.eos_token_id]


@pytest.mark.parametrize("text", ["", TEXT])
@pytest.mark.parametrize("template", template_cases.TEMPLATES)
@pytest.mark.parametrize("name", template_cases.TOKENIZERS)
def test_prompt_and_response_are_the_whole_dialogue(name, template, text):
  tokenizer = template_cases.make(name, template)
  turns = tuple(itertools.starmap(structs.Message, DIALOGUE))
  example = encode(tokenizer, "auto", turns, text, RESPONSES)
  asked = with_text(tokenizer, DIALOGUE, text)
  prompt = example.prompt.tolist()
  for ids, response in zip(example.responses, RESPONSES, strict=True):
    whole = ids_of(
      tokenizer, render(tokenizer, [*asked, ("assistant", response)])
    )
    if whole[0] != tokenizer.bos_token_id:
      whole.insert(0, tokenizer.bos_token_id)
    assert up_to_end(tokenizer, whole, len(prompt)) == [*prompt, *ids.tolist()]
    # It is the response alone, not the end of what stands before it.
    decoded = tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert squeeze(decoded) == squeeze(response)
    assert np.isin(ids, tokenizer.all_special_ids).sum() <= 1


def squeeze(text):
  """Without what some tokenizers lose: case and space."""
  return "".join(text.lower().split())
