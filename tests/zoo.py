"""The zoo: small networks of torchvision, timm and transformers, each with a batch for it.

`NETWORKS` lists them as data, by library and name (`timm/vgg11_bn`). An entry builds
its network from a configuration, never from trained weights. A plain training loop over a case is

    case.model.train()
    loss = case.loss(case.scores(case.model))
    loss.backward()
"""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5
TOKENS = 99
ROWS, LENGTH = 3, 12  # of a batch of text
LENGTHS = (12, 7, 9)  # tokens of each row that are not padding

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Output = str | int | Callable[[Any], Tensor] | None


@dataclass
class Case:
    """A network, a batch for it, and how its scores are found in its output.

    Attributes:
        model: as its library makes it, in training mode, never run.
        inputs: a tensor, a tuple, or a dict of tensors.
        labels: int64; (B,) for scores (B, C), (B, T) for (B, T, C), (B, H, W) for (B, C, H, W).
            Padding is -100.
        output: where the scores are in the model's output, a key, an index or a function; None
            where the usual places have them.
        criterion: of scores and labels; None for the cross-entropy.
    """

    model: nn.Module
    inputs: Inputs
    labels: Tensor
    output: Output = None
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None

    def scores(self, model: nn.Module) -> Tensor:
        """What `model`, this case's or a copy of it, gives for the inputs."""
        return take(call(model, self.inputs), self.output)

    def loss(self, scores: Tensor) -> Tensor:
        """(), as a plain training loop computes it."""
        return (self.criterion or cross_entropy)(scores, self.labels)


@dataclass(frozen=True)
class Network:
    """One entry.

    Attributes:
        name: unique within its library.
        library: torchvision, timm or transformers.
        kind: what it is for, such as classification, causal or audio.
        make: builds the case.
        stands_for: larger networks of the same code, which are not run.
        needs: the modules that must be installed.
    """

    name: str
    library: str
    kind: str
    make: Callable[[], Case]
    stands_for: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def build(self) -> Case:
        """The case; always the same weights and batch."""
        seed(0)
        return self.make()


def seed(number: int) -> None:
    """Seed every generator that a model may draw from."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The model's output."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def take(out: Any, output: Output = None) -> Tensor:
    """The scores in a model's output, by hand: nothing here is the library's."""
    if callable(output):
        return output(out)
    if output is not None:
        return out[output]
    if isinstance(out, Tensor):
        return out
    for name in ("logits", "last_hidden_state"):
        if isinstance(getattr(out, name, None), Tensor):
            return getattr(out, name)
    return take(out["out"] if isinstance(out, dict) else out[0])


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels that are not -100."""
    if scores.shape[:-1] == labels.shape:
        scores, labels = scores.flatten(0, -2), labels.flatten()
    return F.cross_entropy(scores, labels)


def _case(
    model: nn.Module,
    inputs: Inputs,
    output: Output = None,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    mask: Tensor | None = None,
    every: int = 1,
) -> Case:
    """The case, with random labels for the scores that a copy of the model gives.

    Args:
        mask: (B, T), zero where there is padding.
        every: the distance between labelled tokens; the others have no label.
    """
    with torch.no_grad():
        scores = take(call(copy.deepcopy(model).eval(), inputs), output)
    classes = -1 if scores.dim() < 4 else 1  # of maps (B, C, H, W) the second
    shape = list(scores.shape)
    labels = torch.randint(shape.pop(classes), shape)
    if mask is not None and mask.shape == labels.shape:
        labels = labels.masked_fill(mask == 0, -100)
    if every > 1:
        labels[:, torch.arange(labels.shape[1]) % every != 0] = -100
    return Case(model.train(), inputs, labels, output, criterion)


# --- torchvision -----------------------------------------------------------------------------

# Name: (pixels, options, larger networks of the same code).
TORCHVISION: dict[str, tuple[int, dict[str, Any], str]] = {
    "alexnet": (64, {}, ""),
    "vgg11": (32, {}, "vgg13 vgg16 vgg19"),
    "vgg11_bn": (32, {}, "vgg13_bn vgg16_bn vgg19_bn"),
    "resnet18": (64, {}, ""),
    "resnet34": (64, {}, ""),
    "resnet50": (64, {}, ""),
    "resnet101": (64, {}, "resnet152"),
    "resnext50_32x4d": (64, {}, "resnext101_32x8d resnext101_64x4d"),
    "wide_resnet50_2": (64, {}, "wide_resnet101_2"),
    "densenet121": (64, {}, "densenet161 densenet169 densenet201"),
    "squeezenet1_0": (64, {}, ""),
    "squeezenet1_1": (64, {}, ""),
    "googlenet": (64, {"init_weights": False}, ""),
    "inception_v3": (299, {"init_weights": False}, ""),
    "mobilenet_v2": (64, {}, ""),
    "mobilenet_v3_small": (64, {}, ""),
    "mobilenet_v3_large": (64, {}, ""),
    "shufflenet_v2_x0_5": (64, {}, ""),
    "shufflenet_v2_x1_0": (64, {}, ""),
    "shufflenet_v2_x1_5": (64, {}, ""),
    "shufflenet_v2_x2_0": (64, {}, ""),
    "mnasnet0_5": (64, {}, ""),
    "mnasnet0_75": (64, {}, ""),
    "mnasnet1_0": (64, {}, ""),
    "mnasnet1_3": (64, {}, ""),
    "efficientnet_b0": (64, {}, ""),
    "efficientnet_b1": (64, {}, ""),
    "efficientnet_b2": (64, {}, ""),
    "efficientnet_b3": (64, {}, "efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7"),
    "efficientnet_v2_s": (64, {}, "efficientnet_v2_m efficientnet_v2_l"),
    "regnet_x_400mf": (64, {}, ""),
    "regnet_x_800mf": (64, {}, ""),
    "regnet_x_1_6gf": (64, {}, "regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf"),
    "regnet_y_400mf": (64, {}, ""),
    "regnet_y_800mf": (64, {}, ""),
    "regnet_y_1_6gf": (
        64,
        {},
        "regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf",
    ),
    "convnext_tiny": (64, {}, "convnext_small convnext_base convnext_large"),
    "vit_b_32": (64, {"image_size": 64}, "vit_b_16 vit_l_16 vit_l_32 vit_h_14"),
    "swin_t": (64, {}, "swin_s swin_b"),
    "swin_v2_t": (64, {}, "swin_v2_s swin_v2_b"),
    "maxvit_t": (224, {}, ""),
}
QUANTIZABLE: dict[str, tuple[int, dict[str, Any], str]] = {
    "googlenet": (64, {"init_weights": False}, ""),
    "inception_v3": (96, {"init_weights": False, "aux_logits": False}, ""),
    "mobilenet_v2": (64, {}, ""),
    "mobilenet_v3_large": (64, {}, ""),
    "resnet18": (64, {}, ""),
    "resnet50": (64, {}, "resnext101_32x8d resnext101_64x4d"),
    "shufflenet_v2_x0_5": (64, {}, "shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"),
}
# Name: (frames, pixels, options, larger networks).
VIDEO: dict[str, tuple[int, int, dict[str, Any], str]] = {
    "r3d_18": (4, 32, {}, ""),
    "mc3_18": (4, 32, {}, ""),
    "r2plus1d_18": (4, 32, {}, ""),
    "s3d": (14, 224, {}, ""),
    "swin3d_t": (4, 64, {}, "swin3d_s swin3d_b"),
}
SEGMENTATION: dict[str, tuple[dict[str, Any], str]] = {
    "fcn_resnet50": ({}, "fcn_resnet101"),
    "deeplabv3_resnet50": ({}, "deeplabv3_resnet101"),
    "deeplabv3_mobilenet_v3_large": ({}, ""),
    "lraspp_mobilenet_v3_large": ({}, ""),
}


