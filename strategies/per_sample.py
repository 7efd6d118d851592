"""The gradients of every single sample, not only their sum: what importance is made of.

`fold_gradients` computes them for a chunk of samples at once (torch.func.vmap); `fold_gradients_one_by_one` is the
same in plain form, the reference that it is tested against.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from strategies.data import Batch, Samples

# From the model's output and label for one sample, [1, ...] each, to a scalar.
Objective = Callable[[Tensor, Tensor], Tensor]
# Applied to gradients elementwise before they are summed over samples, for example torch.abs.
Fold = Callable[[Tensor], Tensor]
# The seed that draws a sample's window, by the sample's number.
Seed = Callable[[int], int]

MEMORY = (
    512 * 2**20
)  # bytes; not the machine's free memory, since sums over chunks depend on the chunk in their last bit


def per_sample_gradients(model: nn.Module, objective: Objective, batch: Batch) -> dict[str, Tensor]:
    """The gradient of `objective` at each sample of `batch`, by parameter name: [N, *parameter's shape].

    The model must not couple samples (no BatchNorm), and is used in the mode it is in.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def value(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, buffers), (image[None],))
        return objective(logits, label[None])

    one = grad(value)
    found: dict[str, Tensor] = vmap(one, in_dims=(None, 0, 0), randomness="different")(
        parameters, batch.image, batch.label
    )
    return found


def fold_gradients(
    model: nn.Module,
    objective: Objective,
    samples: Samples,
    fold: Fold,
    *,
    memory: int = MEMORY,
    seed: Seed = int,
) -> dict[str, Tensor]:
    """The mean over all samples (not augmented) of `fold` of each one's gradient, by parameter name.

    Samples are taken in chunks whose gradients and activations fit into about `memory` bytes.
    """
    total: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    for batch in _chunks(samples, chunk_length(model, samples, memory), seed, device):
        for name, gradients in per_sample_gradients(model, objective, batch).items():
            part = fold(gradients).sum(0)
            total[name] = total[name] + part if name in total else part
    return {name: value / len(samples) for name, value in total.items()}


def fold_gradients_one_by_one(
    model: nn.Module, objective: Objective, samples: Samples, fold: Fold, *, seed: Seed = int
) -> dict[str, Tensor]:
    """As `fold_gradients`, one sample and one ordinary backward pass at a time."""
    names = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in names.items()}
    for batch in _chunks(samples, 1, seed, next(model.parameters()).device):
        value = objective(model(batch.image), batch.label)
        gradients = torch.autograd.grad(value, list(names.values()), allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                total[name] += fold(gradient)
    return {name: value / len(samples) for name, value in total.items()}


def chunk_length(model: nn.Module, samples: Samples, memory: int) -> int:
    """How many samples fit into `memory` bytes at once; at least one.

    For each sample one gradient per parameter, and three times (value, gradient, work space) what its layers put out.
    """
    image = samples.batch([0]).image
    outputs = 0

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal outputs
        outputs += output.nbytes

    leaves = [module for module in model.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    try:
        with torch.inference_mode():
            model(image.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    each = 2 * sum(p.nbytes for p in model.parameters()) + 3 * outputs
    return max(1, min(len(samples), memory // each))


def _chunks(samples: Samples, length: int, seed: Seed, device: torch.device) -> Iterator[Batch]:
    """The samples in order, `length` at a time."""
    for first in range(0, len(samples), length):
        indices = range(first, min(first + length, len(samples)))
        batch = samples.batch(indices, [seed(index) for index in indices], only=())
        yield Batch(batch.image.to(device), batch.label.to(device))
