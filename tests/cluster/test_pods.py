"""What a pod's containers see and how they end: environment, volumes, messages, signals, restarts, probes, logs."""

import base64
import json
import subprocess
import sys
from pathlib import Path

from cluster.api import path_of
from cluster.control_plane import ControlPlane
from cluster.leftovers import is_alive
from cluster.manifests import build_deployment, build_pod, python, shell
from cluster.node import NodeThread
from cluster.observing import is_ready, pod_of, pods_of, terminated, wait_phase, wait_ready
from cluster.waiting import until

ENVIRONMENT = [
    {"name": "PLAIN", "value": "one"},
    {"name": "EXPANDED", "value": "$(PLAIN)-two $$(PLAIN) $(UNKNOWN)"},
    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['colour']"}}},
    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
    {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}}},
    {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "login", "key": "word"}}},
    {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "none", "key": "word", "optional": True}}},
    {"name": "SETTING", "value": "/etc/settings/colour"},
    {"name": "LLAMERO_TERMINATION_LOG", "value": "/dev/termination-log"},
]
SHOW = """
import json, os, sys
shown = {name: value for name, value in os.environ.items()}
shown["argument"] = open(sys.argv[1]).read()
shown["setting"] = open(os.environ["SETTING"]).read()
shown["prepared"] = open("/work-area/prepared").read().strip()
shown["python"] = sys.executable
json.dump(shown, open("/work-area/out.json", "w"))
open(os.environ["LLAMERO_TERMINATION_LOG"], "w").write("all was seen")
sys.exit(7)
"""


