"""What all parts of a scenario share: strict models in camelCase, and one kind of error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class ScenarioError(ValueError):
    """A scenario that cannot be run; the message is one sentence that says what to change."""


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, frozen=True, populate_by_name=True)
