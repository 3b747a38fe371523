"""Fields of requests that would change an answer, and are not done here.

They are of OpenAI's protocol, of vLLM's and of llama.cpp's. Each is let pass
where it is off, as clients send it that name all that they know, and is refused
where it is on. What changes no answer, such as `metadata`, has no place here.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic

# What is as good as nothing, besides null.
_OFF: Mapping[str, Sequence[Any]] = {
  # How tokens are drawn, and which.
  "frequency_penalty": (0,),
  "presence_penalty": (0,),
  "repetition_penalty": (1,),
  "repeat_penalty": (1,),
  "length_penalty": (1,),
  "min_p": (0,),
  "typical_p": (1,),
  "mirostat": (0,),
  "dry_multiplier": (0,),
  "xtc_probability": (0,),
  "dynatemp_range": (0,),
  "top_n_sigma": (-1, 0),
  "samplers": ([],),
  "use_beam_search": (False,),
  "logit_bias": ({},),
  "logits_processors": ([],),
  "allowed_token_ids": ([],),
  "bad_words": ([],),
  "repetition_detection": (),
  "vllm_xargs": ({},),
  # When an answer ends.
  "min_tokens": (0,),
  "n_predict": (-1,),
  "ignore_eos": (False,),
  "stop_token_ids": ([],),
  "include_stop_str_in_output": (False,),
  "thinking_token_budget": (),
  # What form it has.
  "guided_json": (),
  "guided_regex": (),
  "guided_choice": (),
  "guided_grammar": (),
  "structural_tag": (),
  "structured_outputs": (),
  "json_schema": (),
  "grammar": ("",),
  "modalities": (["text"], []),
  "audio": (),
  "skip_special_tokens": (True,),
  "return_token_ids": (False,),
  "return_tokens_as_token_ids": (False,),
  "prompt_logprobs": (),
  # What it is to be an answer to.
  "echo": (False,),
  "suffix": ("",),
  "prompt_embeds": (),
  "truncate_prompt_tokens": (),
  "chat_template": (),
  "chat_template_kwargs": ({},),
  "add_generation_prompt": (True,),
  "continue_final_message": (False,),
  "documents": ([],),
  "prediction": (),
  # How much is thought and looked up before.
  "tools": ([],),
  "tool_choice": ("none", "auto"),
  "functions": ([],),
  "function_call": ("none", "auto"),
  "web_search_options": (),
  "reasoning_effort": ("none",),
  "verbosity": ("medium",),
}


def field(off: Sequence[Any]) -> Any:
  """The type of a field that may have these values, or be null.

  Numbers are the same as `1` and `1.0`, and none is true or false.
  """
  return Annotated[
    Any,
    pydantic.AfterValidator(functools.partial(_check, off)),
    pydantic.WithJsonSchema({"enum": [*off, None]}),
  ]


def _check(off: Sequence[Any], value: Any) -> Any:
  if value is None or any(_same(value, each) for each in off):
    return value
  instead = " or ".join(json.dumps(each) for each in off)
  raise ValueError(
    f"{_shown(value)} is not done here; leave the field out"
    + (f", or give {instead}" if instead else "")
  )


def _same(value: Any, other: Any) -> bool:
  return value == other and isinstance(value, bool) == isinstance(other, bool)


def _shown(value: Any) -> str:
  if isinstance(value, list | dict):
    return "such a list" if isinstance(value, list) else "such an object"
  text = json.dumps(value)
  return text if len(text) <= 60 else f"{text[:60]}…"


# As `pydantic.create_model` takes them.
FIELDS: Mapping[str, tuple[Any, None]] = {
  name: (field(off), None) for name, off in _OFF.items()
}
