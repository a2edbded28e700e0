"""`splitwatt memprofile`: every format is read as it is, verdicts have their numbers, and bad files get one sentence."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from splitwatt_cli.main import main
from splitwatt_memory.files.opened import tensors_in
from splitwatt_memory.files.tensor import BLOCK_ELEMENTS, TensorFileError
from splitwatt_memory.profile import ProfileOptions, profile_of, work_bytes
from splitwatt_memory.values import TARGETS, TYPES, converted
from support.some import some

RNG = np.random.default_rng(7)
WEIGHTS = RNG.normal(0, 0.02, (512, 512)).astype("<f4")
RELU = np.maximum(RNG.normal(0, 1, (512, 512)), 0).astype("<f4")


def as_bf16(values: np.ndarray[Any, Any]) -> bytes:
    return converted(values.astype("<f4").tobytes(), TYPES["fp32"], TYPES["bf16"])


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> Path:
    header, at = {}, 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values()))
    return path


def write_gguf(path: Path, tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> Path:
    """Version 3 with metadata of every shape that is passed over."""

    def text(of: str) -> bytes:
        return struct.pack("<Q", len(of)) + of.encode()

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc"),
        text("scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12),
        text("general.alignment") + struct.pack("<II", 4, 64),
    ]
    rows, data = [], b""
    for name, (of, shape, raw) in tensors.items():
        rows.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, of, len(data)))
        data += raw + bytes(-len(raw) % 64)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(pairs)) + b"".join(pairs) + b"".join(rows)
    path.write_bytes(head + bytes(-len(head) % 64) + data)
    return path


def run(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    out = tmp_path / "out.json"
    assert main(["memprofile", *map(str, arguments), "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_bf16_weights_and_relu_maps_get_their_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_safetensors(tmp_path / "w.safetensors", {"w": ("BF16", (512, 512), as_bf16(WEIGHTS))})
    found = run(tmp_path, file)["codecs"]
    assert found["bpc"]["target_ratio"] == 1.0 and 1.1 < found["bpc"]["raw_ratio"] < 1.3
    assert found["exponent"]["target_ratio"] == pytest.approx(4 / 3, abs=1e-4)
    assert found["exponent"]["overflow_fraction"] <= 0.005
    said = " ".join(capsys.readouterr().out.split())
    assert "bpc: no. 1.00x" in said and "exponent: yes. 1.33x" in said and "no GPU or engine does this today" in said
    np.save(tmp_path / "relu.npy", RELU)
    found = run(tmp_path, tmp_path / "relu.npy")["codecs"]
    assert found["zvc"]["target_ratio"] == pytest.approx(4 / 3, abs=1e-4) and found["zvc"]["overflow_fraction"] <= 0.08


def test_every_format_gives_the_same_figures(tmp_path: Path) -> None:
    raw = as_bf16(WEIGHTS)
    bits = np.frombuffer(raw, "<u2").reshape(WEIGHTS.shape)
    (tmp_path / "w.bin").write_bytes(raw)
    np.save(tmp_path / "w.npy", bits)
    np.savez_compressed(tmp_path / "w.npz", w=bits)
    np.savez(tmp_path / "f.npz", w=WEIGHTS)
    write_safetensors(tmp_path / "w.safetensors", {"w": ("BF16", WEIGHTS.shape, raw)})
    write_safetensors(tmp_path / "f.safetensors", {"w": ("F32", WEIGHTS.shape, WEIGHTS.tobytes())})
    write_gguf(tmp_path / "w.gguf", {"w": (30, WEIGHTS.shape, raw)})
    write_gguf(tmp_path / "f.gguf", {"w": (0, WEIGHTS.shape, WEIGHTS.tobytes())})
    held, as_it = ("--dtype", "bf16"), ("--as", "bf16")
    asked = [
        ("w.bin", *held), ("w.npy", *held), ("w.npz", *held), ("f.npz", *as_it), ("w.safetensors",), ("f.safetensors", *as_it),
        ("w.gguf",), ("f.gguf", *as_it),
    ]  # fmt: skip
    figures = [run(tmp_path, tmp_path / name, *options) for name, *options in asked]
    assert all(one["codecs"] == figures[0]["codecs"] for one in some(figures[1:]))
    assert all(one["tensors"]["w"]["codecs"] == figures[0]["codecs"] for one in figures)


def test_blocks_of_quantised_values_are_measured_as_bytes_and_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = RNG.integers(0, 256, 20 * 64, dtype=np.uint8).tobytes()
    file = write_gguf(tmp_path / "q.gguf", {"q": (3, (32, 64), noise), "norm": (0, (64,), bytes(256))})
    found = run(tmp_path, file, "--as", "bf16")
    assert found["tensors"]["q"]["held"] == "Q4_1" and found["tensors"]["q"]["raw_bytes"] == len(noise)
    assert found["tensors"]["norm"]["measured_as"] == "bf16" and found["tensors"]["norm"]["raw_bytes"] == 128
    assert found["codecs"]["bpc"]["target_ratio"] < 1.2
    assert "1 tensors are no floats and stayed as they are" in capsys.readouterr().out


def test_allocations_share_targets_and_codes(tmp_path: Path) -> None:
    tensors = {f"layer.{n}.w": ("BF16", (64, 64), as_bf16(WEIGHTS[:64, :64] * 4.0**n)) for n in range(3)}
    file = write_safetensors(tmp_path / "w.safetensors", tensors)
    alone, together = run(tmp_path, file), run(tmp_path, file, "--allocations", "kind")
    assert len(alone["allocations"]) == 3 and list(together["allocations"]) == ["layer.*.w"]
    assert together["codecs"]["exponent"]["raw_ratio"] < alone["codecs"]["exponent"]["raw_ratio"]


def test_over_snapshots_the_worst_counts_and_the_first_ones_code_stays(tmp_path: Path) -> None:
    early = write_safetensors(tmp_path / "0.safetensors", {"w": ("BF16", (512, 512), as_bf16(RELU * (RELU > 2)))})
    late = write_safetensors(tmp_path / "1.safetensors", {"w": ("BF16", (512, 512), as_bf16(WEIGHTS))})
    one = run(tmp_path, early)["codecs"]
    both = run(tmp_path, early, late, "--snapshots")
    assert one["zvc"]["target_ratio"] >= 2 and both["codecs"]["zvc"]["target_ratio"] == 1
    assert both["allocations"]["w"]["snapshots"] == 2 and both["codecs"]["exponent"]["target_ratio"] == 1
    assert run(tmp_path, late)["codecs"]["exponent"]["target_ratio"] > 1.3


def test_a_sample_says_nearly_the_same_and_names_itself(tmp_path: Path) -> None:
    large = RNG.normal(0, 0.02, 6 * BLOCK_ELEMENTS).astype("<f4")
    file = write_safetensors(tmp_path / "w.safetensors", {"w": ("BF16", large.shape, as_bf16(large))})
    whole, part = run(tmp_path, file), run(tmp_path, file, "--sample-mebibytes", "4")
    assert part["sampled"] and not whole["sampled"]
    assert sum(part["codecs"]["bpc"]["entries_by_size"].values()) == large.size * 2 // 128
    assert part["codecs"]["bpc"]["raw_ratio"] == pytest.approx(whole["codecs"]["bpc"]["raw_ratio"], rel=0.01)


def test_progress_comes_to_its_end(tmp_path: Path) -> None:
    write_gguf(tmp_path / "q.gguf", {"q": (3, (32, 64), bytes(1280)), "w": (0, (4096,), RELU[:8].tobytes())})
    for options in (ProfileOptions(), ProfileOptions(wanted=TYPES["bf16"])):
        moments = [tensors_in(tmp_path / "q.gguf")]
        done: list[int] = []
        profile_of(moments, options, done.append)
        assert sum(done) == work_bytes(moments, options) > 0


def test_a_file_is_never_held_whole(tmp_path: Path) -> None:
    """256 MiB of bf16 in a process that may have 160 MiB above what its imports take."""
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    code = (
        "import argparse, resource, sys, splitwatt_memory.command as c\n"
        "parser = argparse.ArgumentParser()\n"
        "c.COMMAND.add_arguments(parser)\n"
        "had = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (had + (160 << 20),) * 2)\n"
        f"sys.exit(c.COMMAND.run(parser.parse_args([{str(path)!r}, '--dtype', 'bf16'])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "bpc: yes" in done.stdout


@pytest.mark.parametrize("form", [".png", ".svg"])
def test_a_picture_is_drawn(form: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(as_bf16(WEIGHTS))
    target = tmp_path / f"sizes{form}"
    run(tmp_path, tmp_path / "w.bin", "--dtype", "bf16", "--picture", target)
    assert target.read_bytes()[:5] in {b"\x89PNG\r", b"<?xml"}


def test_links_and_memories_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(as_bf16(RELU))
    found = run(tmp_path, tmp_path / "w.bin", "--dtype", "bf16", "--link", "mine=100", "--link", "c2c", "--memory", "2000")
    assert found["link_bytes_per_s"] == {"mine": 1e11, "c2c": 3.77e11} and found["memory_bytes_per_s"] == 2e12
    assert found["codecs"]["zvc"]["slowdown"]["mine"] > found["codecs"]["zvc"]["slowdown"]["c2c"] > 1


def damaged(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    good = write_safetensors(tmp_path / "good.safetensors", {"w": ("BF16", (64,), bytes(128))}).read_bytes()
    gguf = write_gguf(tmp_path / "good.gguf", {"w": (30, (64,), bytes(128))}).read_bytes()
    np.savez(tmp_path / "good.npz", w=WEIGHTS)
    np.save(tmp_path / "good.npy", WEIGHTS)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "big.npy", WEIGHTS.astype(">f4"))
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("w.npy", b"no array")
    npz = bytearray((tmp_path / "good.npz").read_bytes())
    npz[len(npz) // 2] ^= 255
    made = {
        "short.safetensors": (good[:-1], "lies outside the file"),
        "none.safetensors": (b"", "no safetensors file"),
        "long.safetensors": (b"\xff" * 64, "no safetensors file"),
        "text.safetensors": (struct.pack("<Q", 9) + b"{not json" + bytes(9), "not that of a safetensors file"),
        "rows.safetensors": (struct.pack("<Q", 9) + b'{"w": 3} ' + bytes(9), "not that of a safetensors file"),
        "none.gguf": (b"", "no GGUF file"),
        "short.gguf": (gguf[:-100], "outside the file"),
        "head.gguf": (gguf[:60], "cut off or damaged"),
        "version.gguf": (gguf[:4] + struct.pack("<I", 9) + gguf[8:], "version 9 is not read"),
        "count.gguf": (gguf[:8] + b"\xff" * 8 + gguf[16:], "the header is damaged"),
        "none.npz": (b"", "no archive of NumPy arrays"),
        "flipped.npz": (bytes(npz), "damaged"),
        "short.npy": ((tmp_path / "good.npy").read_bytes()[:-4], "is it cut off?"),
        "raw.bin": (bytes(128), "give --dtype"),
        "empty.npy": ((tmp_path / "good.npy").read_bytes()[:3], "no NumPy array"),
    }
    found = {name: (tmp_path / name, said) for name, (_, said) in made.items()}
    for name, (raw, _) in made.items():
        (tmp_path / name).write_bytes(raw)
    found |= {
        "words": (tmp_path / "words.npy", "only floats and integers are measured"),
        "big": (tmp_path / "big.npy", "big-endian"),
        "other": (tmp_path / "other.npz", "no NumPy array"),
        "missing": (tmp_path / "missing.npz", "no such file"),
    }
    return found


def test_bad_files_get_one_clear_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, (path, said) in some(damaged(tmp_path).items()):
        assert main(["memprofile", str(path)]) == 2, name
        error = capsys.readouterr().err
        assert said in error and str(path) in error and error.count("\n") == 1, f"{name}: {error}"


def test_wrong_options_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(130))
    for line, said in (
        (["--dtype", "fp32"], "no whole number of fp32"),
        (["--dtype", "bf16", "--only", "nothing"], "none of its 1 tensors has 'nothing' in its name"),
        (["--dtype", "bf16", "--json", str(tmp_path / "no" / "x.json")], "make it first"),
    ):
        assert main(["memprofile", str(tmp_path / "w.bin"), *line]) == 2
        assert said in capsys.readouterr().err
    for line in (["--link", "x=-1"], ["--memory", "0"], ["--picture", "x.gif"], ["--only", "("], ["--threshold", "2"]):
        with pytest.raises(SystemExit):
            main(["memprofile", "w.bin", *line])


@pytest.mark.parametrize("name", TARGETS)
def test_floats_are_rounded_as_numpy_rounds(name: str) -> None:
    values = np.concatenate([RNG.normal(size=999).astype("<f4"), np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e30], "<f4")])
    got = converted(values.tobytes(), TYPES["fp32"], TYPES[name])
    back = np.frombuffer(converted(got, TYPES[name], TYPES["fp32"]), "<f4")
    step = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 0.0}[name]
    fits = np.isfinite(values) & (np.abs(values) < 6e4)
    assert (np.abs(back[fits] - values[fits]) <= step * np.abs(values[fits]) + 1e-7).all()
    assert (
        np.isnan(back[np.isnan(values)]).all() and (np.sign(back)[~np.isnan(values)] == np.sign(values[~np.isnan(values)])).all()
    )


def test_ties_go_to_even_and_eight_bit_floats_are_read() -> None:
    ties = np.array([0x3F808000, 0x3F818000], "<u4").tobytes()
    assert np.frombuffer(converted(ties, TYPES["fp32"], TYPES["bf16"]), "<u2").tolist() == [0x3F80, 0x3F82]
    codes = bytes([0x00, 0x01, 0x38, 0x7E, 0xB8])
    values = np.frombuffer(converted(codes, TYPES["fp8_e4m3"], TYPES["fp32"]), "<f4")
    assert values.tolist() == [0.0, 2.0**-9, 1.0, 448.0, -1.0]
    assert np.frombuffer(converted(bytes([0x3C, 0x7B]), TYPES["fp8_e5m2"], TYPES["fp32"]), "<f4").tolist() == [1.0, 57344.0]
    with pytest.raises(ValueError, match="cannot become fp64"):
        converted(ties, TYPES["fp32"], TYPES["fp64"])


def test_a_file_that_shrinks_while_it_is_read_is_said(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "w.safetensors", {"w": ("BF16", (512, 512), as_bf16(WEIGHTS))})
    tensors = tensors_in(path)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(TensorFileError, match="64 bytes are missing"):
        profile_of([tensors], ProfileOptions())
