"""The weighted mean of handovers, computed by Flower's own FedAvg."""

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from protos.handover import Handover, Kind, Tensor
from strategies.gathering import Reply


def average(replies: Iterable[Reply]) -> Handover:
    """Average handovers of float tensors that NumPy knows, weighted by the metric `samples`.

    Flower's aggregation holds all replies at once: memory grows with the number of sites, for this step only.
    """
    messages = [_flower_reply(reply) for reply in replies]
    arrays, _ = FedAvg(weighted_by_key="samples").aggregate_train(1, messages)
    assert arrays is not None  # only without replies
    groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in Kind}
    for key, array in arrays.items():
        kind, _, name = key.partition("/")
        values = array.numpy()
        groups[kind][name] = Tensor(str(values.dtype), values.shape, values.tobytes())
    return Handover(**groups)


def _flower_reply(reply: Reply) -> Message:
    """A reply as FedAvg expects it: one ArrayRecord of NumPy arrays, one MetricRecord."""
    arrays = {
        f"{kind}/{name}": Array(np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape))
        for kind, name, tensor in reply.handover.items()
    }
    content = RecordDict(
        {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"samples": reply.metrics["samples"]})}
    )
    return Message(content, dst_node_id=0, message_type="train")
