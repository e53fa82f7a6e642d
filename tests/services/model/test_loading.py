import hashlib
import json
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16

from llamero.model.adapters import attach_adapter, trainable_parameters
from llamero.model.batches import Batch, lay_out
from llamero.model.loading import (
    ModelError,
    base_digest,
    check_base,
    dequantize_base,
    load_base,
    load_tokenizer,
    resolve_base,
)
from llamero.model.loss import sum_response_loss, token_log_probs
from llamero.spec.job import BaseModelRef, LoraSpec
from llamero.spec.progress import Progress

REVISION = "0123456789abcdef0123456789abcdef01234567"
MODEL = "herd/tiny"
HUB = BaseModelRef(name=MODEL, revision=REVISION)


def draw_batch(*lengths: int) -> Batch:
    rng = np.random.default_rng(0)
    return lay_out([(rng.integers(0, 384, n), np.ones(n)) for n in lengths])


def four_bit_layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]


def lora_gradients(model: Any) -> dict[str, torch.Tensor]:
    """Gradients of a fixed adapter on the model, in float32 throughout."""
    torch.manual_seed(1)
    peft = attach_adapter(model, LoraSpec(rank=4, alpha=8), method="lora")
    for parameter in trainable_parameters(peft).values():
        torch.nn.init.normal_(parameter, std=0.05)
    loss, _ = sum_response_loss(peft, draw_batch(20, 9))
    loss.backward()
    return {n: p.grad for n, p in trainable_parameters(peft).items() if p.grad is not None}


def largest_difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[n] - wanted[n]).abs().max() / wanted[n].abs().max()) for n in wanted)


def test_nf4_holds_linear_layers_in_four_bits_and_leaves_the_head(random_base: Path) -> None:
    model = load_base(random_base, quantization="nf4", device="cpu", training=True)
    layers = four_bit_layers(model)
    assert len(layers) == 2 * 7
    assert {layer.weight.quant_state.quant_type for layer in layers} == {"nf4"}
    assert all(layer.weight.quant_state.nested and layer.compute_dtype == torch.bfloat16 for layer in layers)
    assert all(layer.support_avx512bf16_for_cpu is False for layer in layers)
    assert type(model.lm_head) is torch.nn.Linear
    assert not any(p.requires_grad for p in model.parameters())
    assert model.training
    assert not model.config.use_cache


def test_evaluating_first_does_not_cost_the_gradients_of_a_four_bit_base(random_base: Path) -> None:
    reference = dequantize_base(
        load_base(random_base, quantization="nf4", device="cpu", training=True, dtype=torch.float32)
    )
    wanted = lora_gradients(reference)
    model = load_base(random_base, quantization="nf4", device="cpu", training=True, dtype=torch.float32)
    model.eval()
    token_log_probs(model, draw_batch(12))
    model.train()
    assert largest_difference(lora_gradients(model), wanted) < 1e-5


@pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no AVX512-BF16, for which bitsandbytes repacks")
def test_what_the_switch_guards_against_is_still_so(random_base: Path) -> None:
    """If this fails, bitsandbytes has mended its repacking, and keep_trainable_on_cpu can go."""
    wanted = lora_gradients(load_base(random_base, quantization="nf4", device="cpu", training=True))
    model = load_base(random_base, quantization="nf4", device="cpu", training=True)
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = True
    model.eval()
    token_log_probs(model, draw_batch(12))
    model.train()
    try:
        gradients = lora_gradients(model)
    except RuntimeError:
        return
    assert gradients.keys() != wanted.keys() or largest_difference(gradients, wanted) > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_dequantised_base_computes_with_the_same_numbers(random_base: Path, dtype: torch.dtype) -> None:
    batch = draw_batch(30, 11)
    quantised = load_base(random_base, quantization="nf4", device="cpu", training=False, attention="llamero_document")
    plain = load_base(random_base, quantization="nf4", device="cpu", training=False, attention="llamero_document")
    numbers = [bnb.functional.dequantize_4bit(m.weight.data, m.weight.quant_state) for m in four_bit_layers(plain)]
    plain = dequantize_base(plain, None if dtype == torch.bfloat16 else dtype)
    linear = [m for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert not four_bit_layers(plain)
    for layer, wanted in zip(linear, numbers, strict=True):
        assert layer.weight.dtype == dtype
        assert torch.equal(layer.weight.float(), wanted.float())
    if dtype == torch.bfloat16:
        assert torch.equal(token_log_probs(plain, batch), token_log_probs(quantised, batch))


def test_a_dequantised_base_can_be_saved_and_loaded_as_a_plain_one(random_base: Path, tmp_path: Path) -> None:
    plain = dequantize_base(load_base(random_base, quantization="nf4", device="cpu", training=False))
    plain.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(random_base / name, tmp_path)
    again = load_base(tmp_path, quantization=None, device="cpu", training=False, attention="llamero_document")
    plain.set_attn_implementation("llamero_document")
    assert torch.equal(token_log_probs(again, draw_batch(9)), token_log_probs(plain, draw_batch(9)))


@pytest.fixture
def base_copy(random_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_base, tmp_path / "copy"))


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


