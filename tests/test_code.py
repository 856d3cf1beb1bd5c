"""Weights that are made code: what that code computes, and when there is none."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright import library, plan_cache
from sparsewright.errors import KernelError
from sparsewright.image_units import IMAGES
from sparsewright.kernels import KERNELS, choose
from sparsewright.kernels.bound import bind as kernel_bind
from sparsewright.kernels.bound import bind_beside, chain, into, transposed
from sparsewright.kernels.info import kernel_info
from sparsewright.kernels.reference import ACTIVATIONS
from sparsewright.lab.doctor import compiled
from sparsewright.layouts import pack, rounded, store
from sparsewright.layouts.csb import Csb
from sparsewright.plan import Pieces

OPS = torch.ops.sparsewright


def can_run() -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", "1")
        return library.why_no_code() is None


needs_code = pytest.mark.skipif(
    not can_run(), reason="needs AVX-512, compiled kernels, and a system that runs new code"
)


def sparse(out: int, channels: int, kernel: int, density: float) -> Tensor:
    shape = out, channels, kernel, kernel
    return torch.randn(shape) * (torch.rand(shape) < density)


def bind(
    weight: Tensor, size: int, bias: Tensor | None, code: str, relu=True, isa=0, values="fp32"
):
    """The convolution at stride one of IMAGES images of `size` rows and columns; SPARSEWRIGHT_CODE
    as given while it is bound."""
    out, channels, kernel, _ = weight.shape
    packed = store(Csb().pack, weight.flatten(1), values)
    t, meta = packed.tensors, packed.meta
    head = [t["starts"], t["pairs"], t["columns"], t["values"], t.get("scales"), bias, out]
    where = [1, 1, kernel // 2, kernel // 2, 1, 1, int(relu), channels, size, size, IMAGES, 1, isa]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", code)
        return bind_beside([*head, meta["chunk"], meta["block"], kernel, kernel, *where])


def both(weight: Tensor, size: int, bias: Tensor | None, relu=True):
    code, loops = (bind(weight, size, bias, wish, relu) for wish in "10")
    assert OPS.code_bytes(code.number) > 0
    assert OPS.code_bytes(loops.number) == 0
    return code, loops


def there(x: Tensor) -> Tensor:
    return OPS.to_beside(x, IMAGES, 1, 0)


def back(y: Tensor, x: Tensor) -> Tensor:
    return OPS.from_beside(y, *x.shape[:1], *x.shape[2:], IMAGES, 1, 0)


@needs_code
@given(
    st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3]), st.integers(1, 9),
    st.sampled_from([0.0, 0.02, 0.1, 0.5]), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_code_gives_what_loops_give(out, channels, kernel, size, density, biased, relu, adds):
    """Rows of up to 28 sums, groups of up to 256 columns: with more of both, and fewer."""
    weight = sparse(out, channels, kernel, density)
    assume(int((weight != 0).sum()) <= 0.75 * weight.numel())
    bias = torch.randn(out) if biased else None
    code, loops = both(weight, size, bias, relu)
    x = torch.randn(IMAGES, channels, size, size)
    more = torch.randn(IMAGES, out, size, size) if adds else None
    given = there(x), None if more is None else there(more)
    got, other = (back(OPS.bound(b.number, *given), x) for b in (code, loops))
    assert torch.allclose(got, other, rtol=1e-4, atol=1e-4)
    right = F.conv2d(x.double(), weight.double(), None, 1, kernel // 2)
    right = right if bias is None else right + bias.double()[:, None, None]
    right = right if more is None else right + more
    right = right.relu() if relu else right
    assert torch.allclose(got.double(), right, rtol=1e-4, atol=1e-4)


@needs_code
@pytest.mark.parametrize(("out", "channels", "kernel"), [(700, 1100, 1), (130, 90, 3), (3, 3, 7)])
def test_values_far_from_their_pointer(out, channels, kernel) -> None:
    """More values than a short displacement reaches, several functions, a weight of few rows; the
    output is written over what is added to it, which several groups of columns wait in."""
    torch.manual_seed(0)
    weight, bias = sparse(out, channels, kernel, 0.3), torch.randn(out)
    x, more = torch.randn(IMAGES, channels, 7, 7), torch.randn(IMAGES, out, 7, 7)
    code, _ = both(weight, 7, bias)
    residual = there(more)
    (y,) = OPS.beside_chain(there(x), [residual], [code.number], 1, 1, 1)
    assert y.data_ptr() == residual.data_ptr()
    right = F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2) + more
    assert torch.allclose(back(y, x).double(), right.relu(), rtol=1e-4, atol=1e-3)


@needs_code
def test_no_number_goes_where_a_weight_is_absent_and_nowhere_else() -> None:
    torch.manual_seed(0)
    weight = sparse(60, 300, 1, 0.1)
    x = torch.randn(IMAGES, 300, 7, 7)
    x[3, 17, 2, 5], x[4, 18, 0, 0] = float("nan"), -float("inf")
    code, _ = both(weight, 7, None)
    y = back(OPS.bound(code.number, there(x), None), x)
    reached = weight[:, 17, 0, 0] != 0
    assert reached.any()
    assert not reached.all()
    assert torch.equal(y[3, :, 2, 5].isnan(), reached)  # ReLU keeps what is no number
    assert int(y.isnan().sum()) == int(reached.sum())
    sunk = weight[:, 18, 0, 0]
    assert torch.equal(y[4, :, 0, 0] == float("inf"), sunk < 0)


@needs_code
@given(st.data(), st.integers(1, IMAGES), st.integers(1, 5))
def test_patches_strides_and_odd_sizes(data, images, threads) -> None:
    """All that decides where activations lie; what lies where no image does is not seen."""
    draw = data.draw
    kernel, stride, dilation = (draw(st.integers(1, n)) for n in (7, 3, 2))
    padding, channels = draw(st.integers(0, 3)), draw(st.sampled_from([1, 3, 70]))
    least = max(1, dilation * (kernel - 1) + 1 - 2 * padding)
    height, width = (draw(st.integers(least, least + 20)) for _ in "hw")
    weight = sparse(9, channels, kernel, 0.3)
    assume(0 < int((weight != 0).sum()) <= 0.75 * weight.numel())
    packed = Csb().pack(weight.flatten(1))
    head = [*(packed.tensors[n] for n in ("starts", "pairs", "columns", "values")), None, None, 9]
    twice = [n for n in (kernel, stride, padding, dilation) for _ in "hw"]
    spread = images, threads
    where = [*twice, 1, channels, height, width, *spread, 0]
    x = torch.randn(images, channels, height, width)
    y = OPS.to_beside(x, *spread, 0)
    if images < IMAGES:
        real = OPS.to_beside(torch.ones_like(x), *spread, 0) > 0
        y = y.where(real, float("nan"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", "1")
        code = bind_beside([*head, packed.meta["chunk"], packed.meta["block"], *where])
    assert OPS.code_bytes(code.number) > 0
    got = OPS.bound(code.number, y, None)
    right = F.conv2d(x.double(), weight.double(), None, stride, padding, dilation).relu()
    got = OPS.from_beside(got, images, *right.shape[2:], *spread, 0)
    assert torch.allclose(got.double(), right, rtol=1e-4, atol=1e-4)


@needs_code
def test_how_much_memory_it_takes() -> None:
    """docs/deploying.md: 14 to 17 bytes for each weight, up to 31 where 99 of 100 are zeros."""
    for density, low, high in ((0.2, 13, 15), (0.1, 14, 17), (0.01, 22, 32)):
        weight = sparse(512, 512, 1, density)
        code, _ = both(weight, 7, None)
        calls = [code, *(bind_linear(weight.flatten(1), None, lanes=n) for n in (8, 16))]
        for call in calls:
            assert low < OPS.code_bytes(call.number) / int((weight != 0).sum()) < high


def bind_linear(weight: Tensor, bias: Tensor | None, then=0, code="1", values="fp32", lanes=16):
    """The product with the weight, as kernels csb.code16 and csb.code8 have it."""
    kernel = KERNELS[f"csb.code{lanes}"]
    prepared = kernel.prepare(store(Csb().pack, weight, values), 1)
    *numbers, _, isa = prepared.numbers
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", code)
        return kernel_bind(kernel.op, [*prepared.tensors.values(), bias, *numbers, then, isa])


def thin(out: int, width: int, density: float) -> Tensor:
    return torch.randn(out, width) * (torch.rand(out, width) < density)


@needs_code
@given(
    st.integers(1, 200), st.integers(1, 1100), st.integers(1, 130), st.integers(1, 5),
    st.sampled_from([0.0, 0.02, 0.1, 0.5]), st.booleans(), st.booleans(), st.integers(0, 5),
    st.sampled_from([8, 16]),
)  # fmt: skip
def test_a_matrix_gives_what_torch_gives(
    out, width, batch, threads, density, biased, across, then, lanes
) -> None:
    """Several groups of columns and strips of rows, panels that are not full, shares of panels and
    of rows; rows and columns of activations."""
    weight = thin(out, width, density)
    assume(int((weight != 0).sum()) <= 0.75 * weight.numel())
    bias = torch.randn(out) if biased else None
    x = torch.randn(batch, width)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        call = bind_linear(weight, bias, then, lanes=lanes)
        assert OPS.code_bytes(call.number) > 0
        got = transposed(call)(x.t().contiguous()).t() if across else call(x)
    finally:
        torch.set_num_threads(before)
    right = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert torch.allclose(got.double(), ACTIVATIONS[then][1](right), rtol=1e-4, atol=1e-4)


@needs_code
@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("threads", [1, 3, 4])
@pytest.mark.parametrize(
    ("out", "width", "density", "batch"),
    [(3000, 700, 0.1, 70), (100, 4200, 0.2, 300), (70, 30, 0.3, 2000), (1500, 1500, 0.2, 17)],
)
def test_large_matrices_and_batches(out, width, density, batch, threads, lanes) -> None:
    """More panels than are laid at once, code of every size."""
    torch.manual_seed(0)
    weight, bias, x = thin(out, width, density), torch.randn(out), torch.randn(batch, width)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        call = bind_linear(weight, bias, 1, lanes=lanes)
        assert OPS.code_bytes(call.number) > 0
        got, given = call(x), torch.full((batch, out), float("nan"))
        into(call, x, given)()
    finally:
        torch.set_num_threads(before)
    right = (x.double() @ weight.double().t() + bias.double()).relu()
    assert torch.allclose(got.double(), right, rtol=1e-4, atol=1e-3)
    assert torch.equal(given, got)


@needs_code
def test_a_matrix_with_other_activations_than_its_own() -> None:
    call = bind_linear(thin(50, 300, 0.2), None)
    for width in (10, 150, 301, 500):
        with pytest.raises(RuntimeError, match=f"columns; x has {width} in_features"):
            call(torch.randn(20, width))
    with pytest.raises(RuntimeError, match="x must be float32"):
        call(torch.randn(20, 300).double())
    assert call(torch.randn(0, 300)).shape == (0, 50)
    assert call(torch.randn(2, 0, 300)).shape == (2, 0, 50)


@needs_code
@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_values_of_fewer_bytes(values) -> None:
    torch.manual_seed(0)
    weight, bias, x = thin(90, 700, 0.2), torch.randn(90), torch.randn(40, 700)
    call = bind_linear(weight, bias, 1, values=values)
    assert OPS.code_bytes(call.number) > 0
    right = (x.double() @ rounded(weight, values).double().t() + bias.double()).relu()
    assert torch.allclose(call(x).double(), right, rtol=1e-4, atol=1e-4)
    conv, image = sparse(40, 40, 3, 0.2), torch.randn(IMAGES, 40, 7, 7)
    bound = bind(conv, 7, None, "1", values=values)
    assert OPS.code_bytes(bound.number) > 0
    near = rounded(conv.flatten(1), values).view_as(conv).double()
    right = F.conv2d(image.double(), near, padding=1).relu()
    got = back(OPS.bound(bound.number, there(image), None), image)
    assert torch.allclose(got.double(), right, rtol=1e-4, atol=1e-4)


@needs_code
def test_which_matrices_are_code() -> None:
    def is_code(w: Tensor, **given) -> bool:
        call = bind_linear(w, None, **given)  # let go with its number, not before
        return OPS.code_bytes(call.number) > 0

    weight = thin(60, 60, 0.2)
    assert is_code(weight)
    assert is_code(weight, then=2)  # GELU follows it
    assert not is_code(weight, code="0")
    refuses = KERNELS["csb.code16"].refuses
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEWRIGHT_CODE", "0")
        assert refuses(weight) == "SPARSEWRIGHT_CODE=0 rules it out"
        patch.setenv("SPARSEWRIGHT_CODE", "1")
        for large, said in (
            (torch.randn(40, 40), "100% of the weights are present; of more than 75% loops"),
            (
                torch.ones(1000, 1000) * (torch.arange(1000) > 400),
                "at most 524288 weights are made code; this layer has 599000",
            ),
        ):
            assert said in str(refuses(large))
            assert not is_code(large)
        assert refuses(weight) is None
        assert refuses(thin(800, 800, 0.7)) is None
    assert is_code(thin(800, 800, 0.7))


@needs_code
def test_a_matrix_in_a_plan(monkeypatch, tmp_path) -> None:
    """Timed for batches, unless it is named; an artifact of it serves where there is no code."""
    monkeypatch.setenv("SPARSEWRIGHT_CODE", "1")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32)).eval()
    for layer in (model[0], model[2]):
        layer.weight.data *= torch.rand(layer.weight.shape) < 0.2
    x = torch.randn(8, 64)
    for batch, tried in ((1, set()), (2, {"csb.code8"}), (8, {"csb.code8"}), (9, {"csb.code16"})):
        choice = choose(model[0].weight, None, torch.randn(batch, 64), seconds=0)
        assert {t.kernel for t in choice.timings if "code" in t.kernel} == tried
        said = dict(choice.refusals).get("csb.code16")
        assert batch == 9 or said == f"timed for batches of 9 or more; this one is of {batch}"
    fast = sw.deploy(model, x, kernels=["csb.code16"], seconds=0, cache=False)
    assert {row.kernel for row in fast.plan.layers} == {"csb.code16"}
    assert fast.program is not None
    assert torch.allclose(fast(x), model(x), atol=1e-5)
    sw.save(fast, tmp_path / "model.sw")
    for code in ("0", "1"):
        monkeypatch.setenv("SPARSEWRIGHT_CODE", code)
        loaded = sw.load(tmp_path / "model.sw")
        assert torch.allclose(loaded(x), model(x), atol=1e-5)


@needs_code
def test_when_there_is_no_code() -> None:
    weight = sparse(40, 40, 1, 0.2)

    def is_code(w: Tensor = weight, code: str = "1", then: int = 1, **given) -> bool:
        bound = bind(w, 7, None, code, then, **given)
        return OPS.code_bytes(bound.number) > 0

    assert is_code()
    assert is_code(then=0)
    assert is_code(isa=library.ISAS["avx512"])
    assert not is_code(code="0")
    assert not is_code(isa=library.ISAS["avx2"])
    assert not is_code(then=2)  # GELU follows the sums
    assert is_code(values="bf16")
    assert is_code(values="int8")
    assert not is_code(torch.randn(40, 40, 1, 1))  # a dense weight
    assert is_code(sparse(40, 40, 1, 0.6))
    assert not is_code(sparse(1500, 4000, 1, 0.1))  # 600,000 weights
    bound = bind(sparse(1500, 4000, 1, 0.1), 7, None, "1")
    assert OPS.bound(bound.number, torch.zeros(1, 7, 1, 4000, 7, 16), None).shape[3] == 1500


def test_the_environment_says_whether(monkeypatch) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_CODE", "0")
    assert library.why_no_code() is not None
    assert compiled(kernel_info())["weights as code"].startswith("no: ")
    assert plan_cache._machine()["code"] is False
    if library.LIBRARY.path is not None:
        monkeypatch.setenv("SPARSEWRIGHT_CODE", "yes")
        with pytest.raises(KernelError, match="SPARSEWRIGHT_CODE must be 0 or 1; got 'yes'"):
            library.why_no_code()
    if not can_run():
        return
    monkeypatch.setenv("SPARSEWRIGHT_CODE", "0")
    assert library.why_no_code() == "SPARSEWRIGHT_CODE=0 rules it out"
    monkeypatch.setenv("SPARSEWRIGHT_CODE", "1")
    assert compiled(kernel_info())["weights as code"] == "active"
    assert plan_cache._machine()["code"] is True
    with pytest.raises(RuntimeError, match="SPARSEWRIGHT_CODE must be 0 or 1; got '2'"):
        bind(sparse(4, 4, 1, 0.5), 7, None, "2")


@needs_code
def test_a_deployed_model_whose_weights_were_written(monkeypatch) -> None:
    """Its program has copies; without it the modules see what is there."""
    monkeypatch.setenv("SPARSEWRIGHT_CODE", "1")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    for conv in (model[0], model[2]):
        conv.weight.data *= torch.rand(conv.weight.shape) < 0.3
    x = torch.randn(IMAGES, 8, 14, 14)
    plan = sw.deploy(model, x, kernels=["csb.conv2d.avx512"], seconds=0, cache=False).plan
    plan = replace(plan, pieces=Pieces(IMAGES, IMAGES, side_by_side=True))
    fast = sw.deploy(model, x, plan=plan, cache=False)
    assert fast.plan.notes == ("Side by side, 2 convolutions run their weights as code.",)
    assert torch.allclose(fast(x), model(x), atol=1e-5)
    for tensor in fast.model.state_dict().values():
        if tensor.dtype == torch.float32:
            tensor.mul_(2)
    for conv in (model[0], model[2]):
        conv.weight.data *= 2
        conv.bias.data *= 2
    fast.drop_program()
    assert torch.allclose(fast(x), model(x), atol=1e-4)


def layers_of(sizes: list[int], lanes: list[int], then: int) -> tuple[list, list[Tensor]]:
    weights = [thin(b, a, 0.2) for a, b in pairwise(sizes)]
    last = len(weights) - 1
    calls = [
        bind_linear(w, torch.ones(len(w)), then if i < last else 0, lanes=n)
        for i, (w, n) in enumerate(zip(weights, lanes, strict=True))
    ]
    return calls, weights


@needs_code
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("then", [0, 1, 2])
@pytest.mark.parametrize("lanes", [[16, 16, 16], [8, 8, 8], [16, 8, 16]])
def test_chains(lanes, then, threads, across) -> None:
    """Sums become the next one's panels: of any batch, more panels than are held at once."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        calls, weights = layers_of([300, 700, 37, 600], lanes, then)
        together = chain(calls)
        for batch in (0, 1, 2, 16, 50, 64, 1100):
            x = torch.randn(batch, 300)
            right = x.double()
            for i, w in enumerate(weights):
                right = right @ w.double().t() + 1
                right = ACTIVATIONS[then][1](right) if i < 2 else right
            got = transposed(together)(x.t().contiguous()).t() if across else together(x)
            assert torch.allclose(got.double(), right, rtol=1e-3, atol=1e-3)
    finally:
        torch.set_num_threads(before)


