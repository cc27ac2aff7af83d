"""A model's own chat template as text, rendered in jinja2's sandbox with transformers' variables.

Every constant of the template is compiled as text by the template, so that the result says of each
character whether the template wrote it or a message (`authorship`).
"""

import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_join
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace, pass_eval_context

from .authorship import TEMPLATE, Authored, authors_of, by, formatted, joined


def render(template: str, variables: Mapping[str, Any]) -> Authored:
    """The template's text; whatever goes wrong in it raises ValueError."""
    # Not optimised: the optimiser would compute with constants before they have an author.
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        extensions=[loopcontrols, _Generation],
    )
    environment.filters |= {"tojson": _tojson, "join": _join}
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    try:
        text = environment.from_string(template).render(dict(variables))
    except Exception as error:  # a template is a program and may raise anything
        raise ValueError(f"chat template: {' '.join(str(error).split())}") from None
    return Authored(text, authors_of(text))


class _Generator(CodeGenerator):
    """Compiles the template's constants as its own text, and `~` as a join that keeps authors."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.own({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.own({super()._output_const_repr(group)})"


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator

    @staticmethod
    def concat(pieces: Iterable[str]) -> Authored:
        return joined(pieces)

    @staticmethod
    def own(text: str) -> Authored:
        return by(TEMPLATE, text)

    def wrap_str_format(self, value: Any) -> Any:
        text, name = getattr(value, "__self__", None), getattr(value, "__name__", None)
        if not isinstance(text, Authored) or name not in ("format", "format_map"):
            return super().wrap_str_format(value)
        formatter = SandboxedFormatter(self)
        if name == "format":
            return lambda *args, **kwargs: formatted(formatter, text, args, kwargs)
        return lambda mapping: formatted(formatter, text, (), mapping)


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`, which marks what the model says, for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


class _Namespace(Namespace):
    """jinja2's, without names that reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name of the template's
        self, *given = args
        names = dict(*given, **kwargs)
        for name in names:
            _refuse_underscore(name)
        Namespace.__init__(self, names)  # pyright: ignore[reportArgumentType]

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class _Dict:
    """`dict` as a template may call it: no way to the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {str(name)!r}: it begins with an underscore")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@pass_eval_context
def _join(context: EvalContext, value: Any, d: str = "", attribute: Any = None) -> Any:
    """jinja2's, with a separator that keeps the authors of what it joins."""
    return do_join(context, value, Authored(d, authors_of(d)), attribute)
