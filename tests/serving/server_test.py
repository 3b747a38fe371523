"""What clients are told, by OpenAI's own client and the real engine."""

import dataclasses
import http.client
import json
import time
import urllib.parse

import openai
import pytest

from pdpo_jax.core import structs
from pdpo_jax.inference import respond
from pdpo_jax.runs import run as run_lib
from pdpo_jax.serving import guard
from tests.runs import people_run
from tests.runs.people_run import ANN, BEA, DEE, EVE
from tests.serving import served

PROMPT = "TITLE: a cat\nPOST: it sat.\nTL;DR"
TURNS = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def at(tmp_path_factory):
  folder = people_run.make(tmp_path_factory.mktemp("whole"))
  with (
    pytest.MonkeyPatch.context() as monkeypatch,
    served.room_of(folder, monkeypatch) as room,
    served.listening(room) as place,
  ):
    yield place


@pytest.fixture(scope="module")
def client(at):
  with openai.OpenAI(
    base_url=f"{at.url}/v1", api_key="none", max_retries=0
  ) as client:
    yield client


def chat(client, **values):
  return client.chat.completions.create(
    **{"model": "run", "messages": TURNS, "temperature": 0, "max_tokens": 8}
    | values
  )


def call(at, method, path, body=None, **headers):
  """A request as bytes, and the answer's status, body and headers."""
  parts = urllib.parse.urlsplit(at.url)
  connection = http.client.HTTPConnection(parts.hostname, parts.port, 20)
  if body is not None and not isinstance(body, bytes):
    body = json.dumps(body).encode()
  given = {"content-type": "application/json"} | {
    name.replace("_", "-"): value for name, value in headers.items()
  }
  connection.request(method, path, body, given)
  answer = connection.getresponse()
  content = answer.read()
  connection.close()
  return answer.status, content, answer.headers


@pytest.mark.parametrize("user", [None, ANN, BEA, DEE, EVE, "nobody"])
def test_an_answer_is_that_of_generate(at, client, user):
  got = chat(client, user=user or "")
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
    [structs.PromptExample(PROMPT, text)],
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
    **{"model": "run", "messages": TURNS, "max_tokens": 1} | who
  )
  assert answer.headers["pdpo-person"] == "known"
  assert answer.parse().person == {"id": ANN, "known": True}


def test_an_unknown_person_is_the_generic_one_and_told_so(client):
  answer = client.chat.completions.with_raw_response.create(
    model="run", messages=TURNS, max_tokens=1, user="nobody"
  )
  assert answer.headers["pdpo-person"] == "generic"
  assert answer.parse().person == {"id": "nobody", "known": False}


@pytest.mark.parametrize("seed", [0, 1, -5, 2**63 - 1])
def test_a_seed_gives_the_same_answers(client, seed):
  values = {"seed": seed, "temperature": 1, "n": 3, "top_p": 0.9}
  first, again = (chat(client, **values) for _ in range(2))
  texts = [choice.message.content for choice in first.choices]
  assert texts == [choice.message.content for choice in again.choices]
  assert [choice.index for choice in first.choices] == [0, 1, 2]
  assert len({*texts}) > 1
  chosen = [x for x in chat(client, **values | {"n": 1}).choices]
  assert chosen[0].message.content == texts[0]


