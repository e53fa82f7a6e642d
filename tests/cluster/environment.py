"""What a container's process is given: its environment, its command, and real folders in place of mount paths. Pure.

There is no mount namespace. A mount path of the container, wherever it stands alone or begins a path in an environment value,
a command or an argument, is replaced by the folder that holds the volume; in a shell script or in JSON too. Files that
programs write or that are mounted are never changed.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

Object = dict[str, Any]

REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")
LABEL_PATH = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
UNITS = {
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"), start=1)},
    **{"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "k": Decimal(1000)},
    **{"M": Decimal(10) ** 6, "G": Decimal(10) ** 9, "T": Decimal(10) ** 12, "P": Decimal(10) ** 15, "": Decimal(1)},
}


class ConfigurationError(Exception):
    """A container's environment can't be made: something it names is missing (kubelet: CreateContainerConfigError)."""


@dataclass(frozen=True)
class PodFacts:
    """What the node adds to a pod's object: the addresses, the node, and what the node can give."""

    pod: Object
    ip: str
    host_ip: str
    allocatable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sources:
    """The data of the ConfigMaps and Secrets (decoded) that a container's environment names; None: there is no such object."""

    config_maps: Mapping[str, Mapping[str, str] | None]
    secrets: Mapping[str, Mapping[str, str] | None]


def named_sources(container: Object) -> tuple[set[str], set[str]]:
    """The names of the ConfigMaps and of the Secrets that the environment refers to."""
    config_maps: set[str] = set()
    secret_names: set[str] = set()
    for source in container.get("envFrom") or []:
        if "configMapRef" in source:
            config_maps.add(source["configMapRef"]["name"])
        if "secretRef" in source:
            secret_names.add(source["secretRef"]["name"])
    for variable in container.get("env") or []:
        origin = variable.get("valueFrom") or {}
        if "configMapKeyRef" in origin:
            config_maps.add(origin["configMapKeyRef"]["name"])
        if "secretKeyRef" in origin:
            secret_names.add(origin["secretKeyRef"]["name"])
    return config_maps, secret_names


def build_environment(container: Object, facts: PodFacts, sources: Sources) -> dict[str, str]:
    """The variables that the pod asks for, `$(NAME)` expanded. Raises ConfigurationError with a sentence."""
    environment: dict[str, str] = {}
    for source in container.get("envFrom") or []:
        environment.update(_all_of(source, sources))
    for variable in container.get("env") or []:
        value = _value_of(variable, container, facts, sources, environment)
        if value is not None:
            environment[variable["name"]] = value
    return environment


def _all_of(source: Object, sources: Sources) -> dict[str, str]:
    kind, found, reference = (
        ("ConfigMap", sources.config_maps, source["configMapRef"])
        if "configMapRef" in source
        else ("Secret", sources.secrets, source["secretRef"])
    )
    data = found.get(reference["name"])
    if data is None:
        if reference.get("optional"):
            return {}
        raise ConfigurationError(f'{kind.lower()} "{reference["name"]}" not found')
    return {source.get("prefix", "") + key: value for key, value in data.items()}


def _value_of(
    variable: Object, container: Object, facts: PodFacts, sources: Sources, so_far: Mapping[str, str]
) -> str | None:
    origin = variable.get("valueFrom")
    if not origin:
        return expand(variable.get("value", ""), so_far)
    if "fieldRef" in origin:
        return field_value(origin["fieldRef"]["fieldPath"], facts)
    if "resourceFieldRef" in origin:
        return resource_value(origin["resourceFieldRef"], container, facts)
    kind, found, reference = (
        ("ConfigMap", sources.config_maps, origin["configMapKeyRef"])
        if "configMapKeyRef" in origin
        else ("Secret", sources.secrets, origin["secretKeyRef"])
    )
    data = found.get(reference["name"])
    if data is not None and reference["key"] in data:
        return data[reference["key"]]
    if reference.get("optional"):
        return None
    if data is None:
        raise ConfigurationError(f'{kind.lower()} "{reference["name"]}" not found')
    raise ConfigurationError(f"couldn't find key {reference['key']} in {kind} {reference['name']}")


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` replaced where NAME is known, `$$` by `$`."""

    def replaced(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return environment.get(match[1], match[0])

    return REFERENCE.sub(replaced, text)


def field_value(path: str, facts: PodFacts) -> str:
    """The value of a downward API field. Raises ConfigurationError for one that this node does not know."""
    metadata, spec = facts.pod["metadata"], facts.pod["spec"]
    keyed = LABEL_PATH.fullmatch(path)
    if keyed:
        return str((metadata.get(keyed[1]) or {}).get(keyed[2], ""))
    table = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "metadata.labels": _lines(metadata.get("labels")),
        "metadata.annotations": _lines(metadata.get("annotations")),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": facts.ip,
        "status.podIPs": facts.ip,
        "status.hostIP": facts.host_ip,
    }
    if path not in table:
        raise ConfigurationError(f"the process node knows no field {path}")
    return str(table[path])


def _lines(pairs: Mapping[str, str] | None) -> str:
    return "\n".join(f'{key}="{value}"' for key, value in sorted((pairs or {}).items()))


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number: `500m` → 0.5, `2Gi` → 2147483648."""
    found = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([A-Za-z]*)", str(text))
    if found is None or found[2] not in UNITS:
        raise ConfigurationError(f"{text!r} is no quantity")
    return Decimal(found[1]) * UNITS[found[2]]


def resource_value(reference: Object, container: Object, facts: PodFacts) -> str:
    """`limits.cpu` and the like, in units of the divisor, rounded up as the kubelet does; without a limit what the node has."""
    section, _, resource = reference["resource"].partition(".")
    amounts = (container.get("resources") or {}).get(section) or {}
    amount = amounts.get(resource) or (facts.allocatable.get(resource) if section == "limits" else None) or "0"
    divisor = quantity(reference.get("divisor") or "1") or Decimal(1)
    return str(math.ceil(quantity(amount) / divisor))


@dataclass(frozen=True)
class Mounts:
    """Paths inside the container and what stands for them outside: (mount path, real path)."""

    pairs: tuple[tuple[str, Path], ...]

    def real(self, path: str) -> Path | None:
        """The real path of a path inside the container; None where it lies under no mount."""
        for inside, outside in self._longest_first():
            if path == inside:
                return outside
            if path.startswith(inside + "/"):
                return outside / path[len(inside) + 1 :]
        return None

    def translate(self, text: str) -> str:
        """The text with every mount path that stands alone or begins a path replaced."""
        # /tmp stands in values as a place that a test made; a pod's own /tmp is its TMPDIR.
        pairs = {inside: outside for inside, outside in self._longest_first() if inside != "/tmp"}
        if not pairs:
            return text
        paths = "|".join(re.escape(inside) for inside in pairs)
        pattern = rf"(?:(?<![\w./~@%+}})-])|(?<=file://))({paths})(?![\w.-])"
        return re.sub(pattern, lambda match: str(pairs[match[1]]), text)

    def _longest_first(self) -> list[tuple[str, Path]]:
        cleaned = [(inside.rstrip("/"), outside) for inside, outside in self.pairs]
        return sorted(((i, o) for i, o in cleaned if i), key=lambda pair: -len(pair[0]))
