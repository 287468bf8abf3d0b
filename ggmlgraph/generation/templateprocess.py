"""Renders a chat template in a process of its own: the one that may not last is this, not the one that asked.

    python templateprocess.py < request.json > answer.json
    request: {"source": str, "variables": {...} | null, "seconds": n, "nbytes": n, "characters": n}
    answer: {"text": str} or {"error": str}

A sandbox keeps a template from what is not its own, but not from computing for ever or taking all memory: 9**(9**9)
is one uninterruptible operation. The system's limits end it, whichever way a template takes. `variables` null: compile
only.
Run by chat.py; imports nothing of the package, so that it starts quickly.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


def main(request: dict[str, Any]) -> dict[str, str]:
    """Answer one request, within its limits."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (request["nbytes"], request["nbytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    try:
        return {"text": render(request["source"], request["variables"], request["characters"])}
    except MemoryError:
        return {"error": f"needs more than {request['nbytes'] >> 20} MiB"}
    except Exception as error:  # a template is a program: it can fail in any way
        return {"error": str(error) or type(error).__name__}


def render(source: str, variables: dict[str, Any] | None, most: int) -> str:
    """What a template writes, at most so many characters. Raises whatever it does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = _to_json
    template = environment.from_string(source)
    parts, length = [], 0
    for part in template.generate(**variables) if variables is not None else ():
        parts.append(part)
        length += len(part)
        if length > most:
            raise ValueError(f"writes more than {most} characters")
    return "".join(parts)


class Generation(Extension):
    """The block {% generation %}, which marks what the model is to be trained on: here it is what is in it."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's way to say it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes of the block, in a scope of their own, as where transformers calls them."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [nodes.Scope(body).set_lineno(line)]


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers': nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: Any) -> NoReturn:
    raise ValueError(message)


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
