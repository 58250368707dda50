"""What every answer of the console carries, and what no view ever sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Blueprint, Flask
from flask.testing import FlaskClient

from appliance.bootstrap import Appliance
from appliance.clock import SystemClock
from appliance.errors import StrongroomError
from appliance.setting_sections import WebSettings
from appliance.settings import SettingsError, load
from web.acts import UnstatedRoutes, public
from web.app import create_app, form_secret
from web.security import is_ours, names_of
from web.tls import CertificateUnusable, certificate


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(load({"STRONGROOM_HOME": str(tmp_path / "home")})) as appliance:
        yield appliance


@pytest.fixture
def app(appliance: Appliance) -> Flask:
    return create_app(appliance)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def with_view(app: Flask, view: object) -> FlaskClient:
    app.add_url_rule("/try", "try", view, methods=["GET", "POST"])  # type: ignore[arg-type]
    return app.test_client()


@pytest.mark.parametrize("path", ["/alive", "/no-such-page", "/static/x/app.css"])
def test_every_answer_is_protected(client: FlaskClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "base-uri 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert "camera=()" in headers["Permissions-Policy"]
    assert "max-age=31536000" in headers["Strict-Transport-Security"]
    assert headers["X-Request-Id"]


def test_pages_are_kept_by_no_cache_and_assets_for_ever(client: FlaskClient, app: Flask) -> None:
    assert client.get("/alive").headers["Cache-Control"] == "no-store"
    with app.test_request_context():
        address = app.jinja_env.globals["asset"]("app.css")  # type: ignore[operator]
    kept = client.get(address)
    assert "immutable" in kept.headers["Cache-Control"]
    assert "immutable" not in client.get("/static/older/app.css").headers["Cache-Control"]


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "vendor/../../app.py"])
def test_assets_lead_nowhere_else(client: FlaskClient, name: str) -> None:
    assert client.get(f"/static/x/{name}").status_code in (301, 308, 404)
    assert client.get(f"/static/x/{name}", follow_redirects=True).status_code == 404


def test_a_foreign_name_is_refused_before_any_view(client: FlaskClient) -> None:
    assert client.get("/alive", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/alive", headers={"Host": "127.0.0.1:8443"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost", True), ("LOCALHOST:8443", True), ("backup.example", True), ("backup.example.:8443", True),
        ("192.0.2.7", True), ("[::1]:8443", True), ("[2001:db8::7]", True),
        ("evil.example", False), ("backup.example.evil.example", False), ("", False), ("a b", False), ("[::1", False),
        ("127.0.0.1.evil.example", False), ("1.2.3.4@evil.example", False), ("localhost:8443:1", False),
    ],
)  # fmt: skip
def test_which_hosts_are_ours(host: str, ours: bool) -> None:
    assert is_ours(host, names_of(WebSettings(names=("Backup.Example",)))) is ours


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "https://localhost"}, 200),
    ],
)
def test_another_site_cannot_send_anything(appliance: Appliance, headers: dict[str, str], status: int) -> None:
    app = create_app(appliance)
    app.config["WTF_CSRF_ENABLED"] = False
    client = with_view(app, public(lambda: "done"))
    assert client.post("/try", headers=headers).status_code == status


def test_a_body_that_is_too_large_is_refused(app: Flask) -> None:
    from flask import request

    app.config["WTF_CSRF_ENABLED"] = False
    client = with_view(app, public(lambda: str(len(request.form))))
    assert client.post("/try", data={"name": "x" * (1 << 21)}).status_code == 413


def test_a_route_that_states_no_act_does_not_start(appliance: Appliance, monkeypatch: pytest.MonkeyPatch) -> None:
    from web.views import public as public_views

    careless = Blueprint("careless", __name__)
    careless.add_url_rule("/careless", "do", lambda: "done")
    monkeypatch.setattr(public_views, "blueprint", careless)
    with pytest.raises(UnstatedRoutes, match=r"careless\.do"):
        create_app(appliance)


def test_an_error_of_ours_tells_the_way_out_and_another_only_its_id(app: Flask, caplog: object) -> None:
    def ours() -> str:
        raise StrongroomError("the <b>disk</b> is full", hint="Make room.")

    def unknown() -> str:
        raise RuntimeError("secret detail")

    app.add_url_rule("/ours", "ours", public(ours))
    app.add_url_rule("/unknown", "unknown", public(unknown))
    client = app.test_client()
    told = client.get("/ours")
    assert told.status_code == 409
    assert "The &lt;b&gt;disk&lt;/b&gt; is full" in told.text
    assert "Make room." in told.text
    hidden = client.get("/unknown")
    assert hidden.status_code == 500
    assert "secret detail" not in hidden.text
    assert hidden.headers["X-Request-Id"] in hidden.text


def test_errors_are_parts_of_a_page_where_a_part_was_asked_for(client: FlaskClient) -> None:
    part = client.get("/no-such-page", headers={"HX-Request": "true"})
    assert part.status_code == 404
    assert "<html" not in part.text
    assert 'role="alert"' in part.text


def test_what_forms_are_signed_with_survives_a_restart_and_is_private(appliance: Appliance) -> None:
    secret = form_secret(appliance.settings)
    assert form_secret(appliance.settings) == secret
    assert len(secret) == 32
    file = appliance.settings.machine_key_file.parent / "web.secret"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_certificate_is_made_kept_and_made_anew_for_other_names(appliance: Appliance) -> None:
    settings = appliance.settings
    first = certificate(settings, SystemClock())
    assert certificate(settings, SystemClock()) == first
    assert first.key_file.stat().st_mode & 0o777 == 0o600
    other = load({"STRONGROOM_HOME": str(settings.home), "STRONGROOM_WEB_NAMES": "backup.example, b.example"})
    assert certificate(other, SystemClock()).fingerprint != first.fingerprint
    first.key_file.write_bytes(b"no key")
    assert certificate(settings, SystemClock()).fingerprint != first.fingerprint


def test_a_certificate_of_the_admins_own_must_be_one(tmp_path: Path) -> None:
    environment = {"STRONGROOM_HOME": str(tmp_path), "STRONGROOM_WEB_CERTIFICATE": str(tmp_path / "own.crt")}
    with pytest.raises(CertificateUnusable, match="certificate_key"):
        certificate(load(environment), SystemClock())
    environment["STRONGROOM_WEB_CERTIFICATE_KEY"] = str(tmp_path / "own.key")
    with pytest.raises(CertificateUnusable, match="No such file"):
        certificate(load(environment), SystemClock())
    (tmp_path / "own.crt").write_text("none")
    with pytest.raises(CertificateUnusable, match="PEM"):
        certificate(load(environment), SystemClock())


@pytest.mark.parametrize(
    ("key", "value"), [("LISTEN", "backup.example"), ("PORT", "65536"), ("NAMES", "a:1"), ("TLS", "maybe")]
)
def test_settings_that_cannot_be_used_are_refused(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(SettingsError):
        load({"STRONGROOM_HOME": str(tmp_path), f"STRONGROOM_WEB_{key}": value})
