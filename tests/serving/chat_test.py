"""What a chat is answered with, by OpenAI's own client and the real engine."""

import dataclasses
import json
import urllib.parse

import pytest

from pdpo_jax.core import structs
from pdpo_jax.inference import respond
from pdpo_jax.runs import run as run_lib
from tests.runs import people_run
from tests.runs.people_run import ANN, BEA, DEE, EVE
from tests.serving import served


@pytest.mark.parametrize("user", [None, ANN, BEA, DEE, EVE, "nobody"])
def test_an_answer_is_that_of_generate(at, client, user):
  got = served.chat(client, user=user or "")
  run = run_lib.Run.open(at.room.run.workdir)
  # Of whoever was learnt, `generate` has a row as well.
  row = run.own.users.row_or_generic(user)
  answers = dataclasses.replace(
    run.config.answers, temperature=0.0, max_new_tokens=8
  )
  text = run.user_texts.get(user, "")
  (said,) = respond.respond(
    run.own.policy,
    run.base,
    [structs.PromptExample(served.PROMPT, text)],
    [row],
    [0],
    answers,
    run.config.data,
  )
  assert got.choices[0].message.content == said
  is_known = user in (ANN, BEA, DEE, EVE)
  assert got.person == {"id": user, "known": is_known}
  assert got.usage.prompt_tokens > run.config.user.prefix_length


@pytest.mark.parametrize(
  "who",
  [
    {"user": ANN},
    {"extra_body": {"safety_identifier": ANN}},
    {"extra_headers": {"pdpo-user": urllib.parse.quote(ANN)}},
    {"model": f"run:{ANN}"},
    {"model": f"run:{ANN}", "user": BEA},
    {"user": ANN, "extra_body": {"safety_identifier": BEA}},
    {"user": f" {ANN}\u200b "},
  ],
)
def test_who_asks_may_be_said_in_several_ways(client, who):
  answer = client.chat.completions.with_raw_response.create(
    **{"model": "run", "messages": served.TURNS, "max_tokens": 1} | who
  )
  assert answer.headers["pdpo-person"] == "known"
  assert answer.parse().person == {"id": ANN, "known": True}


def test_an_unknown_person_is_the_generic_one_and_told_so(client):
  answer = client.chat.completions.with_raw_response.create(
    model="run", messages=served.TURNS, max_tokens=1, user="nobody"
  )
  assert answer.headers["pdpo-person"] == "generic"
  assert answer.parse().person == {"id": "nobody", "known": False}


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 - 1])
def test_a_seed_gives_the_same_answers(client, seed):
  values = {"seed": seed, "temperature": 1, "n": 3, "top_p": 0.9}
  first, again = (served.chat(client, **values) for _ in range(2))
  texts = [choice.message.content for choice in first.choices]
  assert texts == [choice.message.content for choice in again.choices]
  assert [choice.index for choice in first.choices] == [0, 1, 2]
  assert len({*texts}) > 1
  chosen = [x for x in served.chat(client, **values | {"n": 1}).choices]
  assert chosen[0].message.content == texts[0]


def test_without_a_seed_answers_differ(client):
  texts = {
    served.chat(client, temperature=1, max_tokens=16).choices[0].message.content
    for _ in range(4)
  }
  assert len(texts) > 1


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("stop", [None, "e", ["zzz", " "]])
@pytest.mark.parametrize("logprobs", [False, True])
def test_a_stream_is_the_whole_answer(client, n, stop, logprobs):
  values = {"n": n, "stop": stop, "seed": 3, "temperature": 1} | (
    {"logprobs": True, "top_logprobs": 2} if logprobs else {}
  )
  whole = served.chat(client, **values)
  texts, tokens, ends, roles, usage = {}, {}, {}, {}, None
  for chunk in served.chat(
    client, stream=True, stream_options={"include_usage": True}, **values
  ):
    assert chunk.object == "chat.completion.chunk"
    if not chunk.choices:
      usage = chunk.usage
    for choice in chunk.choices:
      place = choice.index
      assert place not in ends
      roles.setdefault(place, choice.delta.role)
      texts[place] = texts.get(place, "") + (choice.delta.content or "")
      if choice.logprobs:
        tokens.setdefault(place, []).extend(choice.logprobs.content)
      if choice.finish_reason:
        ends[place] = choice.finish_reason
  for choice in whole.choices:
    place = choice.index
    assert roles[place] == "assistant"
    assert texts[place] == choice.message.content
    assert ends[place] == choice.finish_reason
    for each in [stop] if isinstance(stop, str) else stop or []:
      assert each not in texts[place]
    if logprobs:
      told = choice.logprobs.content
      assert [x.token for x in tokens[place]] == [x.token for x in told]
      text = bytes(byte for token in told for byte in token.bytes)
      assert text.decode(errors="replace").startswith(texts[place])
      assert all(len(token.top_logprobs) == 2 for token in told)
  assert usage == whole.usage
  assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_the_likeliest_tokens_are_told_with_their_logprobs(client):
  answer = served.chat(client, logprobs=True, top_logprobs=5)
  for token in answer.choices[0].logprobs.content:
    best = token.top_logprobs[0]
    assert (best.token, best.logprob) == (token.token, token.logprob)
    logprobs = [each.logprob for each in token.top_logprobs]
    assert logprobs == sorted(logprobs, reverse=True) and logprobs[0] <= 0
  without = served.chat(client, logprobs=True).choices[0].logprobs.content
  assert all(token.top_logprobs == [] for token in without)
  assert served.chat(client).choices[0].logprobs is None