BAD_BASES = {
    "code in the config": (lambda f: edit_json(f / "config.json", auto_map={"AutoModel": "m.M"}), "auto_map"),
    "code in the tokenizer": (lambda f: edit_json(f / "tokenizer_config.json", auto_map={"A": "m.M"}), "auto_map"),
    "no weights": (remove_weights, "no complete safetensors"),
    "pickled weights": (pickle_weights, "can hold code"),
    "a missing shard": (lose_a_shard, "model-00002-of-00002"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "a broken config": (lambda f: (f / "config.json").write_text("{"), "no JSON"),
    "a quantised base": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "gptq"}),
        "already quantised",
    ),
}


@pytest.mark.parametrize("case", BAD_BASES)
def test_a_folder_that_is_no_safe_base_is_refused(base_copy: Path, tmp_path: Path, case: str) -> None:
    spoil, words = BAD_BASES[case]
    spoil(base_copy)
    with pytest.raises(ModelError, match=words):
        resolve_base(BaseModelRef(uri=str(base_copy)), tmp_path / "cache")
    with pytest.raises(ModelError, match=words):
        load_base(base_copy, quantization=None, device="cpu", training=False)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere does not exist"):
        resolve_base(BaseModelRef(uri=str(tmp_path / "nowhere")), tmp_path / "cache")


def test_a_local_base_is_used_where_it_lies(random_base: Path, tmp_path: Path) -> None:
    assert resolve_base(BaseModelRef(uri=f"file://{random_base}"), tmp_path) == random_base
    assert not list(tmp_path.iterdir())


def test_an_unknown_architecture_is_a_clear_error(base_copy: Path) -> None:
    edit_json(base_copy / "config.json", model_type="no-such-model", architectures=["NoSuch"])
    with pytest.raises(ModelError, match="can't be loaded"):
        load_base(base_copy, quantization=None, device="cpu", training=False)


def test_an_unknown_template_is_named(random_base: Path) -> None:
    with pytest.raises(ModelError, match="alpaca, vicuna, chatml"):
        load_tokenizer(random_base, "alpacca")