def _torchvision(module: str, name: str, shape: tuple[int, ...], **options: Any) -> Case:
    make = getattr(importlib.import_module(module), name)
    model = make(weights=None, num_classes=CLASSES, **options)
    return _case(model, torch.randn(2, *shape))


def _mvit(second: bool) -> Case:
    """The builders' sizes are fixed, so here are four blocks of one."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    channels = [16, 16, 32, 32, 32]
    blocks = [
        MSBlockConfig(
            num_heads=2,
            input_channels=channels[i],
            output_channels=channels[i + 1],
            kernel_q=[3, 3, 3] if i % 2 or second else [],
            kernel_kv=[3, 3, 3],
            stride_q=[1, 1 + i % 2, 1 + i % 2] if i % 2 or second else [],
            stride_kv=[1, 2, 2],
        )
        for i in range(4)
    ]
    model = MViT(
        spatial_size=(64, 64),
        temporal_size=4,
        block_setting=blocks,
        residual_pool=second,
        residual_with_cls_embed=not second,
        rel_pos_embed=second,
        proj_after_attn=second,
        stochastic_depth_prob=0.2,
        num_classes=CLASSES,
    )
    return _case(model, torch.randn(2, 3, 4, 64, 64))


def _torchvisions() -> list[Network]:
    def entry(name: str, kind: str, larger: str, make: Callable[[], Case]) -> Network:
        return Network(name, "torchvision", kind, make, tuple(larger.split()))

    found = []
    module = "torchvision.models"
    for name, (pixels, options, larger) in TORCHVISION.items():
        make = partial(_torchvision, module, name, (3, pixels, pixels), **options)
        found.append(entry(name, "classification", larger, make))
    module = "torchvision.models.quantization"
    for name, (pixels, options, larger) in QUANTIZABLE.items():
        make = partial(_torchvision, module, name, (3, pixels, pixels), quantize=False, **options)
        found.append(entry(f"quantizable_{name}", "classification", larger, make))
    module = "torchvision.models.video"
    for name, (frames, pixels, options, larger) in VIDEO.items():
        make = partial(_torchvision, module, name, (3, frames, pixels, pixels), **options)
        found.append(entry(name, "video", larger, make))
    found.append(entry("MViT, version 1", "video", "mvit_v1_b", partial(_mvit, False)))
    found.append(entry("MViT, version 2", "video", "mvit_v2_s", partial(_mvit, True)))
    module = "torchvision.models.segmentation"
    for name, (options, larger) in SEGMENTATION.items():
        make = partial(_torchvision, module, name, (3, 64, 64), weights_backbone=None, **options)
        found.append(entry(name, "segmentation", larger, make))
    make = partial(
        _torchvision, module, "fcn_resnet50", (3, 64, 64), weights_backbone=None, aux_loss=True
    )
    found.append(entry("fcn_resnet50, auxiliary loss", "segmentation", "", make))
    return found


# --- timm ------------------------------------------------------------------------------------

# Family: (its smallest network, pixels, options).
_IMAGE = {"img_size": 64}
_SMALL = {"img_size": 64, "depth": 4, "embed_dim": 96, "num_heads": 4}
TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", 64, _SMALL),
    "byoanet": ("eca_botnext26ts_256", 64, _IMAGE),
    "byobnet": ("mobileone_s1", 64, _IMAGE),
    "cait": ("cait_xxs24_224", 64, _IMAGE),
    "coat": ("coat_tiny", 64, _IMAGE),
    "convit": ("convit_tiny", 64, _IMAGE),
    "convmixer": ("convmixer_768_32", 64, {}),
    "convnext": ("convnext_zepto_rms", 64, {}),
    "cpubone": ("cpubone_nano", 64, {}),
    "crossvit": ("crossvit_tiny_240", 64, {}),
    "csatv2": ("csatv2", 64, {}),
    "cspnet": ("cs3darknet_focus_s", 64, {}),
    "cspnext": ("cspnext_tiny", 64, {}),
    "davit": ("davit_tiny", 64, {}),
    "deepseek_vit": ("deepseek_vit_412m", 56, _SMALL),
    "deit": ("deit_tiny_patch16_224", 64, _IMAGE),
    "densenet": ("densenet121", 64, {}),
    "dla": ("dla46x_c", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "efficientformer": ("efficientformer_l1", 224, {}),
    "efficientformer_v2": ("efficientformerv2_s0", 64, _IMAGE),
    "efficientnet": ("mobilenetv2_035", 64, {}),
    "efficientvim": ("efficientvim_m1", 64, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 64, _IMAGE),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 64, _IMAGE),
    "fasternet": ("fasternet_t0", 64, {}),
    "fastvit": ("fastvit_t8", 64, {}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "gcvit": ("gcvit_xxtiny", 64, _IMAGE),
    "gemma4_vit": ("gemma4_vit_167m", 96, _SMALL),
    "ghostnet": ("ghostnet_050", 64, {}),
    "hardcorenas": ("hardcorenas_b", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hiera": ("hiera_tiny_224", 64, _IMAGE),
    "hieradet_sam2": ("sam2_hiera_tiny", 64, {}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "iformer": ("iformer_t", 64, {}),
    "inception_next": ("inception_next_atto", 64, {}),
    "inception_resnet_v2": ("inception_resnet_v2", 96, {}),
    "inception_v3": ("inception_v3", 96, {}),
    "inception_v4": ("inception_v4", 96, {}),
    "lcnetv2": ("lcnetv2_small", 64, {}),
    "levit": ("levit_128s", 64, _IMAGE),
    "lowformer": ("lowformer_b0", 64, {}),
    "mambaout": ("mambaout_femto", 64, {}),
    "maxxvit": ("maxvit_pico_rw_256", 64, _IMAGE),
    "metaformer": ("poolformerv2_s12", 64, {}),
    "mlp_mixer": ("gmlp_ti16_224", 64, _IMAGE),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "mobilenetv5": ("mobilenetv5_base", 64, {}),
    "mobilevit": ("mobilevit_xxs", 64, _IMAGE),
    "mvitv2": ("mvitv2_tiny", 64, _IMAGE),
    "naflexvit": ("naflexvit_base_patch16_gap", 64, {}),
    "nasnet": ("nasnetalarge", 64, {}),
    "nest": ("nest_tiny", 64, _IMAGE),
    "nextvit": ("nextvit_small", 64, {}),
    "nfnet": ("nf_regnet_b0", 64, {}),
    "pit": ("pit_ti_224", 64, _IMAGE),
    "pnasnet": ("pnasnet5large", 64, {}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "qwen3_vit": ("qwen3_vit_88m", 64, _SMALL),
    "rdnet": ("rdnet_tiny", 64, {}),
    "regnet": ("regnetx_002", 64, {}),
    "repghost": ("repghostnet_050", 64, {}),
    "repvit": ("repvit_m1", 64, _IMAGE),
    "res2net": ("res2next50", 64, {}),
    "resnest": ("resnest14d", 64, {}),
    "resnet": ("resnet10t", 64, {}),
    "resnetv2": ("resnetv2_18", 64, {}),
    "rexnet": ("rexnet_100", 64, {}),
    "selecsls": ("selecsls42", 64, {}),
    "senet": ("legacy_seresnet18", 64, {}),
    "sequencer": ("sequencer2d_s", 64, _IMAGE),
    "shvit": ("shvit_s1", 64, {}),
    "sknet": ("skresnet18", 64, {}),
    "starnet": ("starnet_s050", 64, {}),
    "swiftformer": ("swiftformer_xs", 64, _IMAGE),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 64, _IMAGE),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", 64, _IMAGE),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 64, _IMAGE),
    "tiny_vit": ("tiny_vit_5m_224", 64, {}),
    "tnt": ("tnt_s_legacy_patch16_224", 64, _IMAGE),
    "tresnet": ("tresnet_m", 64, {}),
    "twins": ("twins_svt_small", 64, _IMAGE),
    "vgg": ("vgg11_bn", 64, {"mlp_ratio": 0.25}),
    "visformer": ("visformer_tiny", 64, _IMAGE),
    "vision_transformer": ("vit_tiny_patch16_224", 64, _IMAGE),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 64, _IMAGE),
    "vision_transformer_relpos": ("vit_srelpos_small_patch16_224", 64, _IMAGE),
    "vision_transformer_sam": ("samvit_base_patch16_224", 64, _SMALL),
    "vitamin": ("vitamin_small_224", 64, _IMAGE),
    "volo": ("volo_d1_224", 64, _IMAGE),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "xception": ("legacy_xception", 64, {}),
    "xception_aligned": ("xception41p", 64, {}),
    "xcit": ("xcit_nano_12_p8_224", 64, _IMAGE),
}


def _timm(name: str, pixels: int, **options: Any) -> Case:
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
    return _case(model, torch.randn(2, 3, pixels, pixels))


def _timms() -> list[Network]:
    return [
        Network(
            name,
            "timm",
            family,
            partial(_timm, name, pixels, **options),
            needs=("timm",),
        )
        for family, (name, pixels, options) in TIMM.items()
    ]


# --- transformers ----------------------------------------------------------------------------

# Read by the configurations that have such a setting, ignored by the others.
SIZE: dict[str, Any] = {
    "vocab_size": TOKENS,
    "hidden_size": 32,
    "embedding_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "num_labels": CLASSES,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
LATENTS: dict[str, Any] = {  # of attention whose keys and values come from a short vector
    "head_dim": None,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
STATES: dict[str, Any] = {  # of layers that carry a state along the tokens
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FUNNEL: dict[str, Any] = {"block_sizes": [1, 1, 2], "num_hidden_layers": None, "d_head": 8}
PERCEIVER: dict[str, Any] = {
    "d_model": 32,
    "d_latents": 32,
    "num_latents": 8,
    "num_self_attends_per_block": 4,
}
XLNET: dict[str, Any] = {"max_position_embeddings": None, "d_head": None, "head_dim": None}
XLNET |= {"d_model": 32, "n_head": 4, "n_layer": 4, "d_inner": 64}
HEADS = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "causal": "ForCausalLM",
    "masked-lm": "ForMaskedLM",
    "base": "Model",
}
# Architectures that take SIZE as it is, by what they are made for.
TEXT = {
    "sequence": """
        Albert Arcee Bert BigBird BioGpt Bloom CTRL Camembert Canine ConvBert Data2VecText Deberta
        DebertaV2 DiffLlama DistilBert Doge Electra Ernie Esm EuroBert Exaone4 FNet Flaubert GPT2
        GPTBigCode GPTNeoX Gemma Gemma2 Gemma3Text Glm Glm4 Gte Helium HunYuanDenseV1 IBert JetMoe
        JinaEmbeddingsV3 LayoutLM Llama Longformer MPNet MarkupLM MegatronBert Ministral Ministral3
        Mistral MobileBert ModernBert ModernBertDecoder Mpt Mra Nemotron NomicBert Nystromformer OPT
        Olmo Olmo2 Olmo3 OpenAIGPT Persimmon Phi Phi3 Qwen2 Qwen3 RemBert RoFormer Roberta
        RobertaPreLayerNorm SeedOss SmolLM3 SqueezeBert StableLm Starcoder2 Tapas Ultrabert XLM
        XLMRoberta XLMRobertaXL Yoso""",
    "token": """
        Albert Apertus Bert BigBird Bloom Canine ConvBert Deberta DebertaV2 DistilBert Electra FNet
        GPT2 Gemma LayoutLM Llama Longformer MPNet Mistral MobileBert Mpt Nystromformer
        OpenAIPrivacyFilter Qwen2 RoFormer Roberta XLM Yoso""",
    "causal": """
        Apertus Arcee BertGenerationDecoder BertLMHeadModel BigBird BioGpt BitNet Bloom
        CTRLLMHeadModel Cohere Cohere2 Cwm DiffLlama Doge Dory Electra Emu3 Ernie Ernie4_5 Exaone4
        FalconMamba Fuyu GPT2LMHeadModel GPTBigCode GPTNeoX GPTNeoXJapanese Gemma Gemma2 Gemma3
        Gemma4Unified Glm Glm4 Granite GraniteSWA Helium HrmText HyperCLOVAX Jais2 JetMoe LaraMini
        Lfm2 Lfm3 Llama Llama4 Mamba Ministral Mistral Mllama ModernBertDecoder Mpt NanoChat
        Nemotron OPT Olmo Olmo2 Olmo3 OlmoHybrid OpenAIGPTLMHeadModel Persimmon Phi Phi3 Qwen2 Qwen3
        RecurrentGemma RoFormer Roberta Rwkv SeedOss SmolLM3 StableLm Starcoder2 TrOCR VaultGemma
        XGLM XLMRobertaXL XLMWithLMHeadModel xLSTM""",
    "masked-lm": """
        Albert Bert BigBird Camembert ConvBert Data2VecText Deberta DebertaV2 DistilBert Electra
        Ernie Esm EuroBert FNet FlaubertWithLMHeadModel Gte IBert LayoutLM Longformer MPNet
        MegatronBert MobileBert ModernBert Mra NomicBert Nystromformer RemBert RoFormer Roberta
        SqueezeBert Tapas XLMRoberta Yoso""",
    "base": """
        Albert Bert BertGenerationEncoder BigBird Bloom CLIPText Canine Deberta DebertaV2
        DistilBert Electra FNet GPT2 Gemma ImageGPT JetMoe LayoutLM Llama Longformer MPNet
        Mamba Mistral Molmo2Text MuseGlimmerText Nystromformer OPT Qwen2 Qwen3VLText Roberta Rwkv
        Splinter Tipsv2Text VisualBert XLM xLSTM""",
}
# Architectures that want more said: class, what it is made for, settings. None takes one away.
TEXT_MORE: list[tuple[str, str, dict[str, Any]]] = [
    ("AfmoeForCausalLM", "causal", EXPERTS),
    ("AriaTextForCausalLM", "causal", EXPERTS | {"moe_topk": 2}),
    ("BailingHybridForCausalLM", "causal", EXPERTS | LATENTS | STATES | {"head_dim": 8}),
    ("BeamForTokenClassification", "token", EXPERTS | LATENTS | STATES | {"head_dim": 8}),
    ("CodeGenForCausalLM", "causal", {"rotary_dim": 4}),
    ("Cohere2MoeForCausalLM", "causal", EXPERTS),
    ("DeepseekV2ForSequenceClassification", "sequence", EXPERTS | LATENTS),
    ("DeepseekV3ForSequenceClassification", "sequence", EXPERTS | LATENTS),
    ("Ernie4_5_MoeForCausalLM", "causal", EXPERTS),
    ("ExaoneMoeForCausalLM", "causal", EXPERTS),
    ("FalconForSequenceClassification", "sequence", {"head_dim": None}),
    ("FalconForCausalLM", "causal", {"head_dim": None, "alibi": True}),
    ("FlexOlmoForCausalLM", "causal", EXPERTS),
    ("FlintForCausalLM", "causal", EXPERTS | LATENTS | STATES | {"head_dim": 8}),
    ("FunnelForSequenceClassification", "sequence", FUNNEL),
    ("FunnelForTokenClassification", "token", FUNNEL),
    ("FunnelBaseModel", "base", FUNNEL),
    ("Glm4MoeForCausalLM", "causal", EXPERTS),
    ("GPTJForSequenceClassification", "sequence", {"rotary_dim": 4}),
    (
        "GPTNeoForSequenceClassification",
        "sequence",
        {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    ),
    ("GptOssForSequenceClassification", "sequence", EXPERTS),
    ("GraniteMoeForCausalLM", "causal", EXPERTS),
    ("GraniteMoeSharedForCausalLM", "causal", EXPERTS),
    ("GraniteMoeSWAForCausalLM", "causal", EXPERTS),
    ("HunYuanMoEV1ForSequenceClassification", "sequence", EXPERTS | {"moe_topk": 2}),
    ("HYV3ForCausalLM", "causal", EXPERTS),
    ("JambaForSequenceClassification", "sequence", EXPERTS),
    ("Kolibri1ForCausalLM", "causal", EXPERTS),
    ("LagunaForCausalLM", "causal", EXPERTS),
    (
        "Mamba2ForCausalLM",
        "causal",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 4},
    ),
    ("MellumForCausalLM", "causal", EXPERTS),
    ("MiMoV2FlashForCausalLM", "causal", EXPERTS | {"head_dim": 16, "v_head_dim": 8}),
    ("MiniMaxForSequenceClassification", "sequence", EXPERTS),
    ("MiniMaxM2ForCausalLM", "causal", EXPERTS),
    ("MixtralForSequenceClassification", "sequence", EXPERTS),
    ("MixtralForCausalLM", "causal", EXPERTS),
    ("OlmoeForCausalLM", "causal", EXPERTS),
    (
        "PerceiverForSequenceClassification",
        "sequence",
        PERCEIVER,
    ),
    (
        "PerceiverForMaskedLM",
        "masked-lm",
        PERCEIVER | {"max_position_embeddings": LENGTH, "qk_channels": 32, "v_channels": 32},
    ),
    ("PhimoeForSequenceClassification", "sequence", EXPERTS),
    ("Qwen2MoeForSequenceClassification", "sequence", EXPERTS),
    ("Qwen3MoeForSequenceClassification", "sequence", EXPERTS),
    ("Qwen3NextForSequenceClassification", "sequence", EXPERTS | STATES),
    ("Qwen3_5MoeForCausalLM", "causal", EXPERTS | STATES),
    (
        "ReformerForSequenceClassification",
        "sequence",
        # Its dropout seeds the generator from the clock.
        {
            "axial_pos_embds": False,
            "attn_layers": ["local", "lsh"] * 2,
            "hash_seed": 0,
            "hidden_dropout_prob": 0.0,
            "local_attention_probs_dropout_prob": 0.0,
            "lsh_attention_probs_dropout_prob": 0.0,
        },
    ),
    ("RoCBertForSequenceClassification", "sequence", {"enable_pronunciation": False}),
    ("SolarOpenForCausalLM", "causal", EXPERTS),
    (
        "XLNetForSequenceClassification",
        "sequence",
        XLNET,
    ),
    ("XLNetLMHeadModel", "causal", XLNET),
    ("XmodForSequenceClassification", "sequence", {"default_language": "en_XX"}),
]
# The same, where a name of its own says what is special.
TEXT_VARIANTS: list[tuple[str, str, str, dict[str, Any]]] = [
    (
        "BertForSequenceClassification, eager attention",
        "BertForSequenceClassification",
        "sequence",
        {"attn_implementation": "eager"},
    ),
    (
        "BertForSequenceClassification, feed-forward in chunks",
        "BertForSequenceClassification",
        "sequence",
        {"chunk_size_feed_forward": 4},
    ),
    (
        "AlbertForSequenceClassification, two groups",
        "AlbertForSequenceClassification",
        "sequence",
        {"num_hidden_groups": 2},
    ),
    (
        "GPT2LMHeadModel, untied",
        "GPT2LMHeadModel",
        "causal",
        {"tie_word_embeddings": False},
    ),
    (
        "LlamaForCausalLM, tied",
        "LlamaForCausalLM",
        "causal",
        {"tie_word_embeddings": True},
    ),
    (
        "OPTForCausalLM, layerdrop",
        "OPTForCausalLM",
        "causal",
        {"layerdrop": 0.5},
    ),
]
# Encoder and decoder, each with a padded batch of its own.
TWO = {"encoder_layers": 4, "decoder_layers": 4, "d_model": 32}
TWO |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
TWO |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 2}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_decoder_layers": 4}
T5 |= {"num_heads": 4, "decoder_start_token_id": 0}
SEQ2SEQ: list[tuple[str, dict[str, Any]]] = [
    ("BartForConditionalGeneration", TWO),
    ("BartModel", TWO),
    ("BigBirdPegasusForConditionalGeneration", TWO | {"attention_type": "original_full"}),
    ("BlenderbotForConditionalGeneration", TWO),
    ("BlenderbotSmallForConditionalGeneration", TWO),
    ("FSMTForConditionalGeneration", TWO | {"src_vocab_size": TOKENS, "tgt_vocab_size": TOKENS}),
    ("LEDForConditionalGeneration", TWO | {"attention_window": 4}),
    ("LongT5ForConditionalGeneration", T5 | {"local_radius": 3}),
    ("M2M100ForConditionalGeneration", TWO),
    ("MBartForConditionalGeneration", TWO),
    ("MT5ForConditionalGeneration", T5),
    ("MarianMTModel", TWO | {"decoder_vocab_size": TOKENS}),
    ("MvpForConditionalGeneration", TWO),
    ("NllbMoeForConditionalGeneration", TWO | EXPERTS | {"expert_capacity": 8}),
    ("PLBartForConditionalGeneration", TWO),
    ("PegasusForConditionalGeneration", TWO),
    ("PegasusXForConditionalGeneration", TWO | {"num_global_tokens": 2, "block_size": 4}),
    (
        "ProphetNetForConditionalGeneration",
        {
            "num_hidden_layers": None,
            "num_encoder_layers": 4,
            "num_decoder_layers": 4,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "disable_ngram_loss": True,
        },
    ),
    ("SwitchTransformersForConditionalGeneration", T5 | EXPERTS),
    ("T5ForConditionalGeneration", T5),
    ("T5Model", T5),
    ("UMT5ForConditionalGeneration", T5),
]
ENCODERS: list[tuple[str, str, dict[str, Any]]] = [
    ("T5EncoderModel", "base", T5),
    ("MT5EncoderModel", "base", T5),
    ("UMT5EncoderModel", "base", T5),
    ("T5ForTokenClassification", "token", T5),
]
SOUND = {"conv_dim": (32, 32), "conv_stride": (5, 4), "conv_kernel": (10, 4)}
SOUND |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "head_dim": None}
SOUND |= {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
# Given the waveform, padded; name, class, settings.
WAVES: list[tuple[str, str, dict[str, Any]]] = [
    ("Data2VecAudioForSequenceClassification", "", {"conv_pos_kernel_size": 3}),
    ("HubertForSequenceClassification", "", {}),
    ("HubertModel", "", {}),
    ("SEWDForSequenceClassification", "", {"squeeze_factor": 2, "position_buckets": 16}),
    ("SEWForSequenceClassification", "", {"squeeze_factor": 2}),
    ("UniSpeechForSequenceClassification", "", {}),
    ("UniSpeechSatForSequenceClassification", "", {}),
    ("Wav2Vec2ConformerForSequenceClassification", "", {}),
    ("Wav2Vec2ForCTC", "", {}),
    ("Wav2Vec2ForSequenceClassification", "", {}),
    ("Wav2Vec2Model", "", {}),
    ("WavLMForSequenceClassification", "", {}),
    (
        "Wav2Vec2ForSequenceClassification, layerdrop",
        "Wav2Vec2ForSequenceClassification",
        {"layerdrop": 0.5},
    ),
    (
        "Wav2Vec2ForSequenceClassification, layers' norms first",
        "Wav2Vec2ForSequenceClassification",
        {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    ),
    (
        "Wav2Vec2ForSequenceClassification, without random draws",
        "Wav2Vec2ForSequenceClassification",
        {"layerdrop": 0.0, "mask_time_prob": 0.0},
    ),
]
PIXELS = {"image_size": 32, "patch_size": 8, "num_channels": 3, "head_dim": None}
STAGES = {"embed_dim": 16, "depths": [1, 1, 2], "num_heads": [2, 2, 2], "window_size": 2}
STAGES |= {"patch_size": 4, "num_attention_heads": None, "num_hidden_layers": None}
STAGES |= {"hidden_size": None}
PYRAMID = {"num_encoder_blocks": 4, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32]}
PYRAMID |= {"num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16, "image_size": 64}
CONVOLUTIONS = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 32, 32], "embedding_size": 8}
CONVOLUTIONS |= {"patch_size": 4, "image_size": 64, "num_hidden_layers": None}
# Given images.
IMAGES: list[tuple[str, dict[str, Any]]] = [
    ("BeitForImageClassification", {}),
    ("BitForImageClassification", CONVOLUTIONS | {"num_groups": 2, "layer_type": "preactivation"}),
    ("CLIPForImageClassification", {"nested": "vision_config"}),
    ("CLIPVisionModel", {}),
    ("ConvNextForImageClassification", CONVOLUTIONS),
    ("ConvNextV2ForImageClassification", CONVOLUTIONS),
    (
        "CvtForImageClassification",
        {
            "embed_dim": [16, 16, 32],
            "num_heads": [1, 2, 2],
            "depth": [1, 2, 3],
            "num_attention_heads": None,
            "patch_size": None,
        },
    ),
    ("DINOv3ConvNextModel", CONVOLUTIONS),
    ("DINOv3ViTModel", {"num_register_tokens": 2}),
    (
        "DPTForSemanticSegmentation",
        {
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 16, 16],
            "fusion_hidden_size": 16,
        },
    ),
    ("Data2VecVisionForImageClassification", {}),
    ("DeiTForImageClassification", {}),
    ("DeiTForImageClassificationWithTeacher", {}),
    ("Dinov2ForImageClassification", {}),
    ("Dinov2WithRegistersForImageClassification", {}),
    ("EfficientNetForImageClassification", {"hidden_dim": 640, "width_coefficient": 0.5}),
    (
        "FocalNetForImageClassification",
        STAGES | {"num_heads": None, "window_size": None, "focal_levels": [1, 1, 1]},
    ),
    ("HGNetV2ForImageClassification", {}),
    (
        "HieraForImageClassification",
        {
            "image_size": [64, 64],
            "patch_size": [7, 7],
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 2],
            "num_attention_heads": None,
            "hidden_size": None,
            "num_hidden_layers": None,
        },
    ),
    ("IJepaForImageClassification", {}),
    (
        "LevitForImageClassification",
        {
            "image_size": 64,
            "patch_size": 16,
            "hidden_sizes": [16, 24, 32],
            "num_attention_heads": [2, 3, 4],
            "key_dim": [8, 8, 8],
        },
    ),
    ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}),
    ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}),
    ("MobileNetV2ForSemanticSegmentation", {"depth_multiplier": 0.35, "image_size": 64}),
    ("MobileViTForImageClassification", {}),
    (
        "MobileViTV2ForImageClassification",
        {"width_multiplier": 0.5, "image_size": 64, "patch_size": 2},
    ),
    (
        "PerceiverForImageClassificationLearned",
        PERCEIVER,
    ),
    ("PoolFormerForImageClassification", {}),
    ("PvtForImageClassification", PYRAMID),
    ("PvtV2ForImageClassification", PYRAMID),
    ("RegNetForImageClassification", CONVOLUTIONS | {"groups_width": 8, "layer_type": "y"}),
    ("ResNetForImageClassification", CONVOLUTIONS | {"layer_type": "bottleneck"}),
    ("SegformerForImageClassification", PYRAMID),
    ("SegformerForSemanticSegmentation", PYRAMID),
    ("SiglipForImageClassification", {"nested": "vision_config"}),
    ("SiglipVisionModel", {}),
    ("SwiftFormerForImageClassification", {}),
    ("SwinForImageClassification", STAGES),
    ("SwinModel", STAGES),
    ("Swinv2ForImageClassification", STAGES),
    ("TextNetForImageClassification", {}),
    ("ViTForImageClassification", {}),
    ("ViTMSNForImageClassification", {}),
    ("ViTModel", {}),
    ("YolosModel", {"image_size": [32, 32], "num_detection_tokens": 4}),
]


# Networks whose batch is like no other's: name, what it is for, and how it is built.
OWN: list[tuple[str, str, Callable[[], Case]]] = []


def _own(kind: str, name: str = "") -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Enter the function's case into the zoo; its name says the class."""

    def enter(make: Callable[[], Case]) -> Callable[[], Case]:
        OWN.append((name or make.__name__, kind, make))
        return make

    return enter


