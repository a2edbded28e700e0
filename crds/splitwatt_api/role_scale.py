"""`RoleScale` (rsc): how many replicas one role of an InferenceCluster has, as an object that autoscalers can aim at.

The operator makes one for each InferenceCluster's prefill role. Decode's replicas are the InferenceCluster's own scale.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field
from splitwatt_core.clusters import MAX_REPLICAS
from splitwatt_core.names import ANNOTATION_DECLARED_REPLICAS
from splitwatt_core.rendering.role_scale import ROLE_WORD

from splitwatt_api.base import CelRule, Count, ObjectMeta, ObjectName, Wire, kubernetes, one_of

_SCALES: Final = f"names the cluster and the role that it scales for good; the operator makes one for each cluster's {ROLE_WORD}"


class RoleScaleSpec(Wire):
    """What is scaled, and to how many replicas."""

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule("self.cluster == oldSelf.cluster && self.role == oldSelf.role", f"a RoleScale {_SCALES}"),
        )
    )

    cluster: ObjectName = Field(description="The InferenceCluster, in the same namespace.")
    role: Annotated[str, Field(json_schema_extra=one_of("role", (ROLE_WORD,)))] = Field(description="The role that is scaled.")
    replicas: int = Field(
        ge=0,
        le=MAX_REPLICAS,
        strict=True,
        description="How many replicas. The most recent change wins, of this or of the InferenceCluster's.",
        json_schema_extra={"format": "int32"},
    )


class RoleScaleStatus(Wire):
    """How the role stands."""

    replicas: Count = Field(default=0, description="Pods that exist.")
    label_selector: str = Field(default="", max_length=512, description="Selects the role's pods, for autoscalers.")


class RoleScale(Wire):
    """The scale of one role of an InferenceCluster."""

    api_version: Literal["splitwatt.io/v1alpha1"] = "splitwatt.io/v1alpha1"
    kind: Literal["RoleScale"] = "RoleScale"
    metadata: ObjectMeta
    spec: RoleScaleSpec = Field(description="What is scaled, and to how many replicas.")
    status: RoleScaleStatus | None = Field(default=None, description="How the role stands.")

    @property
    def declared(self) -> int | None:
        """The InferenceCluster's number when the two last agreed."""
        text = self.metadata.annotations.get(ANNOTATION_DECLARED_REPLICAS, "")
        return int(text) if text.isdecimal() and len(text) <= len(str(MAX_REPLICAS)) else None
