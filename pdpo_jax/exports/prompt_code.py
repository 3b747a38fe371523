"""Code for the card of an export: prompts as they were in training."""

from pdpo_jax.data import prompts as prompts_lib
from pdpo_jax.data import template_worker, templates

_PLAIN = """\
def encode(prompt, user_text=""):
  check_words(prompt + user_text)
  return token_ids(f"{{user_text}}\\n\\n{{prompt}}" if user_text else prompt)


{functions}"""
_CHAT = """\
def encode(prompt, user_text=""):
  check_words(prompt + user_text)
  turns = [{{"role": "user", "content": prompt}}]
  if user_text:
    {tell}
  # What the template writes before an answer, whatever that is.
  turns.append({{"role": "assistant", "content": "{answer}"}})
  text = tokenizer.apply_chat_template(
    turns, tokenize=False, date_string="{date:%d %b %Y}"
  )
  return token_ids(text.rpartition("{answer}")[0])


{functions}"""
_TELL_SYSTEM = 'turns.insert(0, {"role": "system", "content": user_text})'
_TELL_USER = 'turns[0]["content"] = f"{user_text}\\n\\n{prompt}"'
# As `text_tokens.TextTokens.prompts`.
_FUNCTIONS = """\
def check_words(text):
  # In training they were text, which takes more than the tokenizer to say.
  for token in tokenizer.added_tokens_decoder.values():
    if token.special and token.content in text:
      raise ValueError(f"the text has the control token {{token.content}}")


def token_ids(text):
  # The tokens that stand before a word; the space before it belongs to it.
  spaced = text[-1:].isspace()
  ids = tokenizer(text + "a" * spaced, add_special_tokens=False).input_ids
  return {front} + ids[: len(ids) - spaced]"""


def encode(encoder: prompts_lib.PromptEncoder) -> str:
  """Code that makes token ids of a prompt as `encoder` does.

  Its `tokenizer` is the one of an export (`contents.Contents.tokenizer`).
  """
  functions = _FUNCTIONS.format(front=encoder.front.tolist())
  if not encoder.chat:
    return _PLAIN.format(functions=functions)
  return _CHAT.format(
    tell=_TELL_SYSTEM if encoder.takes_system else _TELL_USER,
    answer=templates.ANSWER,
    date=template_worker.DATE,
    functions=functions,
  )
