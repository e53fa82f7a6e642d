"""The checked-in tiny base model is what its card says, and its script makes such a model again."""

import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parents[3] / "examples" / "tiny-base"
SCRIPT = FOLDER / "pretrain.py"

MULTI_TURN = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is NF4?"},
    {"role": "assistant", "content": "A 4-bit format.\n\n```python\nx = 1\n```"},
    {"role": "user", "content": "Thanks!"},
    {"role": "assistant", "content": "You are welcome."},
]


def load_script(name: str) -> ModuleType:
    """A module of the example's folder, under its own name: the one script imports the other by it."""
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


corpus = load_script("python_corpus")
script = load_script("pretrain")


@cache
def load_tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two steps, made by the script as a user starts it."""
    output = tmp_path_factory.mktemp("trial")
    done = run_script("--output", str(output), "--steps", "2", hash_seed=1)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
    return output


def run_script(*arguments: str, hash_seed: int = 2) -> subprocess.CompletedProcess[str]:
    """The script on a small corpus, in an interpreter of its own: a test runner's hooks would change what is read."""
    command = [sys.executable, str(SCRIPT), *arguments, "--limit", "200", "--threads", "1"]
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


# --- the checkpoint that is checked in


def test_it_has_at_most_seven_million_parameters_in_bf16_safetensors() -> None:
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(key) for key in weights.keys()]  # noqa: SIM118 (not a dict)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    parameters = sum(tensor.numel() for tensor in tensors)
    assert parameters <= 7_000_000
    assert parameters == json.loads((FOLDER / "pretraining.json").read_text())["parameters"]


def test_its_folder_holds_at_most_fifteen_megabytes_and_no_pickle() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]  # caches of tools lie in folders
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl", ".pth"}]


def test_its_config_runs_no_remote_code_and_holds_2048_positions() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert "auto_map" not in config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 2048
    assert config["vocab_size"] == 2048


def test_its_special_tokens_are_single_distinct_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|endoftext|>",
        "<|im_end|>",
        "<|pad|>",
    )
    ids = [tokenizer(token)["input_ids"] for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")]
    assert [len(tokens) for tokens in ids] == [1, 1, 1, 1]
    assert len({tokens[0] for tokens in ids}) == 4
    assert len(tokenizer) == 2048


def test_encoding_adds_no_token_of_its_own(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("")["input_ids"] == []
    assert tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]


def test_generation_stops_at_the_end_of_a_turn_and_pads_with_another_token(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    settings_ = model.generation_config
    assert settings_.eos_token_id == tokenizer.eos_token_id
    assert settings_.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert settings_.do_sample is False


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_from_its_tokens_unchanged(text: str) -> None:
    tokenizer = load_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x\n\n\n",
        "\ttabs\r\nand  runs   of    spaces ",
        "x <- c(1, 2)",
        "naïve 漢字 🦙",
        "<|im_end|>",
    ],
)
def test_code_whitespace_and_other_scripts_come_back(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_generation_mask_covers_exactly_the_answers_and_their_stop_tokens(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = tokenizer.apply_chat_template(MULTI_TURN, return_dict=True, return_assistant_tokens_mask=True)
    tokens, mask = encoded["input_ids"], encoded["assistant_masks"]
    spans: list[list[int]] = []
    for at, (token, marked) in enumerate(zip(tokens, mask, strict=True)):
        if marked and not (at and mask[at - 1]):
            spans.append([])
        if marked:
            spans[-1].append(token)
    answers = [turn["content"] for turn in MULTI_TURN if turn["role"] == "assistant"]
    assert [tokenizer.decode(span) for span in spans] == [answer + "<|im_end|>" for answer in answers]
    assert all(span[-1] == tokenizer.eos_token_id for span in spans)


def test_the_template_writes_chatml_and_opens_the_answer_when_asked(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    answered = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "Hello"}], tokenize=False)
    assert answered == prompt + "Hello<|im_end|>\n"


