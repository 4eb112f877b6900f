"""The JSON of a `torch.export` program, looked through and written anew: what is left computes, and does nothing else.

Loading a program runs code in ways that its weights have nothing to do with: expressions of dimensions go through
sympy's `sympify`, which is `eval`; guards are compiled and executed; operators and types are looked up by name. So
every operator is one of ATen's, every expression is parsed here and made of numbers, symbols and arithmetic, guards
and metadata are left out, and structures are those of tuples, lists and dicts. Pure; no torch.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
from typing import Any, Final

from services.optimizer.conversion.source import NotConvertible
from services.optimizer.rejections import Rejection

_MAX_DEPTH: Final = 64
_MAX_PARTS: Final = 5_000_000
_MAX_EXPRESSION_CHARS: Final = 2000
_ATEN: Final = re.compile(r"torch\.ops\.aten\.[A-Za-z0-9_]{1,100}\.[A-Za-z0-9_]{1,100}")
_HARMLESS: Final = re.compile(
    r"_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|getitem)"
    r"|torch\.(sym_int|sym_float|sym_max|sym_min|sym_not|sym_ite|sym_sum)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
_TOUCHES_FILES: Final = ("from_file", "_from_file", "save", "load")
_FUNCTIONS: Final = frozenset(
    {
        "Symbol",
        "Integer",
        "Rational",
        "Float",
        "Add",
        "Mul",
        "Pow",
        "Min",
        "Max",
        "Mod",
        "Abs",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "FloorDiv",
        "PythonMod",
        "CleanDiv",
        "CeilDiv",
        "CeilToInt",
        "FloorToInt",
        "TruncToInt",
        "ToFloat",
        "IntTrueDiv",
        "FloatTrueDiv",
        "ModularIndexing",
        "PowByNatural",
        "FloatPow",
        "Identity",
        "Where",
        "floor",
        "ceiling",
    }
)  # fmt: skip - one list
_ASSUMPTIONS: Final = frozenset({"positive", "integer", "nonnegative", "real", "nonzero", "evaluate"})
_SYMBOL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,50}")
_PARTS: Final = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.Name,
    ast.Constant,
    ast.Load,
    ast.keyword,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.Div,
    ast.FloorDiv,
    ast.Mod,
    ast.Pow,
    ast.USub,
    ast.UAdd,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
)  # fmt: skip - one list
_MAX_POWER: Final = 8
_CONTAINERS: Final = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"})
_REFUSED_ARGUMENTS: Final = {
    "as_operator": "an operator as an argument",
    "as_custom_obj": "a custom object",
    "as_graph": "a graph within a graph (control flow)",
    "as_opaque_value": "an opaque object",
}
_VERIFIERS: Final = frozenset({"TRAINING", "ATEN", "EDGE"})


def vetted(content: bytes) -> bytes:
    """The program without what is not needed to compute.

    Raises:
        Rejection: there is something in it that does more than compute.
        NotConvertible: it uses what is not converted here.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise Rejection("invalid_model", f"The program's JSON does not parse: {str(err)[:200]}") from err
    _Walk().visit(document, 0)
    try:
        return json.dumps(_cleaned(document)).encode()
    except (KeyError, TypeError, AttributeError, IndexError) as err:
        raise Rejection("invalid_model", f"The program is not of the form that torch.export writes: {err!r}") from err


class _Walk:
    """Looks at every part of the document."""

    def __init__(self) -> None:
        self._seen = 0

    def visit(self, part: Any, depth: int) -> None:
        self._seen += 1
        if depth > _MAX_DEPTH or self._seen > _MAX_PARTS:
            raise Rejection("invalid_model", "The program's JSON is nested too deeply, or has too many parts")
        if isinstance(part, list):
            for each in part:
                self.visit(each, depth + 1)
        elif isinstance(part, dict):
            for key, value in part.items():
                _look_at(key, value)
                self.visit(value, depth + 1)