def test_a_container_sees_its_environment_and_its_volumes_and_leaves_a_message(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    create = control_plane.api.create
    create(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login"}, "stringData": {"word": "sesame"}},
        namespace,
    )
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"colour": "blue"}}
    create(settings, namespace)
    volumes = [
        {"name": "work", "hostPath": {"path": str(tmp_path)}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "login", "secret": {"secretName": "login", "items": [{"key": "word", "path": "deep/word"}]}},
        {"name": "tmp", "emptyDir": {}},
    ]
    mounts = [
        {"name": "work", "mountPath": "/work-area"},
        {"name": "settings", "mountPath": "/etc/settings"},
        {"name": "login", "mountPath": "/etc/login"},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    container = python(
        SHOW,
        args=["/etc/login/deep/$(WHICH)"],
        env=[{"name": "WHICH", "value": "word"}, *ENVIRONMENT],
        envFrom=[{"configMapRef": {"name": "settings"}, "prefix": "FROM_"}],
        resources={"limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}},
        volumeMounts=mounts,
    )
    init = shell("echo ready > /work-area/prepared", "prepare", volumeMounts=mounts)
    create(
        build_pod("seer", container, labels={"colour": "red"}, volumes=volumes, initContainers=[init]),
        namespace,
    )
    pod = wait_phase(control_plane, namespace, "seer", "Failed")
    ended = terminated(pod)
    assert (ended["exitCode"], ended["message"]) == (7, "all was seen"), control_plane.kubectl(
        "logs", "seer", namespace=namespace
    )
    seen = json.loads((tmp_path / "out.json").read_text())
    expected = {
        "PLAIN": "one",
        "EXPANDED": "one-two $(PLAIN) $(UNKNOWN)",
        "POD": "seer",
        "IP": pod["status"]["podIP"],
        "LABEL": "red",
        "CPU": "2",
        "MEMORY": "64",
        "SECRET": "sesame",
        "FROM_colour": "blue",
        "argument": "sesame",
        "setting": "blue",
        "prepared": "ready",
        "python": str(Path(sys.executable)),
    }
    assert {name: seen.get(name) for name in expected} == expected
    assert "ABSENT" not in seen
    assert "PYTEST_CURRENT_TEST" not in seen
    (init_status,) = pod["status"]["initContainerStatuses"]
    assert init_status["state"]["terminated"]["reason"] == "Completed"


def test_a_failed_container_without_a_message_gives_the_end_of_its_log(
    control_plane: ControlPlane, namespace: str
) -> None:
    container = shell("echo the disk is full >&2; exit 1", terminationMessagePolicy="FallbackToLogsOnError")
    control_plane.api.create(build_pod("sad", container), namespace)
    pod = wait_phase(control_plane, namespace, "sad", "Failed")
    assert terminated(pod)["message"] == "the disk is full\n"


def test_a_deleted_pod_gets_sigterm_and_reports_its_end_before_it_goes(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(42)); print('up', flush=True)\n"
    )
    script += "while True: time.sleep(0.1)"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", f"echo asked > {tmp_path}/asked"]}}}
    control_plane.api.create(build_pod("polite", python(script, lifecycle=hook)), namespace)
    wait_phase(control_plane, namespace, "polite", "Running")
    until(lambda: "up" in control_plane.kubectl("logs", "polite", namespace=namespace).stdout, "the handler")
    with watch_pod(control_plane, namespace, "polite") as watcher:
        control_plane.api.delete(path_of("v1", "Pod", namespace, "polite"))
        until(lambda: pod_of(control_plane, namespace, "polite") is None, "the pod to go")
        watcher.terminate()
        states = [json.loads(line) for line in (watcher.stdout or []) if line.strip()]
    codes = [state["terminated"]["exitCode"] for state in states if "terminated" in state]
    assert codes and set(codes) == {42}
    assert (tmp_path / "asked").read_text() == "asked\n"


def watch_pod(control_plane: ControlPlane, namespace: str, name: str) -> "subprocess.Popen[str]":
    """`kubectl get --watch` on the state of a pod's first container."""
    command = [str(control_plane.binaries / "kubectl"), "--kubeconfig", str(control_plane.kubeconfig), "-n", namespace]
    output = "jsonpath={.status.containerStatuses[0].state}{'\\n'}"
    command += ["get", "pod", name, "--watch", "-o", output]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    watcher.stdout.readline()
    return watcher


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(
    control_plane: ControlPlane, cluster_node: NodeThread, namespace: str
) -> None:
    script = "trap '' TERM; echo up; while true; do sleep 0.1; done"
    control_plane.api.create(build_pod("deaf", shell(script), terminationGracePeriodSeconds=1), namespace)
    wait_phase(control_plane, namespace, "deaf", "Running")
    until(lambda: "up" in control_plane.kubectl("logs", "deaf", namespace=namespace).stdout, "the trap")
    pid = cluster_node.pids("deaf", namespace)["main"]
    control_plane.api.delete(path_of("v1", "Pod", namespace, "deaf"))
    until(lambda: pod_of(control_plane, namespace, "deaf") is None, "the pod to go")
    assert not Path(f"/proc/{pid}").exists()


def test_children_in_sessions_of_their_own_end_with_their_container(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    script = f"setsid sleep 321 & echo $! > {tmp_path}/child; sleep 0.2"
    control_plane.api.create(build_pod("parent", shell(script)), namespace)
    wait_phase(control_plane, namespace, "parent", "Succeeded")
    child = int((tmp_path / "child").read_text())
    until(lambda: not is_alive(child), "the child to end")


def test_kubectl_logs_reads_this_run_and_the_one_before(control_plane: ControlPlane, namespace: str) -> None:
    script = "echo one; echo two; test -e $HOME/again && sleep 60; touch $HOME/again; exit 1"
    control_plane.api.create(build_pod("twice", shell(script), restartPolicy="OnFailure"), namespace)

    def restarted() -> bool:
        (status,) = (pod_of(control_plane, namespace, "twice") or {})["status"]["containerStatuses"]
        return status["restartCount"] == 1 and "running" in status["state"]

    until(restarted, "one restart")
    (status,) = (pod_of(control_plane, namespace, "twice") or {})["status"]["containerStatuses"]
    assert status["lastState"]["terminated"]["exitCode"] == 1

    def logs(*options: str) -> str:
        return control_plane.kubectl("logs", "twice", *options, namespace=namespace).stdout

    until(lambda: logs() == "one\ntwo\n", "the log")
    assert logs("--tail=1") == "two\n"
    assert logs("--previous") == "one\ntwo\n"


def test_kubectl_logs_follows_until_the_end(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.api.create(build_pod("talker", shell("echo one; sleep 1; echo two")), namespace)
    wait_phase(control_plane, namespace, "talker", "Running", "Succeeded")
    followed = control_plane.kubectl("logs", "--follow", "talker", namespace=namespace, seconds=30).stdout
    assert followed == "one\ntwo\n"


def test_a_container_that_ends_is_restarted_as_the_policy_says(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.api.create(build_pod("always", shell("exit 0"), restartPolicy="Always"), namespace)

    def restarts() -> int:
        (status,) = (pod_of(control_plane, namespace, "always") or {})["status"]["containerStatuses"]
        return int(status["restartCount"])

    until(lambda: restarts() >= 2, "two restarts")
    pod = pod_of(control_plane, namespace, "always")
    assert pod and pod["status"]["phase"] == "Running"


def test_a_command_that_is_not_there_is_a_start_error(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.api.create(
        build_pod("lost", {"name": "main", "image": "none", "command": ["no-such-program"]}), namespace
    )
    ended = terminated(wait_phase(control_plane, namespace, "lost", "Failed"))
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert "no-such-program" in ended["message"]


def test_a_pod_waits_for_the_secret_it_names(control_plane: ControlPlane, namespace: str) -> None:
    variable = {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "late", "key": "word"}}}
    control_plane.api.create(build_pod("patient", shell("test $WORD = sesame", env=[variable])), namespace)

    def waiting_reason() -> str:
        (status,) = (pod_of(control_plane, namespace, "patient") or {})["status"]["containerStatuses"]
        return str(status["state"].get("waiting", {}).get("reason"))

    until(lambda: waiting_reason() == "CreateContainerConfigError", "the kubelet's reason")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}, "stringData": {"word": "sesame"}}
    control_plane.api.create(secret, namespace)
    wait_phase(control_plane, namespace, "patient", "Succeeded")


SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if os.path.exists(sys.argv[1]) else 503); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""