def test_without_a_seed_answers_differ(client):
  texts = {
    chat(client, temperature=1, max_tokens=16).choices[0].message.content
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
  whole = chat(client, **values)
  texts, tokens, ends, roles, usage = {}, {}, {}, {}, None
  for chunk in chat(
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
  answer = chat(client, logprobs=True, top_logprobs=5)
  for token in answer.choices[0].logprobs.content:
    best = token.top_logprobs[0]
    assert (best.token, best.logprob) == (token.token, token.logprob)
    logprobs = [each.logprob for each in token.top_logprobs]
    assert logprobs == sorted(logprobs, reverse=True) and logprobs[0] <= 0
  without = chat(client, logprobs=True).choices[0].logprobs.content
  assert all(token.top_logprobs == [] for token in without)
  assert chat(client).choices[0].logprobs is None


@pytest.mark.parametrize("most", [1, 5])
def test_an_answer_has_at_most_so_many_tokens(client, most):
  for name in ("max_tokens", "max_completion_tokens"):
    answer = client.chat.completions.create(
      model="run", messages=TURNS, temperature=0, **{name: most}
    )
    assert answer.usage.completion_tokens == most
    assert answer.choices[0].finish_reason == "length"


def test_nothing_of_top_p_is_the_likeliest(client):
  likeliest = chat(client).choices[0].message.content
  assert chat(client, temperature=1, top_p=0).choices[0].message.content == (
    likeliest
  )


@pytest.mark.parametrize(
  "turns",
  [
    [{"role": "system", "content": "Be short."}, *TURNS],
    [{"role": "developer", "content": "Be short."}, *TURNS],
    [*TURNS, {"role": "assistant", "content": "ok"}, *TURNS],
    [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}],
  ],
)
def test_dialogues_and_parts_are_answered(client, turns):
  assert chat(client, messages=turns).choices[0].finish_reason


def test_a_dialogue_is_written_as_in_training(at, client):
  turns = [*TURNS, {"role": "assistant", "content": "ok"}, *TURNS]
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
  answer = chat(client, messages=turns, user=ANN)
  assert answer.choices[0].message.content == said


def test_completions_go_on_with_texts_and_tokens(at, client):
  ids = at.room.run.tokenizer(PROMPT).input_ids
  values = {"model": "run", "temperature": 0, "max_tokens": 6}
  texts = [
    client.completions.create(prompt=prompt, **values).choices
    for prompt in (PROMPT, ids, [PROMPT, PROMPT], [ids])
  ]
  assert [len(x) for x in texts] == [1, 1, 2, 1]
  assert len({choice.text for x in texts for choice in x}) == 1
  both = client.completions.create(prompt=[PROMPT, "other"], n=2, **values)
  assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
  assert both.choices[0].text == both.choices[1].text == texts[0][0].text
  told = client.completions.create(prompt=PROMPT, logprobs=2, **values)
  logprobs = told.choices[0].logprobs
  assert "".join(logprobs.tokens) == told.choices[0].text
  for place, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
    assert told.choices[0].text[place:].startswith(token)
  streamed = "".join(
    chunk.choices[0].text
    for chunk in client.completions.create(prompt=PROMPT, stream=True, **values)
  )
  assert streamed == texts[0][0].text


def test_a_pair_is_of_two_people_whom_somebody_may_be(at, client):
  answer = client.chat.completions.create(
    model="run", messages=TURNS, temperature=0, max_tokens=2, user="new"
  )
  status, content, _ = call(
    at,
    "POST",
    "/v1/pairs",
    {"model": "run", "messages": TURNS, "user": "new", "max_tokens": 2},
  )
  pair = json.loads(content)
  assert status == 200 and pair["person"] == answer.person
  assert [choice["index"] for choice in pair["choices"]] == [0, 1]
  voices = at.room.speakers.pair(at.room.speakers.find("new"))
  assert abs(voices[0].prefix - voices[1].prefix).max() > 0


def test_somebody_else_answers_without_a_name(at, client):
  speakers = at.room.speakers
  for user in (ANN, "nobody"):
    other = speakers.unlike(speakers.find(user))
    assert other.id is None and other.known == "trained"
    answer = chat(client, user=user, extra_body={"unlike": True})
    assert answer.person == {"id": None, "known": True}
  ann = speakers.find(ANN)
  assert abs(speakers.unlike(ann).prefix - ann.prefix).max() > 0


def test_models_are_the_run_and_its_people(client):
  assert [model.id for model in client.models.list()] == ["run"]
  for name in ("run", f"run:{ANN}", f"run:{DEE}"):
    assert client.models.retrieve(name).id == name
  for name in ("other", "run:nobody"):
    with pytest.raises(openai.NotFoundError) as error:
      client.models.retrieve(name)
    assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
  ("values", "param"),
  [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages"),
    ({"messages": [{"role": "alien", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"messages": [*TURNS, {"role": "assistant", "content": "x"}]}, "messages"),
    ({"messages": [*TURNS, {"role": "system", "content": "x"}]}, "messages"),
    (
      {
        "messages": [
          {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "x"}}],
          }
        ]
      },
      "messages",
    ),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"seed": 2**70}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 50}, "stop"),
    ({"logprobs": True, "top_logprobs": 50}, "top_logprobs"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"logit_bias": {"5": 10}}, "logit_bias"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"user": "a\x00b"}, "user"),
    ({"user": "x" * 5000}, "user"),
  ],
)
def test_what_cannot_be_is_refused_with_the_field(client, values, param):
  with pytest.raises(openai.BadRequestError) as error:
    chat(client, **values)
  assert error.value.param == param
  assert error.value.type == "invalid_request_error"
  assert param in error.value.message or error.value.message


@pytest.mark.parametrize(
  "values",
  [
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [10**6]},
    {"prompt": [-1]},
    {"prompt": [1] * 500},
    {"prompt": "x", "echo": True},
    {"prompt": "x", "suffix": "y"},
    {"prompt": "x", "best_of": 3},
    {"prompt": ["x"] * 40, "n": 4},
  ],
)
def test_completions_that_cannot_be_are_refused(client, values):
  with pytest.raises(openai.BadRequestError):
    client.completions.create(**{"model": "run", "max_tokens": 2} | values)


def test_an_unknown_model_is_not_found(client):
  with pytest.raises(openai.NotFoundError) as error:
    chat(client, model="gpt-5")
  assert error.value.code == "model_not_found"


