"""The two poolings equal loops written from the paper's equations; their gradients go where the paper sends them."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wildcat.config import ClassPool
from wildcat.errors import ConfigError, ShapeError
from wildcat.nn.heads import ResidualAttentionPool, create_pool, csra_pool, log_sum_exp_pool
from wildcat.nn.pooling import SpatialPool, class_wise_pool, region_count, spatial_pool

Doubles = NDArray[np.float64]

counts = st.integers(1, 40)
proportions = st.floats(0.001, 1.0)
sides = st.integers(1, 6)


def random_maps(seed: int, *shape: int) -> Doubles:
    return np.random.default_rng(seed).normal(size=shape)


def loop_count(k: float, n: int) -> int:
    """The number of regions as the design states it: an int counts, a float is `max(1, round(k * n))`, at most n."""
    if isinstance(k, int):
        return min(k, n)
    return 0 if k == 0.0 else min(max(1, round(k * n)), n)


def loop_spatial_pool(x: Doubles, kmax: float, kmin: float | None, alpha: float) -> Doubles:
    """Eq. 3 region by region: the regions sorted, the highest summed and divided, the lowest likewise."""
    batch, classes, height, width = x.shape
    scores = np.zeros((batch, classes))
    for b in range(batch):
        for c in range(classes):
            regions = sorted(float(x[b, c, i, j]) for i in range(height) for j in range(width))
            highest = loop_count(kmax, len(regions))
            lowest = loop_count(kmax if kmin is None else kmin, len(regions))
            scores[b, c] = sum(regions[len(regions) - highest :]) / highest
            if lowest and alpha:
                scores[b, c] += alpha * sum(regions[:lowest]) / lowest
    return scores


def loop_class_wise_pool(maps: Doubles, num_maps: int, pool: str = "mean", r: float = 4.0) -> Doubles:
    """Eq. 1 region by region, with each `Cl.Pool` written from its formula."""
    batch, channels, height, width = maps.shape
    pooled = np.zeros((batch, channels // num_maps, height, width))
    for b, c, i, j in np.ndindex(pooled.shape):
        z = [float(maps[b, c * num_maps + m, i, j]) for m in range(num_maps)]  # map index = c * M + m
        if pool == "mean":
            pooled[b, c, i, j] = sum(z) / num_maps
        elif pool == "max":
            pooled[b, c, i, j] = sorted(z)[-1]
        elif pool == "lse":
            pooled[b, c, i, j] = math.log(sum(math.exp(r * v) for v in z) / num_maps) / r
        else:
            total = sum(math.exp(r * v) for v in z)
            pooled[b, c, i, j] = sum(math.exp(r * v) / total * v for v in z)
    return pooled


# --- class-wise pooling, eq. 1 --------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99),
    batch=st.integers(1, 3),
    classes=st.integers(1, 4),
    num_maps=sides,
    h=sides,
    w=sides,
    pool=st.sampled_from(get_args(ClassPool)),
    sharpness=st.floats(0.1, 20),
)
def test_class_wise_pool_equals_the_loop(
    seed: int, batch: int, classes: int, num_maps: int, h: int, w: int, pool: ClassPool, sharpness: float
) -> None:
    maps = random_maps(seed, batch, classes * num_maps, h, w)
    pooled = class_wise_pool(torch.from_numpy(maps), num_maps, pool, sharpness)
    np.testing.assert_allclose(pooled.numpy(), loop_class_wise_pool(maps, num_maps, pool, sharpness), atol=1e-12)


@pytest.mark.parametrize("pool", ["lse", "softmax"])
def test_sharpness_leads_from_the_mean_to_the_maximum(pool: ClassPool) -> None:
    maps = torch.from_numpy(random_maps(1, 2, 6, 3, 3))
    for sharpness, limit in ((1e-6, "mean"), (1e6, "max")):
        torch.testing.assert_close(
            class_wise_pool(maps, 3, pool, sharpness), class_wise_pool(maps, 3, limit), atol=1e-4, rtol=0
        )


def test_the_pooled_map_of_one_map_is_the_map() -> None:
    maps = torch.from_numpy(random_maps(1, 2, 3, 3, 3))
    for pool in get_args(ClassPool):
        torch.testing.assert_close(class_wise_pool(maps, 1, pool, 7.0), maps)


def test_competing_maps_share_the_gradient_of_their_class_map() -> None:
    """The highest map gets all of it (max), or softmax(r z) of it (lse); the shares of a region sum to one."""
    values = random_maps(2, 1, 6, 4, 5)
    weights = np.exp(2.0 * values.reshape(2, 3, 4, 5))
    weights /= weights.sum(axis=1, keepdims=True)
    winners = (values.reshape(2, 3, 4, 5).argmax(axis=1)[:, None] == np.arange(3)[:, None, None]).astype(float)
    for pool, expected in (("max", winners), ("lse", weights)):
        maps = torch.from_numpy(values).requires_grad_()
        class_wise_pool(maps, 3, pool, 2.0).sum().backward()  # type: ignore[arg-type]
        assert maps.grad is not None
        np.testing.assert_allclose(maps.grad.numpy().reshape(2, 3, 4, 5), expected, atol=1e-12)


@pytest.mark.parametrize(("pool", "sharpness", "says"), [("maximum", 4.0, "max"), ("lse", 0.0, "positive")])
def test_class_wise_pools_that_do_not_exist(pool: ClassPool, sharpness: float, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        class_wise_pool(torch.zeros(1, 4, 2, 2), 2, pool, sharpness)


@pytest.mark.parametrize("num_maps", [1, 4, 8])
def test_each_map_gets_one_mth_of_the_gradient(num_maps: int) -> None:
    """The authors' 2017 release forgets the 1/M, so that its gradients are M times too large."""
    maps = torch.zeros(2, 3 * num_maps, 4, 5, dtype=torch.float64, requires_grad=True)
    arriving = torch.from_numpy(random_maps(0, 2, 3, 4, 5))
    class_wise_pool(maps, num_maps).backward(arriving)
    assert maps.grad is not None
    for channel in range(3 * num_maps):
        np.testing.assert_allclose(maps.grad[:, channel], arriving[:, channel // num_maps] / num_maps, rtol=1e-12)


# --- spatial pooling, eq. 3 ------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    seed=st.integers(0, 999),
    h=sides,
    w=sides,
    kmax=counts | proportions,
    kmin=st.none() | st.just(0) | st.just(0.0) | counts | proportions,
    alpha=st.just(0.0) | st.floats(0, 3),
)
def test_spatial_pool_equals_the_loop(seed: int, h: int, w: int, kmax: float, kmin: float | None, alpha: float) -> None:
    x = random_maps(seed, 2, 3, h, w)
    scores = spatial_pool(torch.from_numpy(x), kmax, kmin, alpha)
    np.testing.assert_allclose(scores.numpy(), loop_spatial_pool(x, kmax, kmin, alpha), atol=1e-12)


@pytest.mark.parametrize(
    ("k", "total", "count"),
    [
        (1, 49, 1),
        (1.0, 49, 49),  # float 1.0 is all of them, int 1 is one
        (100, 49, 49),  # clipped
        (0.2, 49, 10),  # 9.8
        (0.5, 9, 4),  # round half to even, 4.5
        (0.001, 49, 1),  # at least one
        (0, 49, 0),
        (0.0, 49, 0),
        (0.2, 1, 1),
    ],
)
def test_region_count_table(k: float, total: int, count: int) -> None:
    assert region_count(k, total) == count


def test_values_worked_by_hand() -> None:
    x = torch.tensor([[[[5.0, 1.0, -2.0], [0.0, 3.0, -4.0]]]])
    assert spatial_pool(x, 1, 1, 1.0).item() == 5 - 4, "no division by two"
    assert spatial_pool(x, 2, 1, 0.5).item() == 4 - 0.5 * 4
    assert spatial_pool(x, 2, None, 0.5).item() == 4 + 0.5 * -3, "kmin=None takes kmax"
    assert spatial_pool(x, 2, 0, 0.5).item() == 4, "kmin=0 switches the lowest off"
    assert spatial_pool(x, 2, 2, 0.0).item() == 4, "alpha=0 switches them off too"
    assert spatial_pool(x, 1.0, 0, 0.0).item() == 0.5
    assert spatial_pool(x, 6, 99, 1.0).item() == 1.0, "counts above the map take all of it"


@pytest.mark.parametrize("pool", [(1, 1, 1.0), (3, 2, 0.7), (0.3, None, 0.7), (1.0, 1.0, 0.5), (2, 0, 0.0)])
def test_gradcheck_of_the_whole_head(pool: tuple[float, float | None, float]) -> None:
    maps = torch.tensor(random_maps(0, 2, 6, 3, 4), requires_grad=True)
    classes = np.sort(class_wise_pool(maps.detach(), 2).flatten(2).numpy())
    assert np.diff(classes).min() > 1e-4, "finite differences must not change which regions are selected"
    assert torch.autograd.gradcheck(lambda m: spatial_pool(class_wise_pool(m, 2), *pool), (maps,))


@given(seed=st.integers(0, 99), kmax=st.integers(1, 6), kmin=st.integers(0, 6), alpha=st.floats(0.1, 2))
def test_the_gradient_flows_through_the_selected_regions_only(seed: int, kmax: int, kmin: int, alpha: float) -> None:
    values = np.random.default_rng(seed).permutation(12).astype(float)
    x = torch.tensor(values.reshape(1, 1, 3, 4), requires_grad=True)
    spatial_pool(x, kmax, kmin, alpha).sum().backward()
    expected = np.zeros(12)
    order = np.argsort(values)
    expected[order[12 - kmax :]] += 1 / kmax
    if kmin:
        expected[order[:kmin]] += alpha / kmin
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy().ravel(), expected, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 0.3])
def test_ties_do_not_spread_the_gradient(k: float) -> None:
    """On a map without any contrast exactly k+ and k- regions are selected, as eq. 3 says."""
    x = torch.zeros(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    selected = region_count(k, 12)
    spatial_pool(x, k, 0, 0.0).sum().backward()
    assert x.grad is not None
    assert sorted(x.grad.ravel().tolist()) == pytest.approx([0] * (12 - selected) + [1 / selected] * selected)


def test_function_transforms_of_torch_apply_to_many_long_rows() -> None:
    """vmap and forward-mode differentiation, with more rows than any special case would need."""
    x = torch.from_numpy(random_maps(0, 3, 1, 2500, 16, 16)).float()
    expected = torch.stack([spatial_pool(maps, 0.2, None, 0.7) for maps in x])
    torch.testing.assert_close(torch.func.vmap(lambda maps: spatial_pool(maps, 0.2, None, 0.7))(x), expected)
    tangent = torch.ones_like(x[0])
    _, change = torch.func.jvp(lambda maps: spatial_pool(maps, 0.2, None, 0.7), (x[0],), (tangent,))
    torch.testing.assert_close(change, torch.full((1, 2500), 1.7))  # every region rises by 1


# --- the rows of Table 1 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kmax", "kmin", "alpha"),
    [
        ("max", 1, 0, 0.0),
        ("topk", 3, 0, 0.0),
        ("average", 1.0, 0, 0.0),
        ("weldon", 3, 3, 1.0),
        ("wildcat", 3, 3, 0.6),
    ],
)
def test_presets_equal_the_formulas_of_table_1(name: str, kmax: float, kmin: float, alpha: float) -> None:
    x = random_maps(1, 2, 3, 4, 5)
    scores = create_pool(name, kmax=3, alpha=0.6)(torch.from_numpy(x))
    np.testing.assert_allclose(scores.numpy(), loop_spatial_pool(x, kmax, kmin, alpha), atol=1e-12)


