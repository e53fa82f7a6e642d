"""The chart's values as a model: their schema and reference page are generated from it, and values.yaml is checked against it.

What stands under `settings` is the operator's own model; nothing of it is said twice.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from llamero.spec.base import SpecModel
from llamero_operator.resources.quantities import Quantity
from llamero_operator.settings import DnsLabel, DnsName, OperatorSettings

Text = Annotated[str, Field(max_length=512)]
Port = Annotated[int, Field(ge=1, le=65_535)]
Manifest = dict[str, Any]


class Images(SpecModel):
    """Where the images come from; `settings.images` names whole images instead, best by digest."""

    registry: Text = Field("", description="Put before the names, such as `registry.example.com/team`.")
    tag: Text = Field("", description="The images' tag; empty: the chart's appVersion.")


class PodPlacement(SpecModel):
    """What one of the chart's own pods asks for, and where it may run."""

    resources: Manifest = Field(description="The container's requests and limits.")
    node_selector: Manifest = Field(default_factory=dict, description="Labels that the node must have.")
    tolerations: list[Manifest] = Field(default_factory=list, description="Taints that the pod tolerates.")
    affinity: Manifest = Field(default_factory=dict, description="The pod's affinity.")
    priority_class_name: Annotated[str, Field(max_length=253)] = Field("", description="The pod's priorityClassName.")


class Operator(PodPlacement):
    """The operator's Deployment."""

    replicas: int = Field(
        1, ge=1, le=3, description="1: one pod, replaced by Recreate. 2 or 3: a Lease says which one works."
    )
    pod_annotations: Manifest = Field(default_factory=dict, description="Annotations of the pod.")
    resources: Manifest = Field(
        default_factory=lambda: {
            "requests": {"cpu": "100m", "memory": "192Mi"},
            "limits": {"memory": "512Mi"},
        },
        description="The container's requests and limits.",
    )


class ChatService(SpecModel):
    """The Service that chat clients reach."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field("ClusterIP", description="Its type.")
    port: Port = Field(80, description="Its port.")
    annotations: Manifest = Field(
        default_factory=dict, description="Annotations, such as a cloud's for a load balancer."
    )


class IngressTls(SpecModel):
    """A certificate of the Ingress."""

    secret_name: DnsName = Field(description="A Secret of the release's namespace with certificate and key.")
    hosts: list[Text] = Field(default_factory=list, description="Hosts that it is for; empty: the Ingress' own.")


class Ingress(SpecModel):
    """The way in from outside the cluster. Answers stream: the controller must not gather them, and its time limit must be long."""

    enabled: bool = Field(False, description="Make it.")
    class_name: Annotated[str, Field(max_length=253)] = Field(
        "", description="Its class; empty: the cluster's default."
    )
    host: Annotated[str, Field(max_length=253)] = Field("", description="The host that it answers for; empty: any.")
    annotations: Manifest = Field(
        default_factory=dict,
        description="The controller's own settings, such as nginx' `proxy-buffering: off` and `proxy-read-timeout`.",
    )
    tls: list[IngressTls] = Field(default_factory=list, description="Certificates.")


class Chat(PodPlacement):
    """The chat service: OpenAI's API and a page, in front of all ModelServers."""

    enabled: bool = Field(True, description="Run it. Without, `settings.serving.chats` names those that run elsewhere.")
    replicas: int = Field(2, ge=1, le=100, description="Pods.")
    drain_seconds: int = Field(
        120, ge=1, le=3_600, description="Time that answers under way have when a pod is told to end."
    )
    trust_forwarded_for: bool = Field(
        False,
        description="Tell callers apart by the last entry of X-Forwarded-For: only behind a proxy that writes it.",
    )
    pod_annotations: Manifest = Field(default_factory=dict, description="Annotations of the pods.")
    resources: Manifest = Field(
        default_factory=lambda: {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "512Mi"},
        },
        description="The container's requests and limits.",
    )
    service: ChatService = Field(default_factory=ChatService, description="Its Service.")
    ingress: Ingress = Field(default_factory=Ingress, description="The way in from outside.")


