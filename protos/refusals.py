"""Why a node refused or failed: codes with one fixed sentence each, so that no text from a site ever travels."""

from enum import IntEnum
from types import MappingProxyType

from protos.handover import SCHEMA_VERSION


class RefusalCode(IntEnum):
    """Codes of a node's error replies; Flower's own codes lie below 1000."""

    # the request, on its way in
    MESSAGE_TYPE = 1001
    LAYOUT = 1002
    SCHEMA_VERSION = 1003
    REQUEST = 1004
    OTHER_SITE = 1005
    UNKNOWN_STRATEGY = 1006
    PLAN = 1007
    HANDOVER = 1008
    OTHER_HANDOVER = 1009
    NOT_THE_SCHEMA = 1010
    ARGS = 1014
    CODE = 1016
    # the site's policy, on either way
    POLICY = 1011
    POLICY_UNREADABLE = 1012
    PRIVACY_BUDGET = 1013
    COPIES = 1015
    HELD = 1017
    WITHHELD = 1018
    # the reply, on its way out
    REPLY = 1021
    TENSORS = 1022
    NOT_FINITE = 1023
    MANIFEST = 1024
    METRICS = 1025
    UNPROTECTED = 1026
    # the node itself
    EXCEPTION = 1031
    ERROR_REPLY = 1032
    SITE_DATA = 1033
    LEDGER = 1034
    SETTINGS = 1035
    GUARD = 1036
    DIVERGED = 1037
    MEMORY = 1038
    DIED = 1039
    LEDGER_BROKEN = 1040
    DISK_FULL = 1041


_SENTENCES = MappingProxyType(
    {
        RefusalCode.MESSAGE_TYPE: "The node answers no messages of this type; install the same Locum release at both.",
        RefusalCode.LAYOUT: "The request does not hold exactly the records that the message layout asks for.",
        RefusalCode.SCHEMA_VERSION: "The coordinator writes another schema version than the node reads; install the "
        "same Locum release at both.",
        RefusalCode.REQUEST: "The request was not understood; the node's ledger names the key at fault.",
        RefusalCode.OTHER_SITE: "The request is meant for another site than the one at this node.",
        RefusalCode.UNKNOWN_STRATEGY: "The node has no strategy of this name; install the same Locum release at both.",
        RefusalCode.PLAN: "The node's strategy or network does not accept the plan; the node's ledger says why.",
        RefusalCode.HANDOVER: "The handover that arrived differs from its manifest: it was damaged or altered.",
        RefusalCode.OTHER_HANDOVER: "The manifest belongs to another run, stop, site or strategy than the request.",
        RefusalCode.NOT_THE_SCHEMA: "The handover that arrived does not hold exactly the strategy's tensors.",
        RefusalCode.ARGS: "The request's args are not exactly those that the strategy takes, each within its bounds.",
        RefusalCode.CODE: "The run was begun with code for the node to run; a node runs what its site installed and "
        "nothing else.",
        RefusalCode.POLICY: "The site's own policy forbids it; the site's policy.yaml and ledger say what.",
        RefusalCode.POLICY_UNREADABLE: "The site's policy.yaml cannot be read, so nothing may leave; mend it there.",
        RefusalCode.PRIVACY_BUDGET: "The site's privacy budget for updates is spent; its people decide in its "
        "policy.yaml whether more may leave.",
        RefusalCode.COPIES: "The generator makes more near-copies of training images than the site's policy allows, so "
        "it was kept back; train it for fewer steps or on more cases.",
        RefusalCode.HELD: "What is to leave waits at the site until a person there releases it; `locum-node held` and "
        "`locum-node release` at the site, then resume the run.",
        RefusalCode.WITHHELD: "A person at the site decided that what was to leave stays there; `locum skip` lets the "
        "run go on without this stop.",
        RefusalCode.REPLY: "The reply did not hold exactly the declared records, so it was kept back.",
        RefusalCode.TENSORS: "The reply's tensors were not exactly the declared ones, so it was kept back.",
        RefusalCode.NOT_FINITE: "The reply held values that are not finite (training may have diverged), so it was "
        "kept back.",
        RefusalCode.MANIFEST: "The reply's manifest was not that of its tensors, so it was kept back.",
        RefusalCode.METRICS: "The reply's metrics were not all declared scalars within their bounds, so it was kept "
        "back.",
        RefusalCode.UNPROTECTED: "The reply's update was not clipped and noised as the site's policy asks, so it was "
        "kept back.",
        RefusalCode.EXCEPTION: "The node's work was ended by an exception; the node's own log holds its text.",
        RefusalCode.ERROR_REPLY: "The node's work ended in an error, whose text was kept back; see the node's own log.",
        RefusalCode.SITE_DATA: "The site's data cannot be used for this plan; `locum-node check` at the site says why.",
        RefusalCode.LEDGER: "The node could not write its ledger, so nothing may cross; see to its disk and database.",
        RefusalCode.DISK_FULL: "The node's disk is full; free some of it there, then resume the run.",
        RefusalCode.LEDGER_BROKEN: "The node's ledger is damaged, gone or set back, so nothing crosses until the "
        "site's people have decided; `locum-node ledger` there and the node's log say how.",
        RefusalCode.SETTINGS: "The node's own settings or database cannot be read; see the node's log.",
        RefusalCode.GUARD: "The node's guard failed, so nothing may cross; this is a fault in Locum, please report it.",
        RefusalCode.DIVERGED: "Training diverged at the site: its loss is no longer finite; a smaller training.lr may "
        "help.",
        RefusalCode.MEMORY: "The cases that the site keeps for rehearsal are missing, forgotten, damaged or no longer "
        "to be used; `locum-node memory` at the site and the node's log say what.",
        RefusalCode.DIED: "The process that did the node's work was killed, perhaps for lack of memory; the node's log "
        "and the system's say more.",
    }
)


class Refusal(Exception):
    """Raised at a node to refuse a message; only the code and its fixed sentence travel.

    `detail` is one sentence for the site's own ledger; it never leaves.
    """

    def __init__(self, code: RefusalCode, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    @property
    def reason(self) -> str:
        """What the coordinator is told."""
        return _SENTENCES[self.code]


class OtherVersion(Refusal):
    """The coordinator's schema version differs from this node's."""

    def __init__(self, theirs: int) -> None:
        self._sentence = (
            f"The coordinator writes schema version {theirs}, the node reads version {SCHEMA_VERSION}; "
            "install the same Locum release at both."
        )
        super().__init__(RefusalCode.SCHEMA_VERSION, self._sentence)

    @property
    def reason(self) -> str:
        """Both versions: one is the coordinator's own, the other stands in this file's release."""
        return self._sentence


def explain(code: int) -> str:
    """One sentence for the user; codes that are not Locum's are named as such."""
    try:
        return _SENTENCES[RefusalCode(code)]
    except ValueError:
        return f"The node answered with error {code}, which is none of Locum's."
