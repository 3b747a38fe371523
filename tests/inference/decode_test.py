import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdpo_jax.inference import decode, generate, sampling
from tests.inference import tiny

GREEDY = sampling.AnswersConfig(max_new_tokens=13, temperature=0.0)
SAMPLED = sampling.AnswersConfig(max_new_tokens=13)
FILTERED = sampling.AnswersConfig(
  max_new_tokens=13,
  min_new_tokens=5,
  temperature=1.5,
  top_k=40,
  top_p=0.9,
  repetition_penalty=1.3,
  no_repeat_ngram=2,
)
PENALIZED = dataclasses.replace(FILTERED, penalize_prompt=True)
PAD = 2
STOPS = tiny.STOPS


def mixed_requests():
  """Users and prompt lengths mixed, the shortest and the longest included."""
  rng = np.random.default_rng(0)
  return [
    generate.Request(
      rng.integers(0, 101, length).astype(np.int32), user_row=row, seed=seed
    )
    for seed, (length, row) in enumerate(
      [(1, 0), (5, 1), (17, 4), (2, 1), (11, 2), (5, 3), (23, 0)]
    )
  ]


def answers(model, requests, spec, batch_size=7, stop_tokens=STOPS):
  texts = generate.generate(
    model,
    requests,
    spec,
    stop_tokens=stop_tokens,
    pad_id=PAD,
    batch_size=batch_size,
  )
  return [text.tolist() for text in texts]


@pytest.mark.parametrize("preset", ["gptj-tiny", "llama-tiny"])
@pytest.mark.parametrize(
  ("kind", "prefix_position", "spec"),
  [
    ("individual", "front", GREEDY),
    ("individual", "front", SAMPLED),
    ("individual", "front", FILTERED),
    ("individual", "after_bos", SAMPLED),
    ("individual", "after_bos", PENALIZED),
    ("cluster", "front", SAMPLED),
    ("cluster", "after_bos", GREEDY),
    ("none", "front", FILTERED),
  ],
)
def test_decoding_with_a_cache_equals_decoding_without(
  preset, kind, prefix_position, spec
):
  model = tiny.make_policy(preset, kind, prefix_position)
  requests = mixed_requests()
  texts = answers(model, requests, spec)
  assert texts == tiny.answers_without_cache(model, requests, spec)
  # The test is only as good as the texts are varied.
  assert len({token for text in texts for token in text}) > 10


@pytest.mark.parametrize("preset", ["gptj-tiny", "llama-tiny"])
def test_the_user_changes_the_answer(preset):
  model = tiny.make_policy(preset)
  prompt = np.arange(5, dtype=np.int32)
  requests = [generate.Request(prompt, user_row=row) for row in range(5)]
  texts = answers(model, requests, GREEDY)
  assert len(set(map(tuple, texts))) == 5


@pytest.mark.parametrize("spec", [SAMPLED, FILTERED])
def test_the_same_seed_gives_the_same_text_alone_and_among_others(spec):
  model = tiny.make_policy("llama-tiny")
  requests = mixed_requests()
  together = answers(model, requests, spec)
  alone = [answers(model, [request], spec)[0] for request in requests]
  backwards = answers(model, requests[::-1], spec)[::-1]
  pairs = answers(model, requests, spec, batch_size=2)
  assert together == alone == backwards == pairs


def test_another_seed_gives_another_text():
  model = tiny.make_policy("llama-tiny")
  prompt = np.arange(5, dtype=np.int32)
  requests = [generate.Request(prompt, seed=seed) for seed in (0, 1, 2**32 - 1)]
  texts = answers(model, requests, SAMPLED, stop_tokens=())
  assert len(set(map(tuple, texts))) == 3


def run_decode(model, prompts, spec, stop_tokens=STOPS, mask=None):
  prompts = jnp.asarray(prompts)
  rows = prompts.shape[0]
  return decode.decode(
    *nnx.split(model),
    prompts,
    jnp.ones(prompts.shape, bool) if mask is None else mask,
    jnp.zeros((rows,), jnp.int32),
    jnp.arange(rows, dtype=jnp.uint32),
    jnp.asarray(stop_tokens, jnp.int32),
    spec=spec,
    pad_id=PAD,
  )


