"""The node's Flower ClientApp: describe the site, learn at it, score at it, all behind the guard."""

import resource
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Literal

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from node import asked, checkpoints, progress, records, shown
from node.bundle import check_bundle
from node.copies import COPIES, carries_generator, count_copies
from node.data.cache import SiteCache
from node.data.samples import OnDemand, SiteSamples, augmented
from node.data.site import EmptySite, SiteData
from node.database import open_database
from node.declarations import declare, installed
from node.drift import draw_pairs, drift_pairs, measure_drift, pairs_png
from node.guard import Exchange, make_guard
from node.held import HeldHandovers
from node.ledger_head import open_ledger
from node.memory import SiteMemory
from node.policy import Policy
from node.progress_store import noted_at, standing
from node.scoring import overlay_png, score_site
from node.settings import SiteSettings
from node.updates import SiteNoise, check_protected
from node.workshop import Workshop
from protos import software
from protos.handover import Handover, Kind
from protos.introduction import Introduction
from protos.messages import PROGRESS, TYPES, VISIT, Request, pack_reply, read_handover, read_request
from protos.refusals import Refusal, RefusalCode
from strategies.privacy import Privacy
from strategies.randomness import Seeds
from strategies.strategy import Strategy
from strategies.visit import Departure, Visit

_cache: SiteCache[SiteData] = SiteCache(budget=2 * 2**30)  # over all the sites that live in this process


def _declare(message_type: str, request: Request) -> Exchange:
    check_bundle()
    return declare(message_type, request)


_guard = make_guard(_declare)


class GuardedClientApp(ClientApp):
    """A ClientApp whose guard sees every message: Flower answers types without a handler before any mod runs."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Carry out a message behind the guard."""
        if message.metadata.message_type in TYPES:
            return super().__call__(message, context)  # the guard is the outermost mod
        return _guard(message, context, super().__call__)


app = GuardedClientApp(mods=[_guard])


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Count the site's cases; with `samples` asked for, also the training samples (slices of volumes)."""
    settings, request, _ = _open(message, context)
    data = _site_data(settings, request)
    counts = data.counts()
    if request.args["samples"]:
        counts["samples"] = len(_samples(data, "train"))
        counts |= data.counts()  # cases that turned out unreadable are gone
    return Message(pack_reply(request, None, counts), reply_to=message)


@app.query("introduce")
def introduce(message: Message, context: Context) -> Message:
    """Say which software is at work here, and what the site's policy changes in a run."""
    settings, request, _ = _open(message, context)
    found = Introduction(software.installed(), Policy.of(settings.home).changes)
    return Message(pack_reply(request, None, found.scalars()), reply_to=message)


@app.query("progress")
def tell_progress(message: Message, context: Context) -> Message:
    """Say at which step the visit of the request's run and stop is."""
    settings, request, _ = _open(message, context)
    engine = open_database(settings.home, settings.durable)
    return Message(pack_reply(request, None, standing(engine, request.run, request.stop)), reply_to=message)


@app.train("visit")
def visit(message: Message, context: Context) -> Message:
    """Let the strategy learn on the site's training data; only what it declared is in the reply.

    What a rehearsal does not need, the training data, is not opened: it may be archived by then.
    """
    settings, request, handover = _open(message, context)
    assert handover is not None  # the guard has checked
    data = cache(lambda: _site_data(settings, request))

    def drawn_from() -> str:
        _samples(data(), "train")  # finds the unusable cases
        return data().fingerprint("train")

    device, train = torch.device(settings.device), OnDemand(lambda: _samples(data(), "train"))
    policy = Policy.of(settings.home)
    privacy = None
    if (updates := policy.updates) is not None:
        privacy = Privacy(updates.clip, updates.noise, SiteNoise(settings.home, request, handover))
    strategy = installed(request.plan)
    stay = Visit(
        action=request.action,
        handover=handover,
        train=OnDemand(lambda: _samples(data(), "train").on(device)),
        val=OnDemand(lambda: data().samples("val")),
        seeds=Seeds(request.plan.seed, request.stop, request.site),
        args=request.args,
        device=device,
        report=_reporting(settings, request),
        checkpoint=checkpoints.VisitCheckpoint(settings.home, request, drawn_from),
        # of cases whose files are out of reach for a while the state is the same: which are usable says more
        once=Workshop(settings.home, settings.device, lambda: f"{drawn_from()} {data().origin('train')}"),
        augment=lambda batch, seeds: augmented(batch, seeds, request.plan.training.augment),
        memory=SiteMemory(settings, request, data, None if policy.memory is None else policy.memory.cases),
        first=request.first,
        privacy=privacy,
    )
    departure = strategy.visit(stay)
    if privacy is not None:
        check_protected(departure.handover, departure.metrics, privacy.released)
    metrics = departure.metrics
    if carries_generator(declare(VISIT, request).leaves):
        metrics = _with_copies(strategy, replace(stay, train=train), departure)  # compared on the CPU
    return Message(pack_reply(request, departure.handover, metrics), reply_to=message)


