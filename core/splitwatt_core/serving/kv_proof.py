"""Did the KV cache move? The verdict on one probe, from the decode engines' counters before and after it.

Theory: an answer proves nothing. An engine that cannot fetch a KV cache computes the prompt itself and answers 200 OK with the
right text, so that a split that never happens looks like one that does. Three of vLLM's counters cannot be fooled: the bytes that
the connector moved, which must be whole blocks of the prompt; the prompt tokens that came by external transfer, which must be
the prompt; and the transfers that failed, of which there must be none. Its counters of external cache hits rise before a
transfer is tried, whether it succeeds or not, and are not looked at.

A probe's prompt is unique, so nothing of it is cached. Where requests of others fall between the two looks, their tokens cannot
be told from the probe's, and the probe is undecided: no verdict, never a good one.

Source: measured on vLLM 0.32 with NixlConnector; 700 tokens moved 6 blocks of 128 in each of 2 layers, 786 432 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NAMED: Final = 3
"""Engines that one sentence names."""


class KvReason(StrEnum):
    """Values of the condition's reason."""

    VERIFIED = "Verified"
    BUSY = "OtherRequests"
    NOT_COUNTED = "NotCounted"
    RESTARTED = "EngineRestarted"
    REFUSED = "RequestFailed"
    NO_CONNECTOR = "NoConnector"
    NOTHING_MOVED = "NothingTransferred"
    FAILED = "TransferFailed"
    RECOMPUTED = "DecodeRecomputes"
    WRONG_BYTES = "WrongBytes"
    VERSIONS = "VersionsDiffer"
    SIDE_CHANNEL = "SideChannelClosed"


@dataclass(frozen=True, slots=True)
class KvCounters:
    """What one decode engine has counted so far. `moved_bytes`, `failed` None: it shows no counter of a connector. Tokens of
    prompts by where they came from; `block_tokens`: tokens of one block of its cache, None when it does not say."""

    external_tokens: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    moved_bytes: int | None = None
    failed: int | None = None
    block_tokens: int | None = None

    @property
    def tokens(self) -> int:
        return self.external_tokens + self.computed_tokens + self.cached_tokens


