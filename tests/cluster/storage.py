"""PersistentVolumeClaims become folders: a volume is made for each claim that waits for one, and goes with it.

The API server's own controller does the binding. Several nodes may run this at once: names follow from the claim's uid.
"""

import asyncio
import shutil
from pathlib import Path
from typing import Any

from cluster.api import ApiError, AsyncApi, path_of

Object = dict[str, Any]
PROVISIONER = "llamero.dev/folder"


class FolderProvisioner:
    """Makes volumes under `folder`, each at `<folder>/<namespace>-<claim>-<uid>`."""

    def __init__(self, api: AsyncApi, folder: Path) -> None:
        self.api = api
        self.folder = folder

    async def handle(self, kind: str, claim: Object) -> None:
        """Acts on one event of a claim."""
        if kind == "DELETED":
            await self._remove(claim)
        elif not claim["spec"].get("volumeName") and "deletionTimestamp" not in claim["metadata"]:
            await self._provide(claim)

    def path(self, claim: Object) -> Path:
        """The claim's folder."""
        metadata = claim["metadata"]
        return self.folder / f"{metadata['namespace']}-{metadata['name']}-{metadata['uid']}"

    async def _provide(self, claim: Object) -> None:
        metadata, spec = claim["metadata"], claim["spec"]
        await asyncio.to_thread(self.path(claim).mkdir, parents=True, exist_ok=True)
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": f"pvc-{metadata['uid']}",
                "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
            },
            "spec": {
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "accessModes": spec["accessModes"],
                "volumeMode": spec.get("volumeMode", "Filesystem"),
                "storageClassName": spec.get("storageClassName", ""),
                "persistentVolumeReclaimPolicy": "Delete",
                "hostPath": {"path": str(self.path(claim)), "type": "DirectoryOrCreate"},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": metadata["namespace"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            },
        }
        try:
            await self.api.create(path_of("v1", "PersistentVolume"), volume)
        except ApiError as error:
            if error.status != 409:
                raise

    async def _remove(self, claim: Object) -> None:
        try:
            await self.api.delete(path_of("v1", "PersistentVolume", name=f"pvc-{claim['metadata']['uid']}"))
        except ApiError as error:
            if error.status != 404:
                raise
        await asyncio.to_thread(shutil.rmtree, self.path(claim), ignore_errors=True)