def test_pad_follows_an_answer_and_the_stop_token_is_not_counted():
  model = tiny.make_policy("gptj-tiny")
  prompts = np.random.default_rng(0).integers(0, 101, (17, 5))
  free, full = run_decode(model, prompts, SAMPLED, stop_tokens=[])
  assert (full == SAMPLED.max_new_tokens).all()
  tokens, lengths = run_decode(model, prompts, SAMPLED)
  for row in range(17):
    stops = np.flatnonzero(np.isin(free[row], STOPS))
    end = stops[0] if len(stops) else SAMPLED.max_new_tokens
    assert lengths[row] == end
    np.testing.assert_array_equal(tokens[row, :end], free[row, :end])
    assert (tokens[row, end:] == PAD).all()
  assert 0 < (lengths < SAMPLED.max_new_tokens).sum() < 17


def test_what_lies_under_the_mask_does_not_matter():
  model = tiny.make_policy("gptj-tiny")
  mask = jnp.arange(9)[None] >= jnp.asarray([[4], [7]])
  texts = [
    run_decode(model, jnp.where(mask, 5, junk), SAMPLED, mask=mask)[0]
    for junk in (0, 77)
  ]
  np.testing.assert_array_equal(*texts)


def always_say(model, token):
  """Rigs the head of a GPT-J so that `token` wins at every step."""
  model = nnx.merge(*nnx.split(model))  # others use it too
  bias = model.lm.lm_head.bias
  model.lm.lm_head.bias = nnx.Param(bias[...].at[token].set(1e4))
  return model


@pytest.mark.parametrize("spec", [GREEDY, SAMPLED])
def test_an_answer_is_empty_if_it_stops_at_once(spec):
  model = always_say(tiny.make_policy("gptj-tiny"), 7)
  assert answers(model, mixed_requests(), spec) == [[]] * 7


def test_min_new_tokens_holds_back_a_stop_token_that_wins():
  model = always_say(tiny.make_policy("gptj-tiny"), 7)
  spec = sampling.AnswersConfig(max_new_tokens=11, min_new_tokens=4)
  texts = answers(model, mixed_requests(), spec)
  assert [len(text) for text in texts] == [4] * 7
  assert not any(token in STOPS for text in texts for token in text)


def test_a_ban_on_repeats_reaches_the_text():
  model = always_say(tiny.make_policy("gptj-tiny"), 5)
  spec = sampling.AnswersConfig(max_new_tokens=11, no_repeat_ngram=1)
  for text in answers(model, mixed_requests(), spec, stop_tokens=()):
    assert text[0] == 5
    assert len(set(text)) == 11


def test_the_loop_ends_when_every_row_has_stopped(monkeypatch):
  model = always_say(tiny.make_policy("gptj-tiny"), 7)
  steps = []
  choose = sampling.choose

  def counted(logits, keys, count, spec):
    jax.debug.callback(lambda _: steps.append(1), count)
    return choose(logits, keys, count, spec)

  monkeypatch.setattr(sampling, "choose", counted)
  spec = sampling.AnswersConfig(max_new_tokens=12, min_new_tokens=3)
  run_decode(model, np.ones((3, 4), np.int32), spec)
  jax.effects_barrier()
  assert len(steps) == 4


def test_no_new_tokens_run_no_step():
  model = tiny.make_policy("gptj-tiny")
  spec = sampling.AnswersConfig(max_new_tokens=0)
  tokens, lengths = run_decode(model, np.ones((3, 4), np.int32), spec)
  assert tokens.shape == (3, 0)
  assert lengths.tolist() == [0, 0, 0]
  assert answers(model, mixed_requests(), spec) == [[]] * 7


def test_one_new_token_needs_no_cache():
  model = tiny.make_policy("llama-tiny")
  requests = mixed_requests()
  spec = sampling.AnswersConfig(max_new_tokens=1, temperature=0.0)
  assert answers(model, requests, spec) == (
    tiny.answers_without_cache(model, requests, spec)
  )
