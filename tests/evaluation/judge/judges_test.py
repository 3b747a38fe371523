import collections
import hashlib
import time
import types

import pytest

from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import judges, prompt, services
from pdpo_jax.runs import run as run_lib
from pdpo_jax.weights import base as base_lib
from tests import tiny
from tests.evaluation.judge import judge_server

PROMPTS = prompt.Prompts("You are ann.", "Which one?")
ASKED = judges.Asked(PROMPTS, "a b", "a b c")


def fault_first(fault):
  """Turns of which the first that `PROMPTS` meets is the fault."""
  place = hashlib.sha256(PROMPTS.user.encode()).digest()[0] % 2
  return (None, fault) if place else (fault, None)


def refusal(retry_after):
  error = RuntimeError("not now")
  error.response = types.SimpleNamespace(headers={"retry-after": retry_after})
  return error


def ask(config, count=1):
  return dict(judges.make_judge(config).answers([ASKED] * count))


def test_a_wrong_key_is_named():
  message = "refuses the key in OPENAI_API_KEY"
  with (
    judge_server.Server(faults=(401,)).running() as url,
    pytest.raises(ValueError, match=message),
  ):
    ask(judge_server.config_of(url))


def test_a_model_that_is_not_there_is_named():
  message = r"model 'some-model'.* no such model"
  with (
    judge_server.Server(faults=(404,)).running() as url,
    pytest.raises(ValueError, match=message),
  ):
    ask(judge_server.config_of(url), 40)


def test_a_server_that_is_down_is_named_at_once():
  with judge_server.Server().running() as url:
    pass
  start = time.monotonic()
  with pytest.raises(ValueError, match=r"nothing answers at .*is the server"):
    ask(judge_server.config_of(url))
  assert time.monotonic() - start < 5


def test_a_first_connection_that_breaks_is_tried_again():
  server = judge_server.Server(faults=fault_first("drop"))
  with server.running() as url:
    (answer,) = ask(judge_server.config_of(url)).values()
  assert answer.text.endswith("Output (a)")
  assert server.seen == {"drop": 1, None: 1}


@pytest.mark.parametrize("fault", ["drop", "slow"])
def test_a_server_that_never_answers_is_named_after_all_tries(fault):
  message = "nothing answers at"
  with (
    judge_server.Server(faults=(fault,)).running() as url,
    pytest.raises(ValueError, match=message),
  ):
    ask(judge_server.config_of(url, retries=1, timeout=0.2))


def test_a_service_is_never_asked_sooner_than_it_says():
  server = judge_server.Server(faults=fault_first(503), retry_after=1.0)
  with server.running() as url:
    ask(judge_server.config_of(url))
  (first, again) = [at for _, _, at in server.requests]
  assert again - first >= 1.0  # the first wait of one's own is 0.75 at most


def test_waits_grow_though_a_service_asks_for_less():
  request = refusal(retry_after="0.01")
  assert 2.0 <= services.seconds_after(request, 3) <= 6.0
  assert services.seconds_after(request, 20) == 60.0
  assert services.seconds_after(refusal(retry_after="9"), 0) == 9.0
  assert services.seconds_after(refusal(retry_after="120"), 0) == 120.0
  assert services.seconds_after(refusal(retry_after="Fri, 1 May"), 0) < 1.0


def test_a_missing_key_is_named(monkeypatch):
  monkeypatch.delenv("SOME_KEY", raising=False)
  config = judge_config.JudgeConfig(
    kind="openai", model="m", key_variable="SOME_KEY"
  )
  with pytest.raises(ValueError, match="variable SOME_KEY is not set"):
    judges.make_judge(config)


def test_the_key_comes_from_the_environment(monkeypatch):
  monkeypatch.setenv("SOME_KEY", "secret\n")
  judge = judges.make_judge(
    judge_config.JudgeConfig(kind="openai", model="m", key_variable="SOME_KEY")
  )
  assert judge._client.api_key == "secret"
  assert "api.openai.com" in str(judge._client.base_url)


