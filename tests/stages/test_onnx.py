"""lower and optimize for ONNX Runtime: what the files are, and what they must not say."""

import onnx
import pytest
import torch

from edgekit.backends import backend_for
from edgekit.backends.onnxruntime import OnnxRuntimeBackend
from edgekit.errors import BuildError
from edgekit.stages.lower import Lower
from edgekit.stages.optimize import Optimize
from edgekit.target import load_target
from tests.stages.test_optimize import error_of
from tests.stages.test_split import IMAGES, SkipsASegment, TapsBeforeActivation, split

MODEL = SkipsASegment()


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def graphs():
    return split(MODEL, 3, IMAGES)


@pytest.fixture(scope="module")
def lowered(graphs):
    return Lower(OnnxRuntimeBackend(), load_target("host"), IMAGES)(graphs, silent)


@pytest.fixture(scope="module")
def optimized(lowered):
    prove = error_of(MODEL, 3, (1, 4, 4))
    return Optimize(OnnxRuntimeBackend(), prove, 1e-3)(lowered.artifact, silent)


def test_the_backend_of_an_engine_is_found_by_name():
    assert isinstance(backend_for("onnxruntime"), OnnxRuntimeBackend)


def test_contracts_stay_as_they_were_split(graphs, optimized):
    for before, after in zip(graphs.parts(), optimized.artifact.parts(), strict=True):
        model = onnx.load_from_string(after.program)
        assert [one.name for one in model.graph.input] == list(before.inputs)
        assert [one.name for one in model.graph.output] == list(before.outputs)
        assert before.logits == after.logits
    assert optimized.artifact.problems() == []


def test_the_batch_is_free_and_the_opset_is_the_targets(optimized):
    for part in optimized.artifact.parts():
        model = onnx.load_from_string(part.program)
        assert [(one.domain, one.version) for one in model.opset_import] == [("", 20)]
        for tensor in (*model.graph.input, *model.graph.output):
            batch, *rest = tensor.type.tensor_type.shape.dim
            assert batch.dim_param
            assert all(one.dim_value for one in rest)


def test_files_are_whole_and_say_nothing_of_this_machine(lowered, optimized):
    for result in (lowered, optimized):
        for part in result.artifact.parts():
            assert b"site-packages" not in part.program
            assert b".py" not in part.program
            model = onnx.load_from_string(part.program)
            assert not model.metadata_props
            assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
            assert all(not one.external_data for one in model.graph.initializer)


def test_lowering_twice_gives_the_same_bytes(graphs, lowered):
    again = Lower(OnnxRuntimeBackend(), load_target("host"), IMAGES)(graphs, silent).artifact
    assert [one.program for one in again.parts()] == [
        one.program for one in lowered.artifact.parts()
    ]


def test_shape_arithmetic_is_folded_away(lowered, optimized):
    counts = optimized.notes["nodes"]
    assert counts.keys() == {part.name for part in lowered.artifact.parts()}
    assert all(count["after"] <= count["before"] for count in counts.values())
    assert counts["whole"]["after"] < counts["whole"]["before"]


class Late(torch.nn.Module):
    """Two exits; a test chooses what is computed behind the first."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x), self.head(self.compute(x) + x)


torch.library.define("edgekit_tests::twice", "(Tensor x) -> Tensor")
torch.library.impl("edgekit_tests::twice", "cpu", lambda x: 2 * x)
torch.library.register_fake("edgekit_tests::twice", torch.empty_like)


@pytest.mark.parametrize(
    ("compute", "operator"),
    [
        (lambda x: torch.linalg.svd(x.view(-1, 4, 4))[1].sum(1, keepdim=True), "aten._linalg_svd"),
        (torch.special.spherical_bessel_j0, "prims.spherical_bessel_j0"),
        (torch.ops.edgekit_tests.twice, "edgekit_tests.twice"),
        # What it is made of has none.
        (lambda x: torch.isin(x, torch.arange(3.0)).float(), "aten.searchsorted"),
    ],
    ids=["linear algebra", "a special function", "a custom operator", "a part of an operator"],
)
def test_an_operator_without_an_onnx_form_is_refused_with_its_line(compute, operator):
    graphs = split(Late(compute), 2, IMAGES)
    line = Late.forward.__code__.co_firstlineno + 2
    with pytest.raises(BuildError) as refused:
        Lower(OnnxRuntimeBackend(), load_target("host"), IMAGES)(graphs, silent)
    words = f"segment-2: operator {operator} (test_onnx.py, line {line}) has no form in ONNX opset "
    assert str(refused.value).startswith(words)
    assert "compute the same with other operators" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_inner_value_never_has_the_name_of_an_output():
    """The exporter takes an RNN apart and counts its matrix products with those of the model."""

    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.RNN(4, 5, batch_first=True)
            self.early, self.late = torch.nn.Linear(16, 3), torch.nn.Linear(5, 3)

        def forward(self, x):
            x = x.squeeze(1)
            return self.early(x.flatten(1)), self.late(self.rnn(x)[0].mean(1))

    graphs = split(Recurrent(), 2, IMAGES)
    lowered = Lower(OnnxRuntimeBackend(), load_target("host"), IMAGES)(graphs, silent).artifact
    for part in lowered.parts():
        graph = onnx.load_from_string(part.program).graph
        made = [name for node in graph.node for name in node.output]
        assert len(made) == len(set(made))
        assert set(part.outputs) <= set(made)


def test_an_opset_that_the_exporter_does_not_write_is_refused():
    graphs = split(TapsBeforeActivation(), 2, IMAGES)
    target = load_target("host").model_copy(update={"opset": 13})
    with pytest.raises(BuildError, match=r"asked for ONNX opset 13, got 18.*target\.opset=18"):
        Lower(OnnxRuntimeBackend(), target, IMAGES)(graphs, silent)


def test_the_files_format_is_no_newer_than_the_target_reads(graphs):
    target = load_target("host", {"ir_version": 9})
    old = Lower(OnnxRuntimeBackend(), target, IMAGES)(graphs, silent).artifact
    prove = error_of(MODEL, 3, (1, 4, 4))
    for one in (old, Optimize(OnnxRuntimeBackend(), prove, 1e-3)(old, silent).artifact):
        for part in one.parts():
            assert onnx.load_from_string(part.program).ir_version == 9
    newer = load_target("host", {"ir_version": 9, "opset": 21})
    with pytest.raises(BuildError, match=r"opset 21 came with IR version 10, and .* is 9: lower"):
        Lower(OnnxRuntimeBackend(), newer, IMAGES)(graphs, silent)
