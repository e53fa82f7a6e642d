"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as local processes; the nodes are others' business.

The binaries come from `scripts/control-plane.sh`. Authorization is RBAC; the admin's token is in the group system:masters.
The endpoint controllers are left out: the API server refuses loopback addresses in Endpoints.
"""

import os
import re
import secrets
import shutil
import subprocess
import urllib.error
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from kubernetes import client as kubernetes_client

from cluster.api import Access, ApiError, PlainApi, path_of
from cluster.certificates import Authority, write_service_account_key
from cluster.kubeconfig import write_kubeconfig
from cluster.leftovers import make_folder
from cluster.processes import Daemon, StartError, accepts_connections, free_port
from cluster.waiting import until

REPOSITORY = Path(__file__).parents[2]
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
START_SECONDS = 90
MEMORY_DISK = Path("/dev/shm")
MEMORY_DISK_BYTES = 1 << 30

# Off: what speaks to clouds, hands out certificates, or writes Endpoints with loopback addresses.
LEFT_OUT = [
    "endpoint",
    "endpointslice",
    "endpointslicemirroring",
    "cloud-node-lifecycle",
    "nodeipam",
    "route",
    "service",
]
LEFT_OUT += ["attachdetach", "csrsigning", "csrapproving", "csrcleaner", "persistentvolume-expander"]

STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "folder", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "llamero.dev/folder",
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
}


def find_binaries() -> Path:
    """The folder of the control plane's binaries; builds them where the machine has none (minutes, once)."""
    for place in (os.environ.get("KUBEBUILDER_ASSETS"), _cache() / "control-plane" / "bin"):
        if place and all(os.access(Path(place) / name, os.X_OK) for name in COMPONENTS):
            return Path(place)
    script = REPOSITORY / "scripts" / "control-plane.sh"
    done = subprocess.run([str(script)], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise StartError(f"{script} could not provide a control plane: see its output above")
    return Path(done.stdout.strip())


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(os.environ.get("LLAMERO_CACHE", f"{base}/llamero"))


class ControlPlane:
    """One control plane with a temporary data folder; use as a context manager or call `start()` and `stop()`.

    `crds` are files applied before the controllers start, so that garbage collection knows their kinds at once: it looks for
    new kinds only every 30 s. `qps` is what controllers and scheduler may ask a second. A node that was silent for
    `node_grace_seconds` is gone, and its pods are deleted `eviction_seconds` later.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        crds: Sequence[Path] = (),
        qps: int = 500,
        node_grace_seconds: float = 8,
        eviction_seconds: int = 1,
        api_arguments: Sequence[str] = (),
        controller_arguments: Sequence[str] = (),
        scheduler_arguments: Sequence[str] = (),
        binaries: Path | None = None,
    ) -> None:
        self.binaries = binaries or find_binaries()
        self._owns_folder = folder is None
        self.folder = folder or make_folder("cluster")
        self.logs = self.folder / "logs"
        self.crds = list(crds)
        self.qps = qps
        self.node_grace_seconds = node_grace_seconds
        self.eviction_seconds = eviction_seconds
        self._arguments = {"api": api_arguments, "controllers": controller_arguments, "scheduler": scheduler_arguments}
        self._etcd_folder: Path | None = None
        self.daemons: dict[str, Daemon] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Starting and stopping

    def start(self) -> None:
        """Starts everything and waits until the API server is ready. Raises StartError with the log's tail."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self._write_credentials()
        self._build_daemons()
        self.daemons["etcd"].start()
        self.start_api()
        self._create_base_objects()
        for name in ("controllers", "scheduler"):
            self.daemons[name].start()
        until(self._has_service_accounts, "the controllers to make service accounts", START_SECONDS)

    def stop(self) -> None:
        """Stops every process and removes the data."""
        for name in ("scheduler", "controllers", "api", "etcd"):
            if name in self.daemons:
                self.daemons[name].kill()
        if self._etcd_folder is not None:
            shutil.rmtree(self._etcd_folder, ignore_errors=True)
        if self._owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def stop_api(self) -> None:
        """Kills the API server; etcd, the controllers and the nodes go on."""
        self.daemons["api"].kill()

    def start_api(self) -> None:
        """Starts the API server (again, on the same port) and waits until it is ready."""
        self.daemons["api"].start()
        self.daemons["api"].wait_ready(self._is_ready, START_SECONDS)

    def stop_controllers(self) -> None:
        """Kills controller manager and scheduler: nothing is scheduled, collected or evicted any more."""
        for name in ("controllers", "scheduler"):
            self.daemons[name].kill()

    def start_controllers(self) -> None:
        """Starts controller manager and scheduler again."""
        for name in ("controllers", "scheduler"):
            self.daemons[name].start()

    # Access

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def access(self) -> Access:
        """The admin's access."""
        return Access(self.url, self.authority.certificate, self.admin_token)

    @cached_property
    def api(self) -> PlainApi:
        """The admin's plain client."""
        return PlainApi(self.access)

    @cached_property
    def client(self) -> kubernetes_client.ApiClient:
        """The admin's client of the `kubernetes` package, e.g. for `kubernetes.client.CoreV1Api(client)`."""
        configuration = kubernetes_client.Configuration()
        configuration.host = self.url
        configuration.proxy = None
        configuration.ssl_ca_cert = str(self.authority.certificate)
        configuration.api_key = {"authorization": f"Bearer {self.admin_token}"}
        return kubernetes_client.ApiClient(configuration)

    def kubectl(
        self,
        *arguments: str,
        namespace: str | None = None,
        stdin: str | None = None,
        check: bool = True,
        seconds: float = 120,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs kubectl as the admin (or with another kubeconfig). Raises AssertionError with its output where it fails."""
        command = [str(self.binaries / "kubectl"), "--kubeconfig", str(kubeconfig or self.kubeconfig)]
        if namespace:
            command += ["--namespace", namespace]
        done = subprocess.run(
            [*command, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
        )
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}"
            raise AssertionError(f"kubectl {' '.join(arguments)} ended with {done.returncode}:\n{said}")
        return done

    def apply(self, *manifests: dict[str, Any], namespace: str | None = None) -> str:
        """`kubectl apply` without client-side validation (1.20 knows no CEL rules); returns what kubectl printed."""
        text = yaml.safe_dump_all(manifests)
        return self.kubectl("apply", "--validate=false", "-f", "-", namespace=namespace, stdin=text).stdout

    def install_crds(self, *files: Path) -> None:
        """Creates the CRDs of the files and waits until the server serves them."""
        names = []
        for manifest in (part for file in files for part in yaml.safe_load_all(file.read_text()) if part):
            self.api.create(manifest)
            names.append(manifest["metadata"]["name"])
        for name in names:
            until(lambda name=name: self._is_established(name), f"the CRD {name} to be served")  # type: ignore[misc]

    def create_namespace(self, prefix: str = "test", labels: dict[str, str] | None = None) -> str:
        """A namespace of an unused name, ready for pods (its default service account has its token)."""
        name = f"{re.sub('[^a-z0-9]+', '-', prefix.lower()).strip('-')[:40]}-{secrets.token_hex(3)}"
        metadata = {"name": name, "labels": labels or {}}
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        until(lambda: self._is_usable(name), f"the service account of namespace {name}")
        return name

    def delete_namespace(self, name: str, wait: bool = False) -> None:
        """Deletes a namespace and what is in it; with `wait`, returns when it is gone."""
        path = path_of("v1", "Namespace", name=name)
        try:
            self.api.delete(path)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        if wait:
            until(lambda: self.api.find(path) is None, f"namespace {name} to go", 60)

    def service_account_kubeconfig(self, namespace: str, name: str, path: Path | None = None) -> Path:
        """A kubeconfig that acts as the service account (its token by TokenRequest), to test RBAC from outside a pod."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 86400},
        }
        account = path_of("v1", "ServiceAccount", namespace, name)
        token = self.api.request("POST", f"{account}/token", request)["status"]["token"]
        target = path or self.folder / f"{namespace}-{name}.kubeconfig"
        return write_kubeconfig(target, self.url, self.authority.certificate, token=token, namespace=namespace)

    def events(self, namespace: str) -> list[str]:
        """The namespace's events as `kind/name reason message`, oldest first."""
        items = self.api.items(path_of("v1", "Event", namespace))
        items.sort(key=lambda event: int(event["metadata"]["resourceVersion"]))
        return [
            f"{event['involvedObject']['kind']}/{event['involvedObject']['name']} {event['reason']} {event['message']}"
            for event in items
        ]

    def describe(self, namespace: str) -> str:
        """A namespace's pods and events as text, for a failed test."""
        pods = [
            f"{pod['metadata']['name']} {pod['status'].get('phase')} {pod['status'].get('containerStatuses', '')}"
            for pod in self.api.items(path_of("v1", "Pod", namespace))
        ]
        return "\n".join([f"--- pods of {namespace}", *pods, f"--- events of {namespace}", *self.events(namespace)])

    # What the above stand on

    def _write_credentials(self) -> None:
        self.authority = Authority(self.folder)
        self.server_pair = self.authority.issue("apiserver", ("127.0.0.1", "10.0.0.1"))
        self.service_account_key = self.folder / "service-accounts.key"
        write_service_account_key(self.service_account_key)
        self.admin_token = secrets.token_hex(16)
        self.tokens = self.folder / "tokens.csv"
        self.tokens.touch(mode=0o600)
        self.tokens.write_text(f'{self.admin_token},admin,admin,"system:masters"\n')
        self.port = free_port()
        self.kubeconfig = write_kubeconfig(
            self.folder / "admin.kubeconfig", self.url, self.authority.certificate, token=self.admin_token
        )

    def _build_daemons(self) -> None:
        self.version = _version_of(self.binaries / "kube-apiserver")
        etcd_port = free_port()
        commands = {
            "etcd": self._etcd_command(etcd_port),
            "api": self._api_command(etcd_port),
            "controllers": self._controllers_command(),
            "scheduler": self._scheduler_command(),
        }
        for name, command in commands.items():
            self.daemons[name] = Daemon(name, command, self.logs / f"{name}.log", folder=self.folder)

    def _etcd_command(self, port: int) -> list[str]:
        # In memory where there is room: Debian's etcd 3.4 has no switch for fsync, which takes tens of milliseconds a write on a disk.
        self._etcd_folder = _fast_folder(self.folder)
        url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
        etcd = self.binaries / "etcd"
        return [
            str(etcd) if etcd.exists() else "etcd",
            f"--data-dir={self._etcd_folder / 'data'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--log-level=warn",
            "--quota-backend-bytes=4294967296",
        ]

    def _api_command(self, etcd_port: int) -> list[str]:
        return [
            str(self.binaries / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self.server_pair.certificate}",
            f"--tls-private-key-file={self.server_pair.key}",
            f"--token-auth-file={self.tokens}",
            "--authorization-mode=RBAC",
            f"--service-account-key-file={self.service_account_key}",
            f"--service-account-signing-key-file={self.service_account_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
            f"--default-not-ready-toleration-seconds={self.eviction_seconds}",
            f"--default-unreachable-toleration-seconds={self.eviction_seconds}",
            "--max-requests-inflight=2000",
            "--max-mutating-requests-inflight=1000",
            "--allow-privileged=true",
            *self._feature_gates(),
            *self._arguments["api"],
        ]

    def _controllers_command(self) -> list[str]:
        return [
            str(self.binaries / "kube-controller-manager"),
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            *self._no_ports(),
            f"--controllers=*,{','.join('-' + name for name in LEFT_OUT)}",
            f"--service-account-private-key-file={self.service_account_key}",
            f"--root-ca-file={self.authority.certificate}",
            f"--kube-api-qps={self.qps}",
            f"--kube-api-burst={2 * self.qps}",
            f"--node-monitor-grace-period={self.node_grace_seconds}s",
            "--node-monitor-period=500ms",
            "--node-eviction-rate=100",
            "--secondary-node-eviction-rate=100",
            "--concurrent-ttl-after-finished-syncs=10",
            "--terminated-pod-gc-threshold=20000",
            *self._feature_gates(),
            *self._arguments["controllers"],
        ]

    def _scheduler_command(self) -> list[str]:
        return [
            str(self.binaries / "kube-scheduler"),
            f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false",
            *self._no_ports(),
            f"--kube-api-qps={self.qps}",
            f"--kube-api-burst={2 * self.qps}",
            *self._arguments["scheduler"],
        ]

    def _feature_gates(self) -> list[str]:
        return ["--feature-gates=TTLAfterFinished=true"] if self.version < (1, 21) else []

    def _no_ports(self) -> list[str]:
        return ["--secure-port=0", *(["--port=0"] if self.version < (1, 23) else [])]

    def _is_ready(self) -> bool:
        if not accepts_connections(self.port):
            return False
        try:
            return self.api.read("GET", "/readyz", seconds=2) == b"ok"
        except (ApiError, urllib.error.URLError, OSError):
            return False

    def _create_base_objects(self) -> None:
        self.api.create(STORAGE_CLASS)
        self.install_crds(*self.crds)

    def _is_established(self, crd: str) -> bool:
        status = self.api.get(path_of("apiextensions.k8s.io/v1", "CustomResourceDefinition", name=crd)).get(
            "status", {}
        )
        conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
        return conditions.get("Established") == "True"

    def _has_service_accounts(self) -> bool:
        for name in ("controllers", "scheduler"):
            if not self.daemons[name].is_running:
                raise StartError(f"{name} ended at its start:\n{self.daemons[name].tail()}")
        return self._is_usable("default")

    def _is_usable(self, namespace: str) -> bool:
        account = self.api.find(path_of("v1", "ServiceAccount", namespace, "default"))
        if account is None:
            return False
        return bool(account.get("secrets")) or self.version >= (1, 24)


def _version_of(server: Path) -> tuple[int, int]:
    said = subprocess.run([str(server), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v(\d+)\.(\d+)\.", said)
    if found is None:
        raise StartError(f"{server} --version said {said!r}, which names no version")
    return int(found[1]), int(found[2])


def _fast_folder(folder: Path) -> Path:
    if (
        MEMORY_DISK.is_dir()
        and os.access(MEMORY_DISK, os.W_OK)
        and shutil.disk_usage(MEMORY_DISK).free > MEMORY_DISK_BYTES
    ):
        return make_folder("etcd", MEMORY_DISK)
    return make_folder("etcd", folder)
