"""Networks: their shapes, no memory of a site beside the weights, no influence of one sample on another."""

from typing import Any

import pytest
import torch

from protos.plan import NetworkChoice, Task
from strategies import networks

CHOICES: dict[str, dict[str, Any]] = {
    "unet": {"channels": (4, 8, 8)},
    "unet-group": {"channels": (4, 8, 8), "norm": "group"},
    "unet-residual": {"channels": (4, 8, 8), "residual_units": 1},
    "basic": {"name": "basic_unet", "channels": (4, 4, 8, 8, 8, 4)},
    "basic-group": {"name": "basic_unet", "channels": (4, 4, 8, 8, 8, 4), "norm": "group"},
}
every_network = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
every_size = pytest.mark.parametrize("size", [(32, 48), (16, 32, 16)], ids=["2D", "3D"])


def task(size: tuple[int, ...], channels: int = 2) -> Task:
    return Task.model_validate(
        {"dims": len(size), "channels": channels, "size": size, "classes": ("background", "a", "b")}
    )


def built(size: tuple[int, ...], choice: dict[str, Any]) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return networks.build(task(size), NetworkChoice.model_validate(choice))


@every_size
@every_network
def test_one_sample_tells_nothing_of_another(choice: dict[str, Any], size: tuple[int, ...]) -> None:
    """In training mode too: where statistics of the batch were used, the company would change a sample's logits."""
    model = built(size, choice).train()
    images = torch.randn(3, 2, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = model(images)
        assert together.shape == (3, 3, *size)
        for number in range(3):
            torch.testing.assert_close(model(images[number : number + 1])[0], together[number], rtol=1e-4, atol=1e-5)
        other = images.clone()
        other[1:] = 100 * other[1:] + 7
        torch.testing.assert_close(model(other)[0], together[0], rtol=1e-4, atol=1e-5)


@every_network
def test_nothing_is_kept_but_parameters(choice: dict[str, Any]) -> None:
    model = built((32, 32), choice)
    assert not dict(model.named_buffers())
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()


@every_size
@every_network
def test_the_outline_is_that_of_the_network_and_takes_no_memory(choice: dict[str, Any], size: tuple[int, ...]) -> None:
    state = built(size, choice).state_dict()
    before = torch.get_rng_state()
    outline = networks.outline(task(size), NetworkChoice.model_validate(choice))
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: (t.shape, t.dtype) for name, t in outline.items()} == {
        name: (t.shape, t.dtype) for name, t in state.items()
    }
    assert all(tensor.is_meta for tensor in outline.values())


@pytest.mark.parametrize(
    ("size", "choice", "said"),
    [
        ((30, 32), CHOICES["unet"], "multiple of 4"),
        ((2, 2), CHOICES["unet"], "multiple of 4"),
        ((4, 4), CHOICES["unet"], "single pixel"),
        ((4, 4, 4), CHOICES["unet"], "single pixel"),
        ((32, 24), CHOICES["basic"], "multiple of 16"),
    ],
)
def test_a_size_that_does_not_fit_is_one_sentence(size: tuple[int, ...], choice: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^network: [^\n]*{said}[^\n]*\.$") as caught:
        built(size, choice)
    assert "task.size" in str(caught.value)


def test_the_lesion_papers_network_has_three_levels_from_32_maps() -> None:
    """A 3D U-Net with residual units on 64^3 patches (Naga Karthik et al. 2022, A.1)."""
    lesions = Task.model_validate({"dims": 3, "classes": ("background", "lesion"), "soft": True})
    choice = NetworkChoice.model_validate({"channels": (32, 64, 128), "residual_units": 2})
    outline = networks.outline(lesions, choice)
    assert lesions.size == (64, 64, 64)
    assert {t.shape[0] for n, t in outline.items() if t.ndim == 5} >= {32, 64, 128}
    assert any("residual" in name for name in outline)
    with torch.device("meta"):
        assert networks.build(lesions, choice)(torch.zeros(1, 1, 64, 64, 64)).shape == (1, 1, 64, 64, 64)


def test_a_single_pixel_is_enough_for_group_norm() -> None:
    model = built((4, 4), CHOICES["unet-group"])
    assert model(torch.zeros(1, 2, 4, 4)).shape == (1, 3, 4, 4)