def test_presets_keep_what_they_do_not_fix() -> None:
    x = random_maps(2, 2, 3, 4, 5)
    weldon = create_pool("weldon", kmax=0.2, kmin=4, alpha=0.6)(torch.from_numpy(x))
    np.testing.assert_allclose(weldon.numpy(), loop_spatial_pool(x, 0.2, 4, 1.0), atol=1e-12)


@given(seed=st.integers(0, 99), h=sides, w=sides, sharpness=st.floats(0.01, 50))
def test_log_sum_exp_equals_numpy(seed: int, h: int, w: int, sharpness: float) -> None:
    x = random_maps(seed, 2, 3, h, w)
    expected = np.log(np.exp(sharpness * x).mean(axis=(2, 3))) / sharpness
    np.testing.assert_allclose(log_sum_exp_pool(torch.from_numpy(x), sharpness).numpy(), expected, atol=1e-9)


def test_log_sum_exp_lies_between_its_limits() -> None:
    x = torch.from_numpy(random_maps(0, 2, 3, 4, 5))
    np.testing.assert_allclose(log_sum_exp_pool(x, 1e-6), x.mean(dim=(2, 3)), atol=1e-5)
    np.testing.assert_allclose(log_sum_exp_pool(x, 1e4), x.amax(dim=(2, 3)), atol=math.log(20) / 1e4)
    assert torch.isfinite(log_sum_exp_pool(1e3 * x, 100.0)).all(), "exp(1e5) must not overflow"


