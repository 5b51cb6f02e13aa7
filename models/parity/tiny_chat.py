"""The `tiny-chat` fixture: a random Llama with a byte-level BPE tokenizer and a chat template, for tests of text paths.

Its text is gibberish by construction; what matters is that every step from messages to text is reproducible.
"""

import json
import pathlib

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from specs import Spec, llama

SPECIAL_TOKENS = ["<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BOS, ENDOFTEXT, IM_START, IM_END = SPECIAL_TOKENS
VOCAB_SIZE = 443

SPEC = Spec(
    name="tiny-chat",
    purpose="a whole model directory: tokenizer.json (byte-level BPE), tokenizer_config.json with a chat template, generation_config.json with two end ids",
    config=llama(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=70, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, rms_norm_eps=1e-3, rope_theta=10000.0, max_position_embeddings=2048, attention_bias=False, mlp_bias=False,
        tie_word_embeddings=True, torch_dtype="float32", bos_token_id=0, eos_token_id=[3, 1],
    ),
)  # fmt: skip

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Written for this file; the merges are learnt from it. Accents, CJK and emoji leave some bytes unmerged on purpose.
TRAINING_TEXT = """\
The lighthouse keeper counted the ships that passed in the night: one, two, three, and then no more.
In the morning she wrote the number in a book, drank her tea, and went to sleep while the gulls argued.
A machine that answers questions must first read them. It reads one token, then the next token, then the next.
What is the capital of the country? What is the name of the river? How many hours are there in a day?
You are a helpful assistant. Answer the question of the user in one short sentence, please.
The user asked for a list: apples, pears, plums, cherries. The assistant gave the list: apples, pears, plums, cherries.
def count(words): return len(words.split()) and {"key": [1, 2, 3], "value": null, "other": true}
If the weather is fine, we will walk to the harbour; if the weather is not fine, we will stay in the house and read.
Le garçon a mangé une crème brûlée à la fête. Der Bär trägt schöne Schuhe über die Straße. Ég er hér.
日本語の文章もあります。 数字は 0 1 2 3 4 5 6 7 8 9 10 20 30 100 1000. Emoji: 🙂🚢🌊.
Hello, hello! Hello again. Good night, good morning, good luck. The end of the text is the end of the text.
"""


def write_tokenizer(folder: pathlib.Path) -> None:
    """tokenizer.json, tokenizer_config.json and generation_config.json, laid out as hub checkpoints have them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL_TOKENS, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT.splitlines(), trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    # A string prompt gets the start token from here; a chat prompt gets it from the template.
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, 0)]),
    ])  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for i, t in enumerate(SPECIAL_TOKENS)
    }
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True,
        "added_tokens_decoder": added,
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": IM_END,
        "model_max_length": SPEC.config["max_position_embeddings"],
        "pad_token": ENDOFTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    })  # fmt: skip
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "do_sample": False, "eos_token_id": [3, 1], "pad_token_id": 1})


def write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def record_text(model, folder: pathlib.Path, greedy, min_margin: float) -> dict:
    """The `tokenization`, `completions` and `chats` of expected.json; `greedy(model, ids, steps)` generates."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    eos = SPEC.config["eos_token_id"]

    def generate(ids: list[int], steps: int) -> dict | None:
        """None when a step is too close to call."""
        out = greedy(model, ids, steps)
        ends = [i for i, t in enumerate(out["ids"]) if t in eos]
        kept = out["ids"][: ends[0]] if ends else out["ids"]
        used = len(kept) + bool(ends)
        if min(out["margins"][:used]) <= min_margin:
            return None
        return {
            "prompt_ids": ids,
            "max_tokens": steps,
            "ids": out["ids"][:used],
            "logprobs": out["logprobs"][:used],
            "margins": out["margins"][:used],
            "text": tokenizer.decode(kept, skip_special_tokens=True),
            "finish_reason": "stop" if ends else "length",
        }

    def chat(messages: list[dict]) -> dict | None:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        out = generate(tokenizer(text, add_special_tokens=False).input_ids, 48)
        return out and {"messages": messages, "rendered": text} | out

    def first(candidates, count: int, accept=lambda c: True) -> list[dict]:
        found = []
        for c in candidates:
            if c is not None and accept(c):
                found.append(c)
                if len(found) == count:
                    return found
        raise SystemExit(f"tiny-chat: only {len(found)} of {count} cases found")

    def conversations(*shapes: int):
        """Endless small talk: 0 a question, 1 a system prompt and a question, 2 a second turn."""
        system = {"role": "system", "content": "You are a helpful assistant."}
        for n in range(1, 400):
            user = {"role": "user", "content": f"How many ships are {n} and {n + 1} ships?"}
            answer = {"role": "assistant", "content": f"There are {2 * n + 1} ships. 🚢"}
            second = {"role": "user", "content": "  And in the night?\n"}
            talks = [[user], [system, user], [system, user, answer, second]]
            yield from (talks[s] for s in shapes)

    ends_itself = lambda c: c["finish_reason"] == "stop" and 4 <= len(c["ids"]) <= 40  # noqa: E731
    texts = ["", "Hello", " Hello,  world!\n", "crème brûlée 日本 🚢🙂", "a <|im_end|> b<|im_start|>user\n", "1234567890", "\t\u00a0\u200d\u0301e"]
    prompts = [f"The lighthouse keeper counted {n} ships" for n in range(40)]
    return {
        "eos_ids": eos,
        "tokenization": [
            {"text": t, "ids": tokenizer(t).input_ids, "ids_without_special": tokenizer(t, add_special_tokens=False).input_ids,
             "decoded": tokenizer.decode(tokenizer(t).input_ids), "decoded_skip_special": tokenizer.decode(tokenizer(t).input_ids, skip_special_tokens=True)}
            for t in texts
        ],
        "completions": first(({"prompt": p} | c for p in prompts if (c := generate(tokenizer(p).input_ids, 32))), 3),
        "chats": [
            *[first(map(chat, conversations(s)), 1, lambda c: c["finish_reason"] == "length")[0] for s in range(3)],
            *first(map(chat, conversations(0, 1, 2)), 2, ends_itself),
        ],
    }  # fmt: skip
