"""What every kind is made of: wire names, bounded scalar types, conditions, CEL rules.

Theory: the models are the API's only source. Each field carries its description, bounds and default; a rule that spans
fields is a CEL rule and stands in the schema, where the API server judges it for every writer alike. Python is therefore
not a second judge: models check shapes, the API server checks rules.

Invariant: every list, map and string is bounded, so that the API server can bound the cost of every rule.
Python names are the wire names in snake_case, unit last (`limit_watts` <-> `limitWatts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from splitwatt_core.budget.tree import MAX_LIMIT_W
from splitwatt_core.conditions import MAX_CONDITIONS, MAX_MESSAGE_CHARS, MAX_REASON_CHARS, MAX_TYPE_CHARS
from splitwatt_core.protocol.contract import MAX_GPU_WATTS

MAX_NODE_WATTS: Final = 1_000_000
MAX_CLOCK_MEGAHERTZ: Final = 10_000
MAX_TOLD: Final = 2**53
"""Of what is measured or summed up: far above anything that may be typed, and still exact in every JSON reader."""
MAX_LABELS: Final = 32

DNS_SUBDOMAIN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"

SchemaExtra = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class CelRule:
    """One CEL rule (x-kubernetes-validations). `message` says what to change; `expression` is its CEL form, for messages
    that quote the value. `optional_old`: the rule speaks of `oldSelf` and also holds on creation."""

    rule: str
    message: str
    expression: str | None = None
    field_path: str | None = None
    optional_old: bool = False

    def wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = {"rule": self.rule, "message": self.message}
        if self.expression is not None:
            wire["messageExpression"] = self.expression
        if self.field_path is not None:
            wire["fieldPath"] = self.field_path
        if self.optional_old:
            wire["optionalOldSelf"] = True
        return wire


def kubernetes(*rules: CelRule, **extensions: Any) -> dict[str, Any]:
    """A `json_schema_extra`: CEL rules and `x-kubernetes-*` extensions (`list_type="map"` -> x-kubernetes-list-type)."""
    extra: dict[str, Any] = {"x-kubernetes-" + name.replace("_", "-"): value for name, value in extensions.items()}
    if rules:
        extra["x-kubernetes-validations"] = [rule.wire() for rule in rules]
    return extra


def one_of(field: str, values: tuple[str, ...], later: str = "") -> SchemaExtra:
    """A closed list of words, as a CEL rule instead of `enum`: a refusal then says which words there are, and which of
    them come later, in one sentence."""
    known = ", ".join(values[:-1]) + f" or {values[-1]}"
    message = f"{field} must be {known}" + (f" ({later} comes later)" if later else "")

    def apply(schema: dict[str, Any]) -> None:
        kept = {key: schema[key] for key in ("description", "default") if key in schema}
        schema.clear()
        listed = ", ".join(f"'{value}'" for value in values)
        rule = CelRule(f"self in [{listed}]", message, expression=f'"{message}, not \'" + self + "\'"')
        schema.update(type="string", maxLength=32, **kept, **kubernetes(rule))

    return apply


class Wire(BaseModel):
    """A part of an object as it goes over the wire. Unknown fields are refused, unless the reader says `lenient`.

    The API server refuses them too where the writer asks for it (fieldValidation=Strict, kubectl's default). Without it
    they are pruned, with a warning, before any rule or admission policy could see them."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    @classmethod
    def from_wire(cls, raw: Mapping[str, Any], *, lenient: bool = False) -> Self:
        """Parse. `lenient` drops unknown fields: for objects that the API server has accepted, whose schema may be newer
        than this reader. Raises pydantic.ValidationError."""
        return cls.model_validate(raw, extra="ignore") if lenient else cls.model_validate(raw)

    def to_wire(self) -> dict[str, Any]:
        """JSON-ready; fields that are None are absent, as Kubernetes has it."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# Bounded whole numbers: booleans, floats and digits in quotes are refused.
BudgetWatts = Annotated[int, Field(ge=1, le=MAX_LIMIT_W, strict=True)]
BudgetWattsOrZero = Annotated[int, Field(ge=0, le=MAX_LIMIT_W, strict=True)]
NodeWatts = Annotated[int, Field(ge=0, le=MAX_NODE_WATTS, strict=True)]
GpuWatts = Annotated[int, Field(ge=1, le=MAX_GPU_WATTS, strict=True)]
GpuWattsOrZero = Annotated[int, Field(ge=0, le=MAX_GPU_WATTS, strict=True)]
Megahertz = Annotated[int, Field(ge=1, le=MAX_CLOCK_MEGAHERTZ, strict=True)]
Told = Annotated[int, Field(ge=0, le=MAX_TOLD, strict=True)]
"""A number of a status: nobody typed it, so no bound of what may be typed holds for it."""
Count = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
Generation = Annotated[int, Field(ge=0, le=2**53, strict=True)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
Text = Annotated[str, Field(max_length=1024)]
Timestamp = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
"""RFC 3339, UTC."""
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]
Labels = Annotated[dict[str, LabelValue], Field(max_length=MAX_LABELS)]


class Condition(Wire):
    """One aspect of the state; `type` says which, `reason` why in one word, `message` for people."""

    type: str = Field(min_length=1, max_length=MAX_TYPE_CHARS, description="Which aspect, for example Ready.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds: True, False or Unknown.")
    reason: str = Field(min_length=1, max_length=MAX_REASON_CHARS, description="Why, in one word in CamelCase.")
    message: str = Field(default="", max_length=MAX_MESSAGE_CHARS, description="Why, in a sentence with the numbers.")
    last_transition_time: Timestamp = Field(description="When `status` changed last.")
    observed_generation: Generation | None = Field(default=None, description="The metadata.generation this was judged on.")


Conditions = Annotated[
    list[Condition],
    Field(max_length=MAX_CONDITIONS, json_schema_extra=kubernetes(list_type="map", list_map_keys=["type"])),
]


class ObjectMeta(BaseModel):
    """The parts of metadata that Splitwatt reads; the API server owns the rest."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    name: str
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    deletion_timestamp: str | None = None


class LabelRequirement(Wire):
    """One requirement on a label."""

    key: LabelKey = Field(description="The label's key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How `values` are compared.")
    values: list[LabelValue] = Field(
        default_factory=list,
        max_length=64,
        description="The values for In and NotIn; empty for Exists and DoesNotExist.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : "
                "!has(self.values) || size(self.values) == 0",
                "In and NotIn need at least one value; Exists and DoesNotExist take none",
            )
        )
    )


class LabelSelector(Wire):
    """Selects nodes by their labels: all of matchLabels and all of matchExpressions must hold."""

    match_labels: Labels = Field(default_factory=dict, description="Labels and the values they must have.")
    match_expressions: list[LabelRequirement] = Field(
        default_factory=list,
        max_length=32,
        description="Further requirements.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "(has(self.matchLabels) && size(self.matchLabels) > 0) || "
                "(has(self.matchExpressions) && size(self.matchExpressions) > 0)",
                "a nodeSelector must name at least one label; an empty one would claim every node",
            )
        )
    )
