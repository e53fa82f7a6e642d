"""Kubeconfig files: one cluster, one user with a token."""

import base64
import json
from pathlib import Path


def write_kubeconfig(
    path: Path,
    server: str,
    authority: Path | None,
    token: str | None = None,
    token_file: Path | None = None,
    namespace: str = "default",
) -> Path:
    """Writes the file (JSON is YAML) readable by its owner alone and returns its path; the authority is embedded."""
    cluster: dict[str, str] = {"server": server}
    if authority is not None:
        cluster["certificate-authority-data"] = base64.b64encode(authority.read_bytes()).decode()
    user = {"token": token} if token is not None else {"tokenFile": str(token_file)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(content, indent=1))
    return path
