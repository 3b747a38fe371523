"""A server that all tests which change nothing share."""

import openai
import pytest

from tests.runs import people_run
from tests.serving import served


@pytest.fixture(scope="session")
def at(tmp_path_factory):
  folder = people_run.make(tmp_path_factory.mktemp("whole"))
  with served.room_of(folder) as room, served.listening(room) as place:
    yield place


@pytest.fixture(scope="session")
def client(at):
  with openai.OpenAI(
    base_url=f"{at.url}/v1", api_key="none", max_retries=0
  ) as client:
    yield client
