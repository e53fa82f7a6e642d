"""A pod's volumes as folders: made when the pod starts, ConfigMaps and Secrets written the way a kubelet does it.

Folders of PersistentVolumeClaims are made by `storage`; what path a container sees them under is `environment`'s.
"""

import base64
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cluster.api import ApiError, AsyncApi, path_of
from cluster.environment import ConfigurationError, Mounts, PodFacts, field_value, resource_value

Object = dict[str, Any]
Files = dict[str, tuple[bytes, int]]
"""Relative path → content and mode."""

SERVICE_ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
DEFAULT_MODE = 0o644
REFRESHED = ("configMap", "secret", "projected", "downwardAPI")


class VolumeError(Exception):
    """A volume can't be made yet (kubelet: FailedMount); the node tries again."""


class Volumes:
    """The volumes of one pod under `folder`: `paths` has each by name after `prepare`."""

    def __init__(self, facts: PodFacts, folder: Path, api: AsyncApi) -> None:
        self.facts = facts
        self.pod = facts.pod
        self.namespace: str = facts.pod["metadata"]["namespace"]
        self.folder = folder
        self.api = api
        self.paths: dict[str, Path] = {}

    async def prepare(self) -> None:
        """Makes every volume. Raises VolumeError with a sentence where something it needs is not there."""
        for volume in self.pod["spec"].get("volumes") or []:
            self.paths[volume["name"]] = await self._prepare_one(volume)

    async def refresh(self) -> None:
        """Writes volumes of ConfigMaps, Secrets and the downward API anew where their content has changed."""
        for volume in self.pod["spec"].get("volumes") or []:
            if volume["name"] in self.paths and any(kind in volume for kind in REFRESHED):
                write_files(self.paths[volume["name"]], await self._files_of(volume))

    @property
    def are_refreshed(self) -> bool:
        """Whether any volume follows an object that may change (the tokens of service accounts aside)."""
        named = [v for v in self.pod["spec"].get("volumes") or [] if not v["name"].startswith("kube-api-access-")]
        mounts = self._token_volumes()
        return any(kind in volume for volume in named if volume["name"] not in mounts for kind in REFRESHED)

    def _token_volumes(self) -> set[str]:
        return {
            mount["name"]
            for container in self.pod["spec"]["containers"]
            for mount in container.get("volumeMounts") or []
            if mount["mountPath"] == SERVICE_ACCOUNT_MOUNT
        }

    def mounts_of(self, container: Object) -> list[tuple[str, Path]]:
        """(mount path, real path) of a container's mounts; a missing subPath is made as a folder."""
        pairs = []
        for mount in container.get("volumeMounts") or []:
            real = self.paths[mount["name"]]
            if mount.get("subPath"):
                real = real / mount["subPath"]
                if not real.exists():
                    real.mkdir(parents=True)
            pairs.append((mount["mountPath"], real))
        return pairs

    def token_folder(self, container: Object) -> Path | None:
        """Where the container's service account token lies; None where it has none."""
        return Mounts(tuple(self.mounts_of(container))).real(SERVICE_ACCOUNT_MOUNT)

    async def _prepare_one(self, volume: Object) -> Path:
        name = volume["name"]
        own = self.folder / name
        if "hostPath" in volume:
            return _host_path(volume["hostPath"])
        if "persistentVolumeClaim" in volume:
            return await self._claim(volume["persistentVolumeClaim"]["claimName"])
        if "emptyDir" in volume:
            own.mkdir(parents=True, exist_ok=True)
            return own
        if any(kind in volume for kind in REFRESHED):
            files = await self._files_of(volume)
            own.mkdir(parents=True, exist_ok=True)
            write_files(own, files)
            return own
        kinds = ", ".join(key for key in volume if key != "name")
        raise VolumeError(f"the process node has no volumes of type {kinds} (volume {name})")

    async def _claim(self, name: str) -> Path:
        claim = await self._get("PersistentVolumeClaim", name, optional=False)
        assert claim is not None
        if claim.get("status", {}).get("phase") != "Bound":
            raise VolumeError(f'persistentvolumeclaim "{name}" is not bound')
        volume = await self.api.get(path_of("v1", "PersistentVolume", name=claim["spec"]["volumeName"]))
        place = volume["spec"].get("hostPath") or volume["spec"].get("local")
        if place is None:
            raise VolumeError(f'persistentvolume "{volume["metadata"]["name"]}" is no folder of this machine')
        path = Path(place["path"])
        path.mkdir(parents=True, exist_ok=True)
        return path

    async def _get(self, kind: str, name: str, optional: bool) -> Object | None:
        try:
            return await self.api.get(path_of("v1", kind, self.namespace, name))
        except ApiError as error:
            if error.status != 404:
                raise
            if optional:
                return None
            raise VolumeError(f'{kind.lower()} "{name}" not found') from None

    async def _files_of(self, volume: Object) -> Files:
        if "projected" in volume:
            files: Files = {}
            mode = volume["projected"].get("defaultMode", DEFAULT_MODE)
            for source in volume["projected"].get("sources") or []:
                files.update(await self._files_of_source(source, mode))
            return files
        return await self._files_of_source(volume, DEFAULT_MODE)

    async def _files_of_source(self, source: Object, mode: int) -> Files:
        if "configMap" in source:
            return await self._object_files("ConfigMap", source["configMap"], mode)
        if "secret" in source:
            return await self._object_files("Secret", source["secret"], mode)
        if "downwardAPI" in source:
            return self._downward_files(source["downwardAPI"], mode)
        if "serviceAccountToken" in source:
            return await self._token_file(source["serviceAccountToken"], mode)
        raise VolumeError(f"the process node can't project {', '.join(source)}")

    async def _object_files(self, kind: str, source: Object, mode: int) -> Files:
        mode = source.get("defaultMode", mode)
        name: str = source.get("name") or source["secretName"]
        found = await self._get(kind, name, bool(source.get("optional")))
        if found is None:
            return {}
        content = decoded_data(found)
        items = source.get("items")
        if not items:
            return {key: (value, mode) for key, value in content.items()}
        files: Files = {}
        for item in items:
            if item["key"] in content:
                files[item["path"]] = (content[item["key"]], item.get("mode", mode))
            elif not source.get("optional"):
                raise VolumeError(f"{kind.lower()} {name} has no key {item['key']}")
        return files

    def _downward_files(self, source: Object, mode: int) -> Files:
        files: Files = {}
        containers = {c["name"]: c for c in self.pod["spec"]["containers"]}
        for item in source.get("items") or []:
            try:
                if "fieldRef" in item:
                    value = field_value(item["fieldRef"]["fieldPath"], self.facts)
                else:
                    reference = item["resourceFieldRef"]
                    value = resource_value(reference, containers[reference["containerName"]], self.facts)
            except ConfigurationError as error:
                raise VolumeError(str(error)) from None
            files[item["path"]] = (value.encode(), item.get("mode", source.get("defaultMode", mode)))
        return files

    async def _token_file(self, source: Object, mode: int) -> Files:
        account = self.pod["spec"].get("serviceAccountName", "default")
        metadata = self.pod["metadata"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        spec: Object = {"expirationSeconds": source.get("expirationSeconds", 3600), "boundObjectRef": bound}
        if source.get("audience"):
            spec["audiences"] = [source["audience"]]
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self.api.create(path_of("v1", "ServiceAccount", self.namespace, account) + "/token", request)
        return {source["path"]: (answer["status"]["token"].encode(), mode)}


def decoded_data(found: Object) -> dict[str, bytes]:
    """The keys of a ConfigMap or Secret with their bytes."""
    if found.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    content = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    content.update({key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()})
    return content


def _host_path(source: Object) -> Path:
    path = Path(source["path"])
    kind = source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    elif (kind == "Directory" and not path.is_dir()) or (kind == "File" and not path.is_file()):
        raise VolumeError(f"hostPath type check failed: {path} is not a {kind.lower()}")
    return path


def write_files(folder: Path, files: Files) -> None:
    """Writes all files as one change: a new folder behind the link `..data`, and a link for each name (as kubelets do).

    Nothing happens where the content is as it was.
    """
    link = folder / "..data"
    if link.exists() and _read_files(link.resolve()) == {name: content for name, (content, _) in files.items()}:
        return
    version = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    version.chmod(0o755)
    for name, (content, mode) in files.items():
        target = version / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(mode)
    before = link.resolve() if link.is_symlink() else None
    fresh = folder / "..data_new"
    fresh.symlink_to(version.name)
    fresh.replace(link)
    tops = {name.split("/")[0] for name in files}
    for top in tops:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(f"..data/{top}")
    for entry in folder.iterdir():
        if entry.is_symlink() and not entry.name.startswith("..") and entry.name not in tops:
            entry.unlink()
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)


def _read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
