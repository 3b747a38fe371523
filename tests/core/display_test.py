"""What others wrote is shown as text, in a terminal, a shell and Markdown."""

import io
import logging as python_logging
import subprocess
import sys
import unicodedata

import pytest
from absl import logging

from pdpo_jax import command_line
from pdpo_jax.core import display
from tests.evaluation import hostile


@pytest.mark.parametrize("text", hostile.NAMES)
def test_a_terminal_gets_no_command(text):
  for shown in (display.visible(text), display.name(text)):
    assert all(each.isprintable() or each == "\n" for each in shown)


def test_what_is_seen_stays_as_it_is():
  for text in (
    "Zoë",
    "田中",
    "שלום",
    "😀",
    "👩‍👩‍👧",
    "a\tb\nc",
    "می‌خواهم",
    " ",
  ):
    assert display.visible(text) == text


@pytest.mark.parametrize("category", ["Cc", "Cf", "Cs", "Zl", "Zp"])
def test_what_is_unseen_is_an_escape(category):
  characters = [
    chr(code)
    for code in range(0x30000)
    if unicodedata.category(chr(code)) == category
    and chr(code) not in "\n\t\u200c\u200d"
  ]
  shown = display.visible("".join(characters))
  assert shown.isascii() and shown.count("\\") == len(characters)


def test_a_name_is_one_line_of_limited_length():
  assert display.name("ann\nbob\tcy") == r"ann\nbob\tcy"
  assert display.name("x" * 40) == "x" * 40
  assert display.name("a" * 50 + "b" * 50) == "a" * 20 + "…" + "b" * 19
  assert len(display.name("\x1b" * 50, 24)) == 24


@pytest.mark.parametrize(
  "text", [*(each for each in hostile.NAMES if each.isascii()), "é\x85", "it's"]
)
def test_a_shell_reads_what_was_written(text):
  text = text.replace("\x00", "")  # which no argument can hold
  for quoted in (display.for_shell(text), display.ansi_quoted(text)):
    assert "\n" not in quoted and display.visible(quoted) == quoted
    got = subprocess.run(
      ["bash", "-c", f"printf %s {quoted}"],
      capture_output=True,
      check=True,
      env={"LC_ALL": "C.UTF-8"},
    )
    assert got.stdout.decode() == text


def test_numbers_and_our_own_words_are_readable_in_markdown():
  for text in ("64.47 [60.1, 70.2]", "-3.0 ± 0.1", "a (--against), 5%: b"):
    assert display.markdown(text).replace("\\", "") == text
  assert display.markdown("64.47 (-1.0)") == "64.47 (-1.0)"


def test_what_is_logged_and_printed_is_harmless(monkeypatch):
  handler = logging.get_absl_handler()
  before = handler.python_handler.formatter
  terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
  monkeypatch.setattr(sys, "stdout", terminal)
  try:
    command_line._show_harmlessly()
    record = python_logging.LogRecord(
      "x", python_logging.WARNING, "x.py", 1, "%s is bad", ("\x1b[2J",), None
    )
    assert r"\x1b[2J is bad" in handler.format(record)
    # A terminal that has no such character is no end of a run.
    print("─ 田")
    terminal.flush()
    assert terminal.buffer.getvalue() == b"\\u2500 \\u7530\n"
  finally:
    handler.setFormatter(before)
