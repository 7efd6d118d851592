"""The same work as `locum simulate` of a fine-tuning scenario, as a researcher would write it: one plain PyTorch loop.

No coordinator, no messages, no guard, no ledger, no store: read the site, train, score every site, go on. It shares
Locum's data pipeline, network, loss and scores, so that only the platform's own cost differs; seeds are derived as
Locum derives them, so both end with the same weights, bit for bit.

Usage: python plain_loop.py SCENARIO HOME; prints one JSON document on standard output.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from coordinator.scenario import load_scenario
from node.data.site import SiteData
from node.scoring import score_site
from node.settings import SiteSettings
from protos.handover import Handover, Kind
from strategies import networks
from strategies.losses import segmentation_loss
from strategies.randomness import Seeds, derive


def main() -> None:
    scenario = load_scenario(Path(sys.argv[1]))
    plan, training = scenario.plan(), scenario.training
    torch.set_num_threads(training.threads)
    data = {
        site.name: SiteData(
            SiteSettings(name=site.name, home=Path(sys.argv[2]), phantom=site.phantom), plan, site in scenario.unseen
        )
        for site in (*scenario.sites, *scenario.unseen)
    }
    torch.manual_seed(derive(plan.seed, "first handover"))
    model = networks.build(plan.task, plan.network)
    events: list[tuple[str, float]] = []
    scores = []
    for stop, site in enumerate(plan.sites):
        samples = data[site].samples("train")
        seeds = Seeds(plan.seed, stop, site)
        optimizer = torch.optim.Adam(model.parameters(), lr=training.lr)
        model.train()
        for step in range(training.steps):
            places = range(step * training.batch_size, (step + 1) * training.batch_size)
            batch = samples.batch(
                [seeds.sample(place, len(samples)) for place in places], [seeds("augment", place) for place in places]
            )
            optimizer.zero_grad(set_to_none=True)
            loss = segmentation_loss(model(batch.image), batch.label, training.loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()
            if name := {0: "first", 1: "second", training.steps - 1: "last"}.get(step):
                events.append((name, time.time()))
        events.append(("committed", time.time()))
        model.eval()
        with torch.inference_mode():
            scores.append([score_site(sites, model).metrics()["dsc"] for sites in data.values()])
        events.append(("scored", time.time()))
    document = {
        "weights_sha256": Handover.of(weights=model.state_dict()).digest(Kind.WEIGHTS).hex(),
        "dsc": scores,
        "events": events,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    sys.stdout.write(json.dumps(document))


if __name__ == "__main__":
    main()
