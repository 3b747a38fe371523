import huggingface_hub

from pdpo_jax.exports import cards

CARD = cards.Card(
  base_model="owner/name@v1",
  license={"license": "other", "license_name": "llama3"},
  datasets=("owner/choices",),
  accuracy={"heldout": 0.71234, "unseen": 0.5},
)


def test_the_hub_reads_the_head_of_a_card(tmp_path):
  CARD.write(tmp_path, "Text.\n")
  card = huggingface_hub.ModelCard.load(tmp_path / cards.NAME)
  data = card.data.to_dict()
  assert data["base_model"] == "owner/name"
  assert (data["license"], data["license_name"]) == ("other", "llama3")
  assert data["datasets"] == ["owner/choices"]
  assert data["metrics"] == ["accuracy"]
  found = {x.dataset_split: x.metric_value for x in card.data.eval_results}
  assert found == {"heldout": 0.7123, "unseen": 0.5}
  assert "Text." in card.text and "71.2%" in card.text
  assert "erased from the run is still in here" in card.text


def test_a_card_says_nothing_that_is_not_known(tmp_path):
  folder = tmp_path / "a_b # <c>"
  folder.mkdir()
  cards.Card().write(folder, "", people=False)
  card = huggingface_hub.ModelCard.load(folder / cards.NAME)
  fields = {"base_model", "license", "datasets", "metrics", "model-index"}
  assert not fields & card.data.to_dict().keys()
  assert "# a\\_b # &lt;c&gt;" in card.text
  assert "people" not in card.text and "comes from" not in card.text
