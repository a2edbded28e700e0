"""vLLM's HTTP: completions, chat, models, health, metrics. Answers are filler; their tokens and their times are the model's.

Every answer has as many tokens as asked for, for an emulated model never ends by itself. A prompt counts four characters a
token. KV transfer follows vLLM's NixlConnector: a prefill replica answers with where its KV cache lies, and whoever brings
that to a decode replica has no prompt computed there. A request that says its KV cache is elsewhere without saying where
ends vLLM's engine; here it is refused with a sentence. A KV cache of an engine with another version or layout is not taken, as in
NIXL's handshake: the prompt is read again, or the request fails, by kv_load_failure_policy.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from splitwatt_core import __version__
from splitwatt_shell.serve import page
from splitwatt_shell.waiting import woken

from splitwatt_twin.pod.flags import EngineSettings
from splitwatt_twin.pod.replica import STREAM_S, BusyError, Job, Replica

log = logging.getLogger(__name__)

CHARS_PER_TOKEN: Final = 4
FILLER: Final = "watt"
"""Each token of an answer, with a space before it."""
DEFAULT_TOKENS: Final = 16
"""Of a completion that names no max_tokens, as in vLLM."""
DEFAULT_CHAT_TOKENS: Final = 256
"""vLLM lets a chat run to the model's own end; this stands for it."""
_REMOTE: Final = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request's body asks for, checked."""

    model: str
    prompt_tokens: int
    output_tokens: int
    chat: bool
    stream: bool
    usage_in_stream: bool
    kv_arrives: bool
    kv_leaves: bool


