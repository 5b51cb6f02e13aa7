#!/usr/bin/env python3
"""The official `openai` client, unmodified, against the `serve` binary.

    python openai_client.py --serve target/release/serve [--model DIR]

Starts the binary on a free port with the `tiny-chat` fixture, makes requests of every kind the server
answers, and checks the answers against what transformers made of the same model. Prints how many
requests it made; exits with 1 if any answer was not as expected. Needs the package `openai`.
"""

import argparse
import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
import urllib.request

import openai

FIXTURE = pathlib.Path(__file__).resolve().parents[3] / "models/parity/fixtures/tiny-chat"
KEY = "a key of ours"
NAME = "org/tiny"


class Server:
    """The binary, started; its address is in the banner."""

    def __init__(self, binary: str, model: pathlib.Path):
        arguments = ["--model", str(model), "--served-model-name", NAME, "--port", "0", "--dtype", "f32", "--kv-cache-memory", "8MiB"]
        environment = os.environ | {"ANYFLEET_API_KEY": KEY}
        self.process = subprocess.Popen([binary, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
        self.url = ""
        for line in self.process.stdout:
            if line.startswith("listening"):
                self.url = line.split()[1]
            if line.startswith("try "):
                return
        raise SystemExit(f"serve ended with {self.process.wait()} before it was ready")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return response.read().decode()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        assert code == 0, f"exit code {code}"


class Checks:
    """One method per subject; every method of a public name is run."""

    def __init__(self, server: Server, expected: dict):
        self.server = server
        self.expected = expected
        self.requests = 0
        # The client's own extension point, used to count: each try of each request.
        hooks = {"request": [lambda request: self.count()]}
        self.client = openai.OpenAI(
            base_url=server.url + "/v1", api_key=KEY, max_retries=0, timeout=120, http_client=openai.DefaultHttpxClient(event_hooks=hooks)
        )

    def count(self) -> None:
        self.requests += 1

    def models(self):
        models = self.client.models.list().data
        assert [m.id for m in models] == [NAME], models
        assert models[0].object == "model" and models[0].max_model_len == 2048
        assert self.client.models.retrieve(NAME) == models[0]
        error = refused(openai.NotFoundError, lambda: self.client.models.retrieve("org/other"))
        assert error.code == "model_not_found"

    def completions(self):
        for case in self.expected["completions"]:
            for prompt in [case["prompt"], case["prompt_ids"]]:
                completion = self.client.completions.create(model=NAME, prompt=prompt, max_tokens=case["max_tokens"])
                choice = completion.choices[0]
                assert (choice.text, choice.finish_reason, choice.index) == (case["text"], case["finish_reason"], 0), choice
                assert completion.usage.prompt_tokens == len(case["prompt_ids"])
                assert completion.usage.completion_tokens == len(case["ids"])
                assert completion.usage.total_tokens == len(case["prompt_ids"]) + len(case["ids"])
                assert completion.system_fingerprint and completion.model == NAME and completion.object == "text_completion"

    def several_prompts_and_choices(self):
        cases = self.expected["completions"]
        for prompts in [[c["prompt"] for c in cases], [c["prompt_ids"] for c in cases]]:
            completion = self.client.completions.create(model=NAME, prompt=prompts, max_tokens=32, n=2)
            assert [c.text for c in completion.choices] == [c["text"] for c in cases for _ in range(2)]
            assert [c.index for c in completion.choices] == list(range(2 * len(cases)))

    def echo_and_logprobs(self):
        for case in self.expected["completions"]:
            completion = self.client.completions.create(model=NAME, prompt=case["prompt"], max_tokens=32, logprobs=3, echo=True)
            text, logprobs = completion.choices[0].text, completion.choices[0].logprobs
            assert text == case["prompt"] + case["text"]
            prompt = len(case["prompt_ids"])
            lengths = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs), len(logprobs.text_offset)}
            assert lengths == {prompt + len(case["ids"])}, lengths
            assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
            close(logprobs.token_logprobs[prompt:], case["logprobs"])
            for token, logprob, top, offset in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset))[1:]:
                assert top[token] == logprob and 3 <= len(top) <= 4
                assert token.startswith("bytes:") or text[offset:].startswith(token), (token, offset)
            scored = self.client.completions.create(model=NAME, prompt=case["prompt"], max_tokens=0, logprobs=3, echo=True).choices[0]
            assert scored.text == case["prompt"] and scored.logprobs.token_logprobs == logprobs.token_logprobs[:prompt]

    def stop(self):
        case = self.expected["completions"][0]
        stop = case["text"][20:25]
        for stops in [stop, ["never", stop]]:
            choice = self.client.completions.create(model=NAME, prompt=case["prompt"], max_tokens=32, stop=stops).choices[0]
            assert (choice.text, choice.finish_reason) == (case["text"][: case["text"].index(stop)], "stop"), choice

    def sampling(self):
        def texts(**parameters):
            completion = self.client.completions.create(model=NAME, prompt="Hello", max_tokens=12, n=3, **parameters)
            return [c.text for c in completion.choices]

        assert texts(temperature=1.5, seed=7) == texts(temperature=1.5, seed=7)
        assert len(set(texts(temperature=1.5, seed=7))) == 3
        assert len(set(texts(temperature=0))) == 1
        assert texts(temperature=1, top_p=0) == texts(temperature=0)
        assert texts(logit_bias={"77": 100}, presence_penalty=-2, frequency_penalty=-2)[0] != texts()[0]
        assert texts(temperature=1, extra_body={"top_k": 1}) == texts(temperature=0)

    def completion_streams(self):
        for parameters in [{}, {"echo": True}, {"n": 2, "temperature": 1, "seed": 3}, {"stop": ["in"]}]:
            request = dict(model=NAME, prompt=self.expected["completions"][0]["prompt"], max_tokens=32, logprobs=1) | parameters
            whole = self.client.completions.create(**request)
            chunks = list(self.client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
            assert chunks[-1].choices == [] and chunks[-1].usage.model_dump(exclude={"prompt_tokens_details"}) == whole.usage.model_dump(exclude={"prompt_tokens_details"})
            assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 4
            for choice in whole.choices:
                own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
                assert "".join(c.text for c in own) == choice.text
                assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + [choice.finish_reason]
                assert [t for c in own if c.logprobs for t in c.logprobs.token_logprobs] == choice.logprobs.token_logprobs

    def chat(self):
        for case in self.expected["chats"]:
            completion = self.client.chat.completions.create(
                model=NAME, messages=case["messages"], max_completion_tokens=case["max_tokens"], logprobs=True, top_logprobs=2
            )
            choice = completion.choices[0]
            assert (choice.message.content, choice.message.role) == (case["text"], "assistant"), choice
            assert choice.finish_reason == case["finish_reason"] and choice.message.tool_calls is None
            assert completion.usage.prompt_tokens == len(case["prompt_ids"])
            # The token that ended the answer has no text and no entry.
            tokens = choice.logprobs.content
            close([t.logprob for t in tokens], case["logprobs"][: len(tokens)])
            assert b"".join(bytes(t.bytes) for t in tokens).decode(errors="replace") == case["text"]
            assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob == t.logprob for t in tokens)

    def chat_streams(self):
        for case in self.expected["chats"]:
            request = dict(model=NAME, messages=case["messages"], max_tokens=case["max_tokens"], n=2, logprobs=True)
            chunks = list(self.client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
            assert chunks[-1].usage.prompt_tokens == len(case["prompt_ids"]) and chunks[-1].choices == []
            for index in range(2):
                own = [c for chunk in chunks for c in chunk.choices if c.index == index]
                assert own[0].delta.role == "assistant" and own[-1].finish_reason == case["finish_reason"]
                assert "".join(c.delta.content or "" for c in own) == case["text"]
            assert all(chunk.usage is None for chunk in chunks[:-1])

    def the_stream_helper(self):
        # It takes an answer cut off by max_tokens for a failure, so one that ends itself.
        case = next(c for c in self.expected["chats"] if c["finish_reason"] == "stop")
        with self.client.chat.completions.stream(model=NAME, messages=case["messages"], max_tokens=48) as stream:
            deltas = "".join(event.delta for event in stream if event.type == "content.delta")
            final = stream.get_final_completion().choices[0]
        assert deltas == final.message.content == case["text"] and final.finish_reason == "stop"

    def content_parts_and_tools(self):
        parts = [{"type": "text", "text": "How many"}, {"type": "text", "text": "ships?"}]
        tool = {"type": "function", "function": {"name": "count", "parameters": {"type": "object", "properties": {}}}}
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
        completion = self.client.chat.completions.create(model=NAME, messages=messages, max_tokens=4, tools=[tool], tool_choice="auto")
        assert completion.choices[0].message.content

    def errors(self):
        complete, chat = self.client.completions.create, self.client.chat.completions.create
        user = [{"role": "user", "content": "Hello"}]
        error = refused(openai.NotFoundError, lambda: complete(model="gpt-4", prompt="Hello"))
        assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
        for request in [dict(prompt=[5] * 3000), dict(prompt="Hello", max_tokens=3000), dict(prompt="ship " * 3000)]:
            error = refused(openai.BadRequestError, lambda: complete(model=NAME, **request))
            assert error.code == "context_length_exceeded", error
        for name, value in {
            "temperature": 2.1, "top_p": 1.1, "presence_penalty": 3, "frequency_penalty": -3, "n": 0, "max_tokens": -1,
            "stop": ["a"] * 5, "logit_bias": {"77": 101}, "seed": "x", "stream": "yes",
        }.items():  # fmt: skip
            for create, prompt in [(complete, {"prompt": "Hello"}), (chat, {"messages": user})]:
                error = refused(openai.BadRequestError, lambda: create(model=NAME, **prompt, extra_body={name: value}))
                assert error.param.split(".")[0] == name, error
        assert refused(openai.BadRequestError, lambda: chat(model=NAME, messages=user, logprobs=True, top_logprobs=21)).param == "top_logprobs"
        assert refused(openai.BadRequestError, lambda: complete(model=NAME, prompt=[443])).param == "prompt"
        assert refused(openai.BadRequestError, lambda: chat(model=NAME, messages=[])).param == "messages"
        assert refused(openai.BadRequestError, lambda: chat(model=NAME, messages=user, response_format={"type": "json_object"})).param == "response_format"
        assert refused(openai.BadRequestError, lambda: chat(model=NAME, messages=user, stream=True, n=500)).param == "n"
        assert refused(openai.AuthenticationError, lambda: self.client.with_options(api_key="wrong").models.list()).code == "invalid_api_key"
        refused(openai.NotFoundError, lambda: self.client.embeddings.create(model=NAME, input="Hello"))

    def many_at_once(self):
        cases = self.expected["completions"]

        async def run():
            async def count(request):
                self.count()

            http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})
            async with openai.AsyncOpenAI(base_url=self.server.url + "/v1", api_key=KEY, max_retries=0, http_client=http) as client:

                async def one(i: int):
                    case = cases[i % len(cases)]
                    stream = await client.completions.create(model=NAME, prompt=case["prompt"], max_tokens=32, stream=True)
                    assert "".join([c.choices[0].text async for c in stream]) == case["text"]

                await asyncio.gather(*(one(i) for i in range(32)))

        asyncio.run(run())

    def leaving_early(self):
        stream = self.client.completions.create(model=NAME, prompt="Hello", max_tokens=2000, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        # The server learns of it when its socket does, which no other request waits for.
        deadline = time.monotonic() + 30
        while 'anyfleet_choices_total{reason="cancelled"} 1' not in (metrics := self.server.get("/metrics")):
            assert time.monotonic() < deadline, [line for line in metrics.splitlines() if "choices_total" in line]
            time.sleep(0.02)
        self.client.completions.create(model=NAME, prompt="Hello", max_tokens=1)


def refused(kind: type, call) -> openai.APIStatusError:
    try:
        answer = call()
    except kind as error:
        assert error.body["message"] and set(error.body) == {"message", "type", "param", "code"}, error.body
        return error
    raise AssertionError(f"not refused: {answer}")


def close(got: list, want: list) -> None:
    assert len(got) == len(want) and all(abs(a - b) < 1e-3 for a, b in zip(got, want)), (got, want)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--serve", required=True, help="the binary")
    arguments.add_argument("--model", type=pathlib.Path, default=FIXTURE, help="the fixture tiny-chat [%(default)s]")
    arguments = arguments.parse_args()
    server = Server(arguments.serve, arguments.model)
    checks = Checks(server, json.loads((arguments.model / "expected.json").read_text(encoding="utf-8")))
    failed = []
    try:
        assert json.loads(server.get("/health")) == {"status": "ok"}
        for name in [name for name in vars(Checks) if not name.startswith("_") and name != "count"]:
            try:
                getattr(checks, name)()
            except Exception:
                failed.append(name)
                traceback.print_exc()
        server.stop()
    finally:
        server.process.kill()
    if failed:
        print(f"openai client: {checks.requests} requests, not as expected: {', '.join(failed)}")
        return 1
    print(f"openai client: {checks.requests} requests, all as expected")
    return 0


if __name__ == "__main__":
    sys.exit(main())