def test_readiness_gates_a_rollout(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    probe = {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1}
    env = [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    container = python(SERVER, env=env, ports=[{"name": "web", "containerPort": 8080}], readinessProbe=probe)
    old = {**container, "args": [str(tmp_path)]}
    control_plane.apply(build_deployment("web", old, replicas=2), namespace=namespace)
    control_plane.kubectl("rollout", "status", "deployment/web", namespace=namespace, seconds=60)
    before = {pod["metadata"]["name"] for pod in pods_of(control_plane, namespace)}

    new = {**container, "args": [str(tmp_path / "go")]}
    strategy = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    control_plane.apply(build_deployment("web", new, replicas=2, strategy=strategy), namespace=namespace)
    unready = until(
        lambda: [
            pod
            for pod in pods_of(control_plane, namespace)
            if pod["metadata"]["name"] not in before and pod["status"].get("phase") == "Running"
        ],
        "a pod of the new version",
    )
    assert not any(is_ready(pod) for pod in unready)
    assert before <= {pod["metadata"]["name"] for pod in pods_of(control_plane, namespace)}

    (tmp_path / "go").touch()
    control_plane.kubectl("rollout", "status", "deployment/web", namespace=namespace, seconds=60)
    assert not before & {
        pod["metadata"]["name"]
        for pod in pods_of(control_plane, namespace)
        if "deletionTimestamp" not in pod["metadata"]
    }


def test_a_failing_liveness_probe_restarts_the_container(control_plane: ControlPlane, namespace: str) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "sick"]}, "periodSeconds": 1, "failureThreshold": 1}
    container = shell("test -e once || touch sick; touch once; sleep 60", livenessProbe=probe)
    control_plane.api.create(build_pod("sickly", container, restartPolicy="Always"), namespace)

    def restarts() -> int:
        (status,) = (pod_of(control_plane, namespace, "sickly") or {})["status"]["containerStatuses"]
        return int(status["restartCount"])

    until(lambda: restarts() >= 1, "a restart by the liveness probe")
    assert any("Liveness probe failed" in event for event in control_plane.events(namespace))


LATE_SERVER = """
import os, socket, time
time.sleep(1.2)
listener = socket.create_server((os.environ["POD_IP"], 7070))
time.sleep(300)
"""


