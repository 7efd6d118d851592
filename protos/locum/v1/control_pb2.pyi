import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRequest(_message.Message):
    __slots__ = ("scenario", "source", "overrides", "not_before", "after")
    SCENARIO_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    NOT_BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    scenario: str
    source: str
    overrides: _containers.RepeatedScalarFieldContainer[str]
    not_before: _timestamp_pb2.Timestamp
    after: str
    def __init__(self, scenario: _Optional[str] = ..., source: _Optional[str] = ..., overrides: _Optional[_Iterable[str]] = ..., not_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., after: _Optional[str] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, runs: _Optional[_Iterable[str]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListedRun(_message.Message):
    __slots__ = ("run", "scenario", "status", "strategy", "parameters", "seed", "stops_done", "stops", "created", "seconds", "waits_for")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SCENARIO_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOPS_DONE_FIELD_NUMBER: _ClassVar[int]
    STOPS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    run: str
    scenario: str
    status: str
    strategy: str
    parameters: str
    seed: int
    stops_done: int
    stops: int
    created: str
    seconds: float
    waits_for: str
    def __init__(self, run: _Optional[str] = ..., scenario: _Optional[str] = ..., status: _Optional[str] = ..., strategy: _Optional[str] = ..., parameters: _Optional[str] = ..., seed: _Optional[int] = ..., stops_done: _Optional[int] = ..., stops: _Optional[int] = ..., created: _Optional[str] = ..., seconds: _Optional[float] = ..., waits_for: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[ListedRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[ListedRun, _Mapping]]] = ...) -> None: ...

class ShowRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class ShowResponse(_message.Message):
    __slots__ = ("document", "record")
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    document: str
    record: str
    def __init__(self, document: _Optional[str] = ..., record: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("run", "after")
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    run: str
    after: int
    def __init__(self, run: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "time", "said", "run_began", "describing", "stop_began", "stepped", "stop_ended", "scoring", "scored", "failed", "run_ended")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SAID_FIELD_NUMBER: _ClassVar[int]
    RUN_BEGAN_FIELD_NUMBER: _ClassVar[int]
    DESCRIBING_FIELD_NUMBER: _ClassVar[int]
    STOP_BEGAN_FIELD_NUMBER: _ClassVar[int]
    STEPPED_FIELD_NUMBER: _ClassVar[int]
    STOP_ENDED_FIELD_NUMBER: _ClassVar[int]
    SCORING_FIELD_NUMBER: _ClassVar[int]
    SCORED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RUN_ENDED_FIELD_NUMBER: _ClassVar[int]
    number: int
    time: _timestamp_pb2.Timestamp
    said: Said
    run_began: RunBegan
    describing: Describing
    stop_began: StopBegan
    stepped: Stepped
    stop_ended: StopEnded
    scoring: Scoring
    scored: Scored
    failed: Failed
    run_ended: RunEnded
    def __init__(self, number: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., said: _Optional[_Union[Said, _Mapping]] = ..., run_began: _Optional[_Union[RunBegan, _Mapping]] = ..., describing: _Optional[_Union[Describing, _Mapping]] = ..., stop_began: _Optional[_Union[StopBegan, _Mapping]] = ..., stepped: _Optional[_Union[Stepped, _Mapping]] = ..., stop_ended: _Optional[_Union[StopEnded, _Mapping]] = ..., scoring: _Optional[_Union[Scoring, _Mapping]] = ..., scored: _Optional[_Union[Scored, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., run_ended: _Optional[_Union[RunEnded, _Mapping]] = ...) -> None: ...

class Said(_message.Message):
    __slots__ = ("sentence",)
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    sentence: str
    def __init__(self, sentence: _Optional[str] = ...) -> None: ...

class RunBegan(_message.Message):
    __slots__ = ("stops", "done")
    STOPS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    stops: int
    done: int
    def __init__(self, stops: _Optional[int] = ..., done: _Optional[int] = ...) -> None: ...

class Describing(_message.Message):
    __slots__ = ("site",)
    SITE_FIELD_NUMBER: _ClassVar[int]
    site: str
    def __init__(self, site: _Optional[str] = ...) -> None: ...

class StopBegan(_message.Message):
    __slots__ = ("stop", "sites", "rounds", "done", "rehearsing")
    STOP_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    REHEARSING_FIELD_NUMBER: _ClassVar[int]
    stop: int
    sites: _containers.RepeatedScalarFieldContainer[str]
    rounds: int
    done: int
    rehearsing: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stop: _Optional[int] = ..., sites: _Optional[_Iterable[str]] = ..., rounds: _Optional[int] = ..., done: _Optional[int] = ..., rehearsing: _Optional[_Iterable[str]] = ...) -> None: ...

class Stepped(_message.Message):
    __slots__ = ("stop", "site", "step", "steps", "loss")
    STOP_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    stop: int
    site: str
    step: int
    steps: int
    loss: float
    def __init__(self, stop: _Optional[int] = ..., site: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ...) -> None: ...

class StopEnded(_message.Message):
    __slots__ = ("stop", "sites", "seconds")
    STOP_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    stop: int
    sites: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, stop: _Optional[int] = ..., sites: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class Scoring(_message.Message):
    __slots__ = ("stop", "site")
    STOP_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    stop: int
    site: str
    def __init__(self, stop: _Optional[int] = ..., site: _Optional[str] = ...) -> None: ...

class Scored(_message.Message):
    __slots__ = ("stop", "site", "dsc")
    STOP_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    DSC_FIELD_NUMBER: _ClassVar[int]
    stop: int
    site: str
    dsc: float
    def __init__(self, stop: _Optional[int] = ..., site: _Optional[str] = ..., dsc: _Optional[float] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("sentence",)
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    sentence: str
    def __init__(self, sentence: _Optional[str] = ...) -> None: ...

class RunEnded(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: str
    def __init__(self, status: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("run", "status")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    run: str
    status: str
    def __init__(self, run: _Optional[str] = ..., status: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class ResumeResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class SkipRequest(_message.Message):
    __slots__ = ("run", "stop", "by", "why", "rehearsal_at")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    REHEARSAL_AT_FIELD_NUMBER: _ClassVar[int]
    run: str
    stop: int
    by: str
    why: str
    rehearsal_at: str
    def __init__(self, run: _Optional[str] = ..., stop: _Optional[int] = ..., by: _Optional[str] = ..., why: _Optional[str] = ..., rehearsal_at: _Optional[str] = ...) -> None: ...

class SkipResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class SitesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Site(_message.Message):
    __slots__ = ("name", "online", "last_seen", "software", "schema_version", "cases", "torch", "code_sha256")
    class CasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    CASES_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    CODE_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    online: bool
    last_seen: _timestamp_pb2.Timestamp
    software: str
    schema_version: int
    cases: _containers.ScalarMap[str, int]
    torch: str
    code_sha256: str
    def __init__(self, name: _Optional[str] = ..., online: _Optional[bool] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., software: _Optional[str] = ..., schema_version: _Optional[int] = ..., cases: _Optional[_Mapping[str, int]] = ..., torch: _Optional[str] = ..., code_sha256: _Optional[str] = ...) -> None: ...

class SitesResponse(_message.Message):
    __slots__ = ("sites",)
    SITES_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[Site]
    def __init__(self, sites: _Optional[_Iterable[_Union[Site, _Mapping]]] = ...) -> None: ...

class AddNodeRequest(_message.Message):
    __slots__ = ("name", "public_key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    public_key: bytes
    def __init__(self, name: _Optional[str] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class AddNodeResponse(_message.Message):
    __slots__ = ("known",)
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    known: bool
    def __init__(self, known: _Optional[bool] = ...) -> None: ...

class RemoveNodeRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveNodeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
