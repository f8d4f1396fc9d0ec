"""The public contract of identity."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

ROLE_NAMES = Literal["viewer", "engineer", "administrator"]
PROJECT_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
SUBJECT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,199}$"
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"
_AT = "2026-11-24T12:00:00Z"

ProjectId = Annotated[str, Field(pattern=PROJECT_PATTERN, description="Stands in every object of the project")]
SubjectId = Annotated[str, Field(pattern=SUBJECT_PATTERN, description="A name or an address; never changes")]
Text = Annotated[str, Field(max_length=255, pattern=_PRINTABLE)]


def _example(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(frozen=True, json_schema_extra={"examples": [example]})


class _Asked(BaseModel):
    """Base of bodies: an unknown field is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_PROJECT = {"id": "ml-team", "display_name": "Machine learning", "created_at": _AT, "created_by": "ada"}


class NewProject(_Asked):
    """A project to make."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": [{"id": "ml-team"}]})

    id: ProjectId
    display_name: Text = ""


class ProjectView(BaseModel):
    """A project."""

    model_config = _example(_PROJECT)

    id: str
    display_name: str
    created_at: datetime
    created_by: str


class NewSubject(_Asked):
    """A user or a service account to make."""

    model_config = ConfigDict(
        frozen=True, extra="forbid",
        json_schema_extra={"examples": [{"id": "ada", "display_name": "Ada", "email": "ada@example.org"}]},
    )  # fmt: skip

    id: SubjectId
    display_name: Text = ""
    email: Text | None = None


class SubjectView(BaseModel):
    """A user or a service account."""

    model_config = _example(
        {"id": "ada", "kind": "user", "project_id": None, "display_name": "Ada", "email": "ada@example.org",
         "login": False, "created_at": _AT, "created_by": "administrator", "disabled_at": None}
    )  # fmt: skip

    id: str
    kind: Literal["user", "service_account"]
    project_id: str | None = Field(default=None, description="The project that owns the service account")
    display_name: str
    email: str | None = None
    login: bool = Field(description="Whether they have logged in by a provider")
    created_at: datetime
    created_by: str
    disabled_at: datetime | None = None


class NewBinding(_Asked):
    """A role to give."""

    model_config = ConfigDict(
        frozen=True, extra="forbid",
        json_schema_extra={"examples": [{"subject": "ada", "project": "ml-team", "role": "engineer"}]},
    )  # fmt: skip

    subject: SubjectId
    role: ROLE_NAMES
    project: str | None = Field(
        default=None, pattern=r"^([a-z0-9][a-z0-9_-]{0,62}|\*)$",
        description="The project; `*` is every project; the caller's own by default",
    )  # fmt: skip


class BindingView(BaseModel):
    """A role that a subject has."""

    model_config = _example(
        {"id": "bnd_01k9zq7d3x8m2v5n0c4r6t1y", "subject": "ada", "project": "ml-team", "role": "engineer",
         "source": "given", "created_at": _AT, "created_by": "administrator"}
    )  # fmt: skip

    id: str
    subject: str
    project: str
    role: str
    source: str = Field(description="`given` by an administrator, or `oidc`: by the login provider's claims")
    created_at: datetime
    created_by: str


class InstanceOf(_Asked):
    """Which instance a credential is for."""

    component_id: str = Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")
    component_type: str = Field(min_length=1, max_length=100, pattern=r"^[a-z][a-z0-9_]*$")


class NewKeyRequest(_Asked):
    """A key to mint."""

    model_config = ConfigDict(
        frozen=True, extra="forbid",
        json_schema_extra={"examples": [{"name": "laptop", "scopes": ["workflow:run", "workflow:read"], "days": 90}]},
    )  # fmt: skip

    name: Text = ""
    subject: SubjectId | None = Field(
        default=None,
        description="Whose it is; the caller's own by default. A user's, or of an account of another project, needs "
        "`identity:write` in all projects",
    )
    project: str | None = Field(
        default=None, pattern=r"^([a-z0-9][a-z0-9_-]{0,62}|\*)$",
        description="The one project in which it may be used; `*`: every one in which its owner has a role; "
        "the caller's present one by default",
    )  # fmt: skip
    scopes: tuple[str, ...] | None = Field(
        default=None,
        max_length=100,
        description="The permissions that it is limited to. By default a key of one's own has those of the credential that "
        "was shown (without a limit: whatever its owner's roles allow, later ones too); one for somebody else those that "
        "its owner has there now",
    )
    days: float | None = Field(default=None, gt=0, le=36_500, description="How long it lives; see `identity.key_days`")
    component: InstanceOf | None = Field(default=None, description="Makes it the credential of this one instance")


class RotateRequest(_Asked):
    """How to rotate a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra={"examples": [{"overlap_seconds": 3600}]})

    overlap_seconds: float = Field(default=3600, ge=0, le=30 * 86_400, description="How long the old key still works")


