import collections
import logging
import subprocess
import sys

import numpy as np
import pytest
import transformers

from pdpo_jax import structs
from pdpo_jax.data import tokenize, users

TEXTS = ("a cat sat on the mat.", "the dog ate the cat food.", " so what?")
INDEX = users.UserIndex(["ann", "bob"])


@pytest.fixture(scope="module")
def tokenizer():
  return tokenize.train_tokenizer(TEXTS * 3, 300)


def example(**kwargs):
  fields = {"prompt": "the cat", "chosen": " sat", "rejected": (" ate",)}
  return structs.PreferenceExample(**(fields | kwargs))


def run(tokenizer, *examples, prompt=50, response=20):
  return tokenize.tokenize_examples(
    examples, tokenizer, INDEX, prompt, response
  )


def test_any_text_comes_back_and_nothing_is_put_in_front(tokenizer):
  text = " Größe 😀\n\tthe  cat ."
  ids = tokenizer(text)["input_ids"]
  assert tokenizer.decode(ids) == text
  assert tokenizer.eos_token_id not in ids
  assert tokenizer.eos_token == "<|endoftext|>"
  assert len(tokenizer(" the cat")["input_ids"]) == 2  # merged to words


def test_training_is_deterministic(tokenizer):
  again = tokenize.train_tokenizer(TEXTS * 3, 300)
  assert again.get_vocab() == tokenizer.get_vocab()
  assert 257 < len(tokenizer) <= 300


def test_saved_tokenizer_loads_without_torch(tokenizer, tmp_path):
  tokenizer.save_pretrained(tmp_path)
  again = transformers.AutoTokenizer.from_pretrained(tmp_path)
  text = "the cat sat; who knows?\n"
  assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
  assert again.eos_token_id == tokenizer.eos_token_id
  assert again.decode(again(" a , b")["input_ids"]) == " a , b"
  code = (
    "import sys; sys.modules['torch'] = None\n"
    "import transformers\n"
    f"t = transformers.AutoTokenizer.from_pretrained({str(tmp_path)!r})\n"
    "print(t.eos_token)"
  )
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == "<|endoftext|>"


def test_a_vocabulary_without_room_for_all_bytes_is_an_error():
  with pytest.raises(ValueError, match="vocab_size 256 must be 257 or more"):
    tokenize.train_tokenizer(TEXTS, 256)


def test_responses_end_with_eos_and_prompts_do_not(tokenizer):
  (one,), report = run(
    tokenizer, example(rejected=(" ate", " what"), user_id="bob")
  )
  assert one.user_row == 2
  assert one.prompt.dtype == np.int32
  assert tokenizer.decode(one.prompt) == "the cat"
  decoded = [tokenizer.decode(response) for response in one.responses]
  assert decoded == [f"{t}<|endoftext|>" for t in (" sat", " ate", " what")]
  assert all(response.dtype == np.int32 for response in one.responses)
  assert str(report) == ("1 examples tokenized: 0 prompt cut")


def test_user_text_stands_before_the_prompt_with_a_blank_line(tokenizer):
  (one, two), _ = run(tokenizer, example(user_text="so"), example())
  assert tokenizer.decode(one.prompt) == "so\n\nthe cat"
  assert tokenizer.decode(two.prompt) == "the cat"
  assert two.user_row == 0


def test_a_cut_keeps_the_prompts_end_and_is_counted(tokenizer):
  sample = example(prompt="xyz the cat")
  (whole,), _ = run(tokenizer, sample)
  samples = (sample, example(prompt="a"))
  (one, _), report = run(tokenizer, *samples, prompt=2)
  np.testing.assert_array_equal(one.prompt, whole.prompt[-2:])
  assert report.counts == {"prompt cut": 1}
  assert str(report) == "2 examples tokenized: 1 prompt cut"


def test_a_response_over_the_limit_is_an_error(tokenizer):
  sample = example(chosen=" sat on the mat")
  (whole,), _ = run(tokenizer, sample)
  size = len(whole.responses[0])
  run(tokenizer, sample, response=size)
  with pytest.raises(
    ValueError, match=rf"{size} tokens .* limit of {size - 1}"
  ):
    run(tokenizer, sample, response=size - 1)


def test_a_leading_bos_survives_a_cut(tokenizer):
  class WithBos:
    bos_token_id = 7

    def __call__(self, texts, add_special_tokens, **kwargs):
      start = [7] if add_special_tokens else []
      return {"input_ids": [start + list(map(ord, text)) for text in texts]}

  counts = collections.Counter()
  (ids,) = tokenize._prompts(["abcd"], [""], WithBos(), 3, counts)
  assert ids.tolist() == [7, ord("c"), ord("d")]
  assert counts["prompt cut"] == 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"prompt": ""}, "prompt 1 of 2 is empty"),
    ({"chosen": ""}, r"examples\[1\] \(user None\) has an empty chosen"),
    ({"rejected": (" a", "")}, r"examples\[1\].* empty rejected"),
    ({"rejected": ()}, r"examples\[1\].* no rejected"),
    ({"user_id": "bib"}, "'bib' is none of this run's 2 users; near: 'bob'"),
  ],
)
def test_faulty_samples_are_named(tokenizer, fields, message):
  with pytest.raises(ValueError, match=message):
    run(tokenizer, example(), example(**fields))


@pytest.mark.parametrize("limits", [{"prompt": 0}, {"response": 0}])
def test_limits_below_one_are_an_error(tokenizer, limits):
  with pytest.raises(ValueError, match="tokens 0 must be 1 or more"):
    run(tokenizer, example(), **limits)


def test_pairs_may_have_an_empty_response(tokenizer):
  pairs, report = tokenize.tokenize_pairs(
    [("the cat", ""), ("a dog", " ate")], tokenizer, 9, 9
  )
  assert pairs[0][1].tolist() == [tokenizer.eos_token_id]
  assert tokenizer.decode(pairs[1][1]) == " ate<|endoftext|>"
  assert report.num_examples == 2


def test_prompts_for_generation_are_those_of_training(tokenizer, caplog):
  samples = [example(user_text="so what?"), example(prompt="a dog ate")]
  trained, _ = run(tokenizer, *samples, prompt=5)
  with caplog.at_level(logging.WARNING):
    prompts = tokenize.encode_prompts(
      [sample.prompt for sample in samples],
      [sample.user_text for sample in samples],
      tokenizer,
      5,
    )
  for prompt, sample in zip(prompts, trained, strict=True):
    np.testing.assert_array_equal(prompt, sample.prompt)
  assert "1 of 2 prompts lost their beginning: over 5 tokens" in caplog.text