class ServiceAccount(SpecModel):
    """Who the operator is to the API server."""

    create: bool = Field(True, description="Make it.")
    name: Annotated[str, Field(max_length=253)] = Field("", description="Its name; empty: made from the release's.")
    annotations: Manifest = Field(default_factory=dict, description="Annotations, such as a cloud's workload identity.")


class Rbac(SpecModel):
    """Rights; docs/install.md lists them."""

    create: bool = Field(
        True, description="Make the operator's Roles (`settings.namespaces` named) or ClusterRole (all namespaces)."
    )
    user_roles: bool = Field(
        True,
        description="Let Kubernetes' view, edit and admin roles read and write FineTuneJobs, ModelServers and Adapters.",
    )


class ExistingSecret(SpecModel):
    """A Secret of the release's namespace that holds Redis' address."""

    name: Annotated[str, Field(max_length=253)] = Field("", description="Its name; empty: none.")
    key: Annotated[str, Field(max_length=253)] = Field(
        "url", description="Its key with `redis://[:password@]host:port/number`."
    )


class Persistence(SpecModel):
    """The volume of the chart's own Redis."""

    enabled: bool = Field(
        True, description="Keep its append-only file on a volume. Without, a restart sends tasks again."
    )
    size: Quantity = Field("2Gi", description="Size of the volume.")
    storage_class_name: Annotated[str, Field(max_length=253)] = Field(
        "", description="Its storage class; empty: the cluster's default."
    )


class Redis(PodPlacement):
    """The broker: the chart's own Redis, or another by `url` or `existingSecret`."""

    url: Annotated[str, Field(max_length=2048)] = Field(
        "", description="Address of another Redis; kept in a Secret. `existingSecret` keeps it out of the values."
    )
    existing_secret: ExistingSecret = Field(
        default_factory=ExistingSecret, description="A Secret with the address; goes before `url`."
    )
    image: Text = Field("redis:7.2-bookworm", description="Image of the chart's own Redis, best by digest.")
    max_memory: Annotated[str, Field(pattern=r"^[0-9]+(kb|mb|gb)$", max_length=16)] = Field(
        "200mb", description="Memory for its data, in Redis' words; below resources.limits.memory."
    )
    persistence: Persistence = Field(default_factory=Persistence, description="Its volume.")
    resources: Manifest = Field(
        default_factory=lambda: {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"memory": "384Mi"},
        },
        description="The container's requests and limits.",
    )


class Storage(SpecModel):
    """The volume claim for jobs' files, where `settings.storage` names none."""

    create: bool = Field(
        True, description="Make a claim in each of `settings.namespaces`, or in the release's. It outlives the release."
    )
    claim_name: DnsName | Literal[""] = Field("", description="Its name; empty: made from the release's.")
    size: Quantity = Field("100Gi", description="Size asked for.")
    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]], Field(min_length=1)
    ] = Field(
        default_factory=lambda: ["ReadWriteMany"],  # type: ignore[arg-type]
        description="Access modes; ReadWriteOnce does where all of a job's pods run on one node.",
    )
    storage_class_name: Annotated[str, Field(max_length=253)] = Field(
        "", description="Its storage class; empty: the cluster's default."
    )


