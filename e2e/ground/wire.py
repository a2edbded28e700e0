"""Messages of the kubelet's plugin protocols, made from a table: what protoc would write. Also runs in pods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TEXT, BOOL = "", "bool"
Field = tuple[str, int, str, bool]
"""Name, number, TEXT, BOOL or the name of a message, and whether it is repeated. A map is a repeated pair on the wire."""


def message_classes(package: str, messages: Mapping[str, Sequence[Field]]) -> dict[str, Any]:
    """The class of each message by its name."""
    kinds = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for message, fields in messages.items():
        entry = proto.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            field = entry.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in (TEXT, BOOL):
                field.type = kinds.TYPE_STRING if kind == TEXT else kinds.TYPE_BOOL
            else:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in messages}
