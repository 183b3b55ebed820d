"""The zoo: for every network, the blocks compute what the model computes, and train as it does."""

import pytest
from zoo import NETWORKS
from zoo_checks import check

# The warnings come from other libraries.
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLE = (
    "torchvision/mobilenet_v3_small",
    "torchvision/googlenet",  # a tuple in train mode, with heads that the loss does not see
    "timm/convit_tiny",
    "transformers/AlbertForSequenceClassification",  # one layer, called again and again
    "transformers/BertForSequenceClassification",
    "transformers/BertForSequenceClassification, checkpointing",
    "transformers/BertModel, mean over the tokens",
    "transformers/GPT2LMHeadModel",  # tied
    "transformers/LlamaForCausalLM",
    "transformers/MixtralForSequenceClassification",  # which experts run depends on the data
    "transformers/SegformerForSemanticSegmentation",
    "transformers/T5ForConditionalGeneration",
    "transformers/Wav2Vec2ForSequenceClassification, without random draws",
)


# The default head cannot predict these networks' scores from their blocks' outputs.
NO_HEADS = {
    "transformers/SegformerForSemanticSegmentation": "class scores for every pixel",
    "transformers/T5ForConditionalGeneration": "scores for 8 tokens",
}


def found(name):
    network = NETWORKS[name]
    for module in network.needs:
        pytest.importorskip(module)
    return check(network)


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name):
    finding = found(name)
    assert not finding.problems()
    assert finding.blocks == 4
    if name in NO_HEADS:
        assert NO_HEADS[name] in finding.refusals.pop("dgl")
    else:
        assert finding.isolated
    assert not finding.refusals


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NETWORKS) - set(SAMPLE)))
def test_zoo(name):
    finding = found(name)
    assert not finding.problems()
    if finding.refusals:
        pytest.skip("; ".join(finding.refusals.values()))


def test_larger_networks_exist():
    """The larger networks that a small one stands for exist in the library under these names."""
    models = pytest.importorskip("torchvision.models")
    known = {name.removeprefix("quantized_") for name in models.list_models()}
    larger = {name for n in NETWORKS.values() for name in n.stands_for}
    assert larger <= known, larger - known


def test_every_timm_family_is_there():
    timm = pytest.importorskip("timm")
    families = {network.kind for network in NETWORKS.values() if network.library == "timm"}
    assert not set(timm.list_modules()) - families, "timm has families that the zoo has not"