# --- residual attention (CSRA); its formula over features is tested on the whole network in test_model.py -------------


@given(seed=st.integers(0, 99), h=sides, w=sides, residual=st.floats(0, 3), temperature=st.floats(0.01, 50))
def test_residual_attention_equals_numpy(seed: int, h: int, w: int, residual: float, temperature: float) -> None:
    x = random_maps(seed, 2, 3, h, w)
    weights = np.exp(temperature * x) / np.exp(temperature * x).sum(axis=(2, 3), keepdims=True)
    expected = x.mean(axis=(2, 3)) + residual * (weights * x).sum(axis=(2, 3))
    pooled = csra_pool(torch.from_numpy(x), residual, temperature)
    np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-9)


def test_residual_attention_at_its_limits() -> None:
    x = torch.from_numpy(random_maps(0, 2, 3, 4, 5))
    mean, highest = x.mean(dim=(2, 3)), x.amax(dim=(2, 3))
    np.testing.assert_allclose(csra_pool(x, 0.5, math.inf), mean + 0.5 * highest, atol=1e-12)
    np.testing.assert_allclose(csra_pool(x, 0.5, 1e4), mean + 0.5 * highest, atol=1e-9)
    np.testing.assert_allclose(csra_pool(x, 0.5, 1e-9), 1.5 * mean, atol=1e-6)
    np.testing.assert_allclose(csra_pool(x, 0.0), mean, atol=1e-12)
    assert torch.isfinite(csra_pool(1e3 * x, 1.0, 100.0)).all(), "exp(1e5) must not overflow"


