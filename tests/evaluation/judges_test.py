import collections
import hashlib
import time
import types

import pytest

from pdpo_jax import experiment
from pdpo_jax.config import judge as judge_config
from pdpo_jax.evaluation import judge_prompt, judges, pacing
from pdpo_jax.weights import base as base_lib
from tests import tiny
from tests.evaluation import judge_server

PROMPTS = judge_prompt.Prompts("You are ann.", "Which one?")
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
  assert 2.0 <= pacing.seconds_after(request, 3) <= 6.0
  assert pacing.seconds_after(request, 20) == 60.0
  assert pacing.seconds_after(refusal(retry_after="9"), 0) == 9.0
  assert pacing.seconds_after(refusal(retry_after="120"), 0) == 120.0
  assert pacing.seconds_after(refusal(retry_after="Fri, 1 May"), 0) < 1.0


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


def test_no_more_requests_a_minute_than_allowed():
  server = judge_server.Server()
  with server.running() as url:
    ask(judge_server.config_of(url, requests_per_minute=600), 6)
  times = sorted(at for _, _, at in server.requests)
  assert times[-1] - times[0] >= 5 * 0.1 - 0.05


@pytest.mark.parametrize(
  "prefers,verdict", [("shorter", "Output (a)"), ("longer", "Output (b)")]
)
def test_the_rule_knows_tastes(prefers, verdict):
  judge = judges.make_judge(judge_config.JudgeConfig(kind="rule"))
  asked = judges.Asked(PROMPTS, "one", "one two", prefers)
  ((_, answer),) = judge.answers([asked])
  assert answer.text.endswith(verdict)
  ((_, answer),) = judge.answers([judges.Asked(PROMPTS, "x y", "a b", prefers)])
  assert judge_prompt.parse(answer.text) == "tie"
  with pytest.raises(ValueError, match="whose taste in length is known"):
    list(judge.answers([ASKED]))


def test_a_local_model_judges(tmp_path):
  config = tiny.tiny_config(tmp_path)
  base = tiny.tiny_base(experiment.load_dataset(config, None))
  base_lib.write_base(tmp_path / "judge", base)
  config = judge_config.JudgeConfig(
    kind="local", model=str(tmp_path / "judge"), max_tokens=6
  )
  found = ask(config, 11)
  assert sorted(found) == list(range(11))
  # Greedy: the same prompt has the same answer, in whatever batch.
  assert len({answer.text for answer in found.values()}) == 1
  # One prompt over the model's positions does not keep others from an answer.
  long = judge_prompt.Prompts("You are ann.", "Which one? " * 200)
  both = [judges.Asked(long, "a", "b"), ASKED]
  answers = dict(judges.make_judge(config).answers(both))
  assert isinstance(answers[0], judges.Refused)
  assert "lower judge.max_tokens" in str(answers[0])
  assert answers[1].text == found[0].text
  # Nothing of what it is told is cut, however it is shared out.
  judge = judges.make_judge(config)
  told = judge_prompt.Prompts("ann " * 50 + "end of persona", "Which one?")
  (ids,) = judge._encoder.encode([judge._prompt(told)], collections.Counter())
  assert len(ids) > judge._encoder.max_tokens / 2
  assert told.system in base.tokenizer.decode(ids)
  config.max_tokens = 10_000
  with pytest.raises(ValueError, match="leaves no room for a prompt"):
    judges.make_judge(config)
