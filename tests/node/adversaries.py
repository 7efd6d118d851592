"""Work that tries to leave a site with a 256x256 image, or with a patient's name, past the guard."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from protos.handover import Handover, Tensor
from protos.locum.v1 import handover_pb2
from protos.messages import RAW, pack_reply, read_request
from protos.refusals import Refusal, RefusalCode
from tests.node.guarded import Handler, honest, small_handover, tensor

PICTURE = np.random.default_rng(0).integers(1, 127, (256, 256), np.uint8)
SECRET = PICTURE.tobytes()
NAME = "Ada Byron, born 10 December"


def leaks(crossed: bytes) -> bool:
    """Whether a run of the picture's pixels, in any encoding that is used below, or the patient's name is there."""
    encodings = [SECRET, SECRET.hex().encode(), base64.b64encode(SECRET)]
    encodings += [PICTURE.astype(dtype).tobytes() for dtype in (np.float32, np.float64)]
    encodings += [_boxed().tobytes()]
    windows = (code[start : start + 16] for code in encodings for start in range(0, min(len(code), 4096), 16))
    return NAME.encode() in crossed or any(window in crossed for window in windows)


def _boxed() -> np.ndarray:
    """Pixels in the payloads of quiet NaNs, as many as conv.weight has room for."""
    return (PICTURE.reshape(-1)[:288].astype(np.uint32) | 0x7FC00000).view(np.float32)


@dataclass(frozen=True)
class Attack:
    """`code`: what the guard answers, None if the attempt passes with the secret removed.

    `reason`: the error's text where it is not the code's sentence. `bare`: without the guard the secret does get out.
    """

    name: str
    work: Handler
    code: RefusalCode | None
    reason: str | None = None
    bare: bool = True


ATTACKS: list[Attack] = []


def attack(code: RefusalCode | None, reason: str | None = None, bare: bool = True) -> Any:
    def register(work: Handler) -> Handler:
        ATTACKS.append(Attack(work.__name__, work, code, reason, bare))
        return work

    return register


def _with_tensors(message: Message, **tensors: Tensor) -> Message:
    handover = Handover(weights={**small_handover().weights, **{k.replace("_", "."): v for k, v in tensors.items()}})
    return Message(pack_reply(read_request(message.content), handover, {"loss": 0.1}), reply_to=message)


def _with_array(message: Message, context: Context, array: Array) -> Message:
    reply = honest(message, context)
    reply.content.array_records["handover"]["weights/conv.bias"] = array
    return reply


def _with_manifest(message: Message, context: Context, **changes: str) -> Message:
    reply = honest(message, context)
    record = reply.content.config_records["manifest"]
    manifest = handover_pb2.HandoverManifest.FromString(record["manifest"])
    for name, value in changes.items():
        setattr(manifest, name, value)
    record["manifest"] = manifest.SerializeToString(deterministic=True)
    return reply


# Tensors


@attack(RefusalCode.TENSORS)
def undeclared_tensor(message: Message, context: Context) -> Message:
    return _with_tensors(message, picture=tensor(PICTURE, "uint8"))


@attack(RefusalCode.TENSORS)
def undeclared_kind(message: Message, context: Context) -> Message:
    handover = Handover(weights=small_handover().weights, prompts={"picture": tensor(PICTURE, "uint8")})
    return Message(pack_reply(read_request(message.content), handover, {}), reply_to=message)


@attack(RefusalCode.TENSORS)
def declared_name_with_wrong_shape(message: Message, context: Context) -> Message:
    return _with_tensors(message, conv_weight=tensor(PICTURE))


@attack(RefusalCode.TENSORS)
def declared_shape_with_wrong_dtype(message: Message, context: Context) -> Message:
    return _with_tensors(message, conv_bias=Tensor("float64", (8,), SECRET[:64]))


@attack(RefusalCode.TENSORS)
def tensor_named_as_the_secret(message: Message, context: Context) -> Message:
    return _with_tensors(message, **{NAME: tensor([1.0])})


@attack(RefusalCode.NOT_FINITE)
def nan_boxed_values(message: Message, context: Context) -> Message:
    return _with_tensors(message, conv_weight=tensor(_boxed().reshape(8, 4, 3, 3)))


@attack(RefusalCode.NOT_FINITE, bare=False)
def truth_values_of_eight_bits(message: Message, context: Context) -> Message:
    return _with_tensors(message, mask=Tensor("bool", (8,), SECRET[:8]))


@attack(RefusalCode.TENSORS)
def npy_padding(message: Message, context: Context) -> Message:
    file = io.BytesIO()
    np.save(file, np.zeros(8, np.float32))
    return _with_array(message, context, Array("float32", (8,), "numpy.ndarray", file.getvalue() + SECRET))


@attack(RefusalCode.TENSORS)
def trailing_bytes(message: Message, context: Context) -> Message:
    return _with_array(message, context, Array("float32", (8,), RAW, bytes(32) + SECRET))


@attack(RefusalCode.TENSORS)
def serialisation_type(message: Message, context: Context) -> Message:
    return _with_array(message, context, Array("float32", (8,), NAME, bytes(32)))


@attack(RefusalCode.TENSORS)
def data_that_changes(message: Message, context: Context) -> Message:
    class Changing(bytes):
        def __len__(self) -> int:
            return 32

    array = Array("float32", (8,), RAW, bytes(32))
    array.data = Changing(SECRET)
    return _with_array(message, context, array)


@attack(RefusalCode.TENSORS)
def array_of_a_class_of_its_own(message: Message, context: Context) -> Message:
    class Lying(Array):
        reads = 0

        def __getattribute__(self, name: str) -> Any:
            if name == "data":
                Lying.reads += 1
                return SECRET if Lying.reads > 1 else bytes(32)
            return super().__getattribute__(name)

    array = Lying("float32", (8,), RAW, bytes(32))
    array.data  # noqa: B018  the first look is honest
    return _with_array(message, context, array)


@attack(None)
def chunks_beside_the_data(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    for array in reply.content.array_records["handover"].values():
        array.__dict__["_chunks"] = Array("uint8", PICTURE.shape, RAW, SECRET).slice_array()
    return reply


# Records


@attack(RefusalCode.REPLY)
def extra_config_record(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content["notes"] = ConfigRecord({"picture": SECRET})
    return reply


@attack(RefusalCode.REPLY)
def extra_array_record(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content["more"] = ArrayRecord({"weights/x": Array(PICTURE)})
    return reply


@attack(RefusalCode.REPLY)
def record_named_as_the_secret(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content[NAME] = MetricRecord({})
    return reply


@attack(RefusalCode.REPLY)
def request_record_in_the_reply(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content["request"] = ConfigRecord({"json": SECRET.hex()})
    return reply


@attack(RefusalCode.REPLY)
def handover_as_config(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    del reply.content["handover"]
    reply.content["handover"] = ConfigRecord({"weights/conv.bias": SECRET})
    return reply


@attack(RefusalCode.REPLY)
def records_of_a_class_of_its_own(message: Message, context: Context) -> Message:
    class Lying(RecordDict):
        looks = 0

        def items(self) -> Any:
            Lying.looks += 1
            extra = {"notes": ConfigRecord({"picture": SECRET})} if Lying.looks > 1 else {}
            return {**dict(super().items()), **extra}.items()

    content = Lying(dict(honest(message, context).content))
    content.items()
    return Message(content, reply_to=message)


@attack(RefusalCode.REPLY)
def records_with_a_dictionary_of_their_own(message: Message, context: Context) -> Message:
    class Lying(dict[str, Any]):
        def items(self) -> Any:
            yield from super().items()
            yield "notes", ConfigRecord({"picture": SECRET})

    reply = honest(message, context)
    reply.content.__dict__["_data"] = Lying(reply.content.__dict__["_data"])
    return reply


@attack(RefusalCode.MANIFEST)
def extra_key_in_the_manifest_record(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content.config_records["manifest"]["picture"] = SECRET
    return reply


@attack(RefusalCode.MANIFEST)
def unknown_field_in_the_manifest(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    record = reply.content.config_records["manifest"]
    record["manifest"] += b"\xfa\x7f" + len(NAME).to_bytes(1, "big") + NAME.encode()  # field 2047, length-delimited
    return reply


@attack(RefusalCode.MANIFEST)
def site_in_the_manifest(message: Message, context: Context) -> Message:
    return _with_manifest(message, context, site=NAME)


@attack(RefusalCode.MANIFEST)
def run_in_the_manifest(message: Message, context: Context) -> Message:
    return _with_manifest(message, context, run=SECRET.hex())


# Metrics


@attack(RefusalCode.METRICS)
def metric_name(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content.metric_records["metrics"][SECRET.hex()] = 0.5
    return reply


@attack(RefusalCode.METRICS)
def metric_list(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content.metric_records["metrics"]["loss"] = PICTURE.reshape(-1).astype(float).tolist()
    return reply


@attack(RefusalCode.METRICS, bare=False)
def metric_of_half_a_million_bits(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content.metric_records["metrics"]["cases"] = int.from_bytes(SECRET, "big")
    return reply


@attack(RefusalCode.METRICS, bare=False)
def metric_out_of_bounds(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content.metric_records["metrics"]["loss"] = float(np.frombuffer(SECRET[:8], np.float64)[0])
    return reply


@attack(RefusalCode.METRICS, bare=False)
def metric_that_is_nan(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content.metric_records["metrics"]["loss"] = float("nan")
    return reply


@attack(RefusalCode.METRICS, bare=False)
def metric_of_a_class_that_equals_float(message: Message, context: Context) -> Message:
    class Equal(type):
        def __eq__(cls, other: object) -> bool:
            return True

        def __hash__(cls) -> int:
            return hash(float)

    class Lying(float, metaclass=Equal):
        picture = SECRET

    reply = honest(message, context)
    reply.content.metric_records["metrics"].__dict__["_data"]["loss"] = Lying(0.5)
    return reply


@attack(RefusalCode.METRICS)
def metric_name_of_a_class_of_its_own(message: Message, context: Context) -> Message:
    class Lying(str):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("loss")

    reply = honest(message, context)
    reply.content.metric_records["metrics"].__dict__["_data"] = {Lying(NAME): 0.5}
    return reply


@attack(None, bare=False)
def order_of_the_metrics(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.content["metrics"] = MetricRecord(dict(reversed(reply.content.metric_records["metrics"].items())))
    return reply


# Exceptions and errors


@attack(RefusalCode.EXCEPTION, "ValueError")
def exception_text(message: Message, context: Context) -> Message:
    raise ValueError(SECRET.hex())


@attack(RefusalCode.EXCEPTION, "Exception")
def exception_type_name(message: Message, context: Context) -> Message:
    raise type(NAME, (Exception,), {})


@attack(RefusalCode.EXCEPTION, "Exception")
def exception_of_a_class_that_equals_any(message: Message, context: Context) -> Message:
    class Equal(type):
        def __eq__(cls, other: object) -> bool:
            return True

        def __hash__(cls) -> int:
            raise Refusal(RefusalCode.SITE_DATA, NAME)

    raise Equal(NAME, (Exception,), {})


@attack(RefusalCode.EXCEPTION, "RuntimeError")
def exception_with_notes_and_cause(message: Message, context: Context) -> Message:
    try:
        raise KeyError(SECRET.hex())
    except KeyError as cause:
        error = RuntimeError(NAME)
        error.add_note(SECRET.hex())
        raise error from cause


@attack(RefusalCode.EXCEPTION, "ExceptionGroup")
def exception_group(message: Message, context: Context) -> Message:
    raise ExceptionGroup(NAME, [ValueError(NAME)])


@attack(RefusalCode.EXCEPTION, "SystemExit", bare=False)
def exit_with_text(message: Message, context: Context) -> Message:
    raise SystemExit(SECRET.hex())


@attack(RefusalCode.EXCEPTION, "Exception", bare=False)
def exception_beside_exception(message: Message, context: Context) -> Message:
    raise type(NAME, (BaseException,), {})


@attack(RefusalCode.SITE_DATA)
def refusal_with_text(message: Message, context: Context) -> Message:
    raise Refusal(RefusalCode.SITE_DATA, NAME)


@attack(RefusalCode.EXCEPTION, "Exception")
def refusal_of_a_class_of_its_own(message: Message, context: Context) -> Message:
    class Lying(Refusal):
        reason = NAME

        def __str__(self) -> str:
            return NAME

    raise Lying(RefusalCode.SITE_DATA)


@attack(RefusalCode.ERROR_REPLY)
def error_reply(message: Message, context: Context) -> Message:
    return Message(Error(1010, SECRET.hex()), reply_to=message)


@attack(RefusalCode.REPLY, bare=False)
def no_message(message: Message, context: Context) -> bytes:
    return SECRET


@attack(RefusalCode.REPLY)
def message_of_a_class_of_its_own(message: Message, context: Context) -> Message:
    class Lying(Message):
        @property
        def content(self) -> RecordDict:
            return RecordDict({"notes": ConfigRecord({"picture": SECRET})})

        @property
        def metadata(self) -> Any:
            return message.metadata

    return Lying(honest(message, context).content, reply_to=message)


@attack(RefusalCode.REPLY, bare=False)
def records_that_raise(message: Message, context: Context) -> Message:
    class Raising(dict[str, Any]):
        def items(self) -> Iterator[Any]:  # type: ignore[override]
            raise Refusal(RefusalCode.SITE_DATA, NAME)

    reply = honest(message, context)
    reply.content.__dict__["_data"] = Raising()
    return reply


# Metadata


@attack(None)
def metadata_of_the_reply(message: Message, context: Context) -> Message:
    reply = honest(message, context)
    reply.metadata.group_id = SECRET.hex()
    reply.metadata.message_type = "train." + "".join(c for c in NAME if c.isalpha())
    reply.metadata.ttl = float(np.frombuffer(SECRET[:8], np.float64)[0])
    return reply


@attack(None)
def metadata_of_the_request(message: Message, context: Context) -> Message:
    message.metadata.group_id = SECRET.hex()
    message.metadata.__dict__["_message_id"] = NAME
    return honest(message, context)


@attack(None, bare=False)
def settings_of_another_site(message: Message, context: Context) -> Message:
    context.node_config["site"] = NAME
    return honest(message, context)
