"""GET /: a small page that says what runs and links to the rest."""

from html import escape

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from service.state import State

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>NormScope</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; }}
</style>
</head>
<body>
<h1>NormScope</h1>
<p>Serves models and shows what happens inside them: the activation statistics of every layer before and after normalization and
around every residual add.</p>
<table>
<thead><tr><th>Model</th><th>Task</th><th>State</th><th></th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<p><a href="/docs">Try the API</a> &middot; <a href="/v1/models">Models</a> &middot; <a href="/metrics">Metrics</a> &middot;
<a href="/readyz">Readiness</a></p>
</body>
</html>
"""

_ROW = (
    '<tr><td><a href="/v1/models/{name}">{name}</a> {version}</td><td>{task}</td><td>{state}</td>'
    '<td><a href="/v1/models/{name}/layers">{layers} layers</a> &middot; '
    '<a href="/v1/models/{name}/statistics">statistics</a></td></tr>'
)

router = APIRouter(include_in_schema=False)


@router.get("/")
def home(request: Request) -> HTMLResponse:
    """The page."""
    repository = State.of(request).repository
    manifests = {(manifest.name, manifest.version): manifest for manifest in repository.manifests}
    rows = []
    for entry in repository.index():
        manifest = manifests.get((entry.name, entry.version))
        rows.append(
            _ROW.format(
                name=escape(entry.name),
                version=escape(entry.version),
                task=escape(manifest.task if manifest else ""),
                state=escape(entry.state.lower()),
                layers=len(manifest.layers) if manifest else "",
            )
        )
    return HTMLResponse(_PAGE.format(rows="\n".join(rows)))
