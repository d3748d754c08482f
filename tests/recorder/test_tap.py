"""`tap`: copies of what modules return, and a model that is none the worse for it."""

import copy
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorder_training import MODELS, Convolution, Dropout, Shared, dataset
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dynome_recorder.capture.probe import call_model
from dynome_recorder.capture.steps import position, subset
from dynome_recorder.errors import InvalidArgumentError
from dynome_recorder.tapping import tap
from dynome_recorder.tracing.canary import trace_model
from dynome_recorder.tracing.sites import select_sites


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def images(samples: int = 5) -> torch.Tensor:
    return dataset().tensors[0][:samples]


class Nested(nn.Module):
    """Returns tuples and mappings, one of which holds integers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.inner = Picks()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.lstm(x.flatten(0, 1))
        return self.inner(out)["values"]


class Picks(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        values, indices = x.max(dim=2)
        return {"values": values, "indices": indices}


def test_values_are_what_modules_return():
    """Also where the next module overwrites them in place."""
    torch.manual_seed(0)
    model, x = Dropout().eval(), images()
    with tap(model) as activations:
        out = model(x)
    assert list(activations) == ["0", "1", "2", "3", "4", "5", "6"]
    hidden = model[1](x.flatten(1))
    assert torch.equal(activations["1"], hidden)
    assert (activations["1"] < 0).any()
    assert torch.equal(activations["2"], functional.relu(hidden))
    assert torch.equal(activations["6"], out)
    assert not activations["6"].requires_grad
    assert activations["6"].data_ptr() != out.data_ptr()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_names_are_the_recorders(name):
    """Whatever the recorder can record by a pattern, tap finds under the same name."""
    torch.manual_seed(0)
    model = MODELS[name]()
    trace = trace_model(model, images(), forward=call_model, samples=5)
    for patterns in (["*"], [nn.ReLU, nn.Linear], ["*", "!Linear"], ["*@1", "*@0"]):
        try:
            wanted = [site.name for site in select_sites(model, patterns, trace=trace)]
        except InvalidArgumentError:
            with pytest.raises(InvalidArgumentError), tap(model, patterns):
                model(images())
            continue
        with tap(model, patterns) as activations:
            model(images())
        assert set(wanted) <= set(activations)
        assert [site for site in activations if site in wanted] == wanted


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(["*", "relu", "conv*", "norm?", "Conv2d", "relu@1", "pool", "!relu@0", "!conv1", "!norm*"]),
        min_size=1,
        max_size=4,
        unique=True,
    )
)
def test_patterns_mean_what_they_mean_to_the_recorder(patterns):
    torch.manual_seed(0)
    model = Convolution().eval()
    trace = trace_model(model, images(), forward=call_model, samples=5)
    if all(pattern.startswith("!") for pattern in patterns):
        patterns = ["*", *patterns]
    try:
        wanted = {site.name for site in select_sites(model, patterns, trace=trace)}
    except InvalidArgumentError as error:
        assert "leave no site" in str(error)
        wanted = set()
    with tap(model, patterns) as activations:
        model(images())
    assert set(activations) == wanted


def test_nested_outputs_have_paths():
    """Integers and tensors without a row per sample can be looked at too."""
    torch.manual_seed(0)
    model = Nested()
    with tap(model) as activations:
        model(images())
    assert list(activations) == ["lstm:0", "lstm:1.0", "lstm:1.1", "inner:values", "inner:indices"]
    assert activations["inner:indices"].dtype is torch.int64
    with tap(model, ["lstm:1.*", "inner:indices"]) as activations:
        model(images())
    assert list(activations) == ["lstm:1.0", "lstm:1.1", "inner:indices"]
    with tap(model, ["inner"]) as activations:
        model(images())
    assert list(activations) == ["inner:values", "inner:indices"]


def test_gradients_are_autograds():
    torch.manual_seed(0)
    model, x = Dropout().eval(), images()
    with tap(model, gradients=True) as activations:
        model(x).square().sum().backward()
    hidden = model[1](x.flatten(1))
    after = model[4](functional.relu(hidden))
    loss = model[6](torch.tanh(after)).square().sum()
    first, second = torch.autograd.grad(loss, [hidden, after])
    assert torch.equal(activations.gradients["1"], first)
    assert torch.equal(activations.gradients["4"], second)
    assert activations.gradients["1"].shape == activations["1"].shape
    assert "0" not in activations.gradients  # the input needs no gradient
    with pytest.raises(KeyError, match="no gradient of '0'"):
        activations.gradients["0"]


def test_all_passes_are_kept():
    """A gradient stands beside the pass that it belongs to, however the passes are ordered backwards."""
    torch.manual_seed(0)
    model = Shared()
    with tap(model, ["first", "act"], keep="all", gradients=True) as activations:
        losses = [model(images(size)).sum() * size for size in (3, 4, 5)]
        losses[2].backward()
        losses[0].backward()
    assert [len(one) for one in activations["first"]] == [3, 4, 5]
    assert list(activations) == ["first", "act", "act@1", "act@2"]
    assert activations.passes == 3
    assert [None if one is None else len(one) for one in activations.gradients["first"]] == [3, None, 5]


def test_the_last_pass_is_kept():
    torch.manual_seed(0)
    model = Shared()
    with tap(model, ["first"], gradients=True) as activations:
        early = model(images(3)).sum()
        kept = weakref.ref(activations["first"])
        model(images(4)).sum().backward()
        early.backward()  # comes late, and is not the last pass's
        assert kept() is None
    assert len(activations["first"]) == len(activations.gradients["first"]) == 4


def test_a_part_may_be_called_alone():
    """Then each call is a pass of its own."""
    torch.manual_seed(0)
    model = Shared()
    with tap(model, ["first", "act"]) as activations:
        hidden = model.act(model.first(images().flatten(1)))
        model.act(hidden)
    assert list(activations) == ["first", "act"]
    assert activations.passes == 3


class Fails(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.isnan().any():
            self[0](x)
            raise ValueError("nan")
        return super().forward(x)


def test_a_failed_pass_does_not_count_on():
    model = Fails(nn.Linear(2, 2), nn.ReLU())
    with tap(model, ["0"]) as activations:
        with pytest.raises(ValueError, match="nan"):
            model(torch.full((1, 2), torch.nan))
        model(torch.ones(3, 2))
    assert list(activations) == ["0"]
    assert len(activations["0"]) == 3


def test_hooks_are_gone_after_an_error():
    model = Shared()
    foreign = model.first.register_forward_hook(lambda module, arguments, output: None)
    with pytest.raises(RuntimeError, match="mine"), tap(model, ["first"]):
        assert hooks(model) > 1
        raise RuntimeError("mine")
    assert hooks(model) == 1
    foreign.remove()
    with pytest.raises(InvalidArgumentError), tap(model, ["nothing"]):
        pytest.fail("the block was entered")
    assert hooks(model) == 0


def test_training_does_not_notice():
    """Losses, parameters, random state: bit for bit."""

    def train(tapped: bool) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(3)
        model = Dropout()
        optimizer = torch.optim.Adam(model.parameters())
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            if tapped:
                with tap(model, gradients=True, reduction="flatten"):
                    loss = model(images(16)).square().mean()
                    loss.backward()
            else:
                loss = model(images(16)).square().mean()
                loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, model.state_dict()

    (with_tap, state), (without, expected) = train(True), train(False)
    assert with_tap == without
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_compiled_model_runs_eagerly_inside():
    torch.manual_seed(0)
    model = Dropout().eval()
    compiled = torch.compile(model, backend="eager")
    compiled(images())
    with tap(compiled, ["2"]) as activations:
        compiled(images())
    assert torch.equal(activations["2"], functional.relu(model[1](images().flatten(1))))
    torch._dynamo.reset()


def test_a_recomputed_pass_is_no_pass():
    """Activation checkpointing calls modules again in the backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(36, 4), nn.ReLU())
    with tap(model, keep="all") as activations:
        checkpoint(model, images().flatten(1), use_reentrant=False).sum().backward()
    assert activations.passes == 1
    assert len(activations["1"]) == 1