@pytest.mark.parametrize("temperature", [0.5, 3.0, math.inf])
def test_gradcheck_of_residual_attention(temperature: float) -> None:
    maps = torch.tensor(random_maps(0, 2, 3, 3, 4), requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: csra_pool(m, 0.3, temperature), (maps,))


def test_ties_send_the_residual_of_infinite_temperature_to_one_region() -> None:
    x = torch.zeros(1, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    csra_pool(x, 0.6, math.inf).sum().backward()
    assert x.grad is not None
    assert sorted(x.grad.ravel().tolist()) == pytest.approx([1 / 12] * 11 + [1 / 12 + 0.6])


@pytest.mark.parametrize("name", ["max", "topk", "average", "weldon", "wildcat", "lse", "csra"])
def test_offset_gain_is_how_a_constant_passes(name: str) -> None:
    for kmin in (None, 0, 2):
        pool = create_pool(name, kmax=2, kmin=kmin, alpha=0.7)
        constant = torch.full((1, 1, 3, 3), -2.5, dtype=torch.float64)
        assert pool(constant).item() == pytest.approx(-2.5 * pool.offset_gain())


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kmax", "says"),
    [
        (
            1.5,
            "kmax=1.5: give an int (a count of regions) or a float in (0, 1] (a proportion); did you mean 0.15 or 2?",
        ),
        (20.0, "did you mean 0.2 or 20?"),
        (0, "a count is at least 1"),
        (-3, "kmax=-3"),
        (-0.5, "kmax=-0.5"),
        (0.0, "kmax=0: give an int"),
        (math.nan, "kmax=nan"),
        (math.inf, "kmax=inf"),
        (None, "kmax=None"),
        (True, "kmax=True"),
        ("3", "kmax='3'"),
    ],
)
def test_kmax_out_of_range(kmax: float, says: str) -> None:
    for pool in (lambda: spatial_pool(torch.zeros(1, 1, 2, 2), kmax), lambda: SpatialPool(kmax, None, 0.7)):
        with pytest.raises(ConfigError) as caught:
            pool()
        assert says in caught.value.message


