"""The process that has everything imported and forks one process per message, told so by node/workers.py.

It imports PyTorch, MONAI and this site's own installed ClientApp once, and does nothing with them: a fork then costs
milliseconds, begins with fresh state, gives its memory back, and dies alone. Whatever bundle (FAB) the coordinator
began its run with, it is what is installed here that runs.

Standard input is a Unix socket. Each order on it brings one end of another socket, over which the forked process gets
its message and answers. When that socket closes, because the node's process died or the run was ended, the forked
process ends at once; when standard input closes, so does this one.
"""

import base64
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

# Some of these are here only so that no forked process imports them anew when it first needs them; every optimizer
# needs torch._dynamo, which takes two seconds.
import nibabel  # noqa: F401
import PIL.Image  # noqa: F401
import scipy.ndimage  # noqa: F401
import torch
import torch._dynamo
from flwr.app import Context, Message, RecordDict

from node import bundle, progress_store
from node.app import app
from node.data import layouts  # noqa: F401
from node.declarations import declare
from node.fleet import assemble, names_in, take_apart
from node.frames import receive_frame, send_frame
from node.guard import give_again, keeping, report_failure
from node.objects import Damaged, Loose, Objects
from node.replies import Replies
from node.settings import SiteSettings
from protos.messages import read_request
from protos.refusals import Refusal, RefusalCode
from protos.software import installed
from strategies.registry import STRATEGIES, strategy_class

_LOG_FORMAT = "%(asctime)s %(name)s %(levelname)s %(message)s"


def main() -> None:
    """Fork when told to, until the node's process is gone."""
    for name in STRATEGIES:  # else every forked process would import its strategy anew
        strategy_class(name)
    installed()  # the ledger's word on what runs here is of now, whatever is installed meanwhile
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node's process decides
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forked
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, stream=sys.stderr)
    orders = socket.socket(fileno=0)
    send_frame(orders, {"ready": True})
    while True:
        try:
            order, handles, _, _ = socket.recv_fds(orders, 1, 1)
        except OSError:
            order = b""
        if not order:
            os._exit(0)  # taking PyTorch apart would take a second
        if os.fork() == 0:
            orders.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _carry_out(socket.socket(fileno=handles[0]))
        os.close(handles[0])


def _carry_out(job: socket.socket) -> None:
    """Answer one message, then end this process, whatever happens."""
    status = 1
    try:
        order = receive_frame(job)
        if order is not None:
            threading.Thread(target=_end_with, args=(job,), daemon=True).start()
            send_frame(job, _answer(order))
            status = 0
    except BaseException:
        logging.getLogger("locum.node").exception("A message could not be answered.")
    os._exit(status)


def _end_with(job: socket.socket) -> None:
    receive_frame(job)  # nothing more is ever sent, so this is the other end going
    os._exit(1)


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    objects = Objects(Path(order["objects"]), 0)
    settings = _on_a_device(SiteSettings.model_validate_json(order["site"]))
    began = time.monotonic()
    replies, question = Replies.of(settings.home), order["question"]
    given = _given(replies, question, objects)
    message = assemble(base64.b64decode(order["tree"]), objects)  # the last: replies are made for its run
    context = Context(
        run_id=message.metadata.run_id,
        node_id=message.metadata.dst_node_id,
        node_config={"site": settings.model_dump_json()},
        state=RecordDict(),
        run_config={},
    )
    taken: list[tuple[bytes, bytes]] = []
    request = RecordDict(dict(message.content.config_records))  # without what is large

    def keep(reply: Message) -> None:
        content, tree = take_apart(reply, objects)
        asked = read_request(request)
        replies.keep(question, tree, names_in(tree), asked.run, asked.stop)
        taken.append((content, tree))

    if given is not None:
        reply = give_again(message, context, given, declare)
    elif order["died"]:
        reply = report_failure(message, context, Refusal(RefusalCode.DIED, order["died"]))
    else:
        carried = bundle.brought(base64.b64decode(order["bundle"]))
        kept = keeping(keep if question else None)
        with carried, kept, progress_store.at_work(order["at_work"]):
            reply = app(message, context)
    del message
    content, tree, loose = (*taken[0], {}) if taken and not reply.has_error() else _handed_over(reply, objects)
    return {
        "reply": base64.b64encode(content).decode(),
        "tree": base64.b64encode(tree).decode(),
        "seconds": time.monotonic() - began,
        "loose": {identity: base64.b64encode(content).decode() for identity, content in loose.items()},
    }


def _handed_over(reply: Message, objects: Objects) -> tuple[bytes, bytes, dict[str, bytes]]:
    """What `take_apart` returns; of an error also its objects, if there is no room for them on the disk."""
    try:
        return *take_apart(reply, objects), {}
    except OSError:
        if not reply.has_error():
            raise
        loose = Loose()
        return *take_apart(reply, loose), loose.contents


def _given(replies: Replies, question: str, objects: Objects) -> RecordDict | None:
    """The content of the reply that was kept to the same question, if all of it is still here."""
    kept = replies.find(question) if question else None
    if kept is None or not all(map(objects.holds, kept.parts)):
        return None
    try:
        return assemble(bytes.fromhex(kept.tree), objects).content
    except Damaged:
        return None  # the visit is made once more


def _on_a_device(settings: SiteSettings) -> SiteSettings:
    """`auto` is a GPU where there is one; asked for here, since a process that has asked cannot be forked."""
    if settings.device != "auto":
        return settings
    return settings.model_copy(update={"device": "cuda" if torch.cuda.is_available() else "cpu"})


if __name__ == "__main__":
    main()
