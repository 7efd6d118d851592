"""The handover: what travels from visit to visit, and the schema that says what it may hold.

Tensors are kept as immutable raw bytes (little-endian, C order), so a handover cannot change after it was checked,
its digest means what it says, and this module needs neither torch nor Flower.
"""

import hashlib
import json
import math
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from protos.locum.v1 import handover_pb2

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1

UPDATE = "update/"  # marks a tensor of kind `weights` as a gradient

# name -> (bytes per element, safetensors' name)
DTYPES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "float64": (8, "F64"),
        "float32": (4, "F32"),
        "float16": (2, "F16"),
        "bfloat16": (2, "BF16"),
        "int64": (8, "I64"),
        "int32": (4, "I32"),
        "int16": (2, "I16"),
        "int8": (1, "I8"),
        "uint8": (1, "U8"),
        "bool": (1, "BOOL"),
    }
)
_DTYPE_OF_SAFETENSORS = {code: name for name, (_, code) in DTYPES.items()}

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("Locum stores tensors little-endian and has not been ported to big-endian machines.")


class Kind(StrEnum):
    """The four kinds of artifact; nothing else travels."""

    WEIGHTS = "weights"
    IMPORTANCE = "importance"
    PROMPTS = "prompts"
    GENERATOR = "generator"


class MalformedHandover(ValueError):
    """Bytes that are no handover, or a handover that is not what its manifest or schema says."""


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor must look like: `dtype` as in NumPy (and "bfloat16"), `shape` as a tuple."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the raw values in bytes."""
        return DTYPES[self.dtype][0] * math.prod(self.shape)


@dataclass(frozen=True)
class Tensor:
    """An immutable tensor: `data` are its raw values, little-endian, in C order.

    Raises MalformedHandover when dtype, shape and data do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise MalformedHandover(f"dtype {self.dtype!r} cannot travel; use one of {', '.join(DTYPES)}.")
        if not all(0 <= size < 2**63 for size in self.shape):
            raise MalformedHandover(f"shape {self.shape} has a size that is negative or not below 2**63.")
        if len(self.data) != self.spec.nbytes:
            raise MalformedHandover(
                f"{self.dtype}{list(self.shape)} takes {self.spec.nbytes} bytes, but {len(self.data)} are there."
            )

    @property
    def spec(self) -> TensorSpec:
        """The tensor's dtype and shape."""
        return TensorSpec(self.dtype, self.shape)

    @cached_property
    def sha256(self) -> bytes:
        """SHA-256 of the raw values (32 bytes)."""
        return hashlib.sha256(self.data).digest()

    @classmethod
    def of(cls, tensor: "torch.Tensor") -> "Tensor":
        """Copy a torch tensor (any device, any strides)."""
        import torch

        plain = tensor.detach().cpu().contiguous()
        dtype = str(plain.dtype).removeprefix("torch.")
        raw = plain.reshape(-1).view(torch.uint8) if plain.dtype != torch.bool else plain.to(torch.uint8)
        return cls(dtype, tuple(plain.shape), raw.numpy().tobytes())

    def torch(self) -> "torch.Tensor":
        """A new torch tensor on the CPU with these values."""
        import torch

        dtype = getattr(torch, self.dtype)
        if not self.data:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.data), dtype=dtype).reshape(self.shape)

    def finite(self) -> bool:
        """Whether no value is NaN or infinite (always true for integers)."""
        if self.dtype == "bfloat16":  # the exponent's eight bits all set: infinite or NaN
            return not bool(((np.frombuffer(self.data, "<u2") & 0x7F80) == 0x7F80).any())
        if self.dtype.startswith("float"):
            return bool(np.isfinite(np.frombuffer(self.data, self.dtype)).all())
        return True


Group = Mapping[str, Tensor]


