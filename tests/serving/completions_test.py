"""Completions and models, by OpenAI's own client."""

import openai
import pytest

from tests.runs.people_run import ANN, DEE
from tests.serving import served


def test_completions_go_on_with_texts_and_tokens(at, client):
  ids = at.room.run.tokenizer(served.PROMPT).input_ids
  values = {"model": "run", "temperature": 0, "max_tokens": 6}
  texts = [
    client.completions.create(prompt=prompt, **values).choices
    for prompt in (served.PROMPT, ids, [served.PROMPT, served.PROMPT], [ids])
  ]
  assert [len(x) for x in texts] == [1, 1, 2, 1]
  assert len({choice.text for x in texts for choice in x}) == 1
  both = client.completions.create(
    prompt=[served.PROMPT, "other"], n=2, **values
  )
  assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
  assert both.choices[0].text == both.choices[1].text == texts[0][0].text
  told = client.completions.create(prompt=served.PROMPT, logprobs=2, **values)
  logprobs = told.choices[0].logprobs
  assert "".join(logprobs.tokens) == told.choices[0].text
  for place, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
    assert told.choices[0].text[place:].startswith(token)
  streamed = "".join(
    chunk.choices[0].text
    for chunk in client.completions.create(
      prompt=served.PROMPT, stream=True, **values
    )
  )
  assert streamed == texts[0][0].text


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


def test_models_are_the_run_and_its_people(client):
  assert [model.id for model in client.models.list()] == ["run"]
  for name in ("run", f"run:{ANN}", f"run:{DEE}"):
    assert client.models.retrieve(name).id == name
  for name in ("other", "run:nobody"):
    with pytest.raises(openai.NotFoundError) as error:
      client.models.retrieve(name)
    assert error.value.code == "model_not_found"
