#!/usr/bin/env python3
"""PyTorch: transformers' Qwen3 in bf16, scaled-dot-product attention, forward passes with its cache, greedy.

    DIR/venv/bin/python benches/peers/peer_torch.py DIR 512,0 128,64,16
"""

import time
from importlib.metadata import version


def main() -> None:
    from cases import parser, prompts, report

    args = parser(__doc__).parse_args()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    path = args.dir / "models" / "hf"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def measure(case):
        ids = torch.tensor(prompts(case))
        start = time.perf_counter()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        middle = time.perf_counter()
        for _ in range(case.gen):
            out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
        return middle - start, time.perf_counter() - middle

    report(measure, args.cases, {"torch": version("torch"), "transformers": version("transformers"), "kv": "bf16"})


if __name__ == "__main__":
    main()
