"""Sums of importances in one basis, against loops over the directions of every experience."""

import pytest
import torch
from naive_bases import (
    along,
    directions,
    drawn_layer,
    drawn_values,
    drawn_weights,
    quadratic,
    sides,
)
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_cetl.allocation.merged_basis import COPIES, NARROW, ROOM, MergedBasis
from avalanche_cetl.information.gradients.rotation import KroneckerBasis

#: By name: shape of the weight, and what its basis is made with.
CASES = {
    "linear": ((4, 5), {}),
    "no bias": ((4, 5), {"bias": None}),
    "more outputs": ((7, 2), {}),
    "convolution": ((4, 2, 3, 2), {}),
    "groups": ((6, 3, 2), {"groups": 3}),
    "depthwise": ((4, 1, 3, 3), {"groups": 4, "bias": None}),
}


def shapes_of(name):
    """The layer's parameters, and a norm's beside them."""
    shape, options = CASES[name]
    bias = {} if "bias" in options else {"b": torch.Size([shape[0]])}
    return {"w": torch.Size(shape), **bias, "norm": torch.Size([3])}


def experience(name, seed, rank=99):
    """Importance and basis of one experience."""
    shape, options = CASES[name]
    layer = drawn_layer(seed, shape, rank, **options)
    own = {"w": drawn_values(seed, layer.shape), "norm": drawn_values(seed + 50, (3,))}
    return own, KroneckerBasis({"w": layer})


def summed(experiences, shapes, rank=9, decay=1.0):
    found = MergedBasis(rank)
    for importance, basis in experiences:
        found.add(importance, basis, shapes, decay)
    return found


def assert_same_quadratic(found, experiences, shapes):
    for seed in range(5):
        away = drawn_weights(seed, shapes)
        wanted = sum(quadratic(*one, away) for one in experiences)
        torch.testing.assert_close(
            quadratic(found.importance, found.basis, away), wanted, rtol=1e-10, atol=1e-12
        )


def assert_exact_along_directions(found, experiences, shapes, factors=None):
    """Along every direction that is kept, the sum is that of all quadratics."""
    layer = found.basis["w"]
    for place, group, u, v in directions(layer):
        away = along(layer, group, u, v, shapes)
        values = [quadratic(*one, away) for one in experiences]
        wanted = sum(f * q for f, q in zip(factors or [1] * len(values), values, strict=True))
        torch.testing.assert_close(found.importance["w"][place], wanted, rtol=1e-10, atol=1e-12)