@pytest.mark.parametrize(
  ("method", "path", "body", "status"),
  [
    ("POST", "/v1/chat/completions", b"{", 400),
    ("POST", "/v1/chat/completions", b"[]", 400),
    ("POST", "/v1/chat/completions", b"", 400),
    ("POST", "/v1/chat/completions", b'{"a": ' * 5000, 400),
    ("POST", "/v1/chat/completions", b"\xff\xfe", 400),
    ("POST", "/v1/chat/completions", b'{"model": "\\ud800"}', 400),
    (
      "POST",
      "/v1/chat/completions",
      b'{"model": "run", "messages": [], "top_p": NaN}',
      400,
    ),
    ("GET", "/v1/chat/completions", None, 405),
    ("POST", "/v1/models", b"{}", 405),
    ("GET", "/v1/none", None, 404),
    ("GET", "/none", None, 404),
    ("POST", "/v1/chat/completions", b" " * (guard._MOST + 1), 413),
  ],
)
def test_errors_have_openais_form(at, method, path, body, status):
  got, content, _ = call(at, method, path, body)
  assert got == status
  error = json.loads(content)["error"]
  assert {*error} == {"message", "type", "param", "code"}
  assert error["message"]


def test_a_page_of_others_cannot_post(at):
  body = {"model": "run", "messages": TURNS, "max_tokens": 1}
  status, *_ = call(
    at, "POST", "/v1/chat/completions", body, content_type="text/plain"
  )
  assert status == 400


def test_fields_that_nobody_knows_are_let_pass(client):
  answer = chat(
    client,
    extra_body={"whatever": {"a": 1}, "tools": [], "response_format": None},
    store=True,
    metadata={"a": "b"},
    frequency_penalty=0,
    logit_bias={},
  )
  assert answer.choices


def wait_until(condition):
  deadline = time.monotonic() + 15
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def slow_down(engine, seconds, monkeypatch):
  """Has each step take its time, so that slots stay taken."""
  step = engine._step

  def slow():
    time.sleep(seconds)
    step()

  monkeypatch.setattr(engine, "_step", slow)


def test_too_many_requests_are_told_to_wait(at, client, monkeypatch):
  engine = at.room.engine
  slow_down(engine, 0.2, monkeypatch)
  streams = [
    chat(client, stream=True, n=4, max_tokens=40, seed=1) for _ in range(2)
  ]
  with pytest.raises(openai.RateLimitError) as error:
    chat(client)
  assert error.value.response.headers["retry-after"] == "1"
  # Whoever goes makes room, in the queue as well.
  for stream in streams:
    stream.close()
  monkeypatch.undo()
  wait_until(lambda: engine.status().running + engine.status().waiting == 0)
  assert chat(client).choices


def test_whoever_goes_makes_room_while_nothing_is_streamed(at, monkeypatch):
  engine = at.room.engine
  slow_down(engine, 0.1, monkeypatch)
  parts = urllib.parse.urlsplit(at.url)
  connection = http.client.HTTPConnection(parts.hostname, parts.port)
  body = {"model": "run", "messages": TURNS, "max_tokens": 60, "seed": 1}
  headers = {"content-type": "application/json"}
  connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
  wait_until(lambda: engine.status().running == 1)
  before = engine.status().new_tokens
  connection.close()
  wait_until(lambda: engine.status().running == 0)
  assert engine.status().new_tokens < before + 50


def test_health_and_metrics_name_nobody(at, client):
  chat(client, user=ANN)
  assert call(at, "GET", "/health")[0] == 200
  status, content, _ = call(at, "GET", "/metrics")
  assert status == 200 and ANN.encode() not in content
  assert b"pdpo_new_tokens_total" in content
  assert b'route="/v1/chat/completions",status="200"' in content


def test_a_key_is_needed_where_there_is_one(at):
  with served.listening(at.room, key="sésame") as locked:
    for given in (None, "Bearer no", "Basic s", "Bearer", "Bearer sesame"):
      headers = {"authorization": given} if given else {}
      status, content, told = call(locked, "GET", "/v1/models", **headers)
      assert status == 401 and told["www-authenticate"] == "Bearer"
      assert json.loads(content)["error"]["code"] == "invalid_api_key"
    key = "Bearer sésame".encode().decode("latin-1")
    assert call(locked, "GET", "/v1/models", authorization=key)[0] == 200
    assert call(locked, "GET", "/health")[0] == 200


def test_a_server_of_this_machine_is_called_by_no_other_name(at):
  with served.listening(at.room, hosts=("localhost", "127.0.0.1")) as local:
    assert call(local, "GET", "/health")[0] == 200
    assert call(local, "GET", "/health", host="localhost:80")[0] == 200
    for host in ("evil.example", "localhost.evil.example", "[", ""):
      assert call(local, "GET", "/health", host=host)[0] == 403
