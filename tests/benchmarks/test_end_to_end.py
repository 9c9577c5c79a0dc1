"""The benchmark of whole models: it judges before it times, on models that depend on their attentions."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import ResNetConfig

from benchmarks import end_to_end, report
from benchmarks.end_to_end import compare_patched
from benchmarks.measure import DisagreementError
from benchmarks.models import MODELS, OFFSET_PIXELS, deformable_detr

# What a short test can afford.
SMALL = {
    "backbone_config": ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    ),
    "num_labels": 5,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 9,
    "two_stage_num_proposals": 9,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}


def small():
    """Return a Deformable DETR with what a short test can afford."""
    return deformable_detr(**SMALL)


CASE = replace(MODELS["deformable_detr"], build=small, pixels=(96, 128))


def test_a_model_is_judged_and_timed_whole_in_training_and_its_encoder_alone():
    said = []
    result = compare_patched(CASE, seconds=0, say=said.append)
    assert result["attentions"] == 3
    assert result["share"] > end_to_end.MARGIN * end_to_end.TOLERANCES["inference"]
    for what in ("inference", "encoder", "training"):
        assert set(result[what]["times"]) == {"stock", "patched"}
        assert result[what]["times"]["patched"]["ratio"] == 1
        assert result[what]["relative_error"] <= end_to_end.TOLERANCES[what]
    assert len(said) == 3
    table = report.end_to_end({"end_to_end": {"deformable_detr": result}}).splitlines()
    assert len(table) == 4
    assert table[3].startswith("| its encoder alone | ")


def test_a_model_may_be_judged_in_float64():
    result = compare_patched(replace(CASE, exact=True, pixels=(192, 256)), seconds=0, say=lambda line: None)
    assert max(result[what]["relative_error"] for what in ("inference", "encoder", "training")) < 1e-9
    assert torch.get_default_dtype() == torch.float32


def test_a_patched_model_that_computes_something_else_is_not_timed(monkeypatch):
    def wrong(model):
        for name, parameter in model.named_parameters():
            if "sampling_offsets.bias" in name:
                nn.init.constant_(parameter, 1.0)
        return right(model)

    right = end_to_end.patch
    monkeypatch.setattr(end_to_end, "patch", wrong)
    with pytest.raises(DisagreementError, match="deformable_detr, inference: patched and stock differ by"):
        compare_patched(CASE, seconds=0)


def test_a_model_that_does_not_depend_on_its_attentions_is_not_timed():
    def indifferent():
        model = small()
        for name, parameter in model.named_parameters():
            if name.endswith(("attn.output_proj.weight", "attn.output_proj.bias")):
                nn.init.zeros_(parameter)
        return model

    with pytest.raises(DisagreementError, match=r"without its attentions the output differs by 0\.0e\+00 only"):
        compare_patched(replace(CASE, build=indifferent), seconds=0)


def test_a_model_is_the_same_each_time_and_looks_around():
    first, second = CASE.model(), CASE.model()
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    weight = first.get_parameter("model.encoder.layers.0.self_attn.sampling_offsets.weight")
    features = nn.functional.layer_norm(torch.randn(500, 32), (32,))
    assert (features @ weight.T).std().item() == pytest.approx(OFFSET_PIXELS, rel=0.1)
