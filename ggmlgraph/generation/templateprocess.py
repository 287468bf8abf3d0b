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

from jinja2.sandbox import ImmutableSandboxedEnvironment


def main(request: dict[str, Any]) -> dict[str, str]:
    """Answer one request, within its limits."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (request["nbytes"], request["nbytes"]))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    try:
        return {"text": _render(request["source"], request["variables"], request["characters"])}
    except MemoryError:
        return {"error": f"needs more than {request['nbytes'] >> 20} MiB"}
    except Exception as error:  # a template is a program: it can fail in any way
        return {"error": str(error) or type(error).__name__}


def _render(source: str, variables: dict[str, Any] | None, most: int) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    template = environment.from_string(source)
    parts, length = [], 0
    for part in template.generate(**variables) if variables is not None else ():
        parts.append(part)
        length += len(part)
        if length > most:
            raise ValueError(f"writes more than {most} characters")
    return "".join(parts)


def _refuse(message: Any) -> NoReturn:
    raise ValueError(message)


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
