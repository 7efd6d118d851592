"""Templates: everything that is put into a page is text, whatever it holds, and control characters are made visible."""

import hashlib
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from pages import words
from pages.access import Session

HERE = Path(__file__).parent
STATIC = HERE / "static"


@dataclass(frozen=True)
class Link:
    """An entry of the navigation."""

    path: str
    label: str


@dataclass(frozen=True)
class Look:
    """What a dashboard says of itself on every page, and where its templates lie."""

    name: str  # whose it is: a site, a study
    kind: str  # "Node dashboard"
    navigation: tuple[Link, ...]
    templates: Path
    hint: str = ""  # where the token is to be found, on the page for signing in
    must_sign_in: bool = True
    extra: dict[str, Any] = field(default_factory=dict)  # further globals and filters of its templates

    @cached_property
    def _environment(self) -> Environment:
        environment = Environment(
            loader=FileSystemLoader([self.templates, HERE / "templates"]),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        for function in (
            words.short, words.size, words.number, words.count, words.duration, words.clock, words.moment, words.listed,
        ):  # fmt: skip
            environment.filters[function.__name__] = function
        environment.globals.update(look=self, static=self._static, **self.extra)
        return environment

    def render(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """A page or a part of one; templates find who asks under `session`, and where they are under `here`."""
        session: Session | None = getattr(request.state, "session", None)
        page = self._environment.get_template(template)
        return HTMLResponse(page.render(here=request.url.path, session=session, **context), status_code=status)

    def _static(self, name: str) -> str:
        return f"/static/{name}?v={_version()}"


def _visible(value: Any) -> Any:
    """What an expression in a template comes to; markup is only what templates and their macros made themselves."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return words.plain(value)


@cache
def _version() -> str:
    """Changes with any file that is served, so that browsers may keep what they have."""
    found = hashlib.sha256()
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()[:8]
