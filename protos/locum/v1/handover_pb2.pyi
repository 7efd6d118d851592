from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    WEIGHTS: _ClassVar[Kind]
    IMPORTANCE: _ClassVar[Kind]
    PROMPTS: _ClassVar[Kind]
    GENERATOR: _ClassVar[Kind]
KIND_UNSPECIFIED: Kind
WEIGHTS: Kind
IMPORTANCE: Kind
PROMPTS: Kind
GENERATOR: Kind

class Tensor(_message.Message):
    __slots__ = ("kind", "name", "dtype", "shape", "nbytes", "sha256")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    nbytes: int
    sha256: bytes
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., nbytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class HandoverManifest(_message.Message):
    __slots__ = ("schema_version", "run", "stop", "site", "strategy", "tensors", "digest")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    run: str
    stop: int
    site: str
    strategy: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    digest: bytes
    def __init__(self, schema_version: _Optional[int] = ..., run: _Optional[str] = ..., stop: _Optional[int] = ..., site: _Optional[str] = ..., strategy: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., digest: _Optional[bytes] = ...) -> None: ...
