"""The bundled model in the place of a serving engine: it generates, and answers in the forms of SGLang and vLLM.

The forms are those that the sources of both engines had in September 2026: `tokenizer_manager.py`, `serving_chat.py`
and `serving_completions.py` of SGLang, and the `protocol.py` of each endpoint of vLLM.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import torch

from moelens import HookedMoE

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}{{ {'user': '客', 'assistant': '母'}[m.role] }}「{{ m.content }}」\n{% endfor %}"
    "{% if add_generation_prompt %}母「{% endif %}"
)


@dataclass(frozen=True)
class Generation:
    """A prompt and what the model generated after it.

    Attributes:
        prompt: The text of the prompt.
        prompt_ids: Its token ids.
        output_ids: Generated token ids.
        text: Their text.
        routes: Chosen experts of all tokens but the last, `[token, layer, slot]` int32; zeros in dense layers.
    """

    prompt: str
    prompt_ids: list[int]
    output_ids: list[int]
    text: str
    routes: np.ndarray

    def rows(self, start: int = 0) -> np.ndarray:
        return self.routes[start:]


class Engine:
    """Generates with a model, token by token with a cache, and keeps the experts of each step."""

    def __init__(self, model: HookedMoE) -> None:
        self.model, self.tokenizer = model, model.tokenizer

    def generate(self, prompt: str, tokens: int, *, special: bool = True, seed: int | None = None) -> Generation:
        """Generate after a text.

        Args:
            prompt: The text.
            tokens: Number of tokens to generate.
            special: Whether the tokenizer adds its special tokens.
            seed: Of sampling; None generates greedily.
        """
        ids = self.tokenizer(prompt, add_special_tokens=special)["input_ids"]
        shape = self.model.shape
        steps: dict[int, list[np.ndarray]] = {layer: [] for layer in shape.moe_layers}

        def keep(tensor: torch.Tensor, hook: Any) -> None:
            steps[int(hook.name.split(".")[1])].append(tensor[0].cpu().numpy().copy())

        if seed is not None:
            torch.manual_seed(seed)
        hooks = [(f"blocks.{layer}.mlp.hook_expert_indices", keep) for layer in shape.moe_layers]
        with self.model.hooks(fwd_hooks=hooks):
            whole = self.model.generate(
                torch.tensor([ids]), max_new_tokens=tokens, do_sample=seed is not None, pad_token_id=1
            )[0]
        routes = np.zeros((len(whole) - 1, shape.n_layers, shape.top_k), np.int32)
        for layer, found in steps.items():
            routes[:, layer] = np.concatenate(found)
        output = whole[len(ids) :].tolist()
        text = self.tokenizer.decode(output, skip_special_tokens=True)
        return Generation(prompt, ids, output, text, routes)

    def chat(self, messages: Sequence[dict[str, str]], tokens: int, **options: Any) -> Generation:
        """Generate after a conversation, which the chat template turns into a text."""
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.generate(text, tokens, special=False, **options)


# SGLang


def int32_base64(routes: np.ndarray) -> str:
    return base64.b64encode(routes.astype(np.int32).tobytes()).decode()


def meta_info(g: Generation, start: int = 0) -> dict[str, Any]:
    return {
        "id": "7f1f3d1c7ce54ea5a8e9a5e31a1b4c55",
        "finish_reason": {"type": "length", "length": len(g.output_ids)},
        "prompt_tokens": len(g.prompt_ids),
        "weight_version": "default",
        "completion_tokens": len(g.output_ids),
        "cached_tokens": 0,
        "e2e_latency": 0.1,
        "routed_experts": int32_base64(g.rows(start)),
    }


def sglang_generate(g: Generation, start: int = 0) -> dict[str, Any]:
    """`/generate`: the completion's text and ids, and never the prompt's."""
    return {"text": g.text, "output_ids": g.output_ids, "meta_info": meta_info(g, start)}


def sglang_batch(generations: Sequence[Generation]) -> list[dict[str, Any]]:
    """`/generate` with several prompts, or with n > 1."""
    return [sglang_generate(g) for g in generations]


def usage(generations: Sequence[Generation]) -> dict[str, int]:
    prompt, completion = len(generations[0].prompt_ids), sum(len(g.output_ids) for g in generations)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def sglang_completions(generations: Sequence[Generation], token_ids: bool = False) -> dict[str, Any]:
    """`/v1/completions`: the routes of the first choice beside all choices."""
    choices = [
        {"index": i, "text": g.text, "logprobs": None, "finish_reason": "length", "matched_stop": None}
        | ({"token_ids": g.output_ids, "prompt_token_ids": g.prompt_ids} if token_ids else {})
        for i, g in enumerate(generations)
    ]
    return {
        "id": "7f1f3d1c7ce54ea5a8e9a5e31a1b4c55",
        "object": "text_completion",
        "created": 1790000000,
        "model": "default",
        "choices": choices,
        "usage": usage(generations),
        "metadata": {"weight_version": "default"},
        "sglext": {"routed_experts": int32_base64(generations[0].rows())},
    }


def sglang_choices(generations: Sequence[Generation]) -> dict[str, Any]:
    """`/v1/completions` of a version that has `sgl_ext` in each choice."""
    answer = sglang_completions(generations, token_ids=True)
    del answer["sglext"]
    for choice, g in zip(answer["choices"], generations, strict=True):
        choice["sgl_ext"] = {"routed_experts": int32_base64(g.rows())}
    return answer


def sglang_chat(generations: Sequence[Generation], start: int = 0) -> dict[str, Any]:
    """`/v1/chat/completions` with `return_meta_info` and `return_prompt_token_ids`."""
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": g.text, "reasoning_content": None, "tool_calls": None},
            "logprobs": None,
            "finish_reason": "length",
            "matched_stop": None,
            "prompt_token_ids": g.prompt_ids,
            "meta_info": meta_info(g, start)
            | {"output_token_logprobs": [[-0.5, token, None] for token in g.output_ids]},
        }
        for i, g in enumerate(generations)
    ]
    return {
        "id": "7f1f3d1c7ce54ea5a8e9a5e31a1b4c55",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "default",
        "choices": choices,
        "usage": usage(generations),
        "metadata": {"weight_version": "default"},
    }


# vLLM


def npy_base64(routes: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, routes.astype(np.uint8), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def vllm_offline(generations: Sequence[Generation]) -> dict[str, Any]:
    """`LLM.generate`: a RequestOutput as an object."""
    return {
        "request_id": "0",
        "prompt": generations[0].prompt,
        "prompt_token_ids": generations[0].prompt_ids,
        "outputs": [
            {"index": i, "text": g.text, "token_ids": g.output_ids, "routed_experts": g.rows().tolist()}
            for i, g in enumerate(generations)
        ],
        "finished": True,
    }


def vllm_completions(generations: Sequence[Generation], start: int = 0) -> dict[str, Any]:
    """`/v1/completions` with `return_token_ids`."""
    return {
        "id": "cmpl-8a1",
        "object": "text_completion",
        "created": 1790000000,
        "model": "demo",
        "choices": [
            {
                "index": i,
                "text": g.text,
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": g.output_ids,
                "prompt_logprobs": None,
                "prompt_token_ids": g.prompt_ids,
                "routed_experts": npy_base64(g.rows(start)),
            }
            for i, g in enumerate(generations)
        ],
        "usage": usage(generations),
        "kv_transfer_params": None,
    }


def vllm_chat(generations: Sequence[Generation], start: int = 0, split: bool = False) -> dict[str, Any]:
    """`/v1/chat/completions` with `return_token_ids`; `split` is the form of 0.21, with the prompt's rows apart."""
    n = len(generations[0].prompt_ids)
    return {
        "id": "chatcmpl-8a1",
        "object": "chat.completion",
        "created": 1790000000,
        "model": "demo",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": g.text, "refusal": None, "reasoning": None},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
                "token_ids": g.output_ids,
                "routed_experts": g.rows(n).tolist() if split else npy_base64(g.rows(start)),
            }
            for i, g in enumerate(generations)
        ],
        "usage": usage(generations),
        "prompt_logprobs": None,
        "prompt_token_ids": generations[0].prompt_ids,
        "prompt_text": None,
        "kv_transfer_params": None,
    } | ({"prompt_routed_experts": generations[0].rows()[start:n].tolist()} if split else {})


def vllm_generate(generations: Sequence[Generation]) -> dict[str, Any]:
    """`/inference/v1/generate`: token ids alone; those of the prompt are in the request."""
    choices = [
        {
            "index": i,
            "logprobs": None,
            "finish_reason": "length",
            "token_ids": g.output_ids,
            "routed_experts": npy_base64(g.rows()),
        }
        for i, g in enumerate(generations)
    ]
    return {"request_id": "8a1", "choices": choices, "prompt_logprobs": None, "kv_transfer_params": None}


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """Serve `/generate` of SGLang on a free port; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/generate"
            assert request["return_routed_experts"] is True
            tokens = request["sampling_params"]["max_new_tokens"]
            body = json.dumps(sglang_generate(engine.generate(request["text"], tokens))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