class NetworkPolicies(SpecModel):
    """Network policies: closed both ways but for what is named here."""

    enabled: bool = Field(True, description="Make them. They need a network plugin that enforces policies.")
    metrics_from: Annotated[list[Manifest], Field(min_length=1)] = Field(
        default_factory=lambda: [{"namespaceSelector": {}}],
        description="Who may read the operator's metrics (NetworkPolicy peers).",
    )
    chat_from: list[Manifest] = Field(
        default_factory=list, description="Who may reach the chat service (NetworkPolicy peers); empty: anyone."
    )
    engine_metrics_from: list[Manifest] = Field(
        default_factory=list,
        description="Who may reach the engines besides the chat service, for their metrics (NetworkPolicy peers). The port is that of all "
        "their requests, vLLM's loading of adapters included: name Prometheus alone.",
    )
    api_server_ports: Annotated[list[Port], Field(min_length=1)] = Field(
        default_factory=lambda: [443, 6443], description="Ports of the API server."
    )
    api_server_cidrs: list[Text] = Field(
        default_factory=list, description="Addresses of the API server, such as `10.0.0.1/32`; empty: any."
    )
    redis_ports: Annotated[list[Port], Field(min_length=1)] = Field(
        default_factory=lambda: [6379], description="Ports of a Redis that is not the chart's."
    )
    worker_egress: list[Manifest] = Field(
        default_factory=lambda: [
            {
                "ports": [{"port": 443}],
                "to": [
                    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}},
                    {"ipBlock": {"cidr": "::/0", "except": ["fd00:ec2::254/128"]}},
                ],
            }
        ],
        description="Where jobs' and engines' pods may go besides DNS and, for jobs, Redis (NetworkPolicy egress rules): by default HTTPS "
        "(hub, object store, data), but not a cloud's metadata service.",
    )


class Monitoring(SpecModel):
    """Prometheus."""

    pod_monitor: bool = Field(
        False, description="Make PodMonitors of the operator and of the engines (Prometheus operator)."
    )
    labels: Manifest = Field(default_factory=dict, description="Labels by which Prometheus finds it.")
    interval: Annotated[str, Field(pattern=r"^[0-9]+(s|m)$")] = Field("30s", description="Time between two readings.")


class ChartValues(SpecModel):
    """All values of the chart."""

    name_override: DnsLabel | Literal[""] = Field("", description="Takes the place of the chart's name in names.")
    fullname_override: DnsLabel | Literal[""] = Field("", description="The beginning of every name.")
    images: Images = Field(default_factory=Images, description="Where images come from.")
    settings: OperatorSettings = Field(
        description="The operator's settings, as in docs/reference/settings.md; `redisUrl` comes from `redis`."
    )
    operator: Operator = Field(default_factory=Operator, description="The operator's Deployment.")
    chat: Chat = Field(default_factory=Chat, description="The chat service.")
    service_account: ServiceAccount = Field(default_factory=ServiceAccount, description="The operator's account.")
    rbac: Rbac = Field(default_factory=Rbac, description="Rights.")
    redis: Redis = Field(default_factory=Redis, description="The broker.")
    storage: Storage = Field(default_factory=Storage, description="The volume claim for jobs' files.")
    network_policy: NetworkPolicies = Field(default_factory=NetworkPolicies, description="Network policies.")
    monitoring: Monitoring = Field(default_factory=Monitoring, description="Prometheus.")


def build_values_schema() -> dict[str, Any]:
    """The chart's values.schema.json (draft 7, which Helm reads). `settings` may leave out what it likes, and has no redisUrl."""
    schema = ChartValues.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs")
    del definitions["OperatorSettings"]["properties"]["redisUrl"]
    for part in (schema, *definitions.values()):
        # Helm merges values over the chart's own: a user's file names what it changes.
        for field in part.get("properties", {}).values():
            field.pop("default", None)
    schema["properties"]["global"] = {
        "type": "object",
        "description": "Values that Helm shares between charts; not read.",
    }
    return _to_draft_7({"$schema": "http://json-schema.org/draft-07/schema#", **schema, "definitions": definitions})


def _to_draft_7(node: Any) -> Any:
    if isinstance(node, list):
        return [_to_draft_7(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted = {key: _to_draft_7(value) for key, value in node.items() if key not in ("title", "x-llamero-served-by")}
    if isinstance(converted.get("$ref"), str):
        # Beside a reference draft 7 reads nothing.
        return {"$ref": converted["$ref"].replace("#/$defs/", "#/definitions/")}
    return converted
