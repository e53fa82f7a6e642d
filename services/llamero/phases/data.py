"""What the data phase leaves, as those see it who go on from it."""

from collections import Counter
from pathlib import Path

from llamero.spec.names import MANIFEST_NAME
from llamero.spec.results import DataResult
from llamero.spec.status import DataStatus
from llamero.storage import find_damage

MAX_REASONS = 12


def read_data(folder: Path, digest: str) -> DataResult | None:
    """The prepared data in a folder, where it is of this digest and all its files are there."""
    try:
        result = DataResult.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    is_whole = result.digest == digest and find_damage(folder, result.files, read_content=False) is None
    return result if is_whole else None


def token_folders(data: Path, side: str) -> list[str]:
    """The token folders of a side (train, evaluation), in order."""
    return list_parts(data / "tokens" / side)


def record_files(data: Path, side: str) -> list[str]:
    """The record files of a side (train, evaluation), in order."""
    return list_parts(data / side)


def list_parts(folder: Path) -> list[str]:
    return sorted(str(p) for p in folder.iterdir()) if folder.is_dir() else []


def describe_data(result: DataResult, uri: str) -> DataStatus:
    """A status's words for prepared data that lies at `uri`."""
    return DataStatus(
        uri=uri,
        digest=result.digest,
        read=result.read,
        kept=result.kept,
        rejected=sum(result.rejected.values()),
        reasons=dict(Counter(result.rejected).most_common(MAX_REASONS)),
        train_examples=result.train.examples,
        evaluation_examples=result.evaluation.examples,
        tokens=result.train.tokens,
    )