@needs_code
@pytest.mark.parametrize("lanes", [[16, 16, 0], [0, 16, 16], [0, 0, 8], [8, 0, 16]])
def test_chains_of_code_and_others(lanes) -> None:
    """0: by loops. Each run of one kind is a chain, and errors are those of the products."""
    torch.manual_seed(0)
    calls, weights = layers_of([300, 500, 70, 40], [n or 16 for n in lanes], 1)
    loops = KERNELS["csr.portable"]
    for i, n in enumerate(lanes):
        if n == 0:
            prepared = loops.prepare(pack("csr", weights[i]), 1)
            rest = [*prepared.tensors.values(), torch.ones(len(weights[i])), int(i < 2), 0]
            calls[i] = kernel_bind(loops.op, rest)
    together = chain(calls)
    for batch in (0, 1, 40):
        x = torch.randn(batch, 300)
        right = x.double()
        for i, w in enumerate(weights):
            right = right @ w.double().t() + 1
            right = right.relu() if i < 2 else right
        given = torch.full((batch, 40), float("nan"))
        into(together, x, given)()
        assert torch.allclose(given.double(), right, rtol=1e-3, atol=1e-3)
        across = transposed(together)(x.t().contiguous()).t()
        assert torch.allclose(across.double(), right, rtol=1e-3, atol=1e-3)


@needs_code
def test_chains_say_what_is_wrong() -> None:
    calls, _ = layers_of([300, 700, 37], [16, 16], 0)
    with pytest.raises(RuntimeError, match="columns; x has 500 in_features"):
        chain(calls)(torch.randn(20, 500))
    other, _ = layers_of([500, 300], [16], 0)
    with pytest.raises(RuntimeError, match="columns; x has 300 in_features"):
        chain([*other, *other])(torch.randn(20, 500))