def test_a_startup_probe_holds_the_others_back_until_the_port_is_open(
    control_plane: ControlPlane, namespace: str
) -> None:
    port = {"tcpSocket": {"port": 7070}, "periodSeconds": 1}
    container = python(
        LATE_SERVER,
        env=[{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        startupProbe={**port, "failureThreshold": 20},
        livenessProbe={**port, "failureThreshold": 1},
    )
    control_plane.api.create(build_pod("late", container), namespace)
    (status,) = wait_ready(control_plane, namespace, "late")["status"]["containerStatuses"]
    assert (status["started"], status["restartCount"]) == (True, 0)


def test_a_changed_config_map_reaches_the_mounted_files(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "routes"}, "data": {"routes": "old"}}
    control_plane.api.create(settings, namespace)
    script = "until grep -q new /etc/routes/routes; do sleep 0.1; done"
    container = shell(script, volumeMounts=[{"name": "routes", "mountPath": "/etc/routes"}])
    volumes = [{"name": "routes", "configMap": {"name": "routes"}}]
    control_plane.api.create(build_pod("reader", container, volumes=volumes), namespace)
    wait_phase(control_plane, namespace, "reader", "Running")
    control_plane.api.patch(path_of("v1", "ConfigMap", namespace, "routes"), {"data": {"routes": "new"}})
    wait_phase(control_plane, namespace, "reader", "Succeeded")


def test_a_claim_gets_a_folder_that_outlives_its_pods(control_plane: ControlPlane, namespace: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "store"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    control_plane.api.create(claim, namespace)
    mounts = [{"name": "store", "mountPath": "/store"}]
    volumes = [{"name": "store", "persistentVolumeClaim": {"claimName": "store"}}]
    control_plane.api.create(
        build_pod("writer", shell("echo kept > /store/note", volumeMounts=mounts), volumes=volumes), namespace
    )
    wait_phase(control_plane, namespace, "writer", "Succeeded")
    control_plane.api.create(
        build_pod("reader", shell("grep kept /store/note", volumeMounts=mounts), volumes=volumes), namespace
    )
    wait_phase(control_plane, namespace, "reader", "Succeeded")

    path = path_of("v1", "PersistentVolumeClaim", namespace, "store")
    name = control_plane.api.get(path)["spec"]["volumeName"]
    folder = Path(control_plane.api.get(path_of("v1", "PersistentVolume", name=name))["spec"]["hostPath"]["path"])
    assert (folder / "note").read_text() == "kept\n"
    for pod in ("writer", "reader"):  # a claim stays as long as there are pods, ended ones too
        control_plane.api.delete(path_of("v1", "Pod", namespace, pod))
    control_plane.api.delete(path)
    until(lambda: not folder.exists(), "the claim's folder to go")
    until(lambda: control_plane.api.find(path_of("v1", "PersistentVolume", name=name)) is None, "the volume to go")


def test_a_projected_volume_gathers_files_and_follows_the_pods_annotations(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"colour": "blue"}}
    control_plane.api.create(settings, namespace)
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600, "audience": "llamero"}},
        {"configMap": {"name": "settings"}},
        {"downwardAPI": {"items": [{"path": "notes", "fieldRef": {"fieldPath": "metadata.annotations['note']"}}]}},
    ]
    mount = {"name": "all", "mountPath": "/all"}
    script = f"cp -L /all/token /all/colour {tmp_path}; until grep -q later /all/notes; do sleep 0.1; done"
    volumes = [{"name": "all", "projected": {"sources": sources}}]
    control_plane.api.create(build_pod("gatherer", shell(script, volumeMounts=[mount]), volumes=volumes), namespace)
    wait_phase(control_plane, namespace, "gatherer", "Running")
    path = path_of("v1", "Pod", namespace, "gatherer")
    control_plane.api.patch(path, {"metadata": {"annotations": {"note": "later"}}})
    wait_phase(control_plane, namespace, "gatherer", "Succeeded")
    assert (tmp_path / "colour").read_text() == "blue"
    claims = json.loads(base64.urlsafe_b64decode((tmp_path / "token").read_text().split(".")[1] + "=="))
    assert claims["aud"] == ["llamero"]
    assert claims["kubernetes.io"]["pod"]["name"] == "gatherer"


def test_a_pod_that_runs_past_its_deadline_has_failed(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.api.create(build_pod("slow", shell("sleep 300"), activeDeadlineSeconds=1), namespace)
    status = wait_phase(control_plane, namespace, "slow", "Failed")["status"]
    assert status["reason"] == "DeadlineExceeded"


def test_a_service_account_may_do_what_its_role_says_and_no_more(control_plane: ControlPlane, namespace: str) -> None:
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create"]}]
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    role_reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "writer"}
    subject = {"kind": "ServiceAccount", "name": "writer", "namespace": namespace}
    for manifest in (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "writer"}},
        {**rbac, "kind": "Role", "metadata": {"name": "writer"}, "rules": rules},
        {
            **rbac,
            "kind": "RoleBinding",
            "metadata": {"name": "writer"},
            "roleRef": role_reference,
            "subjects": [subject],
        },
    ):
        control_plane.api.create(manifest, namespace)
    account = path_of("v1", "ServiceAccount", namespace, "writer")
    until(lambda: control_plane.api.get(account).get("secrets"), "the account's token")
    kubectl = control_plane.binaries / "kubectl"
    script = f"{kubectl} create configmap made && ! {kubectl} get secrets 2>said; grep -q Forbidden said"
    control_plane.api.create(build_pod("allowed", shell(script), serviceAccountName="writer"), namespace)
    control_plane.api.create(
        build_pod(
            "bare", shell("test -z $KUBECONFIG"), serviceAccountName="writer", automountServiceAccountToken=False
        ),
        namespace,
    )
    wait_phase(control_plane, namespace, "allowed", "Succeeded", "Failed")
    pod = wait_phase(control_plane, namespace, "allowed", "Succeeded", "Failed")
    assert pod["status"]["phase"] == "Succeeded", control_plane.kubectl("logs", "allowed", namespace=namespace).stdout
    assert control_plane.api.find(path_of("v1", "ConfigMap", namespace, "made")) is not None
    wait_phase(control_plane, namespace, "bare", "Succeeded")
