"""Logging in to a real server by a real provider process, and everything that must not get in that way."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.support.oidc import Browser, Lies, Provider, lying_provider, real_provider, state_of
from tests.support.server import wait_for
from tests.support.site import Site

LOGIN = "/platform/auth/login"
SESSION = "/platform/auth/session"


@pytest.fixture
def browser(provider: Provider) -> Iterator[Browser]:
    with Browser() as found:
        yield found


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["code"])


def test_a_person_logs_in_works_and_logs_out(site: Site, browser: Browser) -> None:
    methods = browser.http.get(f"{site.url}/platform/auth/methods").json()
    assert [one["type"] for one in methods["methods"]] == ["oidc", "key"]
    answer = browser.log_in(f"{site.url}{LOGIN}?next=/runs", "ada")
    assert (answer.status_code, answer.headers["location"]) == (302, "/runs")
    cookies = {one.split("=")[0]: one for one in answer.headers.get_list("set-cookie")}
    assert "HttpOnly" in cookies["burnish_session"]
    assert "SameSite=lax" in cookies["burnish_session"]
    assert "HttpOnly" not in cookies["burnish_csrf"]
    assert answer.headers["cache-control"] == "no-store"

    who = browser.http.get(site.url + SESSION).json()
    assert (who["subject"], who["project_id"], who["roles"]) == ("ada@example.org", "default", ["engineer"])
    assert who["csrf_token"] == browser.csrf["X-CSRF-Token"]
    assert browser.http.get(f"{site.url}/platform/workflows").status_code == 200
    assert browser.http.get(f"{site.url}/v1/models").status_code == 200

    body = {"name": "laptop"}
    refused = browser.http.post(f"{site.url}/platform/identity/keys", json=body)
    assert (refused.status_code, refused.json()["where"]) == (403, "X-CSRF-Token")
    refused = browser.http.post(f"{site.url}/platform/identity/keys", json=body, headers={"X-CSRF-Token": "0" * 64})
    assert refused.status_code == 403
    made = browser.http.post(f"{site.url}/platform/identity/keys", json=body, headers=browser.csrf)
    assert made.status_code == 200
    assert site.ask("GET", "/platform/identity/me", key=made.json()["key"]).json()["subject"] == "ada@example.org"

    token = str(browser.http.cookies.get("burnish_session"))
    assert browser.http.delete(site.url + SESSION).status_code == 403
    assert browser.http.delete(site.url + SESSION, headers=browser.csrf).json() == {"ended": True}
    assert browser.http.cookies.get("burnish_session") is None
    with Browser() as thief:
        thief.http.cookies.set("burnish_session", token)
        assert thief.http.get(site.url + SESSION).status_code == 401
    actions = [
        one["action"] for one in site.ask("GET", "/platform/identity/audit?actor=ada@example.org").json()["data"]
    ]
    assert actions[0] == "login:ended"
    assert "login:ok" in actions


def test_a_state_that_nobody_was_given_leads_nowhere(site: Site, browser: Browser) -> None:
    browser.to_provider(site.url + LOGIN)
    for state in ("forged", "%00", "x" * 2000):
        answer = browser.http.get(f"{site.url}/platform/auth/callback?code=any&state={state}")
        assert answer.status_code in {400, 401}, answer.text
    assert browser.http.get(f"{site.url}/platform/auth/callback?code=any").status_code == 401
    assert browser.http.cookies.get("burnish_session") is None


def test_nobody_is_logged_in_as_somebody_else_by_a_link(site: Site, browser: Browser) -> None:
    """Login CSRF: the attacker's code and state in the victim's browser. Breaks with: a state without its browser."""
    link = browser.consent(browser.to_provider(site.url + LOGIN), "mallory")
    with Browser() as victim:
        assert victim.http.get(link).status_code == 401
        victim.to_provider(site.url + LOGIN)  # also not while the victim logs in
        assert victim.http.get(link).status_code == 401
        assert victim.http.cookies.get("burnish_session") is None
    assert browser.http.get(link).status_code == 302  # it was not used up by that


def test_a_code_is_good_once(site: Site, browser: Browser) -> None:
    link = browser.consent(browser.to_provider(site.url + LOGIN), "ada")
    cookie = str(browser.http.cookies.get("burnish_login"))
    assert browser.http.get(link).status_code == 302
    assert browser.http.get(link).status_code == 401
    browser.http.cookies.set("burnish_login", cookie, path="/platform/auth")
    assert browser.http.get(link).status_code == 401
    with_code = re.sub("state=[^&]+", "state=" + state_of(browser.to_provider(site.url + LOGIN)), link)
    answer = browser.http.get(with_code)  # the provider's code once more, under a good state
    assert (answer.status_code, answer.json()["where"]) == (401, "code")


def test_an_answer_of_another_provider_is_refused(site: Site, browser: Browser) -> None:
    link = browser.consent(browser.to_provider(site.url + LOGIN), "ada")
    answer = browser.http.get(f"{link}&iss=https://evil.example")
    assert (answer.status_code, answer.json()["where"]) == (401, "iss")


def test_who_refuses_at_the_provider_is_told_so(site: Site, browser: Browser) -> None:
    answer = browser.log_in(site.url + LOGIN, None)
    assert answer.status_code == 401
    assert "access_denied" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    ["https://evil.example/", "//evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)", "runs", "/a\tb", "/ /evil", "/\r\nX: y"],
)  # fmt: skip
def test_a_login_leads_to_no_other_host(site: Site, browser: Browser, path: str) -> None:
    answer = browser.http.get(site.url + LOGIN, params={"next": path})
    assert answer.status_code == 422
    assert answer.json()["where"] == "next"


@pytest.mark.parametrize(
    "address",
    ["https://evil.example/", "http://evil.example:80/", "http://127.0.0.1/", "https://127.0.0.1:9/", "http://127.0.0.1:9@evil.example:80/",
     "http://localhost.evil.example:9/", "http://127.0.0.1:9/?x=1", "http://127.0.0.1:9/#x", "http://127.0.0.1:99999/", "http://0.0.0.0:9/", "x"],
)  # fmt: skip
def test_a_code_of_the_command_line_goes_to_this_machine_alone(site: Site, browser: Browser, address: str) -> None:
    answer = browser.http.get(site.url + LOGIN, params={"cli": address, "challenge": "a" * 43})
    assert (answer.status_code, answer.json()["where"]) == (422, "cli")
    assert browser.http.get(site.url + LOGIN, params={"cli": "http://127.0.0.1:9/"}).json()["where"] == "challenge"


def test_a_session_is_made_new_at_each_login(site: Site, browser: Browser) -> None:
    """Session fixation. Breaks with: a cookie that was there before and is taken over."""
    browser.http.cookies.set("burnish_session", "brn_session_planted", domain="127.0.0.1")
    browser.log_in(site.url + LOGIN, "ada")
    first = [one.value for one in browser.http.cookies.jar if one.name == "burnish_session"][-1]
    assert first != "brn_session_planted"
    browser.http.cookies.clear()
    browser.http.cookies.set("burnish_session", str(first))
    assert browser.http.get(site.url + SESSION).status_code == 200
    browser.log_in(site.url + LOGIN, "ada")
    with Browser() as other:
        other.http.cookies.set("burnish_session", str(first))
        assert other.http.get(site.url + SESSION).status_code == 401, "the old one has ended"


def test_a_session_ends_when_it_is_not_used(site: Site, browser: Browser) -> None:
    with site.changed(session_seconds=1.0):
        browser.log_in(site.url + LOGIN, "ada")
        assert browser.http.get(site.url + SESSION).status_code == 200
        ends = datetime.fromisoformat(browser.http.get(site.url + SESSION).json()["expires_at"])
        wait_for(lambda: datetime.now(UTC) > ends, 5, "the session's time is over")  # asking would renew it
        wait_for(lambda: browser.http.get(site.url + SESSION).status_code == 401, 5, "the session has ended")
        answer = browser.log_in(site.url + LOGIN, "ada")  # with the ended one's cookie
        assert answer.status_code == 302


def test_groups_give_roles_and_take_them_away(site: Site, provider: Provider, browser: Browser) -> None:
    provider.set_user("bob", email="bob@example.org", email_verified=True, groups=["ops", "unknown"])
    browser.log_in(site.url + LOGIN, "bob")
    assert browser.http.get(site.url + SESSION).json()["roles"] == ["viewer"]
    given = {"subject": "bob@example.org", "role": "engineer", "project": "default"}
    assert site.ask("POST", "/platform/identity/bindings", given).status_code == 200
    provider.set_user("bob", email="bob@new.example.org", email_verified=True, groups=["ml"])
    browser.log_in(site.url + LOGIN, "bob")
    assert browser.http.get(site.url + SESSION).json()["roles"] == ["engineer"]
    provider.set_user("bob", email="bob@new.example.org", email_verified=True, groups=[])
    browser.log_in(site.url + LOGIN, "bob")
    assert browser.http.get(site.url + SESSION).json()["roles"] == ["engineer"], "an administrator gave it"
    user = site.ask("GET", "/platform/identity/users/bob@example.org").json()
    assert (user["email"], user["login"]) == ("bob@new.example.org", True)


def test_an_address_joins_nobody_to_a_user_who_was_there(site: Site, provider: Provider, browser: Browser) -> None:
    assert site.ask("POST", "/platform/identity/users", {"id": "carol@example.org"}).status_code == 200
    provider.set_user("impostor", email="carol@example.org", email_verified=True, groups=["ml"])
    browser.log_in(site.url + LOGIN, "impostor")
    subject = browser.http.get(site.url + SESSION).json()["subject"]
    assert re.fullmatch("user-[0-9a-f]{24}", subject)


def test_who_has_no_role_comes_in_and_may_nothing(site: Site, provider: Provider, browser: Browser) -> None:
    provider.set_user("dan", email="dan@example.org", email_verified=True)
    assert browser.log_in(site.url + LOGIN, "dan").status_code == 302
    assert browser.http.get(f"{site.url}/platform/workflows").status_code in {403, 404}
    assert browser.log_in(site.url + LOGIN, "dan").status_code == 302


def test_a_disabled_user_is_out_at_once_and_stays_out(site: Site, provider: Provider, browser: Browser) -> None:
    provider.set_user("eve", email="eve@example.org", email_verified=True, groups=["ml"])
    browser.log_in(site.url + LOGIN, "eve")
    assert browser.http.get(site.url + SESSION).status_code == 200
    assert site.ask("POST", "/platform/identity/users/eve@example.org/disable").status_code == 200
    wait_for(lambda: browser.http.get(site.url + SESSION).status_code == 401, 2, "the session ends")
    answer = browser.log_in(site.url + LOGIN, "eve")
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "lies",
    [Lies(claims={"nonce": "another"}), Lies(claims={"aud": "another"}), Lies(claims={"exp": 1_000_000_000})],
    ids=["nonce", "audience", "expired"],
)
def test_a_token_that_is_wrong_lets_nobody_in(site: Site, browser: Browser, lies: Lies) -> None:
    with lying_provider() as lying, site.changed(oidc__issuer=lying.url, oidc__client_id="burnish"):
        for expected in (302, 401):
            query = parse_qs(urlsplit(browser.to_provider(site.url + LOGIN)).query)
            link = f"{site.url}/platform/auth/callback?code={query['nonce'][0]}&state={query['state'][0]}"
            assert browser.http.get(link).status_code == expected
            lying.lies = lies
            browser.http.cookies.delete("burnish_session") if expected == 302 else None
    assert browser.http.cookies.get("burnish_session") is None


def test_a_provider_that_is_away_is_said_and_keys_go_on(site: Site, browser: Browser) -> None:
    with real_provider(require_registration=False) as other, site.changed(oidc__issuer=other.url):
        link = browser.consent(browser.to_provider(site.url + LOGIN), "ada")
        other.stop()
        answer = browser.http.get(link)
        assert answer.status_code == 503
        assert f"{other.url} does not answer" in answer.json()["detail"]
        assert answer.headers["retry-after"]
        assert site.ask("GET", "/platform/identity/me").status_code == 200
    with site.changed(oidc__issuer=other.url):
        site.set(oidc__issuer=f"{other.url}/x")  # nothing was read of this one
        answer = browser.http.get(site.url + LOGIN)
        assert (answer.status_code, answer.json()["where"]) == (503, "identity.oidc.issuer")


def test_the_secret_is_needed_and_stays_in(site: Site, browser: Browser, provider: Provider) -> None:
    assert provider.client_secret
    link = browser.consent(browser.to_provider(site.url + LOGIN), "ada")
    assert site.ask("PUT", "/platform/secrets/oidc", {"value": "wrong-secret-value"}).status_code == 200
    answer = browser.http.get(link)
    assert site.ask("PUT", "/platform/secrets/oidc", {"value": provider.client_secret}).status_code == 200
    assert (answer.status_code, answer.json()["hint"]) == (
        503,
        "check identity.oidc.client_id and identity.oidc.client_secret",
    )
    assert browser.log_in(site.url + LOGIN, "ada").status_code == 302
    log = site.server.log.read_text()
    assert provider.client_secret not in log
    assert str(browser.http.cookies.get("burnish_session")) not in log
    assert state_of(link) not in log


def test_a_page_logs_in_with_a_key(site: Site, browser: Browser) -> None:
    asked = {"name": "page", "subject": "administrator", "project": "default", "scopes": ["workflow:read", "key:write"]}
    made = site.ask("POST", "/platform/identity/keys", asked).json()
    login: Callable[..., httpx.Response] = lambda **headers: browser.http.post(  # noqa: E731
        site.url + SESSION, json={"key": made["key"]}, headers=headers
    )
    assert login(Origin="https://evil.example").status_code == 403
    assert login(**{"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert browser.http.post(site.url + SESSION, json={"key": "bk_no"}).status_code == 401
    assert browser.http.cookies.get("burnish_session") is None
    answer = login(Origin=site.url)
    assert answer.status_code == 200, answer.text
    assert answer.json()["subject"] == "administrator"
    assert browser.http.get(f"{site.url}/platform/workflows").status_code == 200
    refused = browser.http.get(f"{site.url}/platform/models")
    assert refused.status_code == 403
    assert "model:read" in refused.json()["detail"]
    refused = browser.http.get(f"{site.url}/platform/workflows", headers={"Burnish-Project": "other"})
    assert refused.status_code == 404, "the key is for one project"
    assert site.ask("DELETE", f"/platform/identity/keys/{made['id']}").status_code == 204
    wait_for(lambda: browser.http.get(site.url + SESSION).status_code == 401, 2, "it ends with its key")


def test_cookies_are_secure_behind_a_proxy_that_speaks_https(site: Site, browser: Browser) -> None:
    headers = {"X-Forwarded-Proto": "https"}
    answer = browser.http.get(site.url + LOGIN, headers=headers)
    assert "redirect_uri=https%3A%2F%2F127.0.0.1" in answer.headers["location"]
    assert "; Secure" in answer.headers["set-cookie"]
    with site.changed(public_url="https://burnish.example.org/"):
        location = browser.http.get(site.url + LOGIN).headers["location"]
    assert "redirect_uri=https%3A%2F%2Fburnish.example.org%2Fplatform%2Fauth%2Fcallback" in location


def test_the_openai_client_works_with_the_same_key(site: Site) -> None:
    import openai

    with openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key) as client:
        assert list(client.models.list()) == []
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="bk_no", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_the_home_keeps_no_key_and_no_token(site: Site, browser: Browser, tmp_path: Path) -> None:
    """What is stored of a session is a digest. Breaks with: the token in the row."""
    browser.log_in(site.url + LOGIN, "ada")
    token = str(browser.http.cookies.get("burnish_session")).encode()
    assert browser.http.get(site.url + SESSION).status_code == 200
    for path in site.server.home.glob("burnish.db*"):
        content = path.read_bytes()
        assert token not in content
        assert site.key.encode() not in content
