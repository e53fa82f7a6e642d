"""The Pod Security Standards, level restricted: https://kubernetes.io/docs/concepts/security/pod-security-standards/"""

from collections.abc import Callable
from typing import Any

Manifest = dict[str, Any]

ALLOWED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SAFE_SECCOMP = ("RuntimeDefault", "Localhost")

POD_CONTROLS: dict[str, Callable[[Manifest], bool]] = {
    "Host Namespaces": lambda pod: not any(pod.get(f) for f in ("hostNetwork", "hostPID", "hostIPC")),
    "HostProcess": lambda pod: not _security(pod).get("windowsOptions", {}).get("hostProcess"),
    "SELinux": lambda pod: not _security(pod).get("seLinuxOptions"),
    "AppArmor": lambda pod: _security(pod).get("appArmorProfile", {}).get("type") != "Unconfined",
    "Sysctls": lambda pod: not _security(pod).get("sysctls"),
    "Volume Types": lambda pod: all(set(v) - {"name"} <= ALLOWED_VOLUMES for v in pod.get("volumes", [])),
    "Running as Non-root (pod)": lambda pod: _security(pod).get("runAsNonRoot") is True,
    "Running as Non-root user (pod)": lambda pod: _security(pod).get("runAsUser") != 0,
    "Seccomp (pod)": lambda pod: _security(pod).get("seccompProfile", {}).get("type") in SAFE_SECCOMP,
}
CONTAINER_CONTROLS: dict[str, Callable[[Manifest], bool]] = {
    "Privileged Containers": lambda c: not _security(c).get("privileged"),
    "Capabilities": lambda c: (
        _security(c).get("capabilities", {}).get("drop") == ["ALL"]
        and set(_security(c)["capabilities"].get("add", [])) <= {"NET_BIND_SERVICE"}
    ),
    "Host Ports": lambda c: not any(port.get("hostPort") for port in c.get("ports", [])),
    "/proc Mount Type": lambda c: _security(c).get("procMount", "Default") == "Default",
    "Privilege Escalation": lambda c: _security(c).get("allowPrivilegeEscalation") is False,
    "Running as Non-root": lambda c: _security(c).get("runAsNonRoot", True) is True,
    "Running as Non-root user": lambda c: _security(c).get("runAsUser") != 0,
    "Seccomp": lambda c: _security(c).get("seccompProfile", {"type": "RuntimeDefault"})["type"] in SAFE_SECCOMP,
    "SELinux": lambda c: not _security(c).get("seLinuxOptions"),
}


def _security(part: Manifest) -> Manifest:
    return dict(part.get("securityContext", {}))


def broken_controls(pod: Manifest) -> set[str]:
    """The controls of level restricted that a pod breaks."""
    broken = {name for name, holds in POD_CONTROLS.items() if not holds(pod)}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        broken |= {name for name, holds in CONTAINER_CONTROLS.items() if not holds(container)}
    return broken
