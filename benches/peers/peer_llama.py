#!/usr/bin/env python3
"""llama.cpp through llama-cpp-python's low-level interface: llama_decode on batches of token ids, no sampling.

    DIR/venv/bin/python benches/peers/peer_llama.py DIR --model q8_0 --build amx --flash on 512,0 128,64,16

As llama-bench does: 2048 tokens a batch, 512 a micro-batch, f16 keys and values, one cache stream per sequence, the next token
made up rather than chosen (a sampler's time is in no figure of this peer).
"""

import os
import time


def main() -> None:
    from cases import parser, prompts, report, token

    arguments = parser(__doc__)
    arguments.add_argument("--model", default="bf16", help="DIR/models/gguf/MODEL.gguf")
    arguments.add_argument("--build", default="amx", help="DIR/llama/BUILD")
    arguments.add_argument("--flash", choices=("on", "off"), default="on", help="flash attention")
    args = arguments.parse_args()
    os.environ["LLAMA_CPP_LIB_PATH"] = str(args.dir.resolve() / "llama" / args.build)
    import llama_cpp as ll

    @ll.llama_log_callback
    def quiet(level, text, data):
        if level == 4:  # an error
            os.write(2, text)

    ll.llama_log_set(quiet, None)
    ll.llama_backend_init()
    path = args.dir / "models" / "gguf" / f"{args.model}.gguf"
    model = ll.llama_model_load_from_file(str(path).encode(), ll.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp could not load {path}")
    step_tokens = 2048

    def measure(case):
        params = ll.llama_context_default_params()
        # llama.cpp rounds each sequence's share of the cache up to a multiple of 256.
        params.n_ctx = case.batch * -(-(case.prompt + case.gen) // 256) * 256
        params.n_batch, params.n_ubatch, params.n_seq_max = step_tokens, 512, case.batch
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = int(args.flash == "on")
        params.kv_unified = False
        context = ll.llama_init_from_model(model, params)
        if not context:
            raise SystemExit("llama.cpp could not create a context")
        batch = ll.llama_batch_init(step_tokens, 0, 1)

        def decode(rows):
            """rows: (token, position, sequence, whether its logits are wanted)"""
            for i, (id, position, sequence, wanted) in enumerate(rows):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = id, position, 1, wanted
                batch.seq_id[i][0] = sequence
            batch.n_tokens = len(rows)
            if (code := ll.llama_decode(context, batch)) != 0:
                raise SystemExit(f"llama_decode: {code}")
            ll.llama_synchronize(context)

        rows = [(t, i, s, i == case.prompt - 1) for s, ids in enumerate(prompts(case)) for i, t in enumerate(ids)]
        start = time.perf_counter()
        for i in range(0, len(rows), step_tokens):
            decode(rows[i : i + step_tokens])
        middle = time.perf_counter()
        for step in range(case.gen):
            decode([(token(step * 31 + s), case.prompt + step, s, True) for s in range(case.batch)])
        end = time.perf_counter()
        ll.llama_batch_free(batch)
        ll.llama_free(context)
        return middle - start, end - middle

    report(measure, args.cases, {"system": ll.llama_print_system_info().decode().strip(), "kv": "f16"})


if __name__ == "__main__":
    main()