def _settings(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A copy, because some configurations change the lists that they are given."""
    return copy.deepcopy({k: v for k, v in (SIZE | more | given).items() if v is not None})


def _of(architecture: str, settings: dict[str, Any]) -> nn.Module:
    import transformers

    of = getattr(transformers, architecture)
    nested = settings.pop("nested", None)
    if nested is not None:
        settings = {nested: settings, "num_labels": settings["num_labels"]}
    attention = settings.pop("attn_implementation", None)
    config = of.config_class(**settings)
    if attention is not None:
        config._attn_implementation = attention
    return of(config)


def _padded(low: int = 3) -> tuple[Tensor, Tensor]:
    """Tokens and their mask, (B, T) each."""
    mask = (torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]).long()
    return torch.randint(low, TOKENS, (ROWS, LENGTH)) * mask, mask


def _text(architecture: str, kind: str, given: dict[str, Any]) -> Case:
    model = _of(architecture, _settings(given))
    tokens, mask = _padded()
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return _case(model, inputs, mask=mask, every=3 if kind == "masked-lm" else 1)


def _seq2seq(architecture: str, given: dict[str, Any]) -> Case:
    model = _of(architecture, _settings(given))
    tokens, mask = _padded()
    targets = torch.randint(3, TOKENS, (ROWS, 8))
    target_mask = (torch.arange(8) < torch.tensor([8, 8, 5])[:, None]).long()
    inputs = {
        "input_ids": tokens,
        "attention_mask": mask,
        "decoder_input_ids": targets * target_mask,
        "decoder_attention_mask": target_mask,
    }
    return _case(model, inputs, mask=target_mask)


def _waves(architecture: str, given: dict[str, Any]) -> Case:
    model = _of(architecture, _settings(given, **SOUND))
    mask = (torch.arange(1600) < torch.tensor([[1600], [1100]])).long()
    return _case(model, {"input_values": torch.randn(2, 1600) * mask, "attention_mask": mask})


def _images(architecture: str, given: dict[str, Any]) -> Case:
    settings = _settings(given, **PIXELS)
    side = settings["image_size"]
    side = side[0] if isinstance(side, list) else side
    return _case(_of(architecture, settings), {"pixel_values": torch.randn(2, 3, side, side)})


@_own("causal", "GPT2LMHeadModel, label smoothing")
def _smoothed() -> Case:
    case = _text("GPT2LMHeadModel", "causal", {})
    case.criterion = partial(_smooth, smoothing=0.1)
    return case


def _smooth(scores: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(scores.flatten(0, -2), labels.flatten(), label_smoothing=smoothing)


@_own("sequence", "BertForSequenceClassification, token types and positions")
def _all_inputs() -> Case:
    case = _text("BertForSequenceClassification", "sequence", {})
    assert isinstance(case.inputs, dict)
    shape = case.inputs["input_ids"].shape
    case.inputs["token_type_ids"] = torch.randint(2, shape)
    case.inputs["position_ids"] = torch.arange(shape[1]).expand(shape)
    return case


@_own("sequence", "BertForSequenceClassification, a tuple of inputs")
def _positional() -> Case:
    case = _text("BertForSequenceClassification", "sequence", {})
    assert isinstance(case.inputs, dict)
    case.inputs = (case.inputs["input_ids"], case.inputs["attention_mask"])
    return case


@_own("sequence", "BertForSequenceClassification, embeddings given")
def _embedded() -> Case:
    case = _text("BertForSequenceClassification", "sequence", {})
    assert isinstance(case.inputs, dict)
    case.inputs["inputs_embeds"] = torch.randn(ROWS, LENGTH, SIZE["hidden_size"])
    del case.inputs["input_ids"]
    return case


@_own("sequence", "BertForSequenceClassification, frozen embeddings")
def _frozen() -> Case:
    case = _text("BertForSequenceClassification", "sequence", {})
    case.model.get_submodule("bert.embeddings").requires_grad_(False)
    return case


@_own("sequence", "BertForSequenceClassification, frozen but for the classifier")
def _probe() -> Case:
    case = _text("BertForSequenceClassification", "sequence", {})
    case.model.get_submodule("bert").requires_grad_(False)
    return case


def _checkpointed(architecture: str, kind: str, given: dict[str, Any], reentrant: bool) -> Case:
    case = _text(architecture, kind, given)
    case.model.gradient_checkpointing_enable(  # type: ignore[operator]
        gradient_checkpointing_kwargs={"use_reentrant": reentrant}
    )
    return case


for _architecture, _kind in (
    ("BertForSequenceClassification", "sequence"),
    ("GPT2LMHeadModel", "causal"),
    ("LlamaForCausalLM", "causal"),
):
    _own(_kind, f"{_architecture}, checkpointing")(
        partial(_checkpointed, _architecture, _kind, {}, False)
    )
_own("causal", "LlamaForCausalLM, reentrant checkpointing")(
    partial(_checkpointed, "LlamaForCausalLM", "causal", {}, True)
)


@_own("sequence", "BigBirdForSequenceClassification, block sparse")
def _block_sparse() -> Case:
    sparse = {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1}
    model = _of("BigBirdForSequenceClassification", _settings(sparse))
    mask = (torch.arange(48) < torch.tensor([[48], [33]])).long()
    tokens = torch.randint(3, TOKENS, (2, 48)) * mask
    return _case(model, {"input_ids": tokens, "attention_mask": mask})


@_own("sequence")
def BartForSequenceClassification() -> Case:
    model = _of("BartForSequenceClassification", _settings(TWO))
    tokens, mask = _padded()
    tokens[torch.arange(ROWS), mask.sum(1) - 1] = SIZE["eos_token_id"]
    return _case(model, {"input_ids": tokens, "attention_mask": mask})


@_own("seq2seq", "BartForConditionalGeneration, layerdrop")
def _dropped() -> Case:
    return _seq2seq(
        "BartForConditionalGeneration", TWO | {"encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
    )


@_own("seq2seq", "EncoderDecoderModel, BERT and GPT-2")
def _encoder_decoder() -> Case:
    import transformers

    encoder = transformers.BertModel(transformers.BertConfig(**_settings({})))
    config = transformers.GPT2Config(**_settings({}), is_decoder=True, add_cross_attention=True)
    model = transformers.EncoderDecoderModel(
        encoder=encoder, decoder=transformers.GPT2LMHeadModel(config)
    )
    tokens, mask = _padded()
    targets = torch.randint(3, TOKENS, (ROWS, 8))
    inputs = {"input_ids": tokens, "attention_mask": mask, "decoder_input_ids": targets}
    return _case(model, inputs, output="logits")


@_own("base", "DPRQuestionEncoder")
def _pooled() -> Case:
    model = _of("DPRQuestionEncoder", _settings({}))
    tokens, mask = _padded()
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return _case(model, inputs, output="pooler_output")


@_own("base", "BertModel, pooled")
def _pooler() -> Case:
    tokens, mask = _padded()
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return _case(_of("BertModel", _settings({})), inputs, output=1)


@_own("base", "BertModel, mean over the tokens")
def _mean() -> Case:
    tokens, mask = _padded()
    inputs = {"input_ids": tokens, "attention_mask": mask}
    return _case(_of("BertModel", _settings({})), inputs, output=_mean_over_tokens)


def _mean_over_tokens(out: Any) -> Tensor:
    return out.last_hidden_state.mean(1)


@_own("base")
def CLIPModel() -> Case:
    import transformers

    text = _settings({"projection_dim": 16})
    vision = _settings({"projection_dim": 16}, **PIXELS)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    tokens, mask = _padded()
    images = torch.randn(ROWS, 3, 32, 32)
    inputs = {"input_ids": tokens, "attention_mask": mask, "pixel_values": images}
    return _case(transformers.CLIPModel(config), inputs, output="logits_per_image")


def _boxes(corners: int = 4) -> Tensor:
    """Where each token stands on the page, (B, T, corners)."""
    low = torch.randint(0, 40, (ROWS, LENGTH, corners // 2))
    return torch.cat([low, low + torch.randint(1, 20, low.shape)], -1)


def _page(architecture: str, kind: str, given: dict[str, Any]) -> Case:
    tokens, mask = _padded()
    inputs = {"input_ids": tokens, "attention_mask": mask, "bbox": _boxes()}
    return _case(_of(architecture, _settings(given)), inputs, mask=mask)


for _architecture, _kind, _given in (
    ("LayoutLMForTokenClassification", "token", {}),
    ("LiltForTokenClassification", "token", {"hidden_size": 48}),
    ("BrosForTokenClassification", "token", {"hidden_size": 64, "head_dim": 16}),
    (
        "LayoutLMv3ForSequenceClassification",
        "sequence",
        {"visual_embed": False, "coordinate_size": 4, "shape_size": 8},
    ),
):
    _own(_kind, f"{_architecture}, with boxes")(partial(_page, _architecture, _kind, _given))


@_own("sequence", "LayoutLMv3ForSequenceClassification, with boxes and image")
def _page_image() -> Case:
    settings = _settings({"coordinate_size": 4, "shape_size": 8, "input_size": 32, "patch_size": 8})
    tokens, mask = _padded()
    inputs = {"input_ids": tokens, "attention_mask": mask, "bbox": _boxes()}
    inputs["pixel_values"] = torch.randn(ROWS, 3, 32, 32)
    return _case(_of("LayoutLMv3ForSequenceClassification", settings), inputs)


@_own("sequence")
def ViltForImagesAndTextClassification() -> Case:
    tokens, mask = _padded()
    inputs = {"input_ids": tokens, "attention_mask": mask}
    inputs["pixel_values"] = torch.randn(ROWS, 1, 3, 32, 32)
    settings = _settings({"num_images": 1, "modality_type_vocab_size": 3}, **PIXELS)
    return _case(_of("ViltForImagesAndTextClassification", settings), inputs)


@_own("sequence")
def VisualBertForVisualReasoning() -> Case:
    tokens, mask = _padded()
    inputs = {
        "input_ids": tokens,
        "attention_mask": mask,
        "visual_embeds": torch.randn(ROWS, 4, 16),
        "visual_attention_mask": torch.ones(ROWS, 4).long(),
    }
    settings = _settings({"visual_embedding_dim": 16})
    return _case(_of("VisualBertForVisualReasoning", settings), inputs)


MELS = {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 16}


def _mels(frames: int) -> Tensor:
    return torch.randn(2, MELS["num_mel_bins"], frames)


@_own("audio")
def WhisperForAudioClassification() -> Case:
    settings = _settings(TWO | MELS | {"classifier_proj_size": 16})
    return _case(_of("WhisperForAudioClassification", settings), {"input_features": _mels(40)})


@_own("audio")
def WhisperForConditionalGeneration() -> Case:
    inputs = {"input_features": _mels(40), "decoder_input_ids": torch.randint(3, TOKENS, (2, 8))}
    return _case(_of("WhisperForConditionalGeneration", _settings(TWO | MELS)), inputs)


@_own("audio")
def Speech2TextForConditionalGeneration() -> Case:
    settings = TWO | {"input_feat_per_channel": 16, "conv_channels": 32}
    mask = (torch.arange(40) < torch.tensor([[40], [28]])).long()
    inputs = {
        "input_features": torch.randn(2, 40, 16),
        "attention_mask": mask,
        "decoder_input_ids": torch.randint(3, TOKENS, (2, 8)),
    }
    return _case(_of("Speech2TextForConditionalGeneration", _settings(settings)), inputs)


@_own("audio")
def ASTForAudioClassification() -> Case:
    settings = _settings({"max_length": 40, "num_mel_bins": 16, "patch_size": 8, "head_dim": None})
    inputs = {"input_values": torch.randn(2, 40, 16)}
    return _case(_of("ASTForAudioClassification", settings), inputs)


@_own("audio")
def Wav2Vec2BertForSequenceClassification() -> Case:
    settings = _settings({"feature_projection_input_dim": 16, "classifier_proj_size": 16})
    mask = (torch.arange(40) < torch.tensor([[40], [28]])).long()
    inputs = {"input_features": torch.randn(2, 40, 16), "attention_mask": mask}
    return _case(_of("Wav2Vec2BertForSequenceClassification", settings), inputs)


@_own("audio")
def ParakeetEncoder() -> Case:
    settings = {"num_mel_bins": 16, "subsampling_conv_channels": 8, "head_dim": None}
    mask = (torch.arange(64) < torch.tensor([[64], [40]])).long()
    inputs = {"input_features": torch.randn(2, 64, 16), "attention_mask": mask}
    return _case(_of("ParakeetEncoder", _settings(settings)), inputs)


def _clip(architecture: str, given: dict[str, Any]) -> Case:
    settings = _settings({"num_frames": 4} | given, **PIXELS)
    return _case(_of(architecture, settings), {"pixel_values": torch.randn(2, 4, 3, 32, 32)})


for _architecture, _given in (
    ("VideoMAEForVideoClassification", {"tubelet_size": 2}),
    ("TimesformerForVideoClassification", {}),
    ("VivitForVideoClassification", {"tubelet_size": [2, 8, 8], "patch_size": None}),
):
    _own("video", _architecture)(partial(_clip, _architecture, _given))


@_own("series")
def PatchTSTForClassification() -> Case:
    settings = {"num_input_channels": 2, "context_length": 32, "patch_length": 8}
    settings |= {"patch_stride": 8, "d_model": 32, "ffn_dim": 64, "num_targets": CLASSES}
    model = _of("PatchTSTForClassification", _settings(settings | {"head_dim": None}))
    return _case(model, {"past_values": torch.randn(2, 32, 2)}, output="prediction_logits")


@_own("series")
def PatchTSMixerForTimeSeriesClassification() -> Case:
    settings = {"num_input_channels": 2, "context_length": 32, "patch_length": 8}
    settings |= {"patch_stride": 8, "d_model": 16, "num_layers": 4, "num_targets": CLASSES}
    model = _of("PatchTSMixerForTimeSeriesClassification", _settings(settings))
    return _case(model, {"past_values": torch.randn(2, 32, 2)}, output="prediction_outputs")


@_own("protein")
def EsmForProteinTokens() -> Case:
    settings = {"position_embedding_type": "rotary", "mask_token_id": 3, "token_dropout": True}
    return _text("EsmForTokenClassification", "token", settings)


def _adapted() -> Case:
    import peft

    case = _text("BertForSequenceClassification", "sequence", {})
    adapters = peft.LoraConfig(
        r=2, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    model = peft.get_peft_model(case.model, adapters)
    return _case(model, case.inputs)


def _transformers() -> list[Network]:
    def entry(name: str, kind: str, make: Callable[[], Case], *needs: str) -> Network:
        return Network(name, "transformers", kind, make, needs=("transformers", *needs))

    found = []
    for kind, names in TEXT.items():
        for name in names.split():
            whole = name.endswith(("LMHeadModel", "GenerationDecoder", "GenerationEncoder"))
            architecture = name if whole else name + HEADS[kind]
            found.append(entry(architecture, kind, partial(_text, architecture, kind, {})))
    for architecture, kind, given in (*TEXT_MORE, *ENCODERS):
        found.append(entry(architecture, kind, partial(_text, architecture, kind, given)))
    for name, architecture, kind, given in TEXT_VARIANTS:
        found.append(entry(name, kind, partial(_text, architecture, kind, given)))
    for architecture, given in SEQ2SEQ:
        found.append(entry(architecture, "seq2seq", partial(_seq2seq, architecture, given)))
    for name, architecture, given in WAVES:
        found.append(entry(name, "audio", partial(_waves, architecture or name, given)))
    for architecture, given in IMAGES:
        found.append(entry(architecture, "vision", partial(_images, architecture, given)))
    found += [entry(name, kind, make) for name, kind, make in OWN]
    found.append(entry("BertForSequenceClassification, LoRA", "sequence", _adapted, "peft"))
    return found


NETWORKS: dict[str, Network] = {
    f"{network.library}/{network.name}": network
    for network in (*_torchvisions(), *_timms(), *_transformers())
}
