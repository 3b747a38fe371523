"""A server that all tests which change nothing share."""

import shutil

import openai
import pytest

from tests.serving import served


@pytest.fixture(scope="session")
def at(whole, tmp_path_factory):
  folder = shutil.copytree(whole, tmp_path_factory.mktemp("served") / "run")
  with served.room_of(folder) as room, served.listening(room) as place:
    yield place


@pytest.fixture(scope="session")
def client(at):
  with openai.OpenAI(
    base_url=f"{at.url}/v1", api_key="none", max_retries=0
  ) as client:
    yield client
