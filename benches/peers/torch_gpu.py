#!/usr/bin/env python3
"""PyTorch on a GPU: transformers, bf16, scaled-dot-product attention, random weights of a config.json, greedy.

    python3 benches/peers/torch_gpu.py benches/configs/llama-1b.json 2048,0 128,64 128,64,16

Prints the same JSON as the other peers (see cases.py).
"""

import argparse
import json
import pathlib
import tempfile
import time
from importlib.metadata import version

from cases import case, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("cases", type=case, nargs="+", help="prompt,gen[,batch]")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(args.config.read_text())
        config = AutoConfig.from_pretrained(folder)
    with torch.device(args.device):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    vocab = json.loads(args.config.read_text())["vocab_size"]

    def now() -> float:
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def measure(case):
        ids = torch.randint(vocab, (case.batch, case.prompt), device=args.device)
        start = now()
        out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        middle = now()
        for _ in range(case.gen):
            out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
        return middle - start, now() - middle

    report(measure, args.cases, {"torch": version("torch"), "transformers": version("transformers"), "kv": "bf16"})


if __name__ == "__main__":
    main()
