"""Makes docs/api.md of the code: `python -m tests.support.api_reference`, in the root of the repository.

Signatures and docstrings are those of the public names; the order, and what stands around them, is below.
"""

import ast
import dataclasses
import enum
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gptoss_convert as gc
from gptoss_convert import errors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
LEAD = """# Python

```python
import gptoss_convert as gc
```

Names on this page are public: a release that changes one says so in CHANGELOG.md. All else may change at any time.
Importing the package is fast; a module is imported when one of its names is first used, and torch only when a model
is run. `examples/` has programs and a notebook.

In signatures, `Location` is a path, as text or `os.PathLike`, and `ConversionOptions` any of the
[options of conversions](#options-of-conversions).
"""
GROUPS: dict[str, tuple[str, ...]] = {
    "One call per step": ("open", "convert", "verify"),
    "Options of conversions": ("GgufOptions", "Bf16Options", "Mxfp4Options", "OnnxOptions", "Resources"),
    "Options of verifications": ("LogitsOptions", "VerifyOptions", "load_prompts"),
    "Results": ("Converted", "Plan", "Report", "Verification"),
    "An opened model": ("Checkpoint", "ModelConfig", "Tensor", "hash_checkpoint"),
    "Steps one by one": (
        "open_checkpoint", "open_adapter", "with_adapter", "plan_gguf", "plan_bf16", "plan_mxfp4", "plan_onnx",
        "execute", "verify_artifacts",
    ),
    "Errors": ("GptossConvertError",),
}  # fmt: skip
ERRORS = """All errors raised on purpose are in `gptoss_convert.errors`. `str(error)` is one line, and
`error.as_dict()` has its facts.

| class | exit code of the command | means |
|---|---|---|
"""


def api_reference() -> str:
    """The page, in Markdown."""
    lines = [LEAD]
    for heading, names in GROUPS.items():
        lines += [f"## {heading}", ""]
        for name in names:
            lines += [f"### gc.{name}", "", *_entry(name, _public(name)), ""]
    page = "\n".join([*lines, ERRORS + "\n".join(_error_rows())]) + "\n"
    return re.sub(r"docs/([\w/-]+\.md)", r"[\1](\1)", page)


def _public(name: str) -> Any:
    """Return a public thing from where it is defined: `gc.verify` is also a package."""
    return getattr(importlib.import_module(f"gptoss_convert.{gc._PUBLIC[name]}"), name)


def _entry(name: str, item: Any) -> Iterator[str]:
    if not inspect.isclass(item):
        yield from ("```python", *_signature(name, item), "```", "", *_docstring(item))
        return
    yield from _docstring(item)
    described = field_docstrings(item)
    fields = [field for field in _fields(item) if not field.name.startswith("_")]
    if fields:
        yield from ("", "| field | type | |", "|---|---|---|")
        for field in fields:
            meaning = _line(described.get(field.name, ""))
            yield f"| `{field.name}{_default(field)}` | {_type(field.type)} | {meaning} |"
    methods = [member for member in vars(item).items() if not member[0].startswith("_") and _is_method(member[1])]
    if methods:
        yield ""
    for method, function in methods:
        called = f".{method}" if isinstance(function, property) else f".{method}(...)"
        yield f"- `{called}`: {_line(_first_paragraph(function))}"


def _fields(item: type) -> "tuple[dataclasses.Field[Any], ...]":
    return dataclasses.fields(item) if dataclasses.is_dataclass(item) else ()


def _is_method(member: Any) -> bool:
    return isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)


def _signature(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Yield the signature, one parameter a line."""
    signature = inspect.signature(function)
    yield f"gc.{name}("
    star = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            star = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            yield "    *,"
        text = _readable(str(parameter))
        yield f"    {text},"
    returned = signature.return_annotation
    yield f") -> {returned if isinstance(returned, str) else getattr(returned, '__name__', returned)}"


def _readable(parameter: str) -> str:
    """Return a parameter without the address of a function or quotes around its type."""
    parameter = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", parameter)
    parameter = re.sub(r"<function [^>]*<lambda> at 0x[0-9a-f]+>", "...", parameter)
    return re.sub(r": '([^']*)'", r": \1", parameter)


def _docstring(item: Any) -> Iterator[str]:
    """Yield a docstring as Markdown: sections become lists."""
    listing = False
    for line in (inspect.getdoc(item) or "").splitlines():
        if heading := re.fullmatch(r"(Args|Raises|Returns):", line):
            listing = heading[1] != "Returns"
            yield from (f"**{ {'Args': 'Arguments'}.get(heading[1], heading[1]) }**", "")
        elif listing and (entry := re.fullmatch(r" {4}(\w+): (.*)", line)):
            yield f"- `{entry[1]}`: {entry[2]}"
        elif listing and line:
            yield f"  {line.strip()}"
        else:
            listing = listing and bool(line)
            yield line.strip()


def field_docstrings(item: type) -> dict[str, str]:
    """Return what stands below each field of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(item))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[ast.unparse(field.target)] = inspect.cleandoc(str(below.value.value))
    return found


def _default(field: "dataclasses.Field[Any]") -> str:
    """Return how a default is written; that of `Resources.jobs` depends on the machine."""
    if field.default is dataclasses.MISSING or field is gc.Resources.__dataclass_fields__["jobs"]:
        return ""
    if isinstance(field.default, enum.StrEnum):
        return f" = {str(field.default)!r}"
    return f" = {field.default!r}"


def _type(written: Any) -> str:
    text = written if isinstance(written, str) else getattr(written, "__name__", str(written))
    return f"<code>{text.replace('|', '&#124;')}</code>"


def _first_paragraph(member: Any) -> str:
    return (inspect.getdoc(member) or "").partition("\n\n")[0]


def _line(text: str) -> str:
    """Return text in one line, fit for a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _error_rows() -> Iterator[str]:
    for error in vars(errors).values():
        if inspect.isclass(error) and issubclass(error, gc.GptossConvertError):
            yield f"| `{error.__name__}` | {error.exit_code} | {_line(_first_paragraph(error))} |"


if __name__ == "__main__":
    PAGE.write_text(api_reference(), encoding="utf-8", newline="\n")
