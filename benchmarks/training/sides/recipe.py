"""The QLoRA recipe in transformers' and PEFT's words, for the sides that build their model with them."""

from typing import Any

from measurement import Job

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def load_quantized(job: Job) -> Any:
    """The base in NF4 with double quantisation and bf16 compute; all other weights stay in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        job.model,
        quantization_config=quantization,
        dtype=torch.bfloat16,
        device_map={"": job.device},
        attn_implementation="sdpa",
        use_safetensors=True,
    )
    model.config.use_cache = False
    return model


def build_lora(job: Job) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=job.rank, lora_alpha=job.alpha, lora_dropout=0.0, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM"
    )


def training_arguments(job: Job, max_steps: int, batch_size: int, accumulation: int = 1) -> dict[str, Any]:
    """The arguments that all trainers built on `transformers.Trainer` are given alike."""
    return {
        "output_dir": f"{job.output}/trainer",
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": True,
        "use_cpu": job.device == "cpu",
        "gradient_checkpointing": job.gradient_checkpointing,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job.seed,
        "dataloader_num_workers": 0,
    }