_KEY: dict[str, Any] = {
    "id": "key_01k9zq7d3x8m2v5n0c4r6t1y", "prefix": "a8k2m4p6r0t1", "name": "laptop", "subject": "ada",
    "project": "ml-team", "scopes": None, "created_at": _AT, "created_by": "ada", "expires_at": None,
    "last_used_at": _AT, "revoked_at": None, "rotated_from": None, "component_id": None, "component_type": None,
}  # fmt: skip


class KeyView(BaseModel):
    """A key, without its secret."""

    model_config = _example(_KEY)

    id: str
    prefix: str = Field(description="What its text begins with, after `bk_`")
    name: str
    subject: str
    project: str
    scopes: tuple[str, ...] | None = None
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None
    rotated_from: str | None = None
    component_id: str | None = None
    component_type: str | None = None


class MintedKey(KeyView):
    """A new key with its secret, which is shown this once."""

    model_config = _example({**_KEY, "last_used_at": None, "key": "bk_a8k2m4p6r0t1_..."})

    key: str | None = Field(
        default=None, description="The whole key. Keep it now: it is shown once; null when the request is sent again"
    )


class ProjectAccess(BaseModel):
    """What the caller may do in one project."""

    model_config = ConfigDict(frozen=True)

    project: str
    roles: tuple[str, ...]
    permissions: tuple[str, ...]


class Me(BaseModel):
    """Who calls, and what they may do where."""

    model_config = _example(
        {"subject": "ada", "kind": "user", "display_name": "Ada", "project": "ml-team", "credential": "key_01k9zq7d3x8m2v5n0c4r6t1y",
         "permissions": ["model:read", "workflow:read"], "everywhere": [],
         "projects": [{"project": "ml-team", "roles": ["viewer"], "permissions": ["model:read", "workflow:read"]}]}
    )  # fmt: skip

    subject: str
    kind: str
    display_name: str
    project: str = Field(description="The project that this request was for")
    credential: str | None = None
    permissions: tuple[str, ...] = Field(description="In that project, with this credential")
    everywhere: tuple[str, ...] = Field(description="Roles in every project")
    projects: tuple[ProjectAccess, ...] = Field(description="The projects in which they have a role of their own")


class AuditEntry(BaseModel):
    """One entry of the audit log."""

    model_config = _example(
        {"number": 41, "at": _AT, "actor": "ada", "credential": "key_01k9zq7d3x8m2v5n0c4r6t1y", "project_id": "ml-team",
         "action": "workflow:run", "object_id": "wf_01k9zq7d3x8m2v5n0c4r6t1x", "route": "POST /platform/workflows/run",
         "request_id": "req_01k9zq7d3x8m2v5n0c4r6t1z", "details": {}, "previous": "0" * 64, "hash": "9b1c3d5e" * 8}
    )  # fmt: skip

    number: int
    at: datetime
    actor: str
    credential: str | None = None
    project_id: str
    action: str
    object_id: str
    route: str
    request_id: str | None = None
    details: dict[str, JsonValue]
    previous: str
    hash: str


class AuditProblem(BaseModel):
    """One place where the audit log is not what was written."""

    model_config = ConfigDict(frozen=True)

    number: int
    what: Literal["changed", "removed", "inserted", "cut", "unsealed"]
    message: str


class AuditVerdict(BaseModel):
    """What a check of the whole audit log found."""

    model_config = _example({"ok": True, "entries": 41, "head": "9b1c3d5e" * 8, "problems": []})

    ok: bool
    entries: int
    head: str = Field(description="Hash of the last entry; kept elsewhere, it proves that none was cut off since")
    problems: tuple[AuditProblem, ...]


class KeySet(BaseModel):
    """A JSON Web Key Set."""

    model_config = _example(
        {"keys": [{"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "2ZkS...", "x": "11qY..."}]}
    )

    keys: tuple[dict[str, str], ...]