def assert_orthonormal(layer):
    for pair in sides(layer):
        for columns in pair:
            product = columns.T @ columns
            torch.testing.assert_close(
                product, torch.eye(len(product), dtype=torch.float64), rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("rank", [2, 99])
@pytest.mark.parametrize("name", CASES)
def test_one_experience_is_kept_exactly(name, rank):
    one, shapes = experience(name, 0, rank), shapes_of(name)
    assert_same_quadratic(summed([one], shapes), [one], shapes)


@pytest.mark.parametrize("name", CASES)
def test_experiences_that_share_a_basis_are_summed_exactly(name):
    (first, basis), (second, _) = experience(name, 0), experience(name, 1)
    experiences, shapes = [(first, basis), (second, basis)], shapes_of(name)
    assert_same_quadratic(summed(experiences, shapes), experiences, shapes)


@pytest.mark.parametrize("rank", [1, 2, 99])
@pytest.mark.parametrize("name", CASES)
def test_along_every_kept_direction_the_importance_is_the_sum_of_all(name, rank):
    experiences = [experience(name, seed, rank) for seed in range(2)]
    found = summed(experiences, shapes_of(name), rank)
    assert_exact_along_directions(found, experiences, shapes_of(name))
    assert_orthonormal(found.basis["w"])


def test_the_directions_kept_are_those_of_most_importance():
    experiences = [experience("linear", seed, 3) for seed in range(4)]
    found = summed(experiences[:1], shapes_of("linear"), 1)
    before = found.importance, found.basis
    found.add(*experiences[1], shapes_of("linear"))
    known = [(values["w"], basis["w"]) for values, basis in (before, experiences[1])]
    outputs = sum(one.left @ f.sum(1).diag() @ one.left.T for f, one in known)
    inputs = sum(one.right @ f.sum(0).diag() @ one.right.T for f, one in known)
    layer = found.basis["w"]
    for matrix, kept in ((outputs, layer.left), (inputs, layer.right)):
        leading = torch.linalg.eigvalsh(matrix).flip(0)[: kept.shape[1]]
        torch.testing.assert_close(kept.T @ matrix @ kept, leading.diag(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2])
def test_no_more_directions_are_kept_than_there_is_room_for(rank):
    shapes = {"w": torch.Size([11, 12]), "b": torch.Size([11])}
    found = MergedBasis(rank)
    for seed in range(ROOM + 2):
        layer = drawn_layer(seed, shapes["w"], rank)
        found.add(
            {"w": drawn_values(seed, layer.shape, False)}, KroneckerBasis({"w": layer}), shapes
        )
        rooms = (rank, min(rank * min(seed + 1, ROOM), 12))
        assert found.basis["w"].shape == found.importance["w"].shape == rooms
        assert_orthonormal(found.basis["w"])


@pytest.mark.parametrize(("size", "kept"), [(2 * NARROW, 2 * NARROW), (2 * NARROW + 1, 2)])
def test_a_narrow_side_is_kept_whole_where_it_is_small(size, kept):
    shapes, found = {"w": torch.Size((size, 20))}, MergedBasis(2)
    for seed in range(ROOM):
        layer = drawn_layer(seed, shapes["w"], 2)
        values = drawn_values(seed, layer.shape, False)
        found.add({"w": values}, KroneckerBasis({"w": layer}), shapes)
    assert found.importance["w"].shape[0] == kept


@pytest.mark.parametrize(("shape", "wide"), [((2, 40), 1), ((40, 1), 0)])
def test_the_wider_side_of_a_layer_has_room_for_some_copies_of_it(shape, wide):
    shapes, found = {"w": torch.Size(shape)}, MergedBasis(2)
    for seed in range(ROOM + 2):
        layer = drawn_layer(seed, shapes["w"], 2)
        values = drawn_values(seed, layer.shape, False)
        found.add({"w": values}, KroneckerBasis({"w": layer}), shapes)
    kept = found.importance["w"].shape
    assert kept[wide] == COPIES * 2 < ROOM * 2 and kept[1 - wide] == 2


@pytest.mark.parametrize("decay", [0.0, 0.3, 2.0])
def test_what_is_held_fades_when_an_experience_comes(decay):
    experiences, shapes = [experience("linear", seed) for seed in range(2)], shapes_of("linear")
    found = summed(experiences, shapes, decay=decay)
    assert_exact_along_directions(found, experiences, shapes, [decay, 1])
    (first, _), (second, _) = experiences
    torch.testing.assert_close(found.importance["norm"], decay * first["norm"] + second["norm"])


def test_parameters_without_a_basis_add_up_and_those_not_measured_stay():
    shapes = {"norm": torch.Size([3]), "scale": torch.Size([2])}
    norms = [drawn_values(seed, (3,)) for seed in range(3)]
    found = MergedBasis(2)
    found.add({"norm": norms[0], "scale": torch.ones(2)}, KroneckerBasis({}), shapes)
    for norm in norms[1:]:
        found.add({"norm": norm}, KroneckerBasis({}), shapes)
    torch.testing.assert_close(found.importance["norm"], sum(norms))
    assert torch.equal(found.importance["scale"], torch.ones(2)) and len(found.basis) == 0


def test_a_layer_that_is_not_measured_again_stays_as_it_is():
    one, shapes = experience("linear", 0), shapes_of("linear")
    nothing = {}, KroneckerBasis({})
    assert_same_quadratic(summed([one, nothing, nothing], shapes), [one], shapes)


# ------------------------------------------------------------------ biases and weights alone


def bias_alone(seed, groups=None):
    """The bias has no place in the basis."""
    shape = CASES["groups" if groups else "linear"][0]
    layer = drawn_layer(seed, shape, bias=None, groups=groups)
    own = {"w": drawn_values(seed, layer.shape), "b": drawn_values(seed + 9, (shape[0],))}
    return own, KroneckerBasis({"w": layer})


def both_alone(seed, groups=None):
    """Neither weight nor bias has a basis."""
    shape = CASES["groups" if groups else "linear"][0]
    own = {"w": drawn_values(seed, shape), "b": drawn_values(seed + 9, (shape[0],))}
    return own, KroneckerBasis({})


def bias_only(seed, groups=None):
    """The weight is frozen."""
    own, _ = both_alone(seed, groups)
    return {"b": own["b"]}, KroneckerBasis({})


def together(seed, groups=None):
    """The bias is part of the basis."""
    own, basis = experience("groups" if groups else "linear", seed)
    return {"w": own["w"]}, basis


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize(
    "makes",
    [
        (bias_alone, together),
        (together, bias_alone),
        (both_alone, together),
        (together, both_alone),
        (both_alone, bias_alone),
        (bias_only, together),
        (together, bias_only),
        (bias_only, bias_alone, together),
    ],
)
def test_weights_and_biases_measured_by_themselves_join_the_basis_of_their_layer(makes, groups):
    experiences = [make(seed, groups) for seed, make in enumerate(makes)]
    shapes = shapes_of("groups" if groups else "linear")
    found = summed(experiences, shapes)
    layer = found.basis["w"]
    if found.basis.folded:
        assert set(found.importance) == {"w"} and layer.bias == "b"
        assert_exact_along_directions(found, experiences, shapes)
        sums = [sum(float(v.sum()) for v in values.values()) for values, _ in experiences]
        assert float(found.importance["w"].sum()) == pytest.approx(sum(sums), rel=1e-12)
    else:
        parts = [({"w": values["w"]}, basis) for values, basis in experiences]
        assert_exact_along_directions(found, parts, shapes)
        torch.testing.assert_close(
            found.importance["b"], sum(values["b"] for values, _ in experiences)
        )
    assert_orthonormal(layer)


def test_a_bias_of_equal_importances_joins_the_basis_exactly():
    (own, basis), shapes = bias_alone(0), shapes_of("linear")
    own["b"] = torch.full((4,), 0.7, dtype=torch.float64)
    (later, folded) = together(1)
    nothing = {"w": torch.zeros_like(later["w"])}, folded
    found = summed([(own, basis), nothing], shapes)
    assert_same_quadratic(found, [(own, basis)], shapes)


class Largest(TorchDispatchMode):
    """Notes how many values the largest tensor has that is made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        parts = found if isinstance(found, tuple | list) else [found]
        self.size = max([self.size, *(p.numel() for p in parts if isinstance(p, torch.Tensor))])
        return found


@pytest.mark.parametrize("bias", [None, "b"])
def test_no_matrix_of_inputs_by_inputs_is_made_for_a_layer_with_a_basis(bias):
    shapes, experiences = {"w": torch.Size([2, 300]), "b": torch.Size([2])}, []
    for seed, folded in enumerate(["b", bias]):
        layer = drawn_layer(seed, shapes["w"], 2, bias=folded)
        own = {"w": drawn_values(seed, layer.shape)}
        alone = {} if folded else {"b": drawn_values(seed, (2,))}
        experiences.append((own | alone, KroneckerBasis({"w": layer})))
    with Largest() as largest:
        summed(experiences, shapes)
    assert 0 < largest.size <= 301 * 5


# ------------------------------------------------------------------ growth

GROWN = {
    "linear": {"w": (6, 8), "b": (6,)},
    "no bias": {"w": (4, 7)},
    "more outputs": {"w": (9, 2), "b": (9,)},
    "convolution": {"w": (5, 4, 3, 2), "b": (5,)},
}


def placed(values, shapes):
    """Values in the old part of parameters that have grown, 0 in the new one."""
    found = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for name, value in values.items():
        found[name][tuple(slice(0, size) for size in value.shape)] = value
    return found


@pytest.mark.parametrize("name", GROWN)
def test_layers_that_grow_keep_the_quadratic_of_their_old_part_and_free_the_new_one(name):
    one, old = experience(name, 0), shapes_of(name)
    shapes = {k: torch.Size(v) for k, v in GROWN[name].items()} | {"norm": torch.Size([5])}
    found = summed([one], old)
    found.grow(shapes)
    for seed in range(5):
        away = drawn_weights(seed, old)
        everywhere = drawn_weights(seed + 9, shapes)
        for values in (placed(away, shapes), everywhere):
            inside = {n: values[n][tuple(map(slice, shape))] for n, shape in old.items()}
            torch.testing.assert_close(
                quadratic(found.importance, found.basis, values),
                quadratic(*one, inside),
                rtol=1e-10,
                atol=1e-12,
            )
    assert_orthonormal(found.basis["w"])


@pytest.mark.parametrize("name", GROWN)
def test_an_experience_of_a_layer_that_has_grown_is_added_to_those_before(name):
    first, old = experience(name, 0), shapes_of(name)
    shapes = {k: torch.Size(v) for k, v in GROWN[name].items()} | {"norm": torch.Size([3])}
    layer = drawn_layer(1, shapes["w"], bias="b" if "b" in shapes else None)
    second = {"w": drawn_values(1, layer.shape)}, KroneckerBasis({"w": layer})
    found = summed([first], old, rank=20)
    found.add(*second, shapes)
    kept = found.basis["w"]
    for place, group, u, v in directions(kept):
        away = along(kept, group, u, v, shapes)
        inside = {n: away[n][tuple(map(slice, shape))] for n, shape in old.items()}
        wanted = quadratic(*first, inside) + quadratic(*second, away)
        torch.testing.assert_close(found.importance["w"][place], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("groups", {"w": (9, 3, 2), "b": (9,)}),
        ("groups", {"w": (6, 4, 2), "b": (6,)}),
        ("linear", {"w": (3, 5), "b": (3,)}),
        ("linear", {"w": (6, 4), "b": (6,)}),
        ("linear", {"norm": (2,)}),
    ],
)
def test_groups_that_grow_and_layers_that_shrink_are_refused(name, shapes):
    found = summed([experience(name, 0)], shapes_of(name))
    with pytest.raises(ValueError, match="may grow"):
        found.grow({k: torch.Size(v) for k, v in shapes.items()})


def test_what_has_its_old_shape_or_is_not_named_stays():
    found = summed([experience("groups", 0)], shapes_of("groups"))
    before = found.basis["w"]
    found.grow(shapes_of("groups"))
    found.grow({})
    assert found.basis["w"] is before


# ------------------------------------------------------------------ nothing is important


@pytest.mark.parametrize("name", CASES)
def test_importances_of_0_add_nothing(name):
    one, shapes = experience(name, 0), shapes_of(name)
    values, basis = experience(name, 1)
    zero = {k: torch.zeros_like(v) for k, v in values.items()}, basis
    found = summed([zero, zero], shapes)
    assert not any(value.any() for value in found.importance.values())
    assert_orthonormal(found.basis["w"])
    assert_same_quadratic(summed([zero, one, zero], shapes), [one], shapes)


def test_single_precision_stays_single_and_is_as_good_as_it_can_be():
    shapes = shapes_of("linear")
    experiences = [experience("linear", seed) for seed in range(3)]
    wide = summed(experiences, shapes)
    single = summed(
        [({k: v.float() for k, v in own.items()}, b.to(torch.float32)) for own, b in experiences],
        shapes,
    )
    layer = single.basis["w"]
    assert {layer.left.dtype, layer.right.dtype, single.importance["w"].dtype} == {torch.float32}
    away = drawn_weights(0, shapes)
    torch.testing.assert_close(
        quadratic(
            {k: v.double() for k, v in single.importance.items()}, single.basis.to(away["w"]), away
        ),
        quadratic(wide.importance, wide.basis, away),
        rtol=1e-4,
        atol=0,
    )