def _look_at(key: str, value: Any) -> None:
    if key == "expr_str":
        check_expression(value)
    elif key in _REFUSED_ARGUMENTS and value is not None:
        raise NotConvertible(f"The program has {_REFUSED_ARGUMENTS[key]}")
    elif key == "target" and isinstance(value, str):
        _check_target(value)
    elif key in ("in_spec", "out_spec") and value is not None:
        _check_structure(value)


def _check_target(target: str) -> None:
    if _HARMLESS.fullmatch(target):
        return
    if not _ATEN.fullmatch(target):
        raise Rejection("unsafe_model", f"The program calls {target[:150]!r}, which is no operator of ATen")
    if target.split(".")[3] in _TOUCHES_FILES:
        raise Rejection("unsafe_model", f"The program calls {target[:150]!r}, which touches files")


def check_expression(text: Any) -> None:
    """Look whether an expression is arithmetic over symbols and numbers.

    Raises:
        Rejection: it is something else; nothing of it was evaluated.
    """
    if not isinstance(text, str) or len(text) > _MAX_EXPRESSION_CHARS:
        raise Rejection("unsafe_model", "A dimension's expression is no text, or too long")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise Rejection("unsafe_model", f"The dimension {text[:100]!r} does not parse") from err
    for node in ast.walk(tree):
        if not _is_arithmetic(node):
            raise Rejection("unsafe_model", f"The dimension {text[:100]!r} is more than arithmetic")


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in _FUNCTIONS
        case ast.Name(id=name):
            return name in _FUNCTIONS or _is_symbol(name)
        case ast.keyword(arg=name):
            return name in _ASSUMPTIONS
        case ast.Constant(value=str() as name):
            return _is_symbol(name)
        case ast.Constant(value=bool() | int() | float() as number):
            return abs(number) < 2**64
        case ast.BinOp(op=ast.Pow(), right=right):
            return isinstance(right, ast.Constant) and isinstance(right.value, int) and abs(right.value) <= _MAX_POWER
        case _:
            return isinstance(node, _PARTS)


def _is_symbol(name: str) -> bool:
    """Whether a name can only be a symbol: SymPy takes that of a function of Python for the function."""
    return _SYMBOL.fullmatch(name) is not None and "__" not in name and not hasattr(builtins, name)


def _check_structure(text: Any) -> None:
    """The nesting of inputs and outputs, as `torch.utils._pytree` writes it: JSON within JSON."""
    try:
        version, spec = json.loads(text)
        pending = [spec]
        while pending:
            node = pending.pop()
            if node["type"] not in _CONTAINERS:
                raise NotConvertible(f"Its inputs or outputs come in a {str(node['type'])[:100]!r}")
            pending += node["children_spec"]
        if version != 1:
            raise NotConvertible("Its inputs are described in a way that is not known here")
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise Rejection("invalid_model", f"The structure of the program's inputs does not parse: {err!r}") from err


def _cleaned(document: dict[str, Any]) -> dict[str, Any]:
    """Without guards, metadata, and the calls of modules within; all tensors on the CPU."""
    module = document["graph_module"]
    calls = [call for call in module["module_call_graph"] if call["fqn"] == ""]
    for node in module["graph"]["nodes"]:
        node["metadata"] = {}
    module |= {"module_call_graph": calls, "metadata": {}, "treespec_namedtuple_fields": {}}
    if not set(document.get("verifiers") or ()) <= _VERIFIERS:
        raise Rejection("unsafe_model", "The program asks for verifiers that are not torch's own")
    if any(not _SYMBOL.fullmatch(name) for name in document.get("range_constraints") or ()):
        raise Rejection("unsafe_model", "A range is said of something that is no symbol")
    on_cpu(document)
    return document | {"guards_code": []}


def on_cpu(part: Any) -> None:
    """Say "cpu" wherever a device stands, in place."""
    pending = [part]
    while pending:
        each = pending.pop()
        if isinstance(each, dict):
            if each.keys() == {"type", "index"}:
                each |= {"type": "cpu", "index": None}
            pending += each.values()
        elif isinstance(each, list):
            pending += each
