"""Text of others, made fit to be shown.

Ids of users, names of runs, prompts and answers are data. Where they are shown
they must not become anything else: no command of a terminal, no markup, and no
line or page of their own.
"""

import re
import shlex
import unicodedata

# Joiners are invisible, and parts of emoji and of words in many scripts.
_JOINERS = "\u200c\u200d"
# Control, format and half characters; separators of lines and paragraphs.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# What begins something in CommonMark, GitHub's dialect or mathematics.
_MARKS = re.compile(r"([\\`*_\[\]|~$])")
# At the beginning of a line: a heading, an item of a list, a rule.
_LINE_MARK = re.compile(r"^([#+=-])(?=[#+=-]*(?: |$))|^(\d+)(?=[.)](?: |$))")
# Addresses are links without any mark.
_ADDRESS = re.compile(r"(?i)\b(https?|ftp|mailto|xmpp):|\b(www)\.")


def visible(text: str) -> str:
  r"""The text with what is unseen, or is for a machine, as an escape: \x1b.

  Ends of lines and tabs stay.
  """
  return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
  if character in "\n\t" or character in _JOINERS:
    return character
  if unicodedata.category(character) in _UNSEEN:
    return escaped(character)
  return character


def escaped(character: str) -> str:
  r"""As Python writes it: \x1b, \u202e, \U0001f600."""
  return character.encode("unicode_escape").decode()


def name(text: str, longest: int = 40) -> str:
  """A name on one line, with the middle left out where it is too long."""
  text = visible(text).replace("\n", r"\n").replace("\t", r"\t")
  if len(text) <= longest:
    return text
  end = (longest - 1) // 2
  return f"{text[: longest - 1 - end]}…{text[-end:]}"


def markdown(text: str) -> str:
  """A text of one paragraph, in which no mark of Markdown or HTML is one."""
  text = " ".join(visible(text).split())
  text = _MARKS.sub(r"\\\1", text)
  text = _LINE_MARK.sub(lambda m: f"\\{m[1]}" if m[1] else f"{m[2]}\\", text)
  text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
  return _ADDRESS.sub(
    lambda m: f"{m[1]}&#58;" if m[1] else f"{m[2]}&#46;", text
  )


def for_shell(text: str) -> str:
  """A word that bash reads as the text, and that a terminal shows harmlessly.

  Where quotes do not do, it is bash's `$'…'`.
  """
  plain = visible(text) == text and not set("\n\t") & set(text)
  return shlex.quote(text) if plain else ansi_quoted(text)


def ansi_quoted(text: str) -> str:
  """A word as bash's `$'…'`."""
  text = text.replace("\\", "\\\\").replace("'", "\\'")
  return f"$'{''.join(map(_for_bash, text))}'"


def _for_bash(character: str) -> str:
  if character not in "\n\t" and _visible(character) == character:
    return character
  if ord(character) < 128:
    return escaped(character)
  # \x is a byte there, not a character.
  return f"\\U{ord(character):08x}"
