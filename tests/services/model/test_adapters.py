import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llamero.model.adapters import (
    ModelError,
    attach_adapter,
    build_lora_config,
    describe_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
    trainable_parameters,
)
from llamero.model.attention import run_self_test
from llamero.model.batches import Batch, lay_out
from llamero.model.loading import base_digest, dequantize_base, load_base, load_tokenizer
from llamero.model.loss import sum_response_loss, token_log_probs
from llamero.spec.digest import digest_files
from llamero.spec.job import LoraSpec

Q4 = {"quantization": "nf4", "device": "cpu", "training": True}
FULL = {"quantization": None, "device": "cpu", "training": True, "dtype": torch.float32}


def draw_batch(*lengths: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return lay_out([(rng.integers(0, 384, n), np.ones(n)) for n in lengths])


BATCH = (20, 33, 5)


def train(model: Any, steps: int = 5) -> None:
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            loss, count = sum_response_loss(model, draw_batch(*BATCH, seed=step % 2))
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()


def log_probs(model: Any) -> torch.Tensor:
    model.eval()
    return token_log_probs(model, draw_batch(*BATCH, seed=9))


def test_by_default_all_linear_layers_but_the_head_are_adapted_in_float32(random_base: Path) -> None:
    torch.manual_seed(0)
    model = attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=4))
    names = trainable_parameters(model)
    assert len(names) == 2 * 7 * 2
    assert {p.dtype for p in names.values()} == {torch.float32}
    assert not any("lm_head" in n or "embed" in n for n in names)
    assert all(layer.scaling["default"] == 8 for layer in model.modules() if hasattr(layer, "lora_A"))


def test_every_adapter_weight_moves_on_a_small_learning_rate(random_base: Path) -> None:
    """A bfloat16 adapter leaves about a third of its weights where they were."""
    torch.manual_seed(0)
    model = attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=4))
    train(model, 1)
    before = {n: p.detach().clone() for n, p in trainable_parameters(model).items()}
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-5, weight_decay=0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = sum_response_loss(model, draw_batch(*BATCH))
    loss.backward()
    optimizer.step()
    moved = [float((p != before[n]).float().mean()) for n, p in trainable_parameters(model).items()]
    assert min(moved) > 0.99


SPECS: dict[str, tuple[dict[str, Any], LoraSpec]] = {
    "qlora": (Q4, LoraSpec(rank=4)),
    "rslora": (Q4, LoraSpec(rank=4, alpha=8, rslora=True)),
    "large alpha": (Q4, LoraSpec(rank=8, alpha=256)),
    "patterns": (Q4, LoraSpec(rank=4, rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 4})),
    "some layers": (Q4, LoraSpec(rank=4, layers=[1])),
    "some modules": (Q4, LoraSpec(rank=4, target_modules=["q_proj", "v_proj"])),
    "dora": (FULL, LoraSpec(rank=4, use_dora=True)),
    "dora on nf4": (Q4, LoraSpec(rank=4, use_dora=True)),
    "modules to save": (FULL, LoraSpec(rank=4, modules_to_save=["lm_head"])),
    "dropout": (FULL, LoraSpec(rank=4, dropout=0.1)),
    "eva": (Q4, LoraSpec(rank=4, init="eva")),
    "eva and rslora": (FULL, LoraSpec(rank=4, init="eva", rslora=True)),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_saved_adapter_on_a_fresh_base_is_the_trained_model(random_base: Path, tmp_path: Path, case: str) -> None:
    options, spec = SPECS[case]
    torch.manual_seed(0)
    method = "qlora" if options is Q4 else "lora"
    eva = [draw_batch(40, 30, seed=i) for i in range(3)]
    model = attach_adapter(load_base(random_base, **options), spec, None, eva, method=method)  # type: ignore[arg-type]
    untrained = log_probs(model)
    train(model.train())
    trained = log_probs(model)
    assert float((trained - untrained).abs().max()) > 0.1
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(load_base(random_base, **options), tmp_path / "adapter")
    assert torch.equal(log_probs(again), trained)
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_is_exported_as_plain_lora(random_base: Path, tmp_path: Path, rslora: bool) -> None:
    spec = LoraSpec(
        rank=4, alpha=6, rslora=rslora, init="pissa", rank_pattern={"q_proj": 8}, alpha_pattern={"k_proj": 3}
    )
    untouched = load_base(random_base, **FULL)
    torch.manual_seed(0)
    model = attach_adapter(load_base(random_base, **FULL), spec, method="lora")
    torch.testing.assert_close(log_probs(model), log_probs(untouched), atol=1e-4, rtol=0)
    save_adapter(model, tmp_path / "first")
    fresh = load_adapter(load_base(random_base, **FULL), tmp_path / "first")
    torch.testing.assert_close(log_probs(fresh), log_probs(untouched), atol=1e-4, rtol=0)
    train(model.train())
    save_adapter(model, tmp_path / "adapter")
    exported = load_adapter(untouched, tmp_path / "adapter")
    assert float((log_probs(exported) - log_probs(fresh)).abs().max()) > 0.1
    torch.testing.assert_close(log_probs(exported), log_probs(model), atol=1e-4, rtol=0)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)


