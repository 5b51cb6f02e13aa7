"""How a conversation reads as text, and which of it the model learns to write.

The one truth is `models/pocket/chat_template.jinja`; `segments` says the same in pieces, and `prepare.py` checks on its
first thousand conversations that the pieces joined are what the template renders.
"""

import json
from pathlib import Path

END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TOOL_CALL, END_OF_TOOL_CALL = "<tool_call>", "</tool_call>"
TEMPLATE = Path(__file__).parent.parent / "pocket" / "chat_template.jinja"


def segments(conversation):
    """`[(text, learned)]` of a conversation; what the assistant writes, its end of turn included, is learned."""
    messages, tools = conversation["messages"], conversation.get("tools")
    pieces = []
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    if system is not None or tools:
        lines = [] if system is None else [system]
        if tools:
            lines += ["Tools:"] + [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
        pieces.append((f"{TURN}system\n" + "\n".join(lines) + f"{END_OF_TURN}\n", False))
    for message in messages[system is not None :]:
        pieces.append((f"{TURN}{message['role']}\n", False))
        if message["role"] == "assistant":
            calls = [tool_call(call["function"]) for call in message.get("tool_calls") or []]
            content = [message["content"]] if message.get("content") else []
            pieces.append(("\n".join(content + calls) + END_OF_TURN, True))
        else:
            pieces.append((message["content"] + END_OF_TURN, False))
        pieces.append(("\n", False))
    return pieces


def tool_call(function):
    """A call as the model writes it."""
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f'{TOOL_CALL}\n{{"name": {json.dumps(function["name"])}, "arguments": {arguments}}}\n{END_OF_TOOL_CALL}'


def template():
    """The committed template, compiled the way transformers compiles one."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)

    def refuse(message):
        raise ValueError(message)

    environment.globals["raise_exception"] = refuse
    return environment.from_string(TEMPLATE.read_text())


def check(conversation, compiled):
    """Fails where `segments` and the template disagree."""
    rendered = compiled.render(
        messages=conversation["messages"], tools=conversation.get("tools"), add_generation_prompt=False
    )
    joined = "".join(text for text, _ in segments(conversation))
    assert joined == rendered, f"the template renders\n{rendered!r}\nbut the pieces are\n{joined!r}"
