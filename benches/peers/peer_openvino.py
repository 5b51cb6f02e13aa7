#!/usr/bin/env python3
"""OpenVINO GenAI: ContinuousBatchingPipeline driven step by step on token ids, greedy.

    DIR/venv/bin/python benches/peers/peer_openvino.py DIR --model int8 --hint bf16 512,0 128,64,16

Prefix caching, on by default, is off. All prompts of a case are one step (`--chunk` cuts it). `--hint` is
INFERENCE_PRECISION_HINT; the precision of keys and values is left to OpenVINO unless `--kv` says otherwise: f16 where the
model asks for it (the fp16 export does), else u8 in groups. `--backend sdpa` measures LLMPipeline without paged attention
instead: one sequence only.
"""

import json
import time
from importlib.metadata import version


def main() -> None:
    from cases import parser, prompts, report

    arguments = parser(__doc__)
    arguments.add_argument("--model", choices=("fp16", "int8", "int4"), default="fp16", help="DIR/models/openvino/MODEL")
    arguments.add_argument("--hint", choices=("bf16", "f32", "f16"), default="bf16")
    arguments.add_argument("--kv", choices=("u8", "bf16", "f16", "f32"))
    arguments.add_argument("--chunk", type=int, help="most tokens in a step")
    arguments.add_argument("--backend", choices=("paged", "sdpa"), default="paged")
    args = arguments.parse_args()
    import numpy
    import openvino
    import openvino_genai

    path = args.dir / "models" / "openvino" / args.model
    properties = {"INFERENCE_PRECISION_HINT": args.hint, "INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": "LATENCY"}
    if args.kv:
        properties["KV_CACHE_PRECISION"] = args.kv

    def generation(tokens: int):
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        return config

    def tensor(ids: list[int]):
        return openvino.Tensor(numpy.array([ids], dtype=numpy.int64))

    def paged():
        largest = max(c.batch * c.prompt for c in args.cases)
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        scheduler.max_num_batched_tokens = args.chunk or largest
        scheduler.max_num_seqs = max(c.batch for c in args.cases)
        scheduler.cache_size = 2
        pipeline = openvino_genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", properties)

        def measure(case):
            handles = [pipeline.add_request(i, tensor(ids), generation(1 + case.gen)) for i, ids in enumerate(prompts(case))]
            waiting = set(range(case.batch))
            start = time.perf_counter()
            while waiting:
                pipeline.step()
                waiting = {i for i in waiting if not handles[i].can_read() and pipeline.has_non_finished_requests()}
            middle = time.perf_counter()
            while pipeline.has_non_finished_requests():
                pipeline.step()
            return middle - start, time.perf_counter() - middle

        return measure

    def sdpa():
        pipeline = openvino_genai.LLMPipeline(str(path), "CPU", **properties, ATTENTION_BACKEND="SDPA")

        def measure(case):
            if case.batch != 1:
                raise SystemExit("--backend sdpa measures one sequence")
            times = []

            class Clock(openvino_genai.StreamerBase):
                def write(self, tokens):
                    times.append(time.perf_counter())
                    return openvino_genai.StreamingStatus.RUNNING

                def end(self):
                    pass

            start = time.perf_counter()
            pipeline.generate(tensor(prompts(case)[0]), generation(1 + case.gen), Clock())
            return times[0] - start, times[-1] - times[0]

        return measure

    widths = json.loads((args.dir / "models" / "widths.json").read_text())[f"openvino {args.model}"]
    kv = args.kv or widths["KV precision asked for by the model"] or "u8"
    report({"paged": paged, "sdpa": sdpa}[args.backend](), args.cases, {"version": version("openvino-genai"), "kv": kv})


if __name__ == "__main__":
    main()