def test_pissa_on_a_bfloat16_base_trains_in_float32(random_base: Path, tmp_path: Path) -> None:
    base = load_base(random_base, quantization=None, device="cpu", training=True, dtype=torch.bfloat16)
    model = attach_adapter(base, LoraSpec(rank=4, init="pissa"), method="lora")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


REFUSED: dict[str, tuple[dict[str, Any], LoraSpec, str, str]] = {
    "pissa on nf4": (Q4, LoraSpec(init="pissa"), "qlora", "method lora"),
    "pissa with dora": (FULL, LoraSpec(init="pissa", use_dora=True), "lora", "useDora"),
    "pissa over the width": (FULL, LoraSpec(init="pissa", rank=65), "lora", "more than the"),
    "eva without data": (Q4, LoraSpec(init="eva"), "qlora", "needs a batch"),
    "modules that are not there": (Q4, LoraSpec(target_modules=["no_such"]), "qlora", "does not fit this base"),
    "layers that are not there": (Q4, LoraSpec(layers=[1, 2]), "qlora", "layer 2"),
    "new tokens without a tokenizer": (Q4, LoraSpec(new_tokens=["<a>"]), "qlora", "need the tokenizer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_recipe_that_does_not_fit_is_refused(random_base: Path, case: str) -> None:
    options, spec, method, words = REFUSED[case]
    with pytest.raises(ModelError, match=words):
        attach_adapter(load_base(random_base, **options), spec, method=method)  # type: ignore[arg-type]


def test_eva_starts_from_the_data_at_the_recipes_rank(random_base: Path) -> None:
    eva = [draw_batch(40, 30, seed=i) for i in range(3)]
    torch.manual_seed(0)
    model = attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=4, init="eva"), None, eva)
    for name, parameter in trainable_parameters(model).items():
        if "lora_A" in name:
            assert parameter.shape[0] == 4
            torch.testing.assert_close(parameter @ parameter.T, torch.eye(4), atol=1e-4, rtol=0)
        else:
            assert not parameter.any()
    assert not model.peft_config["default"].rank_pattern


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [Q4, FULL], ids=["nf4", "float32"])
def test_new_tokens_train_their_rows_alone(
    random_base: Path, tmp_path: Path, options: dict[str, Any], tied: bool
) -> None:
    base_folder = tie_embeddings(random_base, tmp_path / "tied") if tied else random_base
    tokenizer = load_tokenizer(base_folder, "chatml", ["<tool>", "<done>"])
    ids = tokenizer.convert_tokens_to_ids(["<tool>", "<done>"])
    spec = LoraSpec(rank=4, new_tokens=["<tool>", "<done>"])
    torch.manual_seed(0)
    method = "qlora" if options is Q4 else "lora"
    model = attach_adapter(load_base(base_folder, **options), spec, method=method, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert run_self_test(model, "cpu") < 0.05
    row = np.array([5, *ids, 7, ids[0], 9])
    batch = lay_out([(row, np.ones(len(row)))])
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    for _ in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=options is Q4):
            loss, _ = sum_response_loss(model.train(), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = token_log_probs(model.eval(), batch)
    save_adapter(model, tmp_path / "adapter", tokenizer)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 200_000
    torch.manual_seed(99)
    again = load_adapter(load_base(base_folder, **options), tmp_path / "adapter")
    assert torch.equal(token_log_probs(again.eval(), batch), trained)
    assert load_tokenizer(tmp_path / "adapter").convert_tokens_to_ids(["<tool>", "<done>"]) == ids


def tie_embeddings(source: Path, target: Path) -> Path:
    model = load_base(source, quantization=None, device="cpu", training=False)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(target)
    load_tokenizer(source).save_pretrained(target)
    return target


def test_an_adapter_can_be_gone_on_from(random_base: Path, tmp_path: Path) -> None:
    spec = LoraSpec(rank=4)
    torch.manual_seed(0)
    model = attach_adapter(load_base(random_base, **Q4), spec)
    train(model)
    save_adapter(model, tmp_path / "adapter")
    further = attach_adapter(load_base(random_base, **Q4), spec, tmp_path / "adapter")
    assert torch.equal(log_probs(further), log_probs(model))
    before = {n: p.detach().clone() for n, p in trainable_parameters(further).items()}
    train(further.train(), 1)
    assert all(not torch.equal(p, before[n]) for n, p in trainable_parameters(further).items())
    with pytest.raises(ModelError, match="rank 4 there, 8 here"):
        attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=8), tmp_path / "adapter")


