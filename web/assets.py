"""Style sheets, scripts and pictures: under a name with the hash of their bytes, so that browsers keep them for ever.

The rule: everything comes from this server; a changed file is another address.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from flask import Flask, Response, send_from_directory, url_for
from werkzeug.exceptions import NotFound

from web.acts import public

FOLDER = Path(__file__).parent / "static"
_KEEP = "public, max-age=31536000, immutable"
_HASH_CHARACTERS = 10


def serve(app: Flask) -> None:
    versions = {
        str(file.relative_to(FOLDER)): hashlib.sha256(file.read_bytes()).hexdigest()[:_HASH_CHARACTERS]
        for file in sorted(FOLDER.rglob("*"))
        if file.is_file()
    }
    # Modules import one another by relative paths, so they all live under one version: that of them together.
    together = hashlib.sha256("".join(versions.values()).encode()).hexdigest()[:_HASH_CHARACTERS]

    @app.get("/static/<version>/<path:name>", endpoint="static")
    @public
    def static(version: str, name: str) -> Response:
        if name not in versions:
            raise NotFound
        response = send_from_directory(FOLDER, name, conditional=True)
        response.headers["Cache-Control"] = _KEEP if version == together else "no-cache"
        return response

    def asset(name: str) -> str:
        if name not in versions:
            raise LookupError(f"there is no asset {name}")
        return url_for("static", version=together, name=name)

    app.jinja_env.globals["asset"] = asset
