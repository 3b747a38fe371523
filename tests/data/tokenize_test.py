import subprocess
import sys

import numpy as np
import pytest
import transformers

from pdpo_jax.core import structs
from pdpo_jax.data import prompts, tokenize, users
from tests.data import prompts_test

TEXTS = ("a cat sat on the mat.", "the dog ate the cat food.", " so what?")
INDEX = users.UserIndex(["ann", "bob"])


@pytest.fixture(scope="module")
def tokenizer():
  return tokenize.train_tokenizer(TEXTS * 3, 300)


def example(**kwargs):
  fields = {"prompt": "the cat", "chosen": " sat", "rejected": (" ate",)}
  return structs.PreferenceExample(**(fields | kwargs))


def run(tokenizer, *examples, prompt=50, response=20, long_response="error"):
  encoder = prompts.PromptEncoder(tokenizer, "plain", prompt)
  return tokenize.tokenize_examples(
    examples, encoder, INDEX, response, long_response
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
  result = run(tokenizer, example(rejected=(" ate", " what"), user_id="bob"))
  (one,) = result.examples
  assert one.user_row == 2
  assert one.prompt.dtype == np.int32
  assert tokenizer.decode(one.prompt) == "the cat"
  decoded = [tokenizer.decode(response) for response in one.responses]
  assert decoded == [f"{t}<|endoftext|>" for t in (" sat", " ate", " what")]
  assert all(response.dtype == np.int32 for response in one.responses)
  assert str(result) == "1 examples; nothing cut"


def test_the_bare_prompt_is_without_the_users_text(tokenizer):
  one, two = run(tokenizer, example(user_text="so"), example()).examples
  assert tokenizer.decode(one.prompt) == "so\n\nthe cat"
  assert tokenizer.decode(one.bare_prompt) == "the cat"
  np.testing.assert_array_equal(two.prompt, one.bare_prompt)
  assert two.user_row == 0


def test_a_response_over_the_limit_is_an_error(tokenizer):
  mat = example(chosen=" sat on the mat")
  size = len(run(tokenizer, mat).examples[0].responses[0])
  run(tokenizer, mat, response=size)
  with pytest.raises(
    ValueError, match=rf"examples\[0\].*{size} tokens .* limit of {size - 1}"
  ):
    run(tokenizer, mat, response=size - 1)


def test_a_long_rejected_response_is_dropped_alone(tokenizer):
  long = " sat on the mat and so on"
  examples = (
    example(rejected=(" ate", long)),
    example(rejected=(long,)),
    example(chosen=long),
    example(),
  )
  result = run(tokenizer, *examples, response=5, long_response="drop")
  assert result.kept == [0, 3]
  assert [len(one.responses) for one in result.examples] == [2, 2]
  assert result.counts["responses too long"] == 3
  assert result.counts["comparisons dropped"] == 2
  assert "2 comparisons dropped" in str(result)


def test_no_rejected_response_takes_the_place_of_a_long_chosen_one(tokenizer):
  mat = example(chosen=" sat on the mat on", rejected=(" ate", " what"))
  result = run(tokenizer, mat, example(), response=4, long_response="drop")
  assert result.kept == [1]


def test_a_response_that_is_cut_has_no_end(tokenizer):
  mat = example(chosen=" sat on the mat and so on")
  (whole,) = run(tokenizer, mat).examples
  result = run(tokenizer, mat, response=5, long_response="cut")
  chosen, rejected = result.examples[0].responses
  np.testing.assert_array_equal(chosen, whole.responses[0][:5])
  assert rejected[-1] == tokenizer.eos_token_id != chosen[-1]
  assert result.counts["responses cut"] == 1


def test_responses_that_are_alike_after_a_cut_are_no_pair(tokenizer):
  examples = (
    example(chosen=" sat on the mat.", rejected=(" sat on the cat food.",)),
    example(chosen=" sat on the mat.", rejected=(" sat on the cat.", " ate")),
    example(),
  )
  result = run(tokenizer, *examples, response=3, long_response="cut")
  assert result.kept == [1, 2]
  assert [len(one.responses) for one in result.examples] == [2, 2]
  reason = "rejected responses with the chosen one's tokens"
  assert result.counts[reason] == 2
  assert result.counts["comparisons dropped"] == 1


def test_responses_that_differ_by_an_end_token_alone_are_no_pair(tokenizer):
  same = example(rejected=(" sat<|endoftext|>",))
  assert run(tokenizer, same, example()).kept == [1]


def strict_encoder():
  tokenizer = prompts_test.make_tokenizer(prompts_test.IN_TURNS)
  return prompts.PromptEncoder(tokenizer, "chat", 50)


TWICE = example(prompt=prompts_test.TWICE, user_id="ann", place="a.jsonl:18")


def test_a_dialogue_that_the_template_refuses_is_dropped(caplog):
  examples = [*[example()] * 17, TWICE, *[example(user_text="so")] * 162]
  result = tokenize.tokenize_examples(
    examples, strict_encoder(), INDEX, 20, max_bad_share=0.01
  )
  assert result.kept == [place for place in range(180) if place != 17]
  assert result.counts["dialogues that the template refuses"] == 1
  assert result.counts["comparisons dropped"] == 1
  for words in (
    "1 of 180",
    "examples[17] (user 'ann'), from a.jsonl:18",
    "begins 'so what?'",
    "roles must alternate",
  ):
    assert words in caplog.text


def test_more_refused_dialogues_than_may_be_bad_are_an_error():
  message = r"2 of 3 .* data.max_bad_share 0.5[\s\S]*a.jsonl:18"
  with pytest.raises(ValueError, match=message):
    tokenize.tokenize_examples(
      [TWICE, example(), TWICE], strict_encoder(), INDEX, 20, "drop", 0.5
    )


def test_nothing_left_is_an_error_with_the_counts(tokenizer):
  with pytest.raises(ValueError, match=r"none of 2 .* 2 responses too long"):
    run(
      tokenizer,
      example(chosen=" sat on the mat"),
      example(chosen=" on the mat on"),
      response=3,
      long_response="drop",
    )


def test_a_last_turn_over_the_limit_is_an_error_or_dropped(tokenizer):
  turns = (structs.Message("user", "the dog ate the cat food " * 3),)
  examples = (example(), example(prompt=turns, user_id="ann"))
  with pytest.raises(ValueError, match=r"examples\[1\] \(user 'ann'\).* 12"):
    run(tokenizer, *examples, prompt=12)
  result = run(tokenizer, *examples, prompt=12, long_response="drop")
  assert result.kept == [0]
  assert result.counts["last turns too long"] == 1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"prompt": ""}, "prompt 1 of 2 is empty"),
    ({"rejected": ()}, r"examples\[1\].* no rejected"),
  ],
)
def test_faulty_examples_are_named(tokenizer, fields, message):
  with pytest.raises(ValueError, match=message):
    run(tokenizer, example(), example(**fields))


