"""Layers in a basis of their own."""

import torch

from avalanche_cetl.information.gradients.eigenbasis import KroneckerBasis, LayerBasis


def layer(groups=()):
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(*groups, 4, 3).double()).Q
    right = torch.linalg.qr(torch.randn(*groups, 6, 2).double()).Q
    return LayerBasis("w", "b", left, right)


def test_directions_are_products_with_both_bases():
    basis, values = layer(), {"w": torch.randn(4, 5).double(), "b": torch.randn(4).double()}
    whole = torch.cat([values["w"], values["b"].unsqueeze(1)], 1)
    torch.testing.assert_close(basis.rotate(values), basis.left.T @ whole @ basis.right)


def test_groups_have_a_matrix_each():
    basis, values = layer((2,)), {"w": torch.randn(8, 5).double(), "b": torch.randn(8).double()}
    assert basis.shape == (2, 3, 2)
    for k, found in enumerate(basis.rotate(values)):
        rows = slice(4 * k, 4 * k + 4)
        whole = torch.cat([values["w"][rows], values["b"][rows].unsqueeze(1)], 1)
        torch.testing.assert_close(found, basis.left[k].T @ whole @ basis.right[k])


def test_a_basis_is_read_by_the_names_of_weights_and_tells_the_biases_in_it():
    basis = KroneckerBasis({"w": layer()})
    assert dict(basis).keys() == {"w"} and basis.folded == {"b"} and len(basis) == 1
