"""Text out of tokens that come one by one."""

import numpy as np
import pytest

from pdpo_jax.data import tokenize
from pdpo_jax.serving import texts

TEXTS = (
  "plain words, with a comma",
  " leading space and\n\nlines",
  "Grüße, 東京, नमस्ते, 👩‍👩‍👧 and 🏳️‍🌈!",
  "a�b",
  "",
)


@pytest.fixture(scope="module")
def tokenizer():
  return tokenize.train_tokenizer(["some words and a few more words"], 280)


def in_pieces(tokenizer, ids):
  detokenizer = texts.Detokenizer(tokenizer)
  return [*map(detokenizer.add, ids), detokenizer.end()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_the_text_and_none_has_half_a_character(tokenizer, text):
  ids = tokenizer(text).input_ids
  pieces = in_pieces(tokenizer, ids)
  assert "".join(pieces) == tokenizer.decode(ids) == text
  if "�" not in text:
    assert not any("�" in piece for piece in pieces)


def test_bytes_that_are_no_text_are_given_out_all_the_same(tokenizer):
  rng = np.random.default_rng(0)
  for _ in range(50):
    ids = rng.integers(0, len(tokenizer), 40).tolist()
    pieces = in_pieces(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    # Not all of it at the end.
    assert sum(map(bool, pieces[:-1])) > 5


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(
  ("stops", "text", "given"),
  [
    (["END"], "some END and more", "some "),
    (["END"], "some EN and E", "some EN and E"),
    (["aab"], "aaaab", "aa"),
    (["x", "wx"], "vwxy", "v"),
    (["\n\n"], "one\n two\n\nthree", "one\n two"),
    ([], "all of it", "all of it"),
    (["all"], "all", ""),
  ],
)
def test_a_text_ends_before_the_first_stop(stops, text, given, size):
  stopper = texts.Stopper(stops)
  out = []
  for start in range(0, len(text), size):
    out.append(stopper.add(text[start : start + size]))
    assert given.startswith("".join(out))
    if stopper.stopped:
      break
  out.append(stopper.end())
  assert "".join(out) == given and stopper.length == len(given)
  assert stopper.stopped == (given != text)


def test_the_bytes_of_tokens_are_those_of_the_text(tokenizer):
  names = texts.TokenNames(tokenizer)
  for text in TEXTS:
    ids = tokenizer(text).input_ids
    told = [byte for token in ids for byte in names.bytes_of(token)]
    assert bytes(told).decode() == text
