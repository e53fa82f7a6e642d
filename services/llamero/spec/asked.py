"""Where a manifest names language models that are asked, and who is asked for two things that should not be judged by one."""

from collections.abc import Iterable, Iterator

from llamero.spec.base import SpecModel
from llamero.spec.job import DataSpec
from llamero.spec.steps import LanguageModel

Path = tuple[str | int, ...]


def list_language_models(data: DataSpec) -> list[tuple[Path, LanguageModel]]:
    """Each language model that data is prepared with (sources that are generated, steps, embeddings), and where it stands under `spec`."""
    return list(_walk(data, ("spec", "data")))


def _walk(value: object, path: Path) -> Iterator[tuple[Path, LanguageModel]]:
    if isinstance(value, LanguageModel):
        yield path, value
    elif isinstance(value, SpecModel):
        for name, info in type(value).model_fields.items():
            yield from _walk(getattr(value, name), (*path, info.alias or name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index))


def show_path(path: Path) -> str:
    """A place in a manifest as people write it: `spec.data.steps[0].judge.models[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def find_shared_judges(selecting: Iterable[LanguageModel], evaluating: Iterable[LanguageModel]) -> list[str]:
    """A sentence for each model that both chooses the training data and judges what was trained on it: its taste would be measured twice.

    Models are the same by their names: behind two endpoints, or asked for two dimensions, it is still one judge.
    """
    evaluators = {_normalise(model.model) for model in evaluating}
    names = {_normalise(model.model): model.model for model in selecting}
    shared = [name for normal, name in names.items() if normal in evaluators]
    return [
        f"`{name}` judges both which records are trained on and how good the trained model is: what it likes would count twice. Take "
        "another judge for one of them."
        for name in shared
    ]


def _normalise(name: str) -> str:
    return name.strip().lower()