@app.evaluate("score")
def score(message: Message, context: Context) -> Message:
    """Score the arrived model on the cases that the plan scores: aggregates leave, scores of single cases stay."""
    settings, request, handover = _open(message, context)
    assert handover is not None  # the guard has checked
    checkpoints.forget(settings.home, request.run, request.stop)
    HeldHandovers(settings.home, open_ledger(settings.home, settings.durable)).settle(request.run, request.stop)
    data = _site_data(settings, request)
    predict = installed(request.plan).predictor(handover, torch.device(settings.device))
    worst = shown.WorstCases()
    try:
        with torch.inference_mode():
            result = score_site(data, predict, keep=worst.consider)
    except EmptySite as error:
        raise Refusal(RefusalCode.SITE_DATA, str(error)) from error
    records.scored(open_database(settings.home, settings.durable), request, result)
    worst.write(settings.home, request)
    if data.synthetic:
        case = next(data.scored_cases())
        with torch.inference_mode():
            _keep_picture(settings, request, "overlays", overlay_png(case, case.predict(predict)))
    metrics = result.metrics() | _drift(settings, request, handover, data)
    return Message(pack_reply(request, None, metrics), reply_to=message)


def _reporting(settings: SiteSettings, request: Request) -> Callable[[int, int, Mapping[str, float]], None]:
    """Writes down where the visit stands, and tells the listener."""
    device = torch.device(settings.device)
    note = noted_at(settings.home, settings.durable, str(device), partial(_most_memory, device))

    def report(step: int, steps: int, scalars: Mapping[str, float]) -> None:
        done = progress.Step(request.run, request.stop, request.site, step, steps, scalars)
        note(done)
        progress.report(done)

    return report


def _most_memory(device: torch.device) -> int:
    """Bytes that this process took at most so far: of the GPU where that is the device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _drift(settings: SiteSettings, request: Request, handover: Handover, data: SiteData) -> dict[str, float]:
    """How the arrived generator, if there is one that knows the site, has drifted; none without training cases."""
    replay = installed(request.plan).replayer(handover, torch.device(settings.device))
    if replay is None or request.site not in replay.sites:
        return {}
    try:
        pairs = drift_pairs(replay, data, request.plan.seed, request.site)
    except EmptySite:  # the site was visited, and may have archived its training cases since
        return {}
    shown.keep_replays(settings.home, request, draw_pairs(pairs))
    if data.synthetic:
        _keep_picture(settings, request, "replays", pairs_png(pairs, synthetic=data.synthetic))
    return measure_drift(pairs)


def _keep_picture(settings: SiteSettings, request: Request, sort: str, png: bytes) -> None:
    folder = settings.home / sort / request.run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{request.stop:04d}.png").write_bytes(png)


def _with_copies(strategy: Strategy, visit: Visit, departure: Departure) -> dict[str, int | float]:
    """The departure's metrics and the node's own figures on its generator; without them the guard refuses it."""
    metrics = {name: value for name, value in departure.metrics.items() if name not in COPIES}
    if all(departure.handover.group(kind) == visit.handover.group(kind) for kind in (Kind.GENERATOR, Kind.PROMPTS)):
        return metrics | {"copies": 0}  # it has learnt nothing here
    replay = strategy.replayer(departure.handover, visit.device)
    if replay is None or visit.seeds.site not in replay.sites:
        return metrics
    return metrics | count_copies(replay, visit.train, visit.val, visit.seeds)


def _open(message: Message, context: Context) -> tuple[SiteSettings, Request, Handover | None]:
    request = read_request(message.content)
    # Before any image is prepared: sums over many values depend on the number of threads in their last bit.
    torch.set_num_threads(request.plan.training.threads)
    settings = SiteSettings.of(context.node_config)
    if message.metadata.message_type != PROGRESS:
        asked.note(open_database(settings.home, settings.durable), settings, request)
    return settings, request, read_handover(message.content)


def _samples(data: SiteData, part: Literal["train", "val"]) -> SiteSamples:
    try:
        return data.samples(part)
    except EmptySite as error:
        raise Refusal(RefusalCode.SITE_DATA, str(error)) from error


def _site_data(settings: SiteSettings, request: Request) -> SiteData:
    """The site's data under the request's plan; what was decoded for an earlier message is kept while it fits."""
    plan = request.plan
    key = (settings.model_dump_json(), plan.task, plan.split, plan.scored, plan.training.augment, request.unseen)
    try:
        return _cache.get(key, lambda: SiteData(settings, plan, request.unseen))
    except (ValueError, OSError) as error:
        raise Refusal(RefusalCode.SITE_DATA, str(error)) from error
