"""The options that the engines' own launchers document, by name: what the generated pods' args and environment are checked against.

text-generation-launcher 3.3: https://huggingface.co/docs/text-generation-inference/reference/launcher
vLLM: https://docs.vllm.ai/en/stable/cli/serve/ (and `--shutdown-timeout`: vllm-project/vllm#36666)
"""

TGI_VARIABLES: dict[str, str] = {
    "MODEL_ID": "--model-id",
    "REVISION": "--revision",
    "VALIDATION_WORKERS": "--validation-workers",
    "SHARDED": "--sharded",
    "NUM_SHARD": "--num-shard",
    "QUANTIZE": "--quantize",
    "SPECULATE": "--speculate",
    "DTYPE": "--dtype",
    "KV_CACHE_DTYPE": "--kv-cache-dtype",
    "TRUST_REMOTE_CODE": "--trust-remote-code",
    "MAX_CONCURRENT_REQUESTS": "--max-concurrent-requests",
    "MAX_BEST_OF": "--max-best-of",
    "MAX_STOP_SEQUENCES": "--max-stop-sequences",
    "MAX_TOP_N_TOKENS": "--max-top-n-tokens",
    "MAX_INPUT_TOKENS": "--max-input-tokens",
    "MAX_INPUT_LENGTH": "--max-input-length",
    "MAX_TOTAL_TOKENS": "--max-total-tokens",
    "WAITING_SERVED_RATIO": "--waiting-served-ratio",
    "MAX_BATCH_PREFILL_TOKENS": "--max-batch-prefill-tokens",
    "MAX_BATCH_TOTAL_TOKENS": "--max-batch-total-tokens",
    "MAX_WAITING_TOKENS": "--max-waiting-tokens",
    "MAX_BATCH_SIZE": "--max-batch-size",
    "CUDA_GRAPHS": "--cuda-graphs",
    "HOSTNAME": "--hostname",
    "PORT": "--port",
    "SHARD_UDS_PATH": "--shard-uds-path",
    "MASTER_ADDR": "--master-addr",
    "MASTER_PORT": "--master-port",
    "HUGGINGFACE_HUB_CACHE": "--huggingface-hub-cache",
    "WEIGHTS_CACHE_OVERRIDE": "--weights-cache-override",
    "DISABLE_CUSTOM_KERNELS": "--disable-custom-kernels",
    "CUDA_MEMORY_FRACTION": "--cuda-memory-fraction",
    "ROPE_SCALING": "--rope-scaling",
    "ROPE_FACTOR": "--rope-factor",
    "JSON_OUTPUT": "--json-output",
    "OTLP_ENDPOINT": "--otlp-endpoint",
    "OTLP_SERVICE_NAME": "--otlp-service-name",
    "CORS_ALLOW_ORIGIN": "--cors-allow-origin",
    "API_KEY": "--api-key",
    "WATERMARK_GAMMA": "--watermark-gamma",
    "WATERMARK_DELTA": "--watermark-delta",
    "NGROK": "--ngrok",
    "NGROK_AUTHTOKEN": "--ngrok-authtoken",
    "NGROK_EDGE": "--ngrok-edge",
    "TOKENIZER_CONFIG_PATH": "--tokenizer-config-path",
    "DISABLE_GRAMMAR_SUPPORT": "--disable-grammar-support",
    "MAX_CLIENT_BATCH_SIZE": "--max-client-batch-size",
    "LORA_ADAPTERS": "--lora-adapters",
    "USAGE_STATS": "--usage-stats",
    "PAYLOAD_LIMIT": "--payload-limit",
    "ENABLE_PREFILL_LOGPROBS": "--enable-prefill-logprobs",
}
"""The launcher's variables, with the option that each stands for."""

TGI_FURTHER_VARIABLES = frozenset({"GRACEFUL_TERMINATION_TIMEOUT"})
"""Read by the launcher without an option (huggingface/text-generation-inference#3126)."""

TGI_WORDS: dict[str, frozenset[str]] = {
    "QUANTIZE": frozenset(
        {
            "awq", "compressed-tensors", "eetq", "exl2", "gptq", "marlin", "bitsandbytes", "bitsandbytes-nf4", "bitsandbytes-fp4",
            "fp8",
        }
    ),
    "DTYPE": frozenset({"float16", "bfloat16"}),
    "USAGE_STATS": frozenset({"on", "off", "no-stack"}),
    "JSON_OUTPUT": frozenset({"true", "false"}),
    "ENABLE_PREFILL_LOGPROBS": frozenset({"true", "false"}),
}  # fmt: skip
"""Variables that take fixed words."""

VLLM_OPTIONS = frozenset(
    {
        "--allowed-local-media-path", "--api-key", "--api-server-count", "--config", "--cpu-offload-gb", "--data-parallel-size",
        "--download-dir", "--dtype", "--enable-auto-tool-choice", "--enable-log-requests", "--enable-lora", "--enable-prefix-caching",
        "--enforce-eager", "--fully-sharded-loras", "--gpu-memory-utilization", "--headless", "--hf-token", "--host", "--kv-cache-dtype",
        "--load-format", "--logits-processors", "--lora-dtype", "--lora-modules", "--max-cpu-loras", "--max-logprobs",
        "--max-lora-rank", "--max-loras", "--max-model-len", "--max-num-batched-tokens", "--max-num-seqs", "--middleware", "--model",
        "--model-impl", "--pipeline-parallel-size", "--port", "--quantization", "--revision", "--root-path", "--seed",
        "--served-model-name", "--shutdown-timeout", "--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-certfile", "--ssl-keyfile",
        "--tensor-parallel-size", "--tool-parser-plugin", "--trust-remote-code", "--uds", "--uvicorn-log-level", "--worker-cls",
        "--worker-extension-cls",
    }
)  # fmt: skip
"""Options of `vllm serve` that llamero sets or refuses, and some others."""

VLLM_SWITCHES = frozenset({"--enable-lora", "--enforce-eager", "--trust-remote-code"})
"""Options of `vllm serve` without a value."""

VLLM_RANKS = frozenset({1, 8, 16, 32, 64, 128, 256, 320, 512})
VLLM_DTYPES = frozenset({"auto", "bfloat16", "float", "float16", "float32", "half"})
VLLM_VARIABLES = frozenset(
    {"VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT"}
)
