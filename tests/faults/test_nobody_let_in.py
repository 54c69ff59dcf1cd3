"""A conversion connects to nobody, starts no program, unpickles nothing, runs no template; names are text."""

import html
import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.command import Outcome, run_here, run_process
from tests.cli.samples import Samples
from tests.faults.damage import Damage, renamed, write

GUARD = """
import sys
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.bind",
             "pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "urllib.Request")
def refuse(event, arguments):
    if event in FORBIDDEN:
        sys.stderr.write(f"guard: {event} {arguments}\\n")
        raise RuntimeError(event)
sys.addaudithook(refuse)
from gptoss_convert.cli import run
code = run(sys.argv[1:])
foreign = {"jinja2", "transformers", "torch", "huggingface_hub", "requests"} & sys.modules.keys()
if foreign:
    sys.stderr.write(f"guard: imported {sorted(foreign)}\\n")
    code = 99
sys.exit(code)
"""
"""Runs a command where Python's own events (PEP 578) tell of everything that must not happen."""
GUARDED = (sys.executable, "-P", "-c", GUARD)
HOSTILE_TEMPLATE = "{{ cycler.__init__.__globals__.os.system('touch /tmp/owned') }}{{ ''.__class__ }}"
NAMES = {
    "escapes": "a\x1b]0;title\x07\x1b[2J\x1b[31mb",
    "lines": "a\r\nerror: none\nb\u2028c\x85d",
    "direction": "a\u202egnp.exe\u2066\u200fb",
    "invisible": "a\u200b\u00ad\ufeff\U000e0041b",
    "markup": "<script>alert(1)</script>[bold red]x[/] ![y](javascript:z) `k` | # h",
}


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("inspect SRC", "huggingface"),
        ("to-gguf SRC -o OUT/x.gguf --manifest --verify", "huggingface"),
        ("to-bf16 SRC -o OUT/x --verify", "gguf"),
        ("to-mxfp4 SRC -o OUT/x --verify", "bf16"),
        ("to-onnx SRC -o OUT/x --target cpu --verify", "original"),
        ("to-gguf SRC -o OUT/x.gguf --experts mxfp4 --verify", "onnx"),
        ("verify SRC SRC --weights", "sharded"),
    ],
)
def test_nothing_but_files_is_touched(command: str, model: Any, samples: Samples, tmp_path: Path) -> None:
    source = samples.copy(model, tmp_path)
    if model == "huggingface":
        (source / "chat_template.jinja").write_text(HOSTILE_TEMPLATE)
    words = [word.replace("SRC", str(source)).replace("OUT", str(tmp_path)) for word in command.split()]
    outcome = run_process(*words, program=GUARDED)
    assert "guard" not in outcome.stderr
    assert outcome.exit_code == 0, outcome.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import pickle, collections; pickle.loads(pickle.dumps(collections.OrderedDict()))",
        "import subprocess; subprocess.run(['true'])",
    ],
)
def test_guard_guards(code: str) -> None:
    done = run_process(program=(sys.executable, "-P", "-c", GUARD.replace("code = run(sys.argv[1:])", code)))
    assert "guard: " in done.stderr
    assert done.exit_code != 0


def test_hostile_template_travels_as_bytes(samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    (source / "chat_template.jinja").write_text(HOSTILE_TEMPLATE)
    assert run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "-q").exit_code == 0
    assert run_here("to-bf16", tmp_path / "x.gguf", "-o", tmp_path / "back", "-q").exit_code == 0
    assert (tmp_path / "back/chat_template.jinja").read_text() == HOSTILE_TEMPLATE


# --- names


def assert_plain(outcome: Outcome) -> None:
    """Check that nothing but printable characters, and the ends of our own lines, was shown."""
    text = outcome.stdout + outcome.stderr
    strange = {
        c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn")
    }
    assert strange == set()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("place", ["tensor", "shard", "field", "metadata", "quantization", "token"])
