import pytest

from pdpo_jax.weights import licenses

HEADS = {
  "license: mit\ntags: [a]": {"license": "mit"},
  "license: other\nlicense_name: llama3\nlicense_link: LICENSE": {
    "license": "other",
    "license_name": "llama3",
    "license_link": "LICENSE",
  },
  # Whatever else people write there.
  "license: [mit, apache-2.0]": {},
  "license:": {},
  "license: mit: no": {},
  "- mit": {},
  "mit": {},
}


@pytest.mark.parametrize("head", HEADS)
def test_the_licence_of_a_folder_stands_in_its_card(head, tmp_path):
  (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
  assert licenses.read(str(tmp_path)) == HEADS[head]


@pytest.mark.parametrize("content", [b"", b"# A model\n", b"\xff\xfe---"])
def test_a_folder_without_a_head_has_none(content, tmp_path):
  assert licenses.read(str(tmp_path)) == {}
  (tmp_path / "README.md").write_bytes(content)
  assert licenses.read(str(tmp_path)) == {}