def test_it_learned_to_answer_in_turns_and_to_stop(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "user", "content": "What does shutil.rmtree do?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        tokens = model.generate(**prompt, max_new_tokens=200)[0, prompt["input_ids"].shape[1] :]
    assert tokens[-1] == tokenizer.eos_token_id
    assert len(tokenizer.decode(tokens, skip_special_tokens=True).split()) >= 3


def test_a_conversation_of_two_thousand_tokens_does_not_break_it(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    entries = [entry for entry in corpus.read_compiled_modules(("builtins", "math")) if corpus.is_askable(entry)]
    turns = [turn for entry in entries for turn in corpus.build_turns(entry, random.Random(0))]
    tokens = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"][:, :2048]
    assert tokens.shape[1] == 2048
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, :-1]
    losses = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    early, late = losses[:1024].mean().item(), losses[1024:].mean().item()
    assert early < 4, "an untrained model is at ln 2048 = 7.6"
    assert late < early + 0.5


def test_the_card_quotes_the_record(repository: Path) -> None:
    record = json.loads((FOLDER / "pretraining.json").read_text())
    card = (FOLDER / "README.md").read_text()
    for figure in (
        f"{record['parameters']:,}",
        f"{record['held_out_loss']['plain']:.2f}",
        f"{record['held_out_loss']['chat']:.2f}",
        f"{record['steps']:,} steps",
        record["python"],
    ):
        assert figure in card


# --- the script


@pytest.mark.long
def test_two_steps_of_the_script_give_a_checkpoint_that_loads(trial: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trial)
    tokenizer = AutoTokenizer.from_pretrained(trial)
    assert model.dtype == torch.bfloat16
    assert model.config.vocab_size == 2048 >= len(tokenizer)
    assert tokenizer.chat_template == script.CHAT_TEMPLATE
    assert math.isfinite(json.loads((trial / "pretraining.json").read_text())["held_out_loss"]["chat"])


@pytest.mark.long
def test_a_second_run_gives_the_same_corpus_tokenizer_and_losses(trial: Path, tmp_path: Path) -> None:
    done = run_script("--output", str(tmp_path), "--steps", "2", hash_seed=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tokenizer.json").read_bytes() == (trial / "tokenizer.json").read_bytes()
    first, second = (json.loads((folder / "pretraining.json").read_text()) for folder in (trial, tmp_path))
    assert first["corpus"] == second["corpus"]
    for form in ("plain", "chat"):
        assert first["held_out_loss"][form] == pytest.approx(second["held_out_loss"][form], abs=0.005)


@pytest.mark.long
def test_the_check_accepts_a_checkpoint_that_is_as_recorded(trial: Path) -> None:
    done = run_script("--output", str(trial), "--check")
    assert "is what its record says" in done.stdout
    assert done.returncode == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"held_out_loss": {"plain": 1.0, "chat": 1.0}}, "held-out loss of the chat form is"),
        ({"corpus": {"sha256": "0" * 64}}, "is not the one of Python"),
    ],
)
def test_the_check_says_what_differs_from_the_record(
    changed: dict[str, object], sentence: str, trial: Path, tmp_path: Path
) -> None:
    for path in trial.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((trial / "pretraining.json").read_text())
    (tmp_path / "pretraining.json").write_text(json.dumps(record | changed))
    done = run_script("--output", str(tmp_path), "--check")
    assert sentence in done.stdout
    assert done.returncode == 1


def test_entries_carry_signature_kind_and_text(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text(
        '"""Module b."""\nclass C:\n    """Class C."""\n    def m(self, x=1):\n        "Do m."\n'
    )
    (tmp_path / "a.py").write_text("def broken(:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "c.py").write_text('"""Left out."""\n')
    assert corpus.read_standard_library(tmp_path) == [
        corpus.Entry("b", "module", "", "Module b."),
        corpus.Entry("b.C", "class", "", "Class C."),
        corpus.Entry("b.C.m", "method", "b.C.m(self, x=1)", "Do m."),
    ]


def test_a_held_out_text_is_never_trained_on() -> None:
    entries = corpus.read_compiled_modules(("builtins", "os", "math"))
    train, held_out = corpus.split_entries(entries)
    assert len(held_out) > 0
    assert not {entry.text for entry in train} & {entry.text for entry in held_out}
    assert len(train) + len(held_out) == len(entries)


def test_packing_keeps_every_token_within_its_block() -> None:
    rng = random.Random(0)
    documents = [[rng.randrange(4, 2048)] * rng.randrange(1, 65) for _ in range(300)]
    bins = script.pack_documents(documents, 64)
    assert sorted(d for packed in bins for d in packed) == sorted(documents)
    assert all(sum(map(len, packed)) <= 64 for packed in bins)


def test_a_packed_document_does_not_see_its_neighbours(model: LlamaForCausalLM) -> None:
    rng = random.Random(0)
    first, second = [[rng.randrange(4, 2048) for _ in range(length)] for length in (20, 30)]
    packed = script.build_batch([[first, second]], 64, pad=3)
    alone = script.build_batch([[second]], 30, pad=3)
    with torch.no_grad():
        together = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"], use_cache=False).logits
        single = model(input_ids=alone["input_ids"], position_ids=alone["position_ids"], use_cache=False).logits
    torch.testing.assert_close(together[0, 20:50], single[0], atol=1e-4, rtol=1e-4)
    assert packed["labels"][0, 20] == script.IGNORED
