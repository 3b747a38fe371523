"""People as tokens, in one file for llama.cpp."""

import pathlib

from pdpo_jax.exports import contents as contents_lib
from pdpo_jax.exports import tokens
from pdpo_jax.weights import gguf_writer

FILE = "model.gguf"
_README = """\
A model with LoRA merged in, and people as tokens, for llama.cpp.

```bash
llama-server --jinja -m model.gguf
```

To make it smaller, keep the rows of people as they are: `llama-quantize
--token-embedding-type f16 model.gguf smaller.gguf Q8_0`.

"""


def write(folder: pathlib.Path, contents: contents_lib.Contents) -> None:
  """Writes the file, ids and a card.

  Raises:
    ValueError: as `tokens.make` and `gguf_writer.write`.
  """
  model = tokens.make(contents)
  end, stops = contents.encoder.end_id, contents.stop_tokens
  gguf_writer.write(
    folder / FILE,
    model.arch,
    model.tensors,
    model.tokenizer,
    list(dict.fromkeys([end, *stops])),
    contents.card.license,
  )
  contents.write_users(folder)
  contents.card.write(folder, _README + tokens.asking(contents), "gguf")