def test_several_adapters_live_on_one_base(random_base: Path, tmp_path: Path) -> None:
    alone = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = attach_adapter(load_base(random_base, **FULL), LoraSpec(rank=4), method="lora")
        train(model, 2 + seed)
        alone.append(log_probs(model))
        save_adapter(model, tmp_path / f"a{seed}")
    both = load_adapter(load_base(random_base, **FULL), tmp_path / "a0", "first")
    both = load_adapter(both, tmp_path / "a1", "second")
    for name, wanted in zip(("first", "second"), alone, strict=True):
        both.set_adapter(name)
        assert torch.equal(log_probs(both), wanted)


def test_merging_into_the_dequantised_base_changes_little_and_is_plain(random_base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=4))
    train(model)
    save_adapter(model, tmp_path / "adapter")
    plain = dequantize_base(load_base(random_base, **Q4), torch.float32)
    reference = log_probs(load_adapter(plain, tmp_path / "adapter"))
    exact = merge_adapter(dequantize_base(load_base(random_base, **Q4)), tmp_path / "adapter", torch.float32)
    torch.testing.assert_close(log_probs(exact), reference, atol=1e-4, rtol=0)
    exact.to(torch.bfloat16).save_pretrained(tmp_path / "merged")
    load_tokenizer(random_base).save_pretrained(tmp_path / "merged")
    loaded = load_base(tmp_path / "merged", quantization=None, device="cpu", training=True)
    assert abs(float(log_probs(loaded).mean() - reference.mean())) < 0.05
    assert not any("lora" in name for name, _ in loaded.named_parameters())


def test_merging_into_four_bits_is_refused(random_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="dequantise it first"):
        merge_adapter(load_base(random_base, **Q4), tmp_path)


def test_the_folder_names_its_base_and_holds_tokenizer_and_template(random_base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(random_base, "vicuna")
    model = attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=4))
    save_adapter(model, tmp_path, tokenizer, base_name="herd/tiny")
    names = {p.name for p in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert (tmp_path / "chat_template.jinja").read_text() == tokenizer.chat_template
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "herd/tiny"
    assert str(random_base) not in (tmp_path / "adapter_config.json").read_text()
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {t.dtype for t in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    files, sha256 = describe_adapter(tmp_path)
    assert {f.name for f in files} == names
    assert sha256 == digest_files(files)
    (tmp_path / "manifest.json").write_text("{}")
    assert describe_adapter(tmp_path)[1] == sha256


def test_saving_twice_gives_the_same_bytes(random_base: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=4))
    for name in ("a", "b"):
        save_adapter(model, tmp_path / name, base_name="herd/tiny")
    assert describe_adapter(tmp_path / "a")[1] == describe_adapter(tmp_path / "b")[1]


@pytest.mark.parametrize("spoil", ["no weights", "pickled weights", "another type", "no JSON", "another base"])
def test_a_folder_that_is_no_adapter_for_the_base_is_refused(random_base: Path, tmp_path: Path, spoil: str) -> None:
    model = attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=4))
    save_adapter(model, tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    if spoil == "no weights":
        weights.unlink()
    elif spoil == "pickled weights":
        weights.rename(tmp_path / "adapter_model.bin")
    elif spoil == "another type":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "IA3"}))
    elif spoil == "no JSON":
        config.write_text("{")
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["no_such_module"]}))
    with pytest.raises(ModelError):
        load_adapter(load_base(random_base, **Q4), tmp_path)


def test_an_adapter_whose_weights_are_not_float32_is_noticed(random_base: Path) -> None:
    model = attach_adapter(load_base(random_base, **Q4), LoraSpec(rank=4))
    next(iter(trainable_parameters(model).values())).data = torch.zeros(4, 64, dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="not float32"):
        trainable_parameters(model)


def test_the_configuration_is_the_recipe() -> None:
    spec = LoraSpec(
        rank=8, alpha=256, dropout=0.1, rslora=True, layers=[0, 2], modules_to_save=["lm_head"], use_dora=True
    )
    config = build_lora_config(spec, "qlora", [7], ["k_proj", "q_proj"])
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (8, 256, 0.1, True)
    assert isinstance(config.lora_alpha, int)
    assert (config.layers_to_transform, config.modules_to_save, config.use_dora) == ([0, 2], ["lm_head"], True)
    assert (config.trainable_token_indices, config.target_modules) == ([7], {"k_proj", "q_proj"})


def test_training_leaves_the_base_as_it_was(random_base: Path) -> None:
    model = attach_adapter(load_base(random_base, **FULL), LoraSpec(rank=4), method="lora")
    digest = base_digest(random_base)
    train(model)
    base = dict(load_base(random_base, **FULL).named_parameters())
    for name, parameter in model.get_base_model().named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, base[name.replace(".base_layer", "")])
    assert base_digest(random_base) == digest