def test_hostile_names_in_files_are_shown_as_text(name: str, place: str, samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("sharded" if place == "shard" else "huggingface", tmp_path)
    damages: dict[str, Damage] = {
        "tensor": renamed(lambda tensor: tensor.replace("self_attn.sinks", name)),
        "shard": write("model.safetensors.index.json", json.dumps({"weight_map": {"a": name}})),
        "field": write("config.json", json.dumps({"model_type": name})),
        "metadata": write("README.md", f"---\nlicense: {json.dumps(name)}\nname: {json.dumps([name])}\n---\n"),
        "quantization": write("config.json", changed(source, quantization_config={"quant_method": name})),
        "token": write("tokenizer.json", json.dumps({"model": {"type": name, "vocab": {}, "merges": []}})),
    }
    damages[place](source)
    inspected = run_here("inspect", source)
    converted = run_here("to-gguf", source, "-o", tmp_path / "x.gguf")
    planned = run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "--dry-run")
    for outcome in (inspected, converted, planned):
        assert_plain(outcome)
    assert converted.exit_code in ((0, 3) if place == "metadata" else (3, 4))
    assert len(converted.stderr.splitlines()) == (1 if converted.exit_code else 3)  # and what to do next
    for command in (["inspect", source], ["to-gguf", source, "-o", tmp_path / "y.gguf"]):
        outcome = run_here(*map(str, command), "--json")
        assert_plain(outcome)
        json.loads(outcome.stdout)


def changed(source: Path, **fields: object) -> str:
    return json.dumps(json.loads((source / "config.json").read_text()) | fields)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_hostile_file_names_are_shown_as_text(name: str, samples: Samples, tmp_path: Path) -> None:
    plain = name.replace("/", "_")
    source = samples.copy("huggingface", tmp_path).rename(tmp_path / plain)
    for command in (
        ["inspect", source],
        ["to-gguf", source, "-o", tmp_path / f"{plain}.gguf"],
        ["to-gguf", source, "-o", tmp_path / f"{plain}.gguf", "--force", "--dry-run"],
        ["to-gguf", source, "-o", tmp_path / f"{plain}.gguf"],
        ["verify", source, tmp_path / f"{plain}.gguf", "--weights"],
        ["inspect", tmp_path / f"{plain}.nowhere"],
    ):
        assert_plain(run_here(*map(str, command)))


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_hostile_description_stays_text_in_a_written_model_card(
    name: str, samples: Samples, tmp_path: Path
) -> None:
    """The card is Markdown with HTML in it, and its header is YAML: neither may be told anything."""
    source = samples.copy("huggingface", tmp_path)
    card = {"name": name, "license": "other", "license_name": name, "base_model": f"https://huggingface.co/{name}"}
    (source / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    outcome = run_here("to-onnx", source, "-o", tmp_path / "out", "--target", "cpu", "--name", name, "-q")
    if outcome.exit_code:  # a name may be refused, in one line
        assert outcome.exit_code in (2, 3)
        assert_plain(outcome)
        return
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header).keys() >= {"library_name", "tags"}
    assert yaml.safe_load(header)["license_name"].isprintable()
    strange = {c for c in text if c != "\n" and not c.isprintable()}
    assert strange == set()
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", prose)
    assert not re.search(r"(?<!\\)\]\(", prose)
    assert html.unescape(prose) == prose


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{ ''.__class__ }}", "__class__"),
        ("{{ x | attr('y') }}", "attr"),
        ("{%- include 'secret' %}", "include"),
        ("x" * 70_000, "70000 characters"),
    ],
)
def test_inspect_points_at_templates_that_are_unusual(
    template: str, word: str, samples: Samples, tmp_path: Path
) -> None:
    source = samples.copy("huggingface", tmp_path)
    (source / "chat_template.jinja").write_text(template)
    document = json.loads(run_here("inspect", source, "--json").stdout)
    assert [remark for remark in document["remarks"] if "chat template" in remark and word in remark]
    assert "look at it before you run it" in run_here("inspect", source).stdout


def test_template_of_gpt_oss_is_usual(samples: Samples) -> None:
    assert "look at it" not in run_here("inspect", samples.path("huggingface")).stdout