class Refusal(Exception):  # noqa: N818 - it is one
    """An answer that says what is wrong with a request, in vLLM's form."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind

    def response(self) -> web.Response:
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.status}
        return web.json_response({"error": error}, status=self.status)


def application(settings: EngineSettings, replica: Replica) -> web.Application:
    server = _Server(settings, replica)
    app = web.Application()
    app.add_routes([
        web.post("/v1/completions", server.completions),
        web.post("/v1/chat/completions", server.chat),
        web.get("/v1/models", server.models),
        web.get("/health", server.health),
        web.get("/version", server.version),
        web.get("/metrics", server.metrics),
    ])  # fmt: skip
    return app


def read(body: Any, *, chat: bool, settings: EngineSettings, most_tokens: int) -> Ask:
    """Raises Refusal."""
    if not isinstance(body, dict):
        raise _bad("the body must be a JSON object")
    model = body.get("model") or settings.served_names[0]
    if model not in settings.served_names:
        raise Refusal(404, "NotFoundError", f"The model `{model}` does not exist.")
    if body.get("n", 1) != 1:
        raise _bad("the emulated engine gives one answer: leave n out")
    prompt = _chat_tokens(body.get("messages")) if chat else _prompt_tokens(body.get("prompt"))
    asked = (body.get("max_completion_tokens") or body.get("max_tokens")) if chat else body.get("max_tokens")
    room = most_tokens - prompt
    output = min(DEFAULT_CHAT_TOKENS, room) if asked is None and chat else DEFAULT_TOKENS if asked is None else asked
    if not isinstance(output, int) or isinstance(output, bool) or output < 1:
        if room < 1:
            raise _bad(f"This model's maximum context length is {most_tokens} tokens; the prompt alone has {prompt}.")
        raise _bad(f"max_tokens must be a whole number of at least 1, not {output!r}")
    if output > room:
        raise _bad(
            f"This model's maximum context length is {most_tokens} tokens; you asked for {prompt + output}: "
            f"{prompt} in the prompt, {output} in the answer."
        )
    arrives, leaves = _transfer(body.get("kv_transfer_params"), settings)
    options = body.get("stream_options") or {}
    return Ask(
        model=model,
        prompt_tokens=prompt,
        output_tokens=output,
        chat=chat,
        stream=body.get("stream") is True,
        usage_in_stream=isinstance(options, dict) and options.get("include_usage") is True,
        kv_arrives=arrives,
        kv_leaves=leaves,
    )


def _bad(message: str) -> Refusal:
    return Refusal(400, "BadRequestError", message)


def _prompt_tokens(prompt: Any) -> int:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return math.ceil(len(prompt) / CHARS_PER_TOKEN)
    if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
        return len(prompt)
    raise _bad("prompt must be one text, or one list of token numbers")


def _chat_tokens(messages: Any) -> int:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise _bad("messages must be a list of objects with role and content")
    return math.ceil(sum(len(json.dumps(m.get("content"))) for m in messages) / CHARS_PER_TOKEN)


def _transfer(params: Any, settings: EngineSettings) -> tuple[bool, bool]:
    """(the KV cache comes from elsewhere, it will be fetched from here). Without a connector vLLM looks at neither."""
    if not isinstance(params, Mapping) or settings.kv_role is None:
        return False, False
    arrives, leaves = params.get("do_remote_prefill") is True, params.get("do_remote_decode") is True
    if arrives and (absent := [key for key in _REMOTE if params.get(key) is None]):
        raise _bad(f"kv_transfer_params says do_remote_prefill without {', '.join(absent)}; vLLM's engine would end on it")
    if arrives and (theirs := str(params["remote_engine_id"]).partition(":")[0]) != settings.kv_hash:
        log.warning("the KV cache is of an engine with the layout %s, ours is %s", theirs, settings.kv_hash)
        if not settings.recompute:
            raise Refusal(500, "InternalServerError", "KV load failed: the prefill engine has another version or KV layout")
        arrives = False
    return arrives, leaves


class _Server:
    def __init__(self, settings: EngineSettings, replica: Replica) -> None:
        self._settings = settings
        self._replica = replica
        self._engine_id = f"{settings.kv_hash}:{uuid.uuid4()}"

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def metrics(self, _: web.Request) -> web.Response:
        return page(self._replica)

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": f"splitwatt-engine {__version__}"})

    async def models(self, _: web.Request) -> web.Response:
        rows = [
            {"id": name, "object": "model", "owned_by": "splitwatt", "root": self._settings.model,
             "max_model_len": self._settings.model_tokens}
            for name in self._settings.served_names
        ]  # fmt: skip
        return web.json_response({"object": "list", "data": rows})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _answer(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        try:
            try:
                body = await request.json()
            except ValueError as error:
                raise _bad(f"the body is no JSON: {error}") from None
            ask = read(body, chat=chat, settings=self._settings, most_tokens=self._replica.most_tokens)
            job = self._replica.submit(
                prompt_tokens=ask.prompt_tokens, output_tokens=ask.output_tokens, kv_arrives=ask.kv_arrives
            )  # fmt: skip
        except Refusal as refusal:
            return refusal.response()
        except BusyError as error:
            return Refusal(503, "ServiceUnavailableError", str(error)).response()
        if ask.stream:
            return await self._stream(request, ask, job)
        await job.done.wait()
        text = f" {FILLER}" * ask.output_tokens
        choice = {"index": 0, "finish_reason": "length", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return web.json_response(self._frame(ask, "") | {
            "choices": [choice], "usage": _usage(ask),
            "kv_transfer_params": self._where() if ask.kv_leaves else None,
        })  # fmt: skip

    async def _stream(self, request: web.Request, ask: Ask, job: Job) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        try:
            await self._write(response, ask, job)
        except ConnectionResetError:
            return response  # the client went away; its request runs to its end
        return response

    async def _write(self, response: web.StreamResponse, ask: Ask, job: Job) -> None:
        frame, shown = self._frame(ask, ".chunk"), 0
        while shown < ask.output_tokens:
            await woken(job.done, within_s=STREAM_S)
            new = self._replica.generated(job) - shown
            if not new:
                continue
            shown += new
            end = "length" if shown == ask.output_tokens else None
            text = f" {FILLER}" * new
            choice = {"index": 0, "finish_reason": end, **({"delta": {"content": text}} if ask.chat else {"text": text})}
            await response.write(_event(frame | {"choices": [choice]}))
        if ask.usage_in_stream:
            await response.write(_event(frame | {"choices": [], "usage": _usage(ask)}))
        await response.write(b"data: [DONE]\n\n")

    def _frame(self, ask: Ask, suffix: str) -> dict[str, Any]:
        kind, prefix = (f"chat.completion{suffix}", "chatcmpl") if ask.chat else ("text_completion", "cmpl")
        return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": ask.model}

    def _where(self) -> dict[str, Any]:
        """What a router hands on to the decode replica."""
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self._engine_id,
            "remote_block_ids": [0],
            "remote_host": os.environ.get("VLLM_NIXL_SIDE_CHANNEL_HOST", "localhost"),
            "remote_port": int(os.environ.get("VLLM_NIXL_SIDE_CHANNEL_PORT", "5600")),
            "tp_size": self._settings.gpus,
        }


def _usage(ask: Ask) -> dict[str, int]:
    return {
        "prompt_tokens": ask.prompt_tokens,
        "completion_tokens": ask.output_tokens,
        "total_tokens": ask.prompt_tokens + ask.output_tokens,
    }


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"
