"""Every name that crosses a process border, once: API group, labels, field managers, metric names and their labels.

Metrics carry base units in their names; `_total` marks counters only. vLLM's own metric names are kept as they are, so
that dashboards made for vLLM work on emulated engines.
"""

from typing import Final

API_GROUP: Final = "splitwatt.io"
API_VERSION: Final = "v1alpha1"
GROUP_VERSION: Final = f"{API_GROUP}/{API_VERSION}"

FIELD_MANAGER_OPERATOR: Final = "splitwatt-operator"
FIELD_MANAGER_AGENT: Final = "splitwatt-agent"

# Labels on nodes.
LABEL_RACK: Final = "splitwatt.io/rack"
LABEL_POOL: Final = "splitwatt.io/pool"
LABEL_PLAN: Final = "splitwatt.io/plan"
# "true": no cap is ever granted here; the node's GPUs are charged their default limits.
LABEL_EXCLUDED: Final = "splitwatt.io/excluded"
# "Release": its GPUs get their default limits and clocks back, whatever the mode of their tree.
LABEL_MODE: Final = "splitwatt.io/mode"

# Labels on objects that the operator renders.
LABEL_CLUSTER: Final = "splitwatt.io/cluster"
LABEL_ROLE: Final = "splitwatt.io/role"
# On the router's pods, which have neither of the two above: they are of the cluster, and no consumer of power.
LABEL_ROUTER: Final = "splitwatt.io/router"
# On pods of a replica over several nodes that are not its leader, instead of the role's: they answer nobody, and draw power all
# the same. The value is the role.
LABEL_WORKER: Final = "splitwatt.io/worker-of"
# On pods of such a replica: its nodes. Another number makes another revision.
ANNOTATION_NODES: Final = "splitwatt.io/nodes-per-replica"
LABEL_LLMD_ROLE: Final = "llm-d.ai/role"
# On Deployments, LeaderWorkerSets and their pods: engines of one revision understand each other's KV caches.
LABEL_REVISION: Final = "splitwatt.io/revision"
# On pods of any kind, by their owner: pods of a namespace with the same value are one replica and get one common cap.
LABEL_GROUP: Final = "splitwatt.io/group"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "splitwatt"

# A pod waits behind this gate until its power floor is reserved; the annotation then names the leaf budget it was reserved in.
GATE_POWER: Final = "splitwatt.io/power"
ANNOTATION_BUDGET: Final = "splitwatt.io/power-budget"
# On a NodePower, by a person: names of budgets that no longer count the node, with commas between, or "all".
ANNOTATION_RELEASE: Final = "splitwatt.io/release"
# On a root PowerBudget, by a person: no node below is missing under the NodePower definition of this uid.
ANNOTATION_NODES_CONFIRMED: Final = "splitwatt.io/nodes-confirmed"
# On rendered objects: the hash of what was rendered, so that a person sees which objects one release renders alike.
ANNOTATION_RENDERED: Final = "splitwatt.io/rendered-hash"
# On a PowerProfile: what the planner needs of a GPU and no policy asks. Step times as JSON; memory of one GPU in GiB.
ANNOTATION_TIMING: Final = "splitwatt.io/timing"
ANNOTATION_MEMORY: Final = "splitwatt.io/memory-gibibytes"
# On a PowerProfile: which spec the operator published, so that a changed one is known for a person's.
ANNOTATION_PUBLISHED: Final = "splitwatt.io/published"

# On a RoleScale: the InferenceCluster's replicas of that role when the two last agreed.
ANNOTATION_DECLARED_REPLICAS: Final = "splitwatt.io/declared-replicas"

GPU_RESOURCE: Final = "nvidia.com/gpu"

# Labels of metrics.
L_BUDGET: Final = "budget"
L_NODE: Final = "node"
L_GPU: Final = "gpu"
L_ROLE: Final = "role"
L_CLUSTER: Final = "cluster"

# The agent's metrics, per GPU.
M_GPU_POWER_WATTS: Final = "splitwatt_gpu_power_watts"
M_GPU_ENFORCED_CAP_WATTS: Final = "splitwatt_gpu_enforced_cap_watts"
M_GPU_MANAGEMENT_CAP_WATTS: Final = "splitwatt_gpu_management_cap_watts"
M_GPU_GRANTED_CAP_WATTS: Final = "splitwatt_gpu_granted_cap_watts"
M_GPU_ENERGY_JOULES: Final = "splitwatt_gpu_energy_joules_total"
M_GPU_SM_CLOCK_HERTZ: Final = "splitwatt_gpu_sm_clock_hertz"
M_GPU_HEALTHY: Final = "splitwatt_gpu_healthy"
M_GPU_CAP_MISMATCH: Final = "splitwatt_gpu_cap_mismatch_total"
M_GPU_POWER_CAPPED: Final = "splitwatt_gpu_power_capped"
M_GPU_FLOOR_WATTS: Final = "splitwatt_gpu_floor_watts"
M_GPU_UNACKED_SECONDS: Final = "splitwatt_gpu_unacknowledged_seconds"
M_AGENT_NVML_ERRORS: Final = "splitwatt_agent_nvml_errors_total"
M_AGENT_STATUS_WRITES: Final = "splitwatt_agent_status_writes_total"
M_AGENT_WATCH_LIVE: Final = "splitwatt_agent_watch_live"
M_AGENT_POD_RESOURCES_UP: Final = "splitwatt_agent_pod_resources_up"
M_AGENT_CONDITION: Final = "splitwatt_agent_condition"
L_CONDITION: Final = "condition"