def test_the_digest_follows_weights_tokenizer_and_config_only(base_copy: Path, random_base: Path) -> None:
    digest = base_digest(random_base)
    assert base_digest(base_copy) == digest
    (base_copy / "README.md").write_text("A card.")
    assert base_digest(base_copy) == digest
    edit_json(base_copy / "config.json", rope_theta=5)
    changed = base_digest(base_copy)
    assert changed != digest
    with (base_copy / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    assert base_digest(base_copy) != changed


@dataclass
class Hub:
    """A server with the hub's HTTP surface for one model."""

    folder: Path
    refusal: tuple[int, str] | None = None
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        self.tokens.add(handler.headers.get("Authorization"))
        path = handler.path.split("?")[0]
        if self.refusal:
            return self._send(handler, self.refusal[0], b"{}", {"X-Error-Code": self.refusal[1]})
        names = sorted(p.name for p in self.folder.iterdir())
        if path in (f"/api/models/{MODEL}/revision/{REVISION}", f"/api/models/{MODEL}"):
            info = {"id": MODEL, "sha": REVISION, "siblings": [{"rfilename": n} for n in names]}
            return self._send(handler, 200, json.dumps(info).encode(), {})
        if path.startswith(f"/api/models/{MODEL}/tree/"):
            tree = [{"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "0"} for n in names]
            return self._send(handler, 200, json.dumps(tree).encode(), {})
        name = path.removeprefix(f"/{MODEL}/resolve/{REVISION}/")
        if name not in names:
            return self._send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
        content = (self.folder / name).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return self._send(handler, 200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION})

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


@pytest.fixture
def hub(random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = Path(shutil.copytree(random_base, tmp_path / "on-the-hub"))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling.py").write_text("raise SystemExit")
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_base_of_the_hub_is_fetched_once_and_without_pickles_or_code(
    hub: Hub, random_base: Path, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    folder = resolve_base(HUB, tmp_path / "cache", "hf_secret", seen.append)
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling.py"}
    assert base_digest(folder) == base_digest(random_base)
    assert hub.tokens == {"Bearer hf_secret"}
    assert seen
    assert all(p.activity == f"fetch {MODEL}" for p in seen)
    hub.asked.clear()
    assert resolve_base(HUB, tmp_path / "cache") == folder
    assert hub.asked == []


def test_a_base_in_the_users_own_cache_is_used(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve_base(HUB, tmp_path / "elsewhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "elsewhere" / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    assert resolve_base(HUB, tmp_path / "cache") == folder
    assert hub.asked == []


def test_offline_a_base_that_is_not_in_the_cache_is_a_clear_error(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        resolve_base(HUB, tmp_path / "cache")
    assert hub.asked == []


REFUSALS = [
    (401, "GatedRepo", "licence"),
    (403, "GatedRepo", "licence"),
    (403, "", "licence page"),
    (401, "RepoNotFound", "does not exist or is private"),
    (404, "RepoNotFound", "does not exist or is private"),
    (404, "RevisionNotFound", "has no revision"),
    (410, "", "HTTP 410"),
]


@pytest.mark.parametrize(("status", "code", "words"), REFUSALS)
def test_a_refusal_of_the_hub_is_one_sentence_with_the_page(
    hub: Hub, tmp_path: Path, status: int, code: str, words: str
) -> None:
    hub.refusal = (status, code)
    with pytest.raises(ModelError, match=words) as caught:
        resolve_base(HUB, tmp_path / "cache", "hf_secret")
    message = str(caught.value)
    assert str(status) in message
    assert hub.url in message
    assert "hf_secret" not in message
    assert "\n" not in message


def test_a_hub_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    with pytest.raises(ModelError, match="can't be reached"):
        resolve_base(HUB, tmp_path / "cache")


@pytest.fixture
def bucket(random_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket of a real S3 server (moto over HTTP) with the base under models/tiny."""
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="herd")
    for path in random_base.iterdir():
        client.upload_file(str(path), "herd", f"models/tiny/{path.name}")
    client.put_object(Bucket="herd", Key="models/tiny/pytorch_model.bin", Body=b"a pickle")
    yield client
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_base_in_s3_is_fetched_once_and_anew_when_it_changes(bucket: Any, random_base: Path, tmp_path: Path) -> None:
    import fsspec

    ref = BaseModelRef(uri="s3://herd/models/tiny")
    folder = resolve_base(ref, tmp_path)
    assert base_digest(folder) == base_digest(random_base)
    assert not (folder / "pytorch_model.bin").exists()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_base(ref, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    config = json.loads((random_base / "config.json").read_text()) | {"rope_theta": 5}
    bucket.put_object(Bucket="herd", Key="models/tiny/config.json", Body=json.dumps(config).encode())
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    changed = resolve_base(ref, tmp_path)
    assert changed != folder
    check_base(changed)
    assert base_digest(changed) != base_digest(folder)


def test_a_place_in_s3_without_a_base_is_named(bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="s3://herd/nothing"):
        resolve_base(BaseModelRef(uri="s3://herd/nothing"), tmp_path)
