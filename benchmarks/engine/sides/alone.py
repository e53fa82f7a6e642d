"""The peer: transformers and PEFT as their guides use them, in a process that takes a line of JSON and answers with one.

`alone` answers requests one at a time by `generate()`; `together` answers them in static batches, padded at the left, by `generate()` with PEFT's
`adapter_names`. Both greedily.

{"way", "requests": [[adapter, prompt], ...], "tokens", "batch"} →
{"seconds", "cpu_seconds", "answers": [[id, ...], ...]}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


def main() -> None:
    job = json.loads(sys.argv[1])
    disable_progress_bar()
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(job["base"], padding_side="left")
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.float32).eval()
    model: Any = base
    for name, folder in job["adapters"]:
        if model is base:
            model = PeftModel.from_pretrained(base, Path(folder), adapter_name=name).eval()
        else:
            model.load_adapter(folder, adapter_name=name)
    model.eval()
    tell({"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        answer = WAYS[asked["way"]]
        began, cpu = time.perf_counter(), time.process_time()
        answers = answer(model, tokenizer, asked)
        tell({"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu, "answers": answers})


def tell(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


@torch.inference_mode()
def answer_alone(model: Any, tokenizer: Any, asked: dict[str, Any]) -> list[list[int]]:
    answers = []
    for adapter, prompt in asked["requests"]:
        if model.active_adapter != adapter:
            model.set_adapter(adapter)
        encoded = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**encoded, max_new_tokens=asked["tokens"], do_sample=False)
        answers.append(cut(out[0, encoded["input_ids"].shape[1] :].tolist(), tokenizer.eos_token_id))
    return answers


@torch.inference_mode()
def answer_together(model: Any, tokenizer: Any, asked: dict[str, Any]) -> list[list[int]]:
    answers: list[list[int]] = []
    for start in range(0, len(asked["requests"]), asked["batch"]):
        members = asked["requests"][start : start + asked["batch"]]
        encoded = tokenizer([prompt for _, prompt in members], return_tensors="pt", padding=True)
        names = [adapter for adapter, _ in members]
        more = {"adapter_names": names} if len(set(names)) > 1 else {}
        if not more and model.active_adapter != names[0]:
            model.set_adapter(names[0])
        out = model.generate(**encoded, max_new_tokens=asked["tokens"], do_sample=False, **more)
        rows = out[:, encoded["input_ids"].shape[1] :].tolist()
        answers += [cut(row, tokenizer.eos_token_id) for row in rows]
    return answers


def cut(ids: list[int], stop: int) -> list[int]:
    """Up to and with the stop token."""
    return ids[: ids.index(stop) + 1] if stop in ids else ids


WAYS = {"alone": answer_alone, "together": answer_together}

if __name__ == "__main__":
    main()
