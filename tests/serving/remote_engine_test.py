"""vLLM answers, and clients notice nothing."""

import contextlib

import openai
import pytest

from pdpo_jax.inference import remote
from tests.inference import vllm_double
from tests.runs.people_run import ANN, BEA
from tests.serving import served

# The client leaves generators of answers that nobody reads on to the collector.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


@contextlib.contextmanager
def elsewhere(policy, **settings):
  """An engine behind a stand-in for vLLM's server."""
  server = vllm_double.Server(policy)
  with (
    server.listening() as url,
    remote.RemoteEngine(url, policy, **settings) as engine,
  ):
    engine.server = server
    yield engine


@pytest.mark.slow
def test_answers_are_those_of_the_engine_here(at, client, folder, monkeypatch):
  monkeypatch.setattr(remote, "_torch_to_base64", lambda: vllm_double.to_base64)
  with (
    served.room_of(folder, elsewhere) as room,
    served.listening(room) as there,
    openai.OpenAI(base_url=f"{there.url}/v1", api_key="none") as other,
  ):
    said = set()
    for user in (ANN, BEA, "somebody"):
      for settings in ({}, {"logprobs": True, "top_logprobs": 2}):
        here = served.chat(client, user=user, **settings).choices[0]
        away = served.chat(other, user=user, **settings).choices[0]
        assert here.message.content == away.message.content
        assert here.finish_reason == away.finish_reason
        if settings:
          for one, two in zip(
            here.logprobs.content, away.logprobs.content, strict=True
          ):
            assert one.token == two.token
            assert one.logprob == pytest.approx(two.logprob, abs=1e-3)
      said.add(here.message.content)
    assert len(said) > 1
    assert served.call(there, "GET", "/health")[0] == 200
    assert b"pdpo_new_tokens" in served.call(there, "GET", "/metrics")[1]
    room.engine.server.problem = "fails"
    with pytest.raises(openai.InternalServerError) as caught:
      served.chat(other.with_options(max_retries=0), user=ANN)
    assert caught.value.status_code == 503
