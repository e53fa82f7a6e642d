import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamero.model.adapters import attach_adapter, check_adapter, describe_adapter, save_adapter
from llamero.model.loading import base_digest, load_base, load_tokenizer
from llamero.spec.job import LoraSpec
from llamero.spec.results import AdapterManifest

NAMES = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def build(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves an untrained adapter of a shape and gives its folder."""

    def build(name: str = "plain", method: str = "qlora", **shape: Any) -> Path:
        folder = tmp_path_factory.mktemp("adapters") / name
        quantization = "nf4" if method == "qlora" else None
        base = load_base(random_base, quantization=quantization, device="cpu", training=True)  # type: ignore[arg-type]
        tokenizer = load_tokenizer(random_base, new_tokens=shape.get("new_tokens", ()))
        model = attach_adapter(base, LoraSpec(rank=4, **shape), method=method, tokenizer=tokenizer)  # type: ignore[arg-type]
        save_adapter(model, folder, tokenizer)
        return folder

    return build


@pytest.fixture(scope="module")
def plain(build: Callable[..., Path]) -> Path:
    return build()


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / NAMES[1]
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / NAMES[0])
    edit(weights)
    save_file(weights, folder / NAMES[0])


@pytest.mark.parametrize("engine", ["tgi", "vllm", "cpu"])
def test_a_plain_adapter_is_served_whole_everywhere(plain: Path, random_base: Path, engine: Any) -> None:
    assert check_adapter(plain, random_base, engine) == []


DROPPED: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "modules to save": ({"modules_to_save": ["lm_head"]}, ["modulesToSave (lm_head)"], ["modulesToSave (lm_head)"]),
    "dora": ({"use_dora": True}, ["DoRA"], ["DoRA"]),
    "rank pattern": ({"rank_pattern": {"q_proj": 8}}, ["rankPattern"], ["rankPattern and alphaPattern"]),
    "alpha pattern": ({"alpha_pattern": {"q_proj": 8}}, ["alphaPattern"], ["rankPattern and alphaPattern"]),
    "new tokens": ({"new_tokens": ["<a>"]}, ["newTokens"], ["newTokens"]),
    "some layers": (
        {"layers": [1], "target_modules": ["q_proj", "v_proj"]},
        ["q_proj in all layers, because 1 of 2", "v_proj in all layers"],
        [],
    ),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, ["adapters on lm_head"], []),
}


@pytest.mark.parametrize("case", DROPPED)
def test_what_an_engine_would_drop_is_said(build: Callable[..., Path], random_base: Path, case: str) -> None:
    shape, tgi, vllm = DROPPED[case]
    folder = build(case.replace(" ", "-"), **shape)
    for engine, wanted in (("tgi", tgi), ("vllm", vllm), ("cpu", [])):
        problems = check_adapter(folder, random_base, engine)  # type: ignore[arg-type]
        assert len(problems) == len(wanted), problems
        for problem, words in zip(problems, wanted, strict=True):
            assert words in problem


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / NAMES[1]).unlink(), "adapter_config.json is missing"),
    "no weights": (lambda f: (f / NAMES[0]).unlink(), "adapter_model.safetensors is missing"),
    "a pickle": (lambda f: (f / NAMES[0]).rename(f / "adapter_model.bin"), "is a pickle"),
    "torn weights": (lambda f: (f / NAMES[0]).write_bytes((f / NAMES[0]).read_bytes()[:200]), "can't be read"),
    "no JSON": (lambda f: (f / NAMES[1]).write_text("{"), "is no JSON"),
    "no LoRA": (lambda f: edit_config(f, peft_type="IA3"), "no LoRA adapter"),
    "another rank": (lambda f: edit_config(f, r=8), "has rank 4 (A) and 4 (B), where adapter_config.json says 8"),
    "half a pair": (lambda f: edit_weights(f, lambda w: w.pop(max(w))), "only one of its two"),
    "not a number": (lambda f: edit_weights(f, lambda w: w[max(w)].fill_(float("nan"))), "not finite"),
    "another width": (
        lambda f: edit_weights(
            f, lambda w: w.update({k: torch.zeros(4, 96) for k in w if "layers.1.self_attn.k_proj.lora_A" in k})
        ),
        "is made for a 32 × 96 matrix, where the base's is 32 × 64",
    ),
    "an unknown module": (
        lambda f: edit_weights(
            f, lambda w: w.update({k.replace("layers.1.", "layers.7."): w.pop(k) for k in list(w) if "layers.1." in k})
        ),
        "is not in the base model",
    ),
    "nothing": (lambda f: edit_weights(f, lambda w: w.clear()), "no LoRA matrices"),
}


@pytest.mark.parametrize("engine", ["tgi", "vllm", "cpu"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_refused_by_every_engine(copy: Path, random_base: Path, case: str, engine: Any) -> None:
    spoil, words = BROKEN[case]
    spoil(copy)
    assert words in " ".join(check_adapter(copy, random_base, engine))


def test_a_missing_module_in_one_layer_costs_tgi_all_of_its_kind(copy: Path, random_base: Path) -> None:
    def drop(weights: dict[str, torch.Tensor]) -> None:
        for key in [k for k in weights if "layers.0.mlp.up_proj" in k]:
            del weights[key]

    edit_weights(copy, drop)
    assert check_adapter(copy, random_base, "vllm") == []
    assert check_adapter(copy, random_base, "tgi") == [
        "TGI drops up_proj in all layers, because 1 of 2 have none (such as layer 0)."
    ]


def test_tgi_merges_foreign_safetensors_and_splits_paths(copy: Path, random_base: Path) -> None:
    shutil.copy(copy / NAMES[0], copy / "other.safetensors")
    assert "take other.safetensors out" in check_adapter(copy, random_base, "tgi")[0]
    (copy / "other.safetensors").unlink()
    odd = copy.rename(copy.parent / "a=b")
    assert "equals sign" in check_adapter(odd, random_base, "tgi")[0]
    assert check_adapter(odd, random_base, "cpu") == []


def write_manifest(folder: Path, base_sha256: str) -> None:
    files, sha256 = describe_adapter(folder)
    manifest = AdapterManifest(
        files=files,
        sha256=sha256,
        base="herd/tiny",
        base_sha256=base_sha256,
        template="base",
        stop_tokens=["<|im_end|>"],
        data_digest="d",
        recipe_digest="r",
    )
    (folder / "manifest.json").write_text(json.dumps(manifest.to_json_dict()))


def test_an_adapter_of_another_base_is_refused(copy: Path, random_base: Path) -> None:
    write_manifest(copy, base_digest(random_base))
    assert check_adapter(copy, random_base, "cpu") == []
    write_manifest(copy, "0" * 64)
    assert "another base (herd/tiny)" in check_adapter(copy, random_base, "cpu")[0]


def test_damage_against_the_manifest_is_seen(copy: Path, random_base: Path) -> None:
    write_manifest(copy, base_digest(random_base))
    edit_weights(copy, lambda w: w.update({max(w): w[max(w)] + 1}))
    assert "manifest" in check_adapter(copy, random_base, "cpu")[0]
