"""How base and adapters come to where an engine's pod sees them."""

import hashlib
import shutil
from pathlib import Path

import pytest
from services.agent.conftest import Published, publish

from llamero.agent.bringing import BROUGHT, bring_adapter, bring_base, bring_golden, digest_base, drop_adapter
from llamero.agent.checking import check
from llamero.agent.errors import Refusal, Trouble
from llamero.model.bases import base_digest
from llamero.spec.digest import digest_files
from llamero.spec.names import base_key, base_storage, engine_adapter_path
from llamero.spec.serving import AdapterWanted, BaseWanted
from llamero.storage import commit_folder, delete_tree, describe_files, write_file

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def published(adapters: dict[str, Path], store: Path, random_base: Path) -> Published:
    return publish(adapters["plain-a"], store / "adapters" / "one", random_base)


def test_a_local_base_is_a_link_to_where_it_lies(random_base: Path, tmp_path: Path) -> None:
    for uri, root in [
        (str(random_base), "/storage"),
        (f"file://{random_base}", "/storage"),
        (random_base.name, str(random_base.parent)),
    ]:
        scratch = tmp_path / str(abs(hash(uri)))
        place = bring_base(BaseWanted(uri=uri), scratch, root)
        assert place == scratch / "base"
        assert place.is_symlink() and place.resolve() == random_base.resolve()
        assert bring_base(BaseWanted(uri=uri), scratch, root) == place


def test_a_hub_base_is_what_a_fetch_pod_stored_near_or_far(random_base: Path, tmp_path: Path) -> None:
    wanted = BaseWanted(name="herd/tiny", revision=REVISION)
    for root in (str(tmp_path / "storage"), "memory://bases-of-agents"):
        commit_folder(random_base, base_storage(root, base_key("herd/tiny", REVISION)))
        scratch = tmp_path / root.rpartition("/")[2]
        place = bring_base(wanted, scratch / "scratch", root)
        assert (place / "config.json").read_bytes() == (random_base / "config.json").read_bytes()
        assert digest_base(place) == base_digest(random_base)
    delete_tree("memory://bases-of-agents")


def test_a_base_that_is_nowhere_or_none_is_refused_or_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Refusal, match="does not exist"):
        bring_base(BaseWanted(uri=str(tmp_path / "nowhere")), tmp_path / "scratch", "/storage")
    with pytest.raises(Refusal, match="neither a name nor a URI"):
        bring_base(BaseWanted(), tmp_path / "scratch", "/storage")
    with pytest.raises(Trouble, match="can't be had now"):
        bring_base(BaseWanted(uri="memory://no/such/base"), tmp_path / "scratch", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Refusal, match="not in the local cache"):
        bring_base(BaseWanted(name="herd/none", revision=REVISION), tmp_path / "scratch", str(tmp_path))