def test_an_empty_response_is_its_end_token(tokenizer):
  (tokens,) = run(tokenizer, example(rejected=("", " a"))).examples
  assert tokens.responses[1].tolist() == [tokenizer.eos_token_id]
  assert len(tokens.responses[2]) > 1


@pytest.mark.parametrize("limits", [{"prompt": 0}, {"response": 0}])
def test_limits_below_one_are_an_error(tokenizer, limits):
  with pytest.raises(ValueError, match="tokens 0 must be 1 or more"):
    run(tokenizer, example(), **limits)


def test_pairs_may_have_an_empty_response(tokenizer):
  encoder = prompts.PromptEncoder(tokenizer, "plain", 9)
  pairs = tokenize.tokenize_pairs([("the cat", ""), ("a dog", " ate")], encoder)
  assert pairs[0][1].tolist() == [tokenizer.eos_token_id]
  assert tokenizer.decode(pairs[1][1]) == " ate<|endoftext|>"


def trl_truncates(prompt, responses, most, room):
  """`_truncate_tokens` of TRL 0.10.1's DPO trainer, "keep_start"."""
  longest = max(map(len, responses))
  if len(prompt) + longest > most + room:
    prompt = prompt[:most]
  if len(prompt) + longest > most + room:
    responses = [ids[:room] for ids in responses]
  return prompt, responses


@pytest.mark.parametrize("most", [3, 8, 13])
@pytest.mark.parametrize("room", [2, 5, 9])
def test_keep_start_cuts_as_trl_does(tokenizer, most, room):
  examples = [
    example(
      prompt=" the cat" * words,
      chosen=" sat" * long,
      rejected=(" ate" * short,),
      user_text=" dog" * told,
      user_id="ann",
    )
    for words in (1, 5, 9)
    for long, short in ((1, 2), (4, 1), (9, 8), (2, 9))
    for told in (0, 3)
  ]
  encoder = prompts.PromptEncoder(tokenizer, "plain", 1000)
  whole = tokenize.tokenize_examples(examples, encoder, INDEX, 1000)
  cut = tokenize.tokenize_examples(
    examples, encoder, INDEX, room, "cut", kept_start=most
  )
  assert cut.kept == whole.kept == list(range(24))
  prompts_cut = 0
  for before, after in zip(whole.examples, cut.examples, strict=True):
    for name in ("prompt", "bare_prompt"):
      prompt, responses = trl_truncates(
        getattr(before, name), before.responses, most, room
      )
      np.testing.assert_array_equal(getattr(after, name), prompt)
      if name == "prompt":
        prompts_cut += len(prompt) < len(before.prompt)
        for found, expected in zip(after.responses, responses, strict=True):
          np.testing.assert_array_equal(found, expected)
  assert prompts_cut == cut.counts[prompts.PROMPT_CUT]
  assert 0 < prompts_cut < 24
