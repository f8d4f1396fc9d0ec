"""The OpenID Connect client against a provider that lies in one thing at a time."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import RSAKey

from burnish.core.configuration import Configuration, IdentityConfiguration, OidcConfiguration
from burnish.core.errors import NotFound, Unauthenticated, Unavailable
from burnish.platform.identity import oidc
from burnish.platform.identity.oidc import Attempt, Provider
from tests.support.oidc import Lies, LyingProvider, lying_provider

CALLBACK = "http://127.0.0.1:8000/platform/auth/callback"


@pytest.fixture
def lying() -> Iterator[LyingProvider]:
    with lying_provider() as provider:
        yield provider


@pytest.fixture
async def client(lying: LyingProvider) -> AsyncIterator[Provider]:
    provider = Provider(lambda: configured(lying.url))
    yield provider
    await provider.close()


def configured(issuer: str | None, **more: Any) -> Configuration:
    return Configuration(identity=IdentityConfiguration(oidc=OidcConfiguration(issuer=issuer, **more)))


def by_hand(header: dict[str, Any], claims: dict[str, Any], key: bytes | None) -> str:
    """Make a token that no library would: unsigned, or signed with a public key as if it were a shared secret."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = b"" if key is None else hmac.new(key, b".".join(parts), hashlib.sha256).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


async def finish(client: Provider, attempt: Attempt | None = None) -> oidc.Identity:
    attempt = attempt or await client.begin(CALLBACK)
    return await client.finish(attempt, attempt.nonce)


async def test_the_browser_is_sent_with_pkce_state_and_nonce(client: Provider, lying: LyingProvider) -> None:
    attempt = await client.begin(CALLBACK)
    query = {name: values[0] for name, values in parse_qs(urlsplit(attempt.url).query).items()}
    assert attempt.url.startswith(f"{lying.url}/authorize?")
    assert query["response_type"] == "code"
    assert query["redirect_uri"] == CALLBACK
    assert query["scope"] == "openid email profile"
    assert (query["state"], query["nonce"]) == (attempt.state, attempt.nonce)
    assert query["code_challenge_method"] == "S256"
    assert attempt.verifier not in attempt.url
    again = await client.begin(CALLBACK)
    assert not {again.state, again.nonce, again.verifier} & {attempt.state, attempt.nonce, attempt.verifier}


async def test_a_right_token_names_the_user(client: Provider, lying: LyingProvider) -> None:
    attempt = await client.begin(CALLBACK)
    found = await finish(client, attempt)
    assert (found.issuer, found.subject, found.email) == (lying.url, "ada", "ada@example.org")
    sent = parse_qs(lying.tokens[0].body.decode())
    assert sent["code_verifier"] == [attempt.verifier]
    assert sent["client_id"] == ["burnish"]
    assert "authorization" not in lying.tokens[0].headers