@dataclass(frozen=True)
class Handover:
    """Four named groups of tensors. Names are unique within a group; groups may be empty."""

    weights: Group = field(default_factory=dict)
    importance: Group = field(default_factory=dict)
    prompts: Group = field(default_factory=dict)
    generator: Group = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in Kind:
            group = getattr(self, kind)
            for name, tensor in group.items():
                if not isinstance(tensor, Tensor):
                    raise MalformedHandover(f"{kind}/{name} is a {type(tensor).__name__}, not a Tensor.")
            object.__setattr__(self, kind, MappingProxyType(dict(sorted(group.items()))))

    @classmethod
    def of(cls, **groups: Mapping[str, "torch.Tensor"]) -> "Handover":
        """Copy groups of torch tensors, for example `Handover.of(weights=model.state_dict())`."""
        return cls(
            **{kind: {name: Tensor.of(value) for name, value in group.items()} for kind, group in groups.items()}
        )

    def group(self, kind: Kind) -> Group:
        """The tensors of one kind, by name."""
        result: Group = getattr(self, kind)
        return result

    def state(self, kind: Kind) -> dict[str, "torch.Tensor"]:
        """One group as new torch tensors on the CPU, fit for `load_state_dict`."""
        return {name: tensor.torch() for name, tensor in self.group(kind).items()}

    def items(self) -> Iterator[tuple[Kind, str, Tensor]]:
        """Every tensor, by kind, then by name."""
        for kind in Kind:
            for name, tensor in self.group(kind).items():
                yield kind, name, tensor

    def nbytes(self, kind: Kind | None = None) -> int:
        """Bytes of raw values, of one kind or of all."""
        return sum(len(tensor.data) for k, _, tensor in self.items() if kind in (None, k))

    def digest(self, kind: Kind | None = None) -> bytes:
        """SHA-256 (32 bytes) over kind, name, dtype, shape and content of the tensors of one kind or of all."""
        total = hashlib.sha256(b"locum handover 1\0")
        for k, name, tensor in self.items():
            if kind in (None, k):
                header = json.dumps([k, name, tensor.dtype, tensor.shape], ensure_ascii=True).encode()
                total.update(len(header).to_bytes(4, "big") + header + tensor.sha256)
        return total.digest()

    def to_bytes(self) -> bytes:
        """The handover as a safetensors file; equal handovers give equal bytes."""
        specs = {
            f"{kind}/{name}": safetensors.TensorSpec(
                dtype=tensor.dtype,
                shape=tensor.shape,
                # safetensors reads from the address; `self` keeps the bytes alive until it has
                data_ptr=np.frombuffer(tensor.data, np.uint8).ctypes.data,
                data_len=len(tensor.data),
            )
            for kind, name, tensor in self.items()
        }
        return bytes(safetensors.serialize(specs, {"schema_version": str(SCHEMA_VERSION)}))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Handover":
        """Read what `to_bytes` wrote; raises MalformedHandover for anything else."""
        metadata = _safetensors_metadata(data)
        version = metadata.get("schema_version")
        if version != str(SCHEMA_VERSION):
            raise MalformedHandover(
                f"The handover has schema version {version or 'none'}, this software reads version {SCHEMA_VERSION}; "
                "install the same Locum release at the coordinator and at every node."
            )
        try:
            found = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
        except Exception as error:  # safetensors raises its own type for every malformed file
            raise MalformedHandover(f"The handover is no safetensors file ({error}).") from error
        groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in Kind}
        for key, value in found:
            kind, separator, name = key.partition("/")
            if not separator or kind not in groups or not name:
                raise MalformedHandover(f"The handover holds {key!r}; names are one of {', '.join(Kind)}, '/', name.")
            dtype = _DTYPE_OF_SAFETENSORS.get(value["dtype"])
            if dtype is None:
                raise MalformedHandover(f"{key} has dtype {value['dtype']}, which cannot travel.")
            groups[kind][name] = Tensor(dtype, tuple(value["shape"]), bytes(value["data"]))
        return cls(**groups)


def _safetensors_metadata(data: bytes) -> dict[str, Any]:
    """The `__metadata__` of a safetensors file, whose header is eight bytes of length and then JSON."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_unique)
        metadata = header.get("__metadata__", {})
    except (struct.error, ValueError, AttributeError, RecursionError) as error:
        raise MalformedHandover("The handover is no safetensors file: its header cannot be read.") from error
    return metadata if isinstance(metadata, dict) else {}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are given once each; safetensors would take the last of them."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def manifest_of(handover: Handover, *, run: str, stop: int, site: str, strategy: str) -> handover_pb2.HandoverManifest:
    """List every tensor of `handover` with its digest."""
    return handover_pb2.HandoverManifest(
        schema_version=SCHEMA_VERSION,
        run=run,
        stop=stop,
        site=site,
        strategy=strategy,
        tensors=[
            handover_pb2.Tensor(
                kind=kind.name,
                name=name,
                dtype=tensor.dtype,
                shape=tensor.shape,
                nbytes=len(tensor.data),
                sha256=tensor.sha256,
            )
            for kind, name, tensor in handover.items()
        ],
        digest=handover.digest(),
    )


def check_manifest(manifest: handover_pb2.HandoverManifest, handover: Handover) -> None:
    """Raise MalformedHandover unless `manifest` lists exactly the tensors of `handover`."""
    if manifest.schema_version != SCHEMA_VERSION:
        raise MalformedHandover(
            f"The sender writes handovers of schema version {manifest.schema_version}, this software reads version "
            f"{SCHEMA_VERSION}; install the same Locum release at the coordinator and at every node."
        )
    actual = manifest_of(handover, run=manifest.run, stop=manifest.stop, site=manifest.site, strategy=manifest.strategy)
    listed = {(tensor.kind, tensor.name): tensor for tensor in manifest.tensors}
    present = {(tensor.kind, tensor.name): tensor for tensor in actual.tensors}
    for key in sorted(listed.keys() | present.keys()):
        known = key[0] in handover_pb2.Kind.values()
        where = f"{handover_pb2.Kind.Name(key[0]).lower() if known else 'a kind of its own'}/{key[1]}"
        if key not in present:
            raise MalformedHandover(f"The manifest lists {where}, which did not arrive.")
        if key not in listed:
            raise MalformedHandover(f"{where} arrived but is not in the manifest.")
        if listed[key] != present[key]:
            raise MalformedHandover(f"{where} differs from the manifest in dtype, shape or SHA-256.")
    if manifest != actual:
        raise MalformedHandover("The manifest's order or digest differs from that of the handover that arrived.")


@dataclass(frozen=True)
class HandoverSchema:
    """Exactly the tensors a handover must hold: for every kind, name -> TensorSpec."""

    tensors: Mapping[Kind, Mapping[str, TensorSpec]]

    def __post_init__(self) -> None:
        frozen = {kind: MappingProxyType(dict(sorted(self.tensors.get(kind, {}).items()))) for kind in Kind}
        object.__setattr__(self, "tensors", MappingProxyType(frozen))

    @classmethod
    def of(cls, handover: Handover) -> "HandoverSchema":
        """The schema that exactly `handover` and its like fulfil."""
        return cls({kind: {name: t.spec for name, t in handover.group(kind).items()} for kind in Kind})

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of which at least one tensor is declared."""
        return frozenset(kind for kind in Kind if self.tensors[kind])

    def nbytes(self, kind: Kind | None = None) -> int:
        """Bytes of raw values that this schema lets through, of one kind or of all: the byte budget."""
        return sum(spec.nbytes for k in Kind if kind in (None, k) for spec in self.tensors[k].values())
