"""Weights of forms are those of the files that conversions plan, and of the published ones."""

from dataclasses import asdict
from pathlib import Path

import pytest

from gptoss_convert.checkpoint import Checkpoint, Role
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.footprint.weights import (
    FORMS,
    number_type,
    total,
    weights_of_checkpoint,
    weights_of_form,
)
from tests.support.conversions import TINY
from tests.support.onnx_memory import CONFIGS


def planned(checkpoint: Checkpoint, form: str, folder: Path) -> Plan:
    """The plan of the command that makes this form with its defaults."""
    kind, _, variant = form.partition("-")
    if kind == "gguf":
        return plan_gguf(checkpoint, folder / "x.gguf", GgufOptions(dense=variant or None))
    if kind == "onnx":
        return plan_onnx(checkpoint, folder / "x", OnnxOptions(target=variant))
    if kind == "bf16":
        return plan_bf16(checkpoint, folder / "x", Bf16Options())
    return plan_mxfp4(checkpoint, folder / "x", Mxfp4Options())


@pytest.mark.parametrize("form", FORMS)
def test_a_form_has_the_bytes_that_its_conversion_plans(form: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(TINY)
    plan = planned(checkpoint, form, tmp_path)
    assert total(weights_of_form(checkpoint.config, FORMS[form])) == plan.data_nbytes
    assert FORMS[form].format == plan.format


def test_weights_of_a_checkpoint_are_those_of_its_form() -> None:
    checkpoint = open_checkpoint(TINY)
    found, expected = weights_of_checkpoint(checkpoint), weights_of_form(checkpoint.config, FORMS["mxfp4"])
    assert list(map(asdict, found)) == list(map(asdict, expected))


@pytest.mark.parametrize(
    ("size", "form", "gigabytes", "experts"),
    [
        ("20b", "mxfp4", 13.8, 10.15),
        ("20b", "bf16", 41.8, 38.2),
        ("120b", "mxfp4", 65.3, 60.9),
        ("120b", "bf16", 234, 229.3),
    ],
)
def test_sizes_are_the_published_ones(size: str, form: str, gigabytes: float, experts: float) -> None:
    groups = weights_of_form(CONFIGS[size], FORMS[form])
    assert total(groups) / 1e9 == pytest.approx(gigabytes, rel=0.005)
    assert total(groups, Role.EXPERTS) / 1e9 == pytest.approx(experts, rel=0.003)


def test_a_graph_computes_with_the_type_of_its_attention_matrices() -> None:
    assert number_type(weights_of_form(CONFIGS["20b"], FORMS["onnx-cpu"])) == "f32"
    assert number_type(weights_of_form(CONFIGS["20b"], FORMS["onnx-directml"])) == "f16"
