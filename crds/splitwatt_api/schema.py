"""Pydantic model -> structural OpenAPI schema, as CustomResourceDefinitions want it.

Structural means: every node says its type, no `$ref`, no `anyOf`, no `additionalProperties: false`. "Absent" is the only
way to say nothing, so `X | None` becomes plain X. Whatever this module does not know how to say, it refuses: a schema
that silently lost a bound would be a hole in the API. Invariant: every property has a description, every string, list
and map an upper bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

VALIDATIONS: Final = "x-kubernetes-validations"
PRESERVE: Final = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING: Final = "x-kubernetes-int-or-string"

_DROPPED: Final = {"title", "examples"}
_KEPT: Final = {
    "type", "format", "description", "default", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern",
    "minItems", "maxItems", "minProperties", "maxProperties", "required",
}  # fmt: skip
_METADATA: Final = {"type": "object"}
_IDENTITY: Final = {
    "apiVersion": {"type": "string", "description": "The version of this schema: splitwatt.io/v1alpha1."},
    "kind": {"type": "string", "description": "The kind of this object."},
    "metadata": _METADATA,
}


class SchemaError(ValueError):
    """A model that cannot be said as a structural schema; the message names the path."""


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """The `openAPIV3Schema` of a whole object. Raises SchemaError naming the path that cannot be said."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    definitions = raw.pop("$defs", {})
    properties = raw["properties"]
    for name in _IDENTITY:
        properties.pop(name)
    schema = _node(raw, definitions, model.__name__)
    required = [name for name in schema.pop("required", []) if name not in _IDENTITY]
    properties = {**_IDENTITY, **schema.pop("properties")}
    return {**schema, **({"required": required} if required else {}), "properties": properties}


def _merged(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """A field's own keywords over those of its type; rules of both hold."""
    merged = {**inner, **outer}
    rules = [*inner.get(VALIDATIONS, ()), *outer.get(VALIDATIONS, ())]
    if rules:
        merged[VALIDATIONS] = rules
    return merged


def _resolved(raw: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Replace `$ref`, `X | null` and `allOf` with one member by what they stand for."""
    node = dict(raw)
    while True:
        if "$ref" in node:
            target = definitions[node.pop("$ref").rpartition("/")[2]]
            node = _merged(node, target)
        elif "anyOf" in node:
            members = [member for member in node.pop("anyOf") if member != {"type": "null"}]
            if len(members) != 1:
                raise SchemaError(f"{path}: a union of {len(members)} types is not structural")
            if node.get("default", ...) is None:
                del node["default"]
            node = _merged(node, members[0])
        elif "allOf" in node and len(node["allOf"]) == 1:
            (member,) = node.pop("allOf")
            node = _merged(node, member)
        else:
            return node


def _node(raw: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    node = _resolved(raw, definitions, path)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    children: dict[str, Any] = {}
    if "properties" in node:
        children["properties"] = {
            name: _property(child, definitions, f"{path}.{name}") for name, child in node.pop("properties").items()
        }
        if node.pop("additionalProperties", False) is not False:
            raise SchemaError(f"{path}: properties beside additionalProperties are not structural")
    elif isinstance(node.get("additionalProperties"), Mapping) and not node.get(PRESERVE):
        children["additionalProperties"] = _node(node.pop("additionalProperties"), definitions, f"{path}.*")
        node.pop("propertyNames", None)  # structural schemas cannot bound keys; a rule may
    else:
        node.pop("additionalProperties", None)
    if "items" in node:
        children["items"] = _node(node.pop("items"), definitions, f"{path}[]")
    unknown = {k for k in node if k not in _KEPT and k not in _DROPPED and not k.startswith("x-kubernetes-")}
    if unknown:
        raise SchemaError(f"{path}: {', '.join(sorted(unknown))} cannot be said in a structural schema")
    schema = {k: v for k, v in node.items() if k not in _DROPPED} | children
    _check(schema, path)
    if schema.get("type") == "integer":
        schema.setdefault("format", "int64")
    return {key: schema[key] for key in sorted(schema, key=_reading_order)}


def _reading_order(key: str) -> tuple[int, str]:
    """What it is first, what is in it last."""
    first, last = ("description", "type", "format", "default"), ("items", "additionalProperties", "properties")
    if key in first:
        return first.index(key), key
    return (50 + last.index(key), key) if key in last else (10, key)


def _property(raw: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    schema = _node(raw, definitions, path)
    if not schema.get("description"):
        raise SchemaError(f"{path}: needs a description")
    schema["description"] = " ".join(str(schema["description"]).split())
    return schema


def _check(schema: Mapping[str, Any], path: str) -> None:
    kind = schema.get("type")
    if kind is None and not schema.get(INT_OR_STRING):
        raise SchemaError(f"{path}: needs a type")
    if kind == "string" and "maxLength" not in schema and "enum" not in schema:
        raise SchemaError(f"{path}: needs a maximum length")
    if kind == "array" and "maxItems" not in schema:
        raise SchemaError(f"{path}: needs a maximum number of items")
    if kind == "integer" and "maximum" not in schema:
        raise SchemaError(f"{path}: needs a maximum")
    if "additionalProperties" in schema and "maxProperties" not in schema:
        raise SchemaError(f"{path}: needs a maximum number of entries")