def test_an_adapter_is_brought_once_with_what_engines_need_and_no_more(
    published: Published, adapters: dict[str, Path], store: Path, tmp_path: Path, random_base: Path
) -> None:
    heavy = Path(shutil.copytree(adapters["plain-a"], tmp_path / "heavy"))
    (heavy / "optimizer.bin").write_bytes(b"pickled")
    shutil.copy(heavy / "adapter_model.safetensors", heavy / "older.safetensors")
    wanted = publish(heavy, store / "heavy", random_base).wanted()
    scratch = tmp_path / "scratch"
    folder = bring_adapter(wanted, scratch, str(store))
    assert folder == Path(engine_adapter_path(str(scratch), wanted.id))
    names = {p.name for p in folder.iterdir()}
    assert {p.name for p in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert {"adapter_config.json", "tokenizer.json", "manifest.json", BROUGHT} <= names
    assert not names & {"optimizer.bin", "older.safetensors"}
    check("heavy", folder, random_base, None, "tgi")
    shutil.rmtree(store / "heavy")
    assert bring_adapter(wanted, scratch, str(store)) == folder, "it is here already"
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(Trouble, match="can't be had now"):
        bring_adapter(wanted, scratch, str(store))  # damaged here, and the storage has it no more
    drop_adapter(wanted.id, scratch)
    drop_adapter(wanted.id, scratch)
    assert list((scratch / "adapters").iterdir()) == []


def test_an_adapter_comes_from_an_object_store_too(published: Published, tmp_path: Path, random_base: Path) -> None:
    uri = "memory://adapters-of-agents/one"
    commit_folder(published.folder, uri)
    wanted = published.wanted().model_copy(update={"uri": uri})
    folder = bring_adapter(wanted, tmp_path, "memory://adapters-of-agents")
    check("one", folder, random_base, None, "vllm")
    relative = wanted.model_copy(update={"uri": "one", "id": "ns-relative"})
    assert bring_adapter(relative, tmp_path, "memory://adapters-of-agents").is_dir()
    write_file(f"{uri}/adapter_config.json", "{}")
    with pytest.raises(Refusal, match=r"cut off|damaged"):
        bring_adapter(wanted.model_copy(update={"id": "ns-torn"}), tmp_path, "memory://adapters-of-agents")
    delete_tree("memory://adapters-of-agents")
    with pytest.raises(Trouble, match="can't be had now"):
        bring_adapter(wanted.model_copy(update={"id": "ns-away"}), tmp_path, "memory://adapters-of-agents")


def test_a_folder_of_another_tool_is_known_by_the_digest_of_all_its_files(
    adapters: dict[str, Path], tmp_path: Path, random_base: Path
) -> None:
    for uri in (str(tmp_path / "foreign"), "memory://foreign-adapter"):
        folder = Path(shutil.copytree(adapters["plain-b"], tmp_path / "foreign", dirs_exist_ok=True))
        (folder / "training_args.bin").write_bytes(b"pickled")
        (folder / "checkpoint-1").mkdir(exist_ok=True)
        (folder / "checkpoint-1" / "adapter_model.safetensors").write_bytes(b"older")
        files = describe_files(folder, [p.name for p in folder.iterdir() if p.is_file()])
        if uri.startswith("memory"):
            for path in (p for p in folder.rglob("*") if p.is_file()):
                write_file(f"{uri}/{path.relative_to(folder)}", path.read_bytes())
        wanted = AdapterWanted(id=f"ns-foreign-{len(uri)}", name="foreign", uri=uri, sha256=digest_files(files))
        write_file(f"{uri}/golden-01234567.json", "{}")  # lies beside the files and is none of them
        brought = bring_adapter(wanted, tmp_path / "scratch", str(tmp_path))
        assert not (brought / "training_args.bin").exists()
        check("foreign", brought, random_base, None, "cpu")
        write_file(f"{uri}/adapter_config.json", "{}")
        with pytest.raises(Refusal, match="not those that were published"):
            bring_adapter(wanted.model_copy(update={"id": "ns-other"}), tmp_path / "scratch", str(tmp_path))
        (folder / "golden-01234567.json").unlink(missing_ok=True)


def test_an_adapter_on_a_web_server_is_refused(tmp_path: Path) -> None:
    wanted = AdapterWanted(id="ns-a", name="a", uri="https://example.invalid/adapter", sha256="0" * 64)
    with pytest.raises((Refusal, Trouble)):
        bring_adapter(wanted, tmp_path, str(tmp_path))


def test_golden_prompts_without_any_prompt_or_that_are_none(published: Published, store: Path) -> None:
    assert bring_golden(published.wanted(), str(store)) is None
    for text, outcome in [('{"dtype": "float32", "prompts": []}', None), ("[]", "holds no golden prompts")]:
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        (published.folder / f"golden-{sha256[:8]}.json").write_text(text)
        wanted = published.wanted().model_copy(update={"golden_sha256": sha256})
        if outcome is None:
            assert bring_golden(wanted, str(store)) is None
        else:
            with pytest.raises(Refusal, match=outcome):
                bring_golden(wanted, str(store))
