"""Fine-tuning in sequence: the ordinary visit and nothing else. The floor every continual method is measured from."""

from strategies.strategy import Strategy


class FineTune(Strategy):
    """Each site trains on from the weights that arrive."""

    name = "finetune"
    summary = "train on at each site from the weights that arrive; nothing is done against forgetting"
    source = "baseline"
    neutral = {}