@dataclass(frozen=True, slots=True)
class Looks:
    """One decode engine, right before the probe and after its answer."""

    before: KvCounters
    after: KvCounters


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What else is known, to say why: versions by engine, prefill engines that show no counter of a connector, and those whose
    side channel takes no connection."""

    versions: Mapping[str, str]
    unconnected: Sequence[str] = ()
    closed: Sequence[str] = ()
    side_channel_port: int = 0


@dataclass(frozen=True, slots=True)
class KvVerdict:
    """`verified` None: undecided, what was known stands. `block_bytes`: of one block in all layers, as this probe showed it."""

    verified: bool | None
    reason: KvReason
    message: str
    block_bytes: int | None = None


def block_bytes(*, layers: int, layer_block_bytes: int) -> int:
    """Of one block of the cache in all layers."""
    return layers * layer_block_bytes


def judge(
    looks: Mapping[str, Looks],
    *,
    status: int,
    prompt_tokens: int,
    known_block_bytes: int | None,
    around: Circumstances,
) -> KvVerdict:
    """`looks`: every decode engine by name. `status`: HTTP's, of the probe's answer, 0 for none;
    `prompt_tokens` are known of a good one alone. `known_block_bytes`: as an
    earlier probe showed them, or None; then whole blocks are enough. Never raises."""
    if any(after_is_less(look) for look in looks.values()):
        return KvVerdict(None, KvReason.RESTARTED, "A decode engine's counters fell: it was restarted during the probe.")
    failed = {name: n for name, look in looks.items() if (n := _delta(look, "failed"))}
    if failed or status != 200:
        return _failure(looks, failed, status=status, prompt_tokens=prompt_tokens, around=around)
    took = {name: look.after.tokens - look.before.tokens for name, look in looks.items()}
    mine = [name for name, tokens in took.items() if tokens == prompt_tokens]
    if len(mine) != 1:
        if sum(took.values()) < prompt_tokens:
            told = f"The probe's {prompt_tokens} prompt tokens were answered, and no decode engine counts them yet."
            return KvVerdict(None, KvReason.NOT_COUNTED, told)
        if not any(_delta(look, "external_tokens") or _delta(look, "moved_bytes") for look in looks.values()):
            told = f"{sum(took.values())} prompt tokens, the probe's among them, were all read by decode engines themselves."
            return _unmoved(around, told)
        told = "Other requests came between; their tokens cannot be told from the probe's."
        return KvVerdict(None, KvReason.BUSY, told)
    return _alone(mine[0], looks[mine[0]], prompt_tokens=prompt_tokens, known_block_bytes=known_block_bytes, around=around)


def after_is_less(look: Looks) -> bool:
    """A counter only ever falls when its process is a new one."""
    return look.after.tokens < look.before.tokens or (look.after.moved_bytes or 0) < (look.before.moved_bytes or 0)


def _delta(look: Looks, field: str) -> int:
    """Of a counter that may not be shown."""
    return int((getattr(look.after, field) or 0) - (getattr(look.before, field) or 0))


def _alone(name: str, look: Looks, *, prompt_tokens: int, known_block_bytes: int | None, around: Circumstances) -> KvVerdict:
    """One engine answered the probe and nothing else."""
    if look.after.moved_bytes is None:
        told = f"Decode engine {name} shows no counter of a KV connector: it runs without --kv-transfer-config."
        return KvVerdict(False, KvReason.NO_CONNECTOR, told)
    external, moved = _delta(look, "external_tokens"), _delta(look, "moved_bytes")
    if not external and not moved:
        told = f"Decode engine {name} computed all {prompt_tokens} prompt tokens itself, and no transfer was tried."
        return _unmoved(around, told)
    if external != prompt_tokens:
        told = f"Of {prompt_tokens} prompt tokens {external} came by transfer; decode engine {name} computed the others again."
        return _because(around, KvVerdict(False, KvReason.RECOMPUTED, told))
    block_tokens = look.after.block_tokens
    blocks = None if not block_tokens else -(-prompt_tokens // block_tokens)
    if blocks is None:
        told = f"Decode engine {name} does not say how many tokens a block has: {moved} bytes cannot be checked."
        return KvVerdict(None, KvReason.NOT_COUNTED, told)
    whole = moved > 0 and moved % blocks == 0
    if not whole or known_block_bytes not in (None, moved // blocks):
        should = f"blocks of {known_block_bytes} bytes" if known_block_bytes else "whole blocks"
        told = f"{moved} bytes were transferred for {prompt_tokens} prompt tokens; {blocks} {should} should have been."
        return _because(around, KvVerdict(False, KvReason.WRONG_BYTES, told))
    told = (
        f"{prompt_tokens} prompt tokens came to decode engine {name} by transfer, in {moved} bytes: {blocks} blocks of "
        f"{moved // blocks}."
    )
    return KvVerdict(True, KvReason.VERIFIED, told, block_bytes=moved // blocks)


def _failure(
    looks: Mapping[str, Looks], failed: Mapping[str, int], *, status: int, prompt_tokens: int, around: Circumstances
) -> KvVerdict:
    if not failed:
        told = f"The probe got {status}." if status else "The probe got no answer in time."
        return _because(around, KvVerdict(False, KvReason.REFUSED, f"{told} No transfer is counted as failed."))
    computed = sum(_delta(look, "computed_tokens") for name, look in looks.items() if name in failed)
    again = status == 200 and computed >= prompt_tokens
    words = "the prompt was computed again there" if again else f"the request ended with {status or 'no answer'}"
    told = f"{sum(failed.values())} transfers failed at decode engine {_names(list(failed))}; {words}."
    return _because(around, KvVerdict(False, KvReason.RECOMPUTED if again else KvReason.FAILED, told))


def _unmoved(around: Circumstances, told: str) -> KvVerdict:
    """Nothing was fetched, so no side channel and no other version stood in the way: decode was never told of a KV cache."""
    if around.unconnected:
        why = f"Prefill engine {_names(around.unconnected)} shows no counter of a KV connector: it runs without one."
        return KvVerdict(False, KvReason.NO_CONNECTOR, f"{why} {told}")
    return KvVerdict(False, KvReason.NOTHING_MOVED, f"{told} The router hands nothing on.")


def _because(around: Circumstances, verdict: KvVerdict) -> KvVerdict:
    """The same verdict with the reason that explains it, where one is known."""
    if around.closed:
        told = f"Nobody listens at side channel port {around.side_channel_port} of prefill engine {_names(around.closed)}."
        return KvVerdict(False, KvReason.SIDE_CHANNEL, f"{told} {verdict.message}")
    found = sorted(set(around.versions.values()))
    if len(found) > 1:
        told = f"The engines are of versions {' and '.join(found)}, which need not understand each other."
        return KvVerdict(False, KvReason.VERSIONS, f"{told} {verdict.message}")
    return verdict


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more
