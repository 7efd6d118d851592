"""The ordinary training loop: resumable at any step, all randomness derived from (run seed, stop, site)."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from protos.plan import Training
from strategies.data import Batch
from strategies.visit import Visit, seeded

OPTIMIZER = "optimizer/"  # marks a tensor as the state of an optimizer
MOST_SAMPLES = 10**9  # of a site
LOSSES_TOGETHER = 16  # that are read at once where reading is waiting for the device


# Sets the `.grad` of all parameters for the batch of a step (from 0), and returns the loss.
Gradients = Callable[[Batch, int], Tensor]


def backward(loss: Callable[[Batch], Tensor]) -> Gradients:
    """The gradient of a scalar loss."""

    def gradients(batch: Batch, step: int) -> Tensor:
        value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    return gradients


def make_optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """The plan's optimizer over all parameters of `model`, with fresh state."""
    parameters = list(model.parameters())
    match training.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, lr=training.lr, weight_decay=training.weight_decay)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay
            )


def visit_steps(training: Training, samples: int) -> int:
    """The optimizer steps of a visit to a site with so many training samples."""
    if training.epochs is None:
        return training.steps
    return -(-samples * training.epochs // training.batch_size)


def most_steps(training: Training) -> int:
    """The steps of a visit to the largest site that there may be, and so the most of any visit."""
    return visit_steps(training, MOST_SAMPLES)


def learning_rate(training: Training, step: int, steps: int, first: bool) -> float:
    """The rate of `step` (from 0) of a visit of `steps`; `first` says that no visit came before.

    A function of the place alone, so that nothing has to survive a crash. Training of another length, such as joint
    training for `steps` updates in all, falls in the same share of its way.
    """
    if training.lr_step is None:
        return training.lr
    length = training.steps if training.epochs is None else training.epochs  # in the unit of lr_step
    done = step * length // steps
    if training.lr_decay_visits == "first" and not first:
        done = length - 1
    return training.lr * training.lr_factor ** (max(0, done) // training.lr_step)


def stretch(training: Training, steps: int, rate: float) -> Training:
    """The plan's training for a stretch of a longer one: so many steps at one rate."""
    return training.model_copy(update={"steps": steps, "epochs": None, "lr": rate, "lr_step": None})


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be taken at `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def draw(visit: Visit, position: int, count: int, patches: int = 1) -> Batch:
    """`patches` windows of each of the `count` training samples from `position` on in the site's shuffled stream.

    Each is augmented by a seed of its own, and all are on the device, those of a sample side by side. Only samples that
    are not there already are copied.
    """
    indices, seeds = [], []
    for place in range(position, position + count):
        index = visit.seeds.sample(place, len(visit.train))
        for patch in range(patches):
            indices.append(index)
            seeds.append(visit.seeds("augment", place, patch) if patch else visit.seeds("augment", place))
    batch = visit.train.batch(indices, seeds)
    return Batch(batch.image.to(visit.device), batch.label.to(visit.device))


def train(
    model: nn.Module,
    training: Training,
    visit: Visit,
    *,
    gradients: Gradients,
    accept: Callable[[list[Tensor]], None] | None = None,
    first_step: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
) -> dict[str, int | float]:
    """Take the plan's optimizer steps on `model`, in place, going on from a checkpoint where there is one.

    `gradients` gives every step its direction. `accept` is called after each step with the parameters before it.
    `first_step` is the place of this visit's first step in the site's stream of batches. `optimizer` is one over the
    model's parameters whose state goes on; without, it is fresh. Returns the metrics of VISIT_METRICS.
    """
    steps = visit_steps(training, len(visit.train))
    optimizer = optimizer or make_optimizer(training, model)
    parameters = list(model.parameters())
    losses, start = Losses(visit.device), 0
    if saved := visit.checkpoint.load():
        start, state = saved
        losses = Losses(visit.device, [state["loss_first"].item(), state["loss_last"].item()])
        restore(state, model, optimizer)
    model.train()
    with seeded(visit.seeds("visit"), visit.device):
        for step in range(start, steps):
            batch = draw(visit, (first_step + step) * training.batch_size, training.batch_size, training.patches)
            torch.manual_seed(visit.seeds("step", first_step + step))  # dropout and whatever else a model draws
            optimizer.zero_grad(set_to_none=True)
            value = gradients(batch, step)
            before = [p.detach().clone() for p in parameters] if accept else []
            set_learning_rate(optimizer, learning_rate(training, step, steps, visit.first))
            optimizer.step()
            if accept:
                accept(before)
            keeps = (step + 1) % training.checkpoint_every == 0 and step + 1 < steps
            losses.add(value, read=keeps or step + 1 == steps)
            visit.report(step + 1, steps, losses.newest())
            if keeps:
                progress = {"loss_first": torch.tensor(losses.known[0], dtype=torch.float64)}
                progress["loss_last"] = torch.tensor(losses.known[-1], dtype=torch.float64)
                visit.checkpoint.save(step + 1, snapshot(model, optimizer) | progress)
    metrics: dict[str, int | float] = {"samples": len(visit.train), "steps": steps}
    return metrics | ({"loss_first": losses.known[0], "loss_last": losses.known[-1]} if steps else {})


class Losses:
    """The losses of a visit's steps as numbers, none of which may be infinite or NaN.

    On a CPU each is read when it comes. On another device reading is waiting for it, so several are read together.
    `known`: those that have been read; all of them after one that was added to be read.
    """

    def __init__(self, device: torch.device, known: Sequence[float] = ()) -> None:
        self.known = list(known)
        self._unread: list[Tensor] = []
        self._together = 1 if device.type == "cpu" else LOSSES_TOGETHER

    def add(self, loss: Tensor, *, read: bool) -> None:
        """Take up a step's loss, a scalar; `read` it at once, wherever it is.

        Raises FloatingPointError when a loss that is read shows that training has diverged.
        """
        self._unread.append(loss.detach())
        if read or len(self._unread) >= self._together:
            self.known += [_checked(value) for value in torch.stack(self._unread).tolist()]
            self._unread.clear()

    def newest(self) -> dict[str, float]:
        """The last one that has been read, by the name "loss", if there is one: what is shown of a step."""
        return {"loss": self.known[-1]} if self.known else {}


def finite(loss: Tensor) -> float:
    """The loss as a number; raises FloatingPointError when training has diverged."""
    return _checked(loss.item())


def _checked(loss: float) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss}; a smaller training.lr may help")
    return loss


def gradient(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """The gradient of `value` by parameter name; zeros where a parameter has no part in it."""
    names = dict(model.named_parameters())
    found = torch.autograd.grad(value, list(names.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if g is None else g
        for (name, parameter), g in zip(names.items(), found, strict=True)
    }


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Model and optimizer state as one flat dictionary of tensors, fit for a safetensors file."""
    state = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    return state | optimizer_state(model, optimizer)


def restore(state: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Bring model and optimizer to what `snapshot` saw."""
    model.load_state_dict({key.removeprefix("model/"): t for key, t in state.items() if key.startswith("model/")})
    restore_optimizer(state, model, optimizer)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer over `model`, as `optimizer/SLOT/PARAMETER`; empty before the first step."""
    names = [name for name, _ in model.named_parameters()]
    return {
        f"{OPTIMIZER}{slot}/{names[index]}": value
        for index, slots in optimizer.state_dict()["state"].items()
        for slot, value in slots.items()
        if value is not None
    }


def restore_optimizer(state: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Bring the optimizer to what `optimizer_state` saw; whatever else `state` holds is left alone."""
    places = {name: index for index, (name, _) in enumerate(model.named_parameters())}
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith(OPTIMIZER):
            slot, _, name = key.removeprefix(OPTIMIZER).partition("/")
            slots.setdefault(places[name], {})[slot] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": slots})


def unstepped_state(training: Training, model: nn.Module) -> dict[str, Tensor]:
    """The state of a fresh optimizer in the form of `optimizer_state`: zeros, from which it goes on as if fresh."""
    optimizer = make_optimizer(training, model)
    set_learning_rate(optimizer, 0.0)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return {key: torch.zeros_like(value) for key, value in optimizer_state(model, optimizer).items()}
