"""The description of each service's own API: `/{service}/openapi.json`, and `/{service}/docs`, a page that shows it.

`/docs` and `/openapi.json` tell of all that a process runs. Where one origin stands before four processes they are those
of one of the four; a service's own lie under its name, with everything that the page loads, so that a proxy which sends
the name to the service needs no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount

from shared import openapi
from shared.service import Service
from shared.settings import SERVICE_NAMES

_FILES = "static-offline-docs"  # the name under which fastapi-offline mounts what its pages load

ABOUT = (
    "Write keys post events (see README); everything else needs `Authorization: Bearer <API key>`. By service: "
    + ", ".join(f"[{name}](/{name}/docs)" for name in SERVICE_NAMES)
    + "."
)


def install(app: FastAPI, services: Iterable[Service]) -> None:
    """Adds the two to `app`, made by FastAPIOffline, for each service."""
    files = next(route.app for route in app.routes if isinstance(route, Mount) and route.name == _FILES)
    for service in services:
        document, page = f"/{service.name}/openapi.json", f"/{service.name}/docs"
        app.add_api_route(document, _document(app, service), include_in_schema=False)
        app.add_api_route(page, _page(service.name, document, page), include_in_schema=False)
        app.mount(f"{page}/static", files)


def _document(app: FastAPI, service: Service) -> Callable[[], Response]:
    told = FastAPI(
        title=f"Dripline {service.name}", version=app.version, summary=app.summary, description=app.description
    )
    for router in service.routers:
        told.include_router(router)
    openapi.install(told, service.routers, [service.described])

    def document() -> Response:  # not async: the first answer is worked out in a thread, beside the event loop
        return JSONResponse(told.openapi())

    return document


def _page(name: str, document: str, page: str) -> Callable[[], Response]:
    def shown() -> Response:
        return get_swagger_ui_html(
            openapi_url=document,
            title=f"Dripline {name}",
            swagger_js_url=f"{page}/static/swagger-ui-bundle.js",
            swagger_css_url=f"{page}/static/swagger-ui.css",
            swagger_favicon_url=f"{page}/static/favicon.png",
        )

    return shown