# The operator's metrics, per budget.
M_BUDGET_LIMIT_WATTS: Final = "splitwatt_budget_limit_watts"
M_BUDGET_LIMIT_IN_FORCE_WATTS: Final = "splitwatt_budget_limit_in_force_watts"
M_BUDGET_CHARGE_WATTS: Final = "splitwatt_budget_charge_watts"
M_BUDGET_MEASURED_WATTS: Final = "splitwatt_budget_measured_watts"
M_BUDGET_POSTURE: Final = "splitwatt_budget_posture"
M_BUDGET_TELEMETRY_FRESH: Final = "splitwatt_budget_telemetry_fresh"
M_BUDGET_CAP_WATTS: Final = "splitwatt_budget_cap_watts"
M_BUDGET_SHORT_WATTS: Final = "splitwatt_budget_short_watts"
M_BUDGET_GPUS: Final = "splitwatt_budget_gpus"
M_BUDGET_CONDITION: Final = "splitwatt_budget_condition"
# In mode Observe: what would be granted, cut and held.
M_WOULD_CAP_WATTS: Final = "splitwatt_would_cap_watts"
M_WOULD_LOCK_HERTZ: Final = "splitwatt_would_lock_hertz"
M_BUDGET_WOULD_CUT_WATTS: Final = "splitwatt_budget_would_cut_watts"
M_BUDGET_WOULD_CUT_GPUS: Final = "splitwatt_budget_would_cut_gpus"
M_BUDGET_WOULD_HOLD_PODS: Final = "splitwatt_budget_would_hold_pods"
M_BUDGET_WOULD_LACK_WATTS: Final = "splitwatt_budget_would_lack_watts"
M_CLUSTER_CONDITION: Final = "splitwatt_cluster_condition"
M_CLUSTER_PODS: Final = "splitwatt_cluster_pods"
M_CLUSTER_SLO_SECONDS: Final = "splitwatt_cluster_slo_seconds"
M_CLUSTER_JOULES_PER_TOKEN: Final = "splitwatt_cluster_joules_per_token"
L_STATE: Final = "state"
L_LATENCY: Final = "latency"

# The meter that the lab's simulated racks expose, named as a site's own PDU exporter might.
M_RACK_POWER_WATTS: Final = "rack_power_watts"

# The operator's own doings.
M_API_WRITES: Final = "splitwatt_api_writes_total"
M_API_REFUSALS: Final = "splitwatt_api_refusals_total"
M_DECISION_SECONDS: Final = "splitwatt_decision_seconds"
M_QUERY_FAILURES: Final = "splitwatt_query_failures_total"
M_REPORT_FAILURES: Final = "splitwatt_report_failures_total"
M_AGENT_STREAMS: Final = "splitwatt_agent_streams"
M_BRAKES: Final = "splitwatt_brakes_total"
M_EVENTS_DROPPED: Final = "splitwatt_events_dropped_total"
M_OPERATOR_ACTIVE: Final = "splitwatt_operator_active"
M_OPERATOR_TERM: Final = "splitwatt_operator_term"
L_KIND: Final = "kind"
L_CODE: Final = "code"

# vLLM's own metric names (engines of version 0.10 and later), which the emulated engines expose as well.
M_VLLM_RUNNING: Final = "vllm:num_requests_running"
M_VLLM_WAITING: Final = "vllm:num_requests_waiting"
M_VLLM_KV_USAGE: Final = "vllm:kv_cache_usage_perc"
M_VLLM_TTFT: Final = "vllm:time_to_first_token_seconds"
M_VLLM_TBT: Final = "vllm:inter_token_latency_seconds"
M_SGLANG_TTFT: Final = "sglang:time_to_first_token_seconds"
M_SGLANG_TBT: Final = "sglang:inter_token_latency_seconds"
M_VLLM_E2E: Final = "vllm:e2e_request_latency_seconds"
M_VLLM_PROMPT_TOKENS: Final = "vllm:prompt_tokens_total"
M_VLLM_GENERATION_TOKENS: Final = "vllm:generation_tokens_total"
M_VLLM_SUCCESS: Final = "vllm:request_success_total"
# What tells a KV cache that came from one that was computed again: the connector's counters, and where prompt tokens are from.
M_VLLM_NIXL_BYTES: Final = "vllm:nixl_bytes_transferred"
M_VLLM_NIXL_FAILED: Final = "vllm:nixl_num_failed_transfers"
M_VLLM_PROMPT_BY_SOURCE: Final = "vllm:prompt_tokens_by_source"
M_VLLM_CACHE_CONFIG: Final = "vllm:cache_config_info"
L_SOURCE: Final = "source"
L_BLOCK_SIZE: Final = "block_size"
L_MODEL_NAME: Final = "model_name"
L_NAMESPACE: Final = "namespace"
L_POD: Final = "pod"
L_RACK: Final = "rack"

# The lab's load, per cluster, and how well its process keeps up.
M_TWIN_ARRIVED: Final = "splitwatt_twin_requests_total"
M_TWIN_WAITING: Final = "splitwatt_twin_requests_waiting"
M_TWIN_REQUEUED: Final = "splitwatt_twin_requests_requeued_total"
M_TWIN_DROPPED: Final = "splitwatt_twin_requests_dropped_total"
M_TWIN_LOAD_SECONDS: Final = "splitwatt_twin_load_seconds"
M_TWIN_LATE_SECONDS: Final = "splitwatt_twin_late_seconds"
L_REASON: Final = "reason"