def test_tries_end_and_the_rest_goes_on():
  with judge_server.Server(faults=(503,)).running() as url:
    found = ask(judge_server.config_of(url, retries=2), 3)
  assert len(found) == 3
  assert all("after 3 tries" in str(each) for each in found.values())


def test_a_refused_request_is_not_tried_again():
  server = judge_server.Server(faults=(400,))
  with server.running() as url:
    (failure,) = ask(judge_server.config_of(url)).values()
  assert isinstance(failure, judges.Refused) and "is refused" in str(failure)
  assert sum(server.tries.values()) == 1


def refusing(status, body, *fields):
  """Refuses requests that have any of the fields, or a system message."""

  def refuse(request):
    roles = [each["role"] for each in request["messages"]]
    if set(fields) & {*request, *roles}:
      return status, body
    return None

  return refuse


def openai_error(message, **fields):
  return {"error": {"message": message, "type": "invalid_request_error"}} | {
    "error": {"message": message, "param": None, "code": None} | fields
  }


EXTRA = {
  "object": "error",
  "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'max_tokens'), "
  "'msg': 'Extra inputs are not permitted', 'input': 500}]",
  "code": 400,
}
DIALECTS = {
  "OpenAI": refusing(
    400,
    openai_error(
      "Unsupported parameter: 'max_tokens' is not supported with this model. "
      "Use 'max_completion_tokens' instead.",
      param="max_tokens",
      code="unsupported_parameter",
    ),
    "max_tokens",
  ),
  "a gateway without a code": refusing(
    400,
    openai_error("Use `max_completion_tokens` instead of `max_tokens`"),
    "max_tokens",
  ),
  "Azure, older": refusing(
    400,
    openai_error("Unrecognized request argument supplied: max_tokens"),
    "max_tokens",
  ),
  "vLLM": refusing(400, EXTRA, "max_tokens"),
  "FastAPI": refusing(
    422,
    {
      "detail": [
        {
          "type": "extra_forbidden",
          "loc": ["body", "max_tokens"],
          "msg": "Extra inputs are not permitted",
        }
      ]
    },
    "max_tokens",
  ),
  "Gemini": refusing(
    400,
    [
      openai_error(
        'Invalid JSON payload received. Unknown name "max_tokens": Cannot find '
        "field."
      )
    ],
    "max_tokens",
  ),
  "Groq": refusing(
    400,
    openai_error("property 'temperature' is unsupported"),
    "temperature",
  ),
  "OpenAI, reasoning": refusing(
    400,
    openai_error(
      "Unsupported value: 'temperature' does not support 0.0 with this model. "
      "Only the default (1) value is supported.",
      param="temperature",
      code="unsupported_value",
    ),
    "temperature",
  ),
  "LiteLLM": refusing(
    400,
    openai_error(
      "litellm.UnsupportedParamsError: gpt-5 models don't support "
      "temperature=0.0. Only temperature=1 is supported."
    ),
    "temperature",
  ),
  "LiteLLM, wrapped": refusing(
    500,
    openai_error(
      "openai does not support parameters: {'temperature': 0.0}, for "
      "model=o1-mini"
    ),
    "temperature",
  ),
  "o1-mini": refusing(
    400,
    openai_error(
      "Unsupported value: 'messages[0].role' does not support 'system' with "
      "this model.",
      param="messages[0].role",
    ),
    "system",
  ),
  "Gemma on vLLM": refusing(
    400, openai_error("System role not supported"), "system"
  ),
  "Llama-2 on vLLM": refusing(
    400,
    openai_error(
      "Conversation roles must alternate user/assistant/user/assistant/..."
    ),
    "system",
  ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_gateway_is_asked_as_it_wants_to_be(name):
  server = judge_server.Server(refuses=DIALECTS[name])
  with server.running() as url:
    config = judge_server.config_of(url, concurrency=1, retries=0)
    found = ask(config, 5)
  assert all(each.text.endswith("(a)") for each in found.values())
  # Refused once, which costs nothing, and remembered.
  assert server.seen == {"refused": 1, None: 5}
  limits = {"max_tokens", "max_completion_tokens"}
  for _, request, _ in server.requests[1:]:
    assert len(limits & set(request)) == 1
    said = "".join(each["content"] for each in request["messages"])
    assert PROMPTS.system in said and PROMPTS.user in said


def test_a_gateway_may_refuse_several_things_one_after_the_other(caplog):
  order = ("OpenAI", "OpenAI, reasoning", "Gemma on vLLM")

  def refuse(request):
    return next(filter(None, (DIALECTS[name](request) for name in order)), None)

  server = judge_server.Server(refuses=refuse)
  with server.running() as url:
    found = ask(judge_server.config_of(url, concurrency=1), 3)
  assert all(isinstance(each, judges.Answer) for each in found.values())
  assert server.seen == {"refused": 3, None: 3}
  assert "takes no temperature" in caplog.text
  assert "takes no system message" in caplog.text


@pytest.mark.parametrize(
  "message",
  [
    "temperature 3.0 is above 2",
    "max_tokens is too large: 5000. This model supports at most 4096",
    "'max_tokens' or 'max_completion_tokens' is too large: 500. This model's "
    "maximum context length is 4096 tokens and your request has 3900",
    "payload validation: max_completion_tokens is limited to 16384",
    "The response was filtered due to the prompt",
  ],
)
def test_what_is_wrong_with_a_value_is_not_worked_around(message):
  server = judge_server.Server(
    refuses=lambda request: (400, openai_error(message))
  )
  with server.running() as url:
    (failure,) = ask(judge_server.config_of(url)).values()
  assert isinstance(failure, judges.Refused) and message in str(failure)
  assert server.seen == {"refused": 1}


def test_a_gateway_that_takes_neither_limit_is_asked_no_further():
  server = judge_server.Server(
    refuses=refusing(
      400,
      openai_error("max_tokens and max_completion_tokens are not supported"),
      "max_tokens",
      "max_completion_tokens",
    )
  )
  with server.running() as url:
    (failure,) = ask(judge_server.config_of(url)).values()
  assert isinstance(failure, judges.Refused)
  assert server.seen == {"refused": 2}


def completion(**fields):
  """An answer of which something is unusual."""
  choice = {
    "index": 0,
    "finish_reason": "stop",
    "message": {"role": "assistant", "content": "Output (b)"},
  } | fields.pop("choice", {})
  return {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [choice],
    "usage": None,
  } | fields


def of_content(content, **fields):
  message = {"role": "assistant", "content": content}
  return completion(choice={"message": message, **fields})


@pytest.mark.parametrize(
  "body,text",
  [
    (completion(usage={"prompt_tokens": "7"}), "Output (b)"),
    (
      of_content([
        {"type": "thinking", "thinking": "Well."},
        {"type": "text", "text": "Output (b)"},
      ]),
      "Output (b)",
    ),
    # Paid for, and no other if it is asked for again.
    (of_content(None, finish_reason="length"), ""),
  ],
)  # fmt: skip
def test_an_answer_that_is_paid_for_is_read_or_kept(body, text):
  server = judge_server.Server(refuses=lambda request: (200, body))
  with server.running() as url:
    (answer,) = ask(judge_server.config_of(url)).values()
  assert (answer.text, answer.input_tokens) == (text, 0)
  assert sum(server.tries.values()) == 1


@pytest.mark.parametrize(
  "body",
  [
    {"error": {"message": "upstream is down", "code": 502}},
    completion(choices={"0": "no list"}),
    completion(choices=None),
    of_content(7),
  ],
)
def test_a_malformed_answer_is_asked_for_again(body, monkeypatch):
  monkeypatch.setattr(services, "FIRST_WAIT", 0.01)
  server = judge_server.Server(refuses=lambda request: (200, body))
  with server.running() as url:
    (failure,) = ask(judge_server.config_of(url, retries=1)).values()
  assert "the answer is malformed" in str(failure)
  assert sum(server.tries.values()) == 2


def test_no_secret_of_an_address_is_in_what_is_said(monkeypatch):
  monkeypatch.setenv("SOME_KEY", "sk-quite-secret")
  secrets = ("sk-quite-secret", "pass@word", "pass%40word", "tok-en", "frag")
  body = openai_error(f"who are you? {' '.join(secrets)}")
  for status in (400, 401, 404, 500):
    server = judge_server.Server(refuses=lambda _, s=status: (s, body))
    with server.running() as url:
      address = url.replace("http://", "http://ann:pass%40word@")
      config = judge_server.config_of(
        f"{address}?api_key=tok-en&api-version=2#frag",
        key_variable="SOME_KEY",
        retries=0,
      )
      try:
        said = str(ask(config)[0])
      except ValueError as error:
        said = str(error)
    assert "who are you?" in said
    for secret in secrets[:-1]:
      assert secret not in said
    # They are used all the same.
    ((path, _, _),) = server.requests
    assert path == "/v1/chat/completions?api_key=tok-en&api-version=2"


def test_no_more_requests_a_minute_than_allowed():
  server = judge_server.Server()
  with server.running() as url:
    start = time.monotonic()
    ask(judge_server.config_of(url, requests_per_minute=600), 6)
  # From before the first, which a busy machine may delay more than the last.
  (*_, last) = sorted(at for _, _, at in server.requests)
  assert last - start >= 5 * 0.1


@pytest.mark.parametrize(
  "prefers,verdict", [("shorter", "Output (a)"), ("longer", "Output (b)")]
)
def test_the_rule_knows_tastes(prefers, verdict):
  judge = judges.make_judge(judge_config.JudgeConfig(kind="rule"))
  asked = judges.Asked(PROMPTS, "one", "one two", prefers)
  ((_, answer),) = judge.answers([asked])
  assert answer.text.endswith(verdict)
  ((_, answer),) = judge.answers([judges.Asked(PROMPTS, "x y", "a b", prefers)])
  assert prompt.parse(answer.text) == "tie"
  with pytest.raises(ValueError, match="whose taste in length is known"):
    list(judge.answers([ASKED]))


def test_a_local_model_judges(tmp_path):
  config = tiny.tiny_config(tmp_path)
  base = tiny.tiny_base(run_lib.load_dataset(config, None))
  base_lib.write_base(tmp_path / "judge", base)
  config = judge_config.JudgeConfig(
    kind="local", model=str(tmp_path / "judge"), max_tokens=6
  )
  found = ask(config, 11)
  assert sorted(found) == list(range(11))
  # Greedy: the same prompt has the same answer, in whatever batch.
  assert len({answer.text for answer in found.values()}) == 1
  # One prompt over the model's positions does not keep others from an answer.
  long = prompt.Prompts("You are ann.", "Which one? " * 200)
  both = [judges.Asked(long, "a", "b"), ASKED]
  answers = dict(judges.make_judge(config).answers(both))
  assert isinstance(answers[0], judges.Refused)
  assert "lower judge.max_tokens" in str(answers[0])
  assert answers[1].text == found[0].text
  # Nothing of what it is told is cut, however it is shared out.
  judge = judges.make_judge(config)
  told = prompt.Prompts("ann " * 50 + "end of persona", "Which one?")
  (ids,) = judge._encoder.encode([judge._prompt(told)], collections.Counter())
  assert len(ids) > judge._encoder.max_tokens / 2
  assert told.system in base.tokenizer.decode(ids)
  config.max_tokens = 10_000
  with pytest.raises(ValueError, match="leaves no room for a prompt"):
    judges.make_judge(config)
