import dataclasses
import enum
import fractions
import math
import pathlib
import pickle

import msgpack
import numpy as np
import pytest

from pdpo_jax.core import messages, structs
from pdpo_jax.evaluation.judge import config as judge_config
from pdpo_jax.evaluation.judge import journal, judges
from pdpo_jax.runs import scores as scores_lib
from pdpo_jax.training import loop


@pytest.mark.parametrize(
  "value",
  [
    None,
    True,
    -5,
    2**63,
    0.1,
    -math.inf,
    "naïve \ud800 \0",
    b"\x80\x00",
    [1, (2, [3], ()), "x"],
    {"a": 1, 2: {"b": (None,)}, (3, "c"): []},
    pathlib.Path("runs/quickstart"),
    structs.Message("user", "Hi"),
    journal.Judgement("9f0c", "4", None, True),
    judge_config.JudgeConfig(),
  ],
  ids=repr,
)
def test_values_come_back_as_they_were(value):
  back = messages.decode(messages.encode(value))
  assert back == value and type(back) is type(value)
  assert repr(back) == repr(value)


@pytest.mark.parametrize(
  "array",
  [
    np.array([[0.5, np.nan], [-0.0, np.inf]], np.float32),
    np.arange(6)[::2],
    np.array([["a", "bc"]]),
    np.zeros((0, 3), np.int8),
    np.array(True),
  ],
  ids=repr,
)
def test_arrays_come_back_as_they_were_and_can_be_written(array):
  back = messages.decode(messages.encode({"logps": array}))["logps"]
  np.testing.assert_array_equal(back, array, strict=True)
  assert back.flags.writeable
  scalar = array.dtype.type(1)
  back = messages.decode(messages.encode(scalar))
  assert back == scalar and type(back) is type(scalar)


def test_dataclasses_carry_arrays():
  scores = scores_lib.Scores(["a"], [None], np.array([[1.5, np.nan]]))
  back = messages.decode(messages.encode({"heldout": scores}))["heldout"]
  assert back.examples == ["a"] and back.user_ids == [None]
  np.testing.assert_array_equal(back.ratios, scores.ratios)


@pytest.mark.parametrize(
  ("error", "kind", "text"),
  [
    (ValueError("no such user"), ValueError, "no such user"),
    (
      OSError(28, "No space left on device", "kept.npy"),
      OSError,
      "[Errno 28] No space left on device: 'kept.npy'",
    ),
    (FileNotFoundError("base"), FileNotFoundError, "base"),
    (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"), ValueError, "0xff"),
    (loop.NonFiniteLoss("step 3"), RuntimeError, "NonFiniteLoss: step 3"),
    (judges.Failed("503"), RuntimeError, "Failed: 503"),
    (KeyError("user"), RuntimeError, "KeyError: 'user'"),
  ],
  ids=repr,
)
def test_errors_come_back_by_type_and_text(error, kind, text):
  back = messages.decode(messages.encode(error))
  assert type(back) is kind
  assert text in str(back)


class Color(enum.StrEnum):
  RED = "red"


@dataclasses.dataclass
class Foreign:
  """Of no module of the package."""

  x: int = 0


@pytest.mark.parametrize(
  ("value", "name"),
  [
    ({"a": {1, 2}}, "builtins.set"),
    (fractions.Fraction(1, 3), "fractions.Fraction"),
    (print, "builtins.builtin_function_or_method"),
    (Color.RED, "Color"),
    (Foreign(), "Foreign"),
    (structs.Message, "builtins.type"),
    (np.array([None]), "numpy.ndarray"),
    (2**64, "builtins.int: it has more than 64 bits"),
  ],
  ids=repr,
)
def test_what_cannot_be_told_is_an_error_with_its_type(value, name):
  with pytest.raises(ValueError, match="cannot tell each other a ") as error:
    messages.encode([value])
  assert name in str(error.value)


def dataclass_message(module: str, name: str, **fields) -> bytes:
  text = messages.encode([[module, name], fields])
  return msgpack.packb(msgpack.ExtType(messages._DATACLASS, text))


@pytest.mark.parametrize(
  "message",
  [
    b"",
    b"\xc1",
    pickle.dumps([1, 2]),
    messages.encode("whole")[:-1],
    messages.encode("whole") + b"\0",
    msgpack.packb(msgpack.ExtType(99, b"")),
    msgpack.packb(msgpack.ExtType(messages._TUPLE, b"\x01")),
    msgpack.packb(msgpack.ExtType(messages._ARRAY, pickle.dumps(1))),
    msgpack.packb(msgpack.ExtType(messages._ERROR, b"\x01")),
    b"\x91" * 5000 + b"\x01",
    dataclass_message("subprocess", "Popen", args="true"),
    dataclass_message("pathlib", "Path"),
    dataclass_message("pdpo_jax.core.messages", "encode", value=1),
    dataclass_message("pdpo_jax.core.messages", "dataclasses"),
    dataclass_message("pdpo_jax.core.structs", "Message", role="user"),
    dataclass_message(
      "pdpo_jax.core.structs", "Message", role="", content="", x=1
    ),
    dataclass_message("pdpo_jax.not_imported", "Message"),
  ],
)
def test_strange_bytes_are_an_error_and_nothing_else(message):
  with pytest.raises(ValueError, match="not a message of this program"):
    messages.decode(message)