@pytest.mark.parametrize(
    ("reduction", "shape", "expected"),
    [
        ("spatial_mean", (5, 4), lambda value: value.mean((2, 3))),
        ("flatten", (5, 36), lambda value: value.flatten(1)),
        ({"conv1": "max", "Linear": "flatten"}, (5, 4), lambda value: value.amax((2, 3))),
        (["flatten", subset(units=7)], (5, 7), None),
    ],
)
def test_reductions_are_the_recorders(reduction, shape, expected):
    torch.manual_seed(0)
    model = Convolution().eval()
    with tap(model, ["conv1", "head"], reduction=reduction) as activations:
        model(images())
    assert activations["conv1"].shape == shape
    if expected is not None:
        assert torch.equal(activations["conv1"], expected(model.conv1(images())))


def test_a_reduction_that_does_not_fit_is_told():
    model = nn.Sequential(nn.Unflatten(1, (4, 9)), nn.ReLU())
    text = r"position\(4\) does not exist at '0', which has 4 positions"
    with pytest.raises(InvalidArgumentError, match=text), tap(model, reduction=position(4)):
        model(torch.ones(3, 36))
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (["hed"], "'hed' matches no module; did you mean 'head'"),
        (["!hed"], "matches no module; did you mean 'head'"),
        (["relu@7"], "'relu@7' matches no module"),
        (["conv1:3"], "'conv1:3' matches no module"),
        ("conv1", "must be a list of patterns"),
        ([3], "a pattern must be"),
    ],
)
def test_patterns_in_vain(patterns, text):
    model = Convolution()
    with pytest.raises(InvalidArgumentError, match=text), tap(model, patterns):
        model(images())
    assert hooks(model) == 0