@pytest.mark.parametrize("kmin", [-1, 1.01, math.nan, False])
def test_kmin_out_of_range(kmin: float) -> None:
    with pytest.raises(ConfigError, match="kmin="):
        spatial_pool(torch.zeros(1, 1, 2, 2), 1, kmin)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf, None])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"alpha=.*give a finite number of at least 0"):
        spatial_pool(torch.zeros(1, 1, 2, 2), 1, 1, alpha)


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.nan, math.inf])
def test_sharpness_out_of_range(sharpness: float) -> None:
    with pytest.raises(ConfigError, match=r"sharpness=.*give a positive number"):
        log_sum_exp_pool(torch.zeros(1, 1, 2, 2), sharpness)
    with pytest.raises(ConfigError, match="sharpness="):
        create_pool("lse", sharpness=sharpness)  # when it is made, not at the first image


@pytest.mark.parametrize(
    ("residual", "temperature", "says"),
    [
        (-0.1, 1.0, "residual=-0.1: give a finite number of at least 0"),
        (math.nan, 1.0, "residual=nan"),
        (math.inf, 1.0, "residual=inf"),
        (None, 1.0, "residual=None"),
        (0.2, 0.0, "temperature=0.0: give a number above 0, or inf"),
        (0.2, -1.0, "temperature=-1.0"),
        (0.2, math.nan, "temperature=nan"),
        (0.2, None, "temperature=None"),
    ],
)
def test_residual_attention_out_of_range(residual: float, temperature: float, says: str) -> None:
    for pool in (
        lambda: csra_pool(torch.zeros(1, 1, 2, 2), residual, temperature),
        lambda: ResidualAttentionPool(residual, temperature),
        lambda: create_pool("csra", residual=residual, temperature=temperature),
    ):
        with pytest.raises(ConfigError) as caught:
            pool()
        assert says in caught.value.message


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4), (1, 2, 3, 4, 5), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_wrong_shapes_are_named_with_the_right_one(shape: tuple[int, ...]) -> None:
    maps = torch.zeros(shape)
    for pool in (
        lambda: class_wise_pool(maps, 1),
        lambda: spatial_pool(maps),
        lambda: log_sum_exp_pool(maps, 1.0),
        lambda: csra_pool(maps),
    ):
        with pytest.raises(ShapeError) as caught:
            pool()
        assert str(shape) in caught.value.message
        assert "(batch, channels, height, width)" in caught.value.message


def test_channels_that_do_not_divide() -> None:
    with pytest.raises(ShapeError) as caught:
        class_wise_pool(torch.zeros(1, 10, 2, 2), 4)
    assert "10 channels" in caught.value.message
    assert "num_maps=4" in caught.value.message
    assert "a multiple of 4" in caught.value.hint
    with pytest.raises(ConfigError, match="num_maps=0"):
        class_wise_pool(torch.zeros(1, 10, 2, 2), 0)


def test_unknown_pooling() -> None:
    with pytest.raises(ConfigError) as caught:
        create_pool("weldone")
    assert caught.value.hint == "did you mean weldon?"
    with pytest.raises(ConfigError, match=r"(?s)'xyz'.*Poolings are: wildcat, .*csra, attention\."):
        create_pool("xyz")
    with pytest.raises(ConfigError, match=r"(?s)'attention' needs the features as well.*AttentionPool\(num_features"):
        create_pool("attention")


def test_a_batch_of_none_is_a_batch() -> None:
    assert spatial_pool(class_wise_pool(torch.zeros(0, 6, 3, 3), 2)).shape == (0, 3)