@pytest.mark.parametrize("most", [1, 5])
def test_an_answer_has_at_most_so_many_tokens(client, most):
  for name in ("max_tokens", "max_completion_tokens"):
    answer = client.chat.completions.create(
      model="run", messages=served.TURNS, temperature=0, **{name: most}
    )
    assert answer.usage.completion_tokens == most
    assert answer.choices[0].finish_reason == "length"


def test_nothing_of_top_p_is_the_likeliest(client):
  likeliest = served.chat(client).choices[0].message.content
  assert served.chat(client, temperature=1, top_p=0).choices[
    0
  ].message.content == (likeliest)


@pytest.mark.parametrize(
  "turns",
  [
    [{"role": "system", "content": "Be short."}, *served.TURNS],
    [{"role": "developer", "content": "Be short."}, *served.TURNS],
    [*served.TURNS, {"role": "assistant", "content": "ok"}, *served.TURNS],
    [{"role": "user", "content": [{"type": "text", "text": served.PROMPT}]}],
  ],
)
def test_dialogues_and_parts_are_answered(client, turns):
  assert served.chat(client, messages=turns).choices[0].finish_reason


def test_a_dialogue_is_written_as_in_training(at, client):
  turns = [*served.TURNS, {"role": "assistant", "content": "ok"}, *served.TURNS]
  prompt = tuple(structs.Message(**turn) for turn in turns)
  run = at.room.run
  answers = dataclasses.replace(
    run.config.answers, temperature=0.0, max_new_tokens=8
  )
  (said,) = respond.respond(
    at.room.speakers.policy,
    run.base,
    [structs.PromptExample(prompt, f"I am {people_run.mark(ANN)}.")],
    [run.own.table.row_of(ANN)],
    [0],
    answers,
    run.config.data,
  )
  answer = served.chat(client, messages=turns, user=ANN)
  assert answer.choices[0].message.content == said


def test_somebody_else_answers_without_a_name(at, client):
  speakers = at.room.speakers
  for user in (ANN, "nobody"):
    other = speakers.unlike(speakers.find(user))
    assert other.id is None and other.known == "trained"
    answer = served.chat(client, user=user, extra_body={"unlike": True})
    assert answer.person == {"id": None, "known": True}
  ann = speakers.find(ANN)
  assert abs(speakers.unlike(ann).prefix - ann.prefix).max() > 0


def test_a_pair_is_of_two_people_whom_somebody_may_be(at, client):
  answer = client.chat.completions.create(
    model="run", messages=served.TURNS, temperature=0, max_tokens=2, user="new"
  )
  status, content, _ = served.call(
    at,
    "POST",
    "/v1/pairs",
    {"model": "run", "messages": served.TURNS, "user": "new", "max_tokens": 2},
  )
  pair = json.loads(content)
  assert status == 200 and pair["person"] == answer.person
  assert [choice["index"] for choice in pair["choices"]] == [0, 1]
  voices = at.room.speakers.pair(at.room.speakers.find("new"))
  assert abs(voices[0].prefix - voices[1].prefix).max() > 0


def test_fields_that_nobody_knows_are_let_pass(client):
  answer = served.chat(
    client,
    extra_body={"whatever": {"a": 1}, "tools": [], "response_format": None},
    store=True,
    metadata={"a": "b"},
    frequency_penalty=0,
    logit_bias={},
  )
  assert answer.choices