def test_modules_that_do_not_run_are_told():
    model = Convolution()
    text = "'head' matches 'head', but the forward pass never calls it"
    with pytest.raises(InvalidArgumentError, match=text), tap(model, ["conv1", "head"]):
        model.conv1(images())
    with pytest.raises(InvalidArgumentError, match="no module of the model ran inside the block"), tap(model):
        copy.deepcopy(model)(images())


@pytest.mark.parametrize(
    ("options", "text"), [({"keep": "first"}, "keep"), ({"reduction": "median"}, "reduction must be one of")]
)
def test_wrong_arguments(options, text):
    with pytest.raises(InvalidArgumentError, match=text):
        tap(Shared(), **options)
    with pytest.raises(InvalidArgumentError, match=r"model must be a torch\.nn\.Module"):
        tap("model")


def test_inference_mode_and_autocast():
    model = nn.Sequential(nn.Linear(36, 4), nn.ReLU())
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), tap(model, gradients=True) as activations:
        model(images().flatten(1))
    assert activations["0"].dtype is torch.bfloat16
    assert len(activations.gradients) == 0


def test_it_looks_like_a_table():
    torch.manual_seed(0)
    model = Shared()
    with tap(model, ["first", "act"], gradients=True) as activations:
        model(images()).sum().backward()
    text = repr(activations)
    assert "Activations: 4 sites, 1 forward pass" in text
    zeros = (activations["act@1"] == 0).double().mean()
    row = next(line for line in text.splitlines() if "act@1" in line)
    assert "5 x 10" in row and f"{zeros:.1%}" in row and f"{activations['act@1'].double().mean():.4g}" in row
    assert "<td>act@1</td><td>5 x 10</td>" in activations._repr_html_()
    with tap(model, ["first"], keep="all") as activations:
        model(images(1)), model(images(1))
    assert "passes" in repr(activations) and "2 forward passes" in repr(activations)


def test_a_name_that_is_not_there():
    model = Shared()
    with tap(model, ["first", "act"]) as activations:
        model(images())
    with pytest.raises(KeyError, match="no activation of 'frist'; there is 'first'"):
        activations["frist"]
    assert "frist" not in activations
