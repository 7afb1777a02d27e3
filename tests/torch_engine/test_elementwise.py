"""Written-out gradients against autograd's, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bonsaigpt.config import RopePosition
from bonsaigpt.torch_engine.elementwise import relu2, rms_norm, rotate
from bonsaigpt.torch_engine.rope import rotation


def draw(*shape: int) -> Tensor:
    """Random values that no kink of ReLU comes near."""
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (x + 0.01 * x.sign()).requires_grad_()


def test_rms_norm_has_the_library_s_values_and_gradients() -> None:
    x, weight = draw(3, 5, 8), draw(8)
    ours, theirs = rms_norm(x, weight, 1e-5), F.rms_norm(x, (8,), weight, 1e-5)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours_grad = torch.autograd.grad(ours.cos().sum(), (x, weight))
    theirs_grad = torch.autograd.grad(theirs.cos().sum(), (x, weight))
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-10, atol=1e-12)
    # Negative control: the eps is in it.
    assert not torch.allclose(rms_norm(x, None, 1.0), rms_norm(x, None, 1e-5))


def test_the_written_out_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, None, 1e-2), (draw(2, 6),))
    assert torch.autograd.gradcheck(relu2, (draw(3, 4),))


def test_relu2_is_the_square_of_relu() -> None:
    x = draw(4, 7)
    torch.testing.assert_close(relu2(x), F.relu(x).square())
    torch.testing.assert_close(
        torch.autograd.grad(relu2(x).cos().sum(), x), torch.autograd.grad(F.relu(x).square().cos().sum(), x)
    )


@pytest.mark.parametrize("neighbours", [False, True])
def test_rotation_equals_the_matrix_of_each_pair(neighbours: bool) -> None:
    """One pair at a time by its 2 x 2 matrix (Su et al. 2021, equation 13)."""
    cos, sin = (t.double() for t in rotation(RopePosition(theta=100.0), 6, torch.arange(5)))
    x = draw(2, 5, 3, 6)
    expected = torch.empty_like(x)
    for t in range(5):
        for i in range(3):
            a, b = (2 * i, 2 * i + 1) if neighbours else (i, i + 3)
            expected[:, t, :, a] = x[:, t, :, a] * cos[t, i] - x[:, t, :, b] * sin[t, i]
            expected[:, t, :, b] = x[:, t, :, a] * sin[t, i] + x[:, t, :, b] * cos[t, i]
    turned = rotate(x, cos[:, None], sin[:, None], neighbours=neighbours)
    torch.testing.assert_close(turned, expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda y: rotate(y, cos[:, None], sin[:, None], neighbours=neighbours), (x,))
    assert not torch.allclose(turned, rotate(x, cos[:, None], sin[:, None], neighbours=not neighbours))


@pytest.mark.parametrize("neighbours", [False, True])
def test_what_is_compiled_is_what_is_run_eagerly(neighbours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cos, sin = (t.double() for t in rotation(RopePosition(theta=100.0), 6, torch.arange(5)))
    x = draw(2, 5, 3, 6)

    def all_three() -> list[Tensor]:
        return [rotate(x, cos[:, None], sin[:, None], neighbours=neighbours), relu2(x), rms_norm(x, None, 1e-5)]

    fused = all_three()
    monkeypatch.setattr("bonsaigpt.torch_engine.elementwise._plain", lambda x: True)
    torch.testing.assert_close(fused, all_three(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_turn_too(neighbours: bool, dtype: torch.dtype) -> None:
    """As under autocast: the products of attention are narrow, and complex numbers are not."""
    cos, sin = (t[:, None] for t in rotation(RopePosition(theta=100.0), 6, torch.arange(5)))
    x = draw(2, 5, 3, 6).detach().to(dtype)
    turned = rotate(x, cos, sin, neighbours=neighbours)
    assert turned.dtype == dtype
    # Two products and a sum of numbers near one, each rounded to half a unit of the last of 8 bits.
    exact = rotate(x.float(), cos, sin, neighbours=neighbours)
    torch.testing.assert_close(turned.float(), exact, rtol=0, atol=4 * 2.0**-8 * float(x.abs().max()))
    assert (turned.float() - rotate(x.float(), cos, -sin, neighbours=neighbours)).abs().max() > 0.1