@pytest.mark.parametrize(
    ("lies", "what"),
    [
        (Lies(claims={"nonce": "another"}), "nonce"),
        (Lies(without=("nonce",)), "nonce"),
        (Lies(claims={"aud": "someone-else"}), "aud"),
        (Lies(claims={"aud": ["burnish", "someone-else"]}), "azp"),
        (Lies(claims={"azp": "someone-else"}), "azp"),
        (Lies(without=("aud",)), "aud"),
        (Lies(claims={"iss": "https://evil.example"}), "iss"),
        (Lies(claims={"exp": int(time.time()) - 120}), "expired"),
        (Lies(without=("exp",)), "exp"),
        (Lies(claims={"exp": "tomorrow"}), "exp"),
        (Lies(claims={"iat": int(time.time()) + 600}), "in the future"),
        (Lies(claims={"sub": ""}), "sub"),
        (Lies(claims={"sub": 7}), "sub"),
        (Lies(without=("sub",)), "sub"),
        (Lies(id_token=lambda _: "not.a.token"), "id token"),
        (Lies(id_token=lambda claims: by_hand({"alg": "none", "kid": "one"}, claims, None)), "lgorithm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
async def test_a_token_that_is_wrong_in_one_thing_lets_nobody_in(
    client: Provider, lying: LyingProvider, lies: Lies, what: str
) -> None:
    lying.lies = lies
    with pytest.raises(Unauthenticated, match=what):
        await finish(client)


async def test_the_clock_may_differ_by_a_minute(client: Provider, lying: LyingProvider) -> None:
    lying.lies = Lies(claims={"exp": int(time.time()) - 50, "iat": int(time.time()) - 350})
    assert (await finish(client)).subject == "ada"


async def test_a_token_signed_by_another_key_lets_nobody_in(client: Provider, lying: LyingProvider) -> None:
    lying.key = RSAKey.generate_key(2048, {"kid": "one"})  # it claims to be the published one
    with pytest.raises(Unauthenticated, match="signature"):
        await finish(client)


async def test_a_public_key_is_no_shared_secret(client: Provider, lying: LyingProvider) -> None:
    """Breaks with: algorithms that the token chooses (HS256 over the published RSA key)."""
    shared = lying.key.as_pem(private=False)
    lying.lies = Lies(
        id_token=lambda claims: by_hand({"alg": "HS256", "kid": "one"}, claims, shared),
        metadata={"id_token_signing_alg_values_supported": ["RS256", "HS256"]},
    )
    with pytest.raises(Unauthenticated, match="lgorithm"):
        await finish(client)


async def test_keys_are_read_again_for_one_that_is_unknown(client: Provider, lying: LyingProvider) -> None:
    await finish(client)
    await finish(client)
    assert lying.server is not None
    assert lying.server.paths().count("GET /jwks") == 1
    lying.rotate()
    assert (await finish(client)).subject == "ada"
    assert lying.server.paths().count("GET /jwks") == 2
    lying.lies = Lies(header={"kid": "three"})
    with pytest.raises(Unauthenticated):
        await finish(client)
    assert lying.server.paths().count("GET /.well-known/openid-configuration") == 1


async def test_a_code_that_is_refused_is_ours_to_say(client: Provider, lying: LyingProvider) -> None:
    lying.lies = Lies(token_status=400)
    with pytest.raises(Unauthenticated, match="invalid_grant"):
        await finish(client)
    lying.lies = Lies(token_status=401, token_error="invalid_client")
    with pytest.raises(Unavailable, match="client 'burnish'") as caught:
        await finish(client)
    assert "identity.oidc.client_secret" in str(caught.value.hint)
    lying.lies = Lies(token_status=502)
    with pytest.raises(Unavailable, match="502"):
        await finish(client)


@pytest.mark.parametrize(
    ("lies", "what"),
    [
        (Lies(metadata={"issuer": "https://evil.example"}), "says that it is 'https://evil.example'"),
        (Lies(metadata={"token_endpoint": "http://evil.example/token"}), "not https"),
        (Lies(metadata={"jwks_uri": None}), "discovery document"),
        (Lies(metadata={"id_token_signing_alg_values_supported": ["HS256"]}), "signs id tokens"),
        (Lies(discovery_status=500), "status 500"),
    ],
    ids=["issuer", "http", "no-keys", "hs256", "500"],
)
async def test_a_provider_that_is_not_to_be_trusted_is_unavailable(
    client: Provider, lying: LyingProvider, lies: Lies, what: str
) -> None:
    lying.lies = lies
    with pytest.raises(Unavailable, match=what):
        await client.begin(CALLBACK)


async def test_a_provider_that_is_away_is_unavailable_and_says_so() -> None:
    with lying_provider() as provider:
        url = provider.url
    client = Provider(lambda: configured(url))
    with pytest.raises(Unavailable, match=f"{url} does not answer") as caught:
        await client.begin(CALLBACK)
    assert "keys go on working" in str(caught.value.hint)
    await client.close()


async def test_what_the_provider_said_is_used_while_it_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "KEPT_SECONDS", 0.0)
    with lying_provider() as provider:
        client = Provider(lambda: configured(provider.url))
        await client.begin(CALLBACK)
    assert (await client.begin(CALLBACK)).state
    await client.close()


async def test_no_provider_and_an_unsafe_one() -> None:
    with pytest.raises(NotFound, match="no login provider"):
        await Provider(lambda: configured(None)).begin(CALLBACK)
    with pytest.raises(Unavailable, match="not https"):
        await Provider(lambda: configured("http://login.example.org")).begin(CALLBACK)


async def test_the_secret_is_resolved_at_use_and_sent_as_the_provider_wants(lying: LyingProvider) -> None:
    asked: list[str] = []

    async def resolve(reference: str) -> str:
        asked.append(reference)
        return "s3cr3t"

    client = Provider(lambda: configured(lying.url, client_secret="secret://oidc"), resolve)
    attempt = await client.begin(CALLBACK)
    assert asked == []
    await finish(client, attempt)
    assert asked == ["secret://oidc"]
    assert lying.tokens[-1].headers["authorization"].startswith("Basic ")
    await client.close()
    lying.lies = Lies(metadata={"token_endpoint_auth_methods_supported": ["client_secret_post"]})
    client = Provider(lambda: configured(lying.url, client_secret="secret://oidc"), resolve)
    await finish(client)
    assert parse_qs(lying.tokens[-1].body.decode())["client_secret"] == ["s3cr3t"]
    await client.close()


async def test_groups_may_stand_deep_or_at_the_userinfo_endpoint(lying: LyingProvider) -> None:
    client = Provider(lambda: configured(lying.url, roles_claim="realm_access.roles"))
    lying.lies = Lies(claims={"realm_access": {"roles": ["ml", "ml", 7, "ops"]}})
    assert (await finish(client)).groups == ("ml", "ops")
    lying.lies = Lies(userinfo={"realm_access": {"roles": "ml"}, "email": "other@example.org"})
    found = await finish(client)
    assert (found.groups, found.email) == (("ml",), "ada@example.org")
    lying.lies = Lies(userinfo={"sub": "eve", "realm_access": {"roles": ["ops"]}})
    assert (await finish(client)).groups == ()
    await client.close()


async def test_an_address_that_is_not_verified_is_not_taken(client: Provider, lying: LyingProvider) -> None:
    lying.lies = Lies(claims={"email_verified": False})
    assert (await finish(client)).email is None


@pytest.mark.parametrize(
    ("claims", "verified"), [({}, False), ({"email_verified": True}, True), ({"email_verified": "true"}, False)]
)
async def test_only_what_the_provider_says_is_verified_is(
    client: Provider, lying: LyingProvider, claims: dict[str, object], verified: bool
) -> None:
    lying.lies = Lies(claims=claims, userinfo={"email": "other@example.org", "email_verified": True})
    found = await finish(client)
    assert (found.email, found.email_verified) == ("ada@example.org", verified)


async def test_that_one_address_is_verified_says_nothing_of_another(lying: LyingProvider) -> None:
    """Breaks with: claims of the id token and of the userinfo endpoint mixed one by one."""
    client = Provider(lambda: configured(lying.url, roles_claim="groups"))
    lying.lies = Lies(userinfo={"email": "other@example.org", "email_verified": True, "groups": ["ml"]})
    found = await finish(client)
    assert (found.email, found.email_verified, found.groups) == ("ada@example.org", False, ("ml",))
    await client.close()
